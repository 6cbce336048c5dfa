"""What nodes compute from constants: as onnx's reference evaluator has it, and folded like weights that are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold.onnx.read.constants import Constants
from bnfold.onnx.read.evaluators import EVALUATORS, evaluable
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
    "constant_float": ("Constant", [], {"value_float": 0.5}, 17),
    "constant_floats": ("Constant", [], {"value_floats": [0.5, -2.0]}, 17),
    "constant_int": ("Constant", [], {"value_int": 7}, 17),
    "constant_ints": ("Constant", [], {"value_ints": [7, -1]}, 17),
    "constant_of_shape": ("ConstantOfShape", [np.array([2, 3])], {}, 17),
    "constant_of_shape_and_value": (
        "ConstantOfShape",
        [np.array([2])],
        {"value": numpy_helper.from_array(np.array([3], np.int32))},
        17,
    ),
    "cast_to_int": ("Cast", [X], {"to": TensorProto.INT32}, 17),
    "cast_to_bool": ("Cast", [INTS], {"to": TensorProto.BOOL}, 17),
    "cast_to_half": ("Cast", [X], {"to": TensorProto.FLOAT16}, 17),
    "dequantize": ("DequantizeLinear", [INTS.astype(np.int8), np.float32(0.02), np.int8(-3)], {}, 19),
    "dequantize_each": (
        "DequantizeLinear",
        [INTS.astype(np.uint8), SCALES, np.array([1, 2, 3], np.uint8)],
        {"axis": -2},
        19,
    ),
    "identity": ("Identity", [X], {}, 17),
    "expand": ("Expand", [Y, np.array([2, 1, 4])], {}, 17),
    "expand_less": ("Expand", [X, np.array([4])], {}, 17),
    "transpose": ("Transpose", [X], {}, 17),
    "transpose_perm": ("Transpose", [X], {"perm": [1, 2, 0]}, 17),
    "reshape": ("Reshape", [X, np.array([0, -1])], {}, 17),
    "reshape_of_nothing": ("Reshape", [X[:0], np.array([0, 5])], {"allowzero": 1}, 17),
    "flatten": ("Flatten", [X], {}, 17),
    "flatten_0": ("Flatten", [X], {"axis": 0}, 17),
    "flatten_2": ("Flatten", [X], {"axis": -1}, 17),
    "unsqueeze": ("Unsqueeze", [X, np.array([0, -1])], {}, 17),
    "unsqueeze_of_opset_11": ("Unsqueeze", [X], {"axes": [1]}, 11),
    "squeeze": ("Squeeze", [Y], {}, 17),
    "squeeze_last": ("Squeeze", [Y, np.array([-1])], {}, 17),
    "squeeze_of_opset_11": ("Squeeze", [Y], {"axes": [1]}, 11),
    "concat": ("Concat", [X, X[:1]], {"axis": 0}, 17),
    "concat_last": ("Concat", [X, X], {"axis": -1}, 17),
    "gather": ("Gather", [X, np.array([[0, -1]])], {"axis": 1}, 17),
    "gather_number": ("Gather", [X, np.array(1)], {}, 17),
    "slice": ("Slice", [X, np.array([1]), np.array([9]), np.array([-1]), np.array([2])], {}, 17),
    "slice_back": ("Slice", [X, np.array([-1]), np.array([-(2**40)]), np.array([2]), np.array([-1])], {}, 17),
    "slice_of_opset_9": ("Slice", [X], {"starts": [0, 1], "ends": [1, -1]}, 9),
    "add": ("Add", [X, Y], {}, 17),
    "sub": ("Sub", [X, Y], {}, 17),
    "mul": ("Mul", [X, Y], {}, 17),
    "div": ("Div", [X, Y], {}, 17),
    "div_of_ints": ("Div", [INTS, np.array([3])], {}, 17),
    "div_of_large_ints": ("Div", [np.array([2**60 + 1, -(2**60) - 1]), np.array([1, 3])], {}, 17),
    "pow": ("Pow", [np.abs(X), np.float32(2.5)], {}, 17),
    "pow_of_ints": ("Pow", [INTS, np.array(2)], {}, 17),
    "maximum": ("Max", [X, Y, X[:1]], {}, 17),
    "minimum": ("Min", [INTS, np.array([1])], {}, 17),
    "sum_of_three": ("Sum", [X, Y, X[:1]], {}, 17),
    "tile": ("Tile", [X, np.array([1, 2, 3])], {}, 17),
    "abs": ("Abs", [INTS], {}, 17),
    "exp": ("Exp", [X], {}, 17),
    "log": ("Log", [np.abs(X)], {}, 17),
    "sqrt": ("Sqrt", [np.abs(X)], {}, 17),
    "reciprocal": ("Reciprocal", [X], {}, 17),
    "neg": ("Neg", [X], {}, 17),
}


def test_every_operator_is_in_the_table() -> None:
    assert {op for op, *_ in CASES.values()} == set(EVALUATORS)


@pytest.mark.parametrize("op", ["ReduceSumSquare", "ReduceL1", "ReduceL2"])
def test_a_reduction_over_no_axes_that_still_computes_something_is_no_constant(op: str) -> None:
    """Runtimes do not agree on whether the squares are taken."""
    assert not evaluable(op, {"noop_with_empty_axes": 1}, 18)


def test_a_slice_that_begins_before_the_front_begins_there() -> None:
    """The specification clamps the start to the axis, on the way back too; the reference evaluator does not."""
    bounds = [np.array([value]) for value in (-9, -(2**31), 1, -1)]
    tensors = [numpy_helper.from_array(v, f"i{k}") for k, v in enumerate([X, *bounds])]
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Slice", [t.name for t in tensors], ["y"])], "g", [], [end], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(Constants(model, {}).value("y"), session.run(None, {})[0])


def test_nothing_can_be_flattened() -> None:
    """The sizes do not follow from the number of elements."""
    assert EVALUATORS["Flatten"]([X[:0]], {"axis": 1}, 17).shape == (0, 12)  # type: ignore[union-attr]


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
