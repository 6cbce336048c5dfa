"""The worked example of docs/how-it-works.md: two pre-activation blocks with one channel, folded and checked.

python docs/examples/preactivation.py
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold

NORMS = {  # gamma, beta, mean, var; eps is 0
    "bn1": (1.0, 3.0, 1.0, 0.25),
    "bn2": (2.0, -1.0, 2.0, 4.0),
    "bn3": (0.5, 1.0, 0.0, 0.25),
}
CONVS = {"stem": 2.0, "conv1": 0.5, "conv2": -1.0, "head": 3.0}


def network() -> onnx.ModelProto:
    """x0 = stem(x); x1 = x0 + conv1(relu(bn1(x0))); x2 = x1 + conv2(relu(bn2(x1))); y = head(relu(bn3(x2)))."""
    nodes, weights = [], []

    def constant(name: str, value: object) -> str:
        weights.append(numpy_helper.from_array(np.array(value, np.float64), name))
        return name

    def conv(x: str, name: str) -> str:
        weight = constant(f"{name}.weight", [[[[CONVS[name]]]]])
        nodes.append(helper.make_node("Conv", [x, weight], [f"{name}.out"], name=name))
        return f"{name}.out"

    def norm_relu(x: str, name: str) -> str:
        inputs = [constant(f"{name}.{part}", [v]) for part, v in zip(("g", "b", "m", "v"), NORMS[name], strict=True)]
        nodes.append(helper.make_node("BatchNormalization", [x, *inputs], [f"{name}.out"], name=name, epsilon=0.0))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"{name}.relu"))
        return f"{name}.relu"

    stream = conv("x", "stem")
    for block in ("1", "2"):
        branch = conv(norm_relu(stream, f"bn{block}"), f"conv{block}")
        nodes.append(helper.make_node("Add", [stream, branch], [f"x{block}"], name=f"add{block}"))
        stream = f"x{block}"
    result = conv(norm_relu(stream, "bn3"), "head")
    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, 1, 1, 1]) for n in ("x", result)]
    graph = helper.make_graph(nodes, "example", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def value(model: onnx.ModelProto, x: float) -> float:
    """The output of a model for one input."""
    (y,) = ReferenceEvaluator(model).run(None, {"x": np.full((1, 1, 1, 1), x)})
    return float(np.ravel(y)[0])


def main() -> None:
    """Fold, print the plan and the folded weights, and evaluate both networks."""
    model = network()
    result = bnfold.fold(model, verify=False)
    print(result.plan)
    tensors = {t.name: numpy_helper.to_array(t).ravel()[0] for t in result.model.graph.initializer}
    for node in result.model.graph.node:
        if node.op_type == "Conv":
            bias = tensors[node.input[2]] if len(node.input) > 2 else 0.0
            print(f"{node.name}: weight {tensors[node.input[1]]:g}, bias {bias:g}")
    for x in (1.0, -1.0, 0.25):
        print(f"x = {x:g}: original {value(model, x):g}, folded {value(result.model, x):g}")


if __name__ == "__main__":
    main()
