"""What folding costs in precision under hostile statistics, with the precision guard and without.

    python -m benchmarks.precision

A twentieth of the channels of every batch norm gets a gamma, or a gamma and a deviation, that is 10^k times smaller.
Printed is the rms error of the folded float32 model against float64, over that of the original float32 model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

import bnfold
from tests.evaluate import evaluate
from tests.zoo import ZOO

SHARE = 0.05
Array = npt.NDArray[Any]


def hostile(name: str, kind: str, k: int) -> onnx.ModelProto:
    """A network of the zoo in float32 with some statistics made small."""
    model = ZOO[name](dtype=np.float32, seed=0)
    rng = np.random.default_rng(0)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        gamma, var = (numpy_helper.to_array(tensors[node.input[i]]).copy() for i in (1, 4))
        chosen = rng.random(gamma.size) < SHARE
        gamma[chosen] *= 10.0**-k
        if kind == "gamma and deviation":
            var[chosen] *= 10.0 ** (-2 * k)
        for i, value in ((1, gamma), (4, var)):
            tensors[node.input[i]].CopyFrom(numpy_helper.from_array(value, node.input[i]))
    return model


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers in float64: what the float32 model would give without rounding."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    constants = [a.t for node in wide.graph.node for a in node.attribute if a.name == "value"]
    for tensor in [*wide.graph.initializer, *constants]:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value_info in (*wide.graph.input, *wide.graph.output):
        value_info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return wide


def ratio(model: onnx.ModelProto, limit: float, merge: bool = False) -> tuple[float, int]:
    """Error of the folded model over the original's own, and how many norms are gone without a trace."""
    result = bnfold.fold(model, verify=False, precision_limit=limit, merge=merge)
    value = model.graph.input[0]
    shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    truth = evaluate(widened(model), **{value.name: x.astype(np.float64)})[0]
    own, folded = (_rms(evaluate(m, **{value.name: x})[0] - truth) for m in (model, result.model))
    return folded / own, result.plan.counts()["folded"]


def _rms(error: Array) -> float:
    return float(np.sqrt(np.mean(error**2)))


def main() -> None:
    """Print the table of docs/precision.md."""
    limits = {"none": float("inf"), "128": 128.0, "32 (default)": 32.0, "8": 8.0}
    print("| network | smaller | by | " + " | ".join(f"limit {name}" for name in limits) + " |")
    print("|---|---|--:|" + "--:|" * len(limits))
    for name in ("resnetv2_50", "densenet121", "repvgg_a0", "resnet50"):
        for kind in ("gamma", "gamma and deviation"):
            for k in (1, 2, 3, 4, 6):
                model = hostile(name, kind, k)
                cells = [f"{r:.2f} ({n})" for r, n in (ratio(model, limit) for limit in limits.values())]
                print(f"| {name} | {kind} | 1e{k} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
