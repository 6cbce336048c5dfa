"""The worked example of docs/merging.md: three branches of one tensor, folded and merged into one convolution.

python docs/examples/merging.py
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold.onnx.merging.merge import merge

CONSTANTS = {
    "wide.weight": [[[1.0, 2.0, -1.0]]], "wide.bias": [0.5], "point.weight": [[[3.0]]], "point.bias": [1.0],
    "gamma": [1.0], "beta": [-1.5], "mean": [1.0], "var": [4.0],
}  # fmt: skip


def network() -> onnx.ModelProto:
    """y = relu(wide(x) + point(x) + norm(x)) over one channel of three pixels."""
    nodes = [
        helper.make_node("Conv", ["x", "wide.weight", "wide.bias"], ["a"], "wide", pads=[1, 1]),
        helper.make_node("Conv", ["x", "point.weight", "point.bias"], ["b"], "point"),
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["c"], "norm", epsilon=0.0),
        helper.make_node("Add", ["a", "b"], ["ab"], "add1"),
        helper.make_node("Add", ["ab", "c"], ["abc"], "add2"),
        helper.make_node("Relu", ["abc"], ["y"], "relu"),
    ]
    tensors = [numpy_helper.from_array(np.array(value), name) for name, value in CONSTANTS.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, 1, 3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "example", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    """Print the layer that is left, and the outputs of both networks."""
    model = network()
    found = merge(bnfold.fold(model, verify=False).model)
    made = found.applied.complete()
    for node in made.graph.node:
        print(node.op_type, node.name)
    for tensor in made.graph.initializer:
        print(f"{tensor.name}: {numpy_helper.to_array(tensor).ravel().tolist()}")
    for candidate in found.candidates:
        before, after = candidate.multiplications
        print(f"{candidate.into}: {before} multiplications before, {after} after")
    x = np.array([[[1.0, 2.0, 3.0]]])
    for name, network_ in (("original", model), ("merged", made)):
        (y,) = ReferenceEvaluator(network_).run(None, {"x": x})
        print(f"{name}: {np.asarray(y).ravel().tolist()}")


if __name__ == "__main__":
    main()
