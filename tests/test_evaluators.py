"""What nodes compute from constants: as onnx's reference evaluator has it, and folded like weights that are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold.frontends.onnx.constants import Constants
from tests.test_decomposed import all_gone
from tests.test_rules import Net

RNG = np.random.default_rng(7)
X = RNG.normal(0.3, 1.5, (2, 3, 4)).astype(np.float32)
Y = RNG.normal(-0.2, 1.0, (3, 1)).astype(np.float32)
FLAGS = RNG.random((2, 3, 4)) < 0.5
INTS = RNG.integers(-5, 6, (2, 3, 4))
AXES = np.array([0, -1])
SCALES = np.array([0.01, 0.02, 0.03], np.float32)
CASES: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "sign": ("Sign", [X], {}, 17),
    "floor": ("Floor", [X], {}, 17),
    "ceil": ("Ceil", [X], {}, 17),
    "relu": ("Relu", [X], {}, 17),
    "clip": ("Clip", [X, np.float32(-0.5), np.float32(0.7)], {}, 17),
    "clip_above": ("Clip", [X, None, np.float32(0.7)], {}, 17),
    "clip_of_opset_6": ("Clip", [X], {"min": -0.5}, 9),
    "split": ("Split", [X, np.array([1, 3])], {"axis": -1}, 17),
    "split_of_opset_11": ("Split", [X], {"axis": 2, "split": [3, 1]}, 11),
    "split_evenly": ("Split", [X], {"axis": 0}, 17),
    "split_unevenly": ("Split", [X], {"axis": 1, "num_outputs": 2}, 18),
    "matmul": ("MatMul", [X, RNG.normal(size=(4, 5)).astype(np.float32)], {}, 17),
    "range": ("Range", [np.int64(3), np.int64(-4), np.int64(-2)], {}, 17),
    "range_of_floats": ("Range", [np.float32(1), np.float32(2), np.float32(0.3)], {}, 17),
    "where": ("Where", [FLAGS, X, Y], {}, 17),
    "equal": ("Equal", [INTS, np.array([0, 1, 2, 3])], {}, 17),
    "greater": ("Greater", [X, Y], {}, 17),
    "less": ("Less", [X, Y], {}, 17),
    "not": ("Not", [FLAGS], {}, 17),
    "and": ("And", [FLAGS, ~FLAGS[:1]], {}, 17),
    "or": ("Or", [FLAGS, FLAGS[1]], {}, 17),
    "quantize": ("QuantizeLinear", [X, np.float32(0.02)], {}, 17),
    "quantize_each": ("QuantizeLinear", [X, SCALES, np.array([-3, 0, 9], np.int8)], {"axis": 1}, 17),
    "mean": ("ReduceMean", [X], {"axes": [-1, 0], "keepdims": 0}, 17),
    "mean_of_opset_18": ("ReduceMean", [X, AXES], {}, 18),
    "mean_of_all": ("ReduceMean", [X], {}, 18),
    "mean_of_nothing": ("ReduceMean", [X], {"noop_with_empty_axes": 1}, 18),
    "sum": ("ReduceSum", [X, AXES], {"keepdims": 0}, 17),
    "prod": ("ReduceProd", [INTS], {"axes": [1]}, 17),
    "max": ("ReduceMax", [X], {"axes": [1]}, 17),
    "min": ("ReduceMin", [INTS], {"axes": [0]}, 17),
    "squares": ("ReduceSumSquare", [X], {"axes": [1, 2]}, 17),
    "length": ("ReduceL2", [X], {"axes": [0, 1]}, 17),
    "distance": ("ReduceL1", [X], {"axes": [2], "keepdims": 0}, 17),
}


@pytest.mark.parametrize("case", CASES)
def test_a_constant_is_what_the_node_computes(case: str) -> None:
    op, inputs, attrs, opset = CASES[case]
    names = ["" if value is None else f"i{k}" for k, value in enumerate(inputs)]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    tensors = [numpy_helper.from_array(v, name) for v, name in zip(inputs, names, strict=True) if v is not None]
    ends = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    graph = helper.make_graph([helper.make_node(op, names, outputs, **attrs)], "g", [], ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    constants = Constants(model, {})
    for name, expected in zip(outputs, ReferenceEvaluator(model).run(None, {}), strict=True):
        assert name in constants
        made = constants.value(name)
        assert (made.dtype, made.shape) == (np.asarray(expected).dtype, np.shape(expected))
        np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_a_weight_that_is_normalised_folds() -> None:
    """g * v / |v|, as weight norm is exported."""
    n = Net(2, 3, 5, 5)
    v = n.w(n.rng.standard_normal((4, 3, 3, 3)))
    direction = n.op("Div", v, n.op("ReduceL2", v, axes=[1, 2, 3]))
    weight = n.op("Mul", direction, n.w(n.rng.uniform(0.5, 2.0, (4, 1, 1, 1))))
    model = n.model(n.op("Relu", n.bn(n.op("Conv", "x", weight, n.w(n.rng.normal(size=4))), 4)))
    assert bnfold.inspect(model).counts()["folded"] == 1
    all_gone(model)


def test_a_sum_with_a_constant_is_an_add() -> None:
    n = Net(2, 3, 5, 5)
    y = n.op("Mul", n.conv("x", 3, 4, bias=True), n.w(n.rng.normal(size=(4, 1, 1))))
    model = n.model(n.op("Relu", n.op("Sum", n.w(n.rng.normal(size=(1, 4, 1, 1))), y)))
    assert bnfold.inspect(model).counts()["folded"] == 2
    all_gone(model)


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_constant_that_was_expanded_to_the_shape_of_the_data(op: str) -> None:
    n = Net(2, 3, 5, 5)
    wide = n.op("Expand", n.w(n.rng.normal(size=(4, 1, 1))), n.w([2, 4, 5, 5], np.int64))
    model = n.model(n.op("Relu", n.op(op, n.conv("x", 3, 4, bias=True), wide)))
    assert bnfold.inspect(model).counts()["folded"] == 1
    all_gone(model)
