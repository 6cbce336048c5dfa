"""The fast operators of the float64 reference give what onnx's own give, and what onnxruntime gives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold.judge.subjects.reference import OPERATORS, operators
from bnfold.judge.subjects.runners import ReferenceRunner


def model(op: str, shape: tuple[int, ...], weights: list[npt.NDArray[Any]], **attributes: Any) -> ModelProto:
    names = [f"w{i}" for i in range(len(weights))]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None))]
    tensors = [numpy_helper.from_array(w.astype(np.float32), n) for w, n in zip(weights, names, strict=True)]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def cases() -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for dims, groups, stride, dilation in product((1, 2, 3), (1, 2, 4), (1, 2), (1, 2)):
        shape, kernel = (2, 4, *(9, 8, 7)[:dims]), (3, 2, 3)[:dims]
        common = {"group": groups, "strides": [stride] * dims, "dilations": [dilation] * dims}
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            if dilation == 1:
                yield "Conv", shape, [rng.standard_normal((8, 4 // groups, *kernel))], {**common, "auto_pad": auto}
        pads = [1, 2, 1][:dims] + [0, 1, 2][:dims]
        yield "Conv", shape, [rng.standard_normal((8, 4 // groups, *kernel)), rng.standard_normal(8)], {
            **common, "pads": pads}  # fmt: skip
        yield "ConvTranspose", shape, [rng.standard_normal((4, 3, *kernel)), rng.standard_normal(3 * groups)], {
            **common, "pads": pads, "output_padding": [stride - 1] * dims}  # fmt: skip
        if groups == 1:
            window = {"kernel_shape": list(kernel), "strides": [stride] * dims}
            yield "MaxPool", shape, [], {**window, "dilations": [dilation] * dims, "pads": [1] * 2 * dims}
            yield "MaxPool", shape, [], {**window, "ceil_mode": 1}
            for counted in (0, 1):
                yield "AveragePool", shape, [], {**window, "pads": [1] * 2 * dims, "count_include_pad": counted}


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c[0]}{len(c[1]) - 2}d" if isinstance(c, tuple) else None)
def test_as_in_onnxruntime(case: Any) -> None:
    op, shape, weights, attributes = case
    made = model(op, shape, weights, **attributes)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    found = ReferenceRunner(made).run({"x": x})["y"]
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_evaluators_share_no_list_of_operators() -> None:
    """onnx adds operators of its own to the list that it is given."""
    operators(17).clear()
    assert operators(17) == operators(17) == OPERATORS
    assert operators(17) is not OPERATORS
