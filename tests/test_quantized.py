"""Weights behind DequantizeLinear: the scale takes the norm, the integers and their zero points stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold

Array = npt.NDArray[Any]


class Net:
    """A float32 network over `x` with int8 weights."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.rng = shape, np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def w(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attrs))
        return name

    def quantized(self, shape: tuple[int, ...], axis: int | None, zero: bool) -> str:
        """int8 weights: one scale for each entry of `axis`, or for all."""
        count = () if axis is None else (shape[axis],)
        scale = self.w(self.rng.uniform(0.005, 0.02, count))
        points = [self.w(self.rng.integers(-9, 9, count), np.int8)] if zero else []
        weight = self.w(self.rng.integers(-127, 128, shape), np.int8)
        return self.op("DequantizeLinear", weight, scale, *points, **({} if axis is None else {"axis": axis}))

    def bn(self, x: str, c: int, gamma: list[float] | None = None) -> str:
        g = np.abs(self.rng.normal(1.0, 0.4, c)) + 0.2 if gamma is None else gamma
        rest = self.rng.normal(0.3, 0.7, c), self.rng.normal(-0.2, 0.8, c), np.exp(self.rng.uniform(-1.2, 1.2, c))
        return self.op("BatchNormalization", x, self.w(g), *map(self.w, rest), epsilon=1e-3)

    def model(self, output: str, opset: int = 17) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        made.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(made).graph.output[0])
        return made


def run(model: onnx.ModelProto, x: Array, level: ort.GraphOptimizationLevel) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def integers(model: onnx.ModelProto) -> list[bytes]:
    """The weights that are not floats, less the zero points."""
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return sorted(array.tobytes() for array in arrays if array.dtype == np.int8 and array.ndim > 1)


def conv_then_bn(axis: int | None, zero: bool) -> Net:
    n = Net(2, 3, 6, 6)
    bias = n.op("DequantizeLinear", n.w(n.rng.integers(-900, 900, 4), np.int32), n.w(0.001))
    n.op("Relu", n.bn(n.op("Conv", "x", n.quantized((4, 3, 3, 3), axis, zero), bias, pads=[1] * 4), 4))
    return n


def between_two_convs(axis: int | None, zero: bool) -> Net:
    """The scale goes back, the shift forward."""
    n = Net(2, 3, 6, 6)
    y = n.op("Relu", n.op("Conv", "x", n.quantized((4, 3, 3, 3), axis, zero)))
    y = n.bn(n.op("MaxPool", y, kernel_shape=[2, 2]), 4)
    n.op("Conv", y, n.quantized((2, 4, 1, 1), None if axis is None else 0, zero))
    return n


def gemm(axis: int | None, zero: bool) -> Net:
    n = Net(5, 3)
    n.op("Sigmoid", n.bn(n.op("Gemm", "x", n.quantized((4, 3), axis, zero), transB=1), 4))
    return n


def matmul_transposed(axis: int | None, zero: bool) -> Net:
    n = Net(5, 3)
    weight = n.op("Transpose", n.quantized((4, 3), axis, zero), perm=[1, 0])
    n.op("Sigmoid", n.bn(n.op("Add", n.op("MatMul", "x", weight), n.w(n.rng.normal(size=4))), 4))
    return n


def through_shapes(axis: int | None, zero: bool) -> Net:
    """Weights that are stored as a matrix, behind an axis of size 1."""
    n = Net(2, 3, 6, 6)
    stored = n.quantized((1, 4, 27), None if axis is None else 1, zero)
    weight = n.op("Reshape", n.op("Squeeze", stored, n.w([0], np.int64)), n.w([4, 3, 3, 3], np.int64))
    n.op("Relu", n.bn(n.op("Conv", "x", n.op("Cast", weight, to=TensorProto.FLOAT)), 4))
    return n


def conv_transpose(axis: int | None, zero: bool) -> Net:
    n = Net(2, 3, 4, 4)
    weight = n.quantized((3, 4, 2, 2), None if axis is None else 1, zero)
    n.op("Relu", n.bn(n.op("ConvTranspose", "x", weight), 4))
    return n


@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_points"])
@pytest.mark.parametrize("axis", [None, 0], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize(
    "build", [conv_then_bn, between_two_convs, gemm, matmul_transposed, through_shapes, conv_transpose]
)
def test_the_norm_goes_into_the_scale(build: Any, axis: int | None, zero: bool) -> None:
    n = build(axis, zero)
    model = n.model(n.nodes[-1].output[0])
    result = bnfold.fold(model)
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded"]
    assert integers(result.model) == integers(model)
    onnx.checker.check_model(result.model, full_check=True)
    x = n.rng.standard_normal(n.shape).astype(np.float32)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        before, after = (run(m, x, level) for m in (model, result.model))
        np.testing.assert_allclose(after, before, rtol=0, atol=3e-6 * np.abs(before).max())


def test_weights_that_the_model_itself_quantizes() -> None:
    """As quantization toolkits export what they train: float weights, QuantizeLinear, DequantizeLinear."""
    n = Net(2, 3, 6, 6)
    around = n.w(n.rng.uniform(0.01, 0.03, 4)), n.w(n.rng.integers(-9, 9, 4), np.int8)
    weight = n.op("QuantizeLinear", n.w(n.rng.standard_normal((4, 3, 3, 3))), *around, axis=0)
    weight = n.op("DequantizeLinear", weight, *around, axis=0)
    model = n.model(n.op("Relu", n.bn(n.op("Conv", "x", weight), 4)))
    result = bnfold.fold(model)
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded"]
    assert [node.op_type for node in result.model.graph.node][:2] == ["QuantizeLinear", "DequantizeLinear"]
    x = n.rng.standard_normal(n.shape).astype(np.float32)
    before, after = (run(m, x, ort.GraphOptimizationLevel.ORT_DISABLE_ALL) for m in (model, result.model))
    np.testing.assert_allclose(after, before, rtol=0, atol=3e-6 * np.abs(before).max())


def test_weights_that_are_rounded_behind_their_scale_stay() -> None:
    n = Net(2, 3, 6, 6)
    whole = n.op("Cast", n.quantized((4, 3, 3, 3), 0, False), to=TensorProto.INT32)
    y = n.op("Relu", n.bn(n.op("Conv", "x", n.op("Cast", whole, to=TensorProto.FLOAT)), 4))
    assert bnfold.fold(n.model(y)).plan.counts()["folded"] == 0


def test_a_scale_that_is_one_number_stays_one_in_files_that_declare_it() -> None:
    """IR 3 declares every initializer as an input, of rank 0 here."""
    n = Net(2, 3, 6, 6)
    model = n.model(n.bn(n.op("Conv", "x", n.quantized((1, 3, 3, 3), None, False)), 1))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    folded = bnfold.fold(model).model
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    scale = next(node.input[1] for node in folded.graph.node if node.op_type == "DequantizeLinear")
    assert [list(tensor.dims) for tensor in folded.graph.initializer if tensor.name == scale] == [[]]
    x = np.random.default_rng(1).standard_normal(n.shape).astype(np.float32)
    level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    np.testing.assert_allclose(run(folded, x, level), run(model, x, level), rtol=1e-5, atol=1e-5)


def test_a_scale_that_is_shorter_than_the_weights_stays() -> None:
    """The new scale would be rounded to float16, and the original computes in float32."""
    n = Net(2, 3, 6, 6)
    weight = n.op("DequantizeLinear", n.w(n.rng.integers(-99, 99, (4, 3, 3, 3)), np.int8), n.w(0.01, np.float16))
    y = n.op("Relu", n.bn(n.op("Conv", "x", n.op("Cast", weight, to=TensorProto.FLOAT)), 4))
    (norm,) = bnfold.fold(n.model(y, opset=19)).plan.batch_norms
    assert norm.verdict == "kept"


def test_a_negative_scale_is_refused() -> None:
    n = Net(2, 3, 6, 6)
    y = n.op("Sigmoid", n.bn(n.op("Conv", "x", n.quantized((4, 3, 3, 3), 0, True)), 4, [1.0, -1.0, 2.0, 0.5]))
    result = bnfold.fold(n.model(y))
    (norm,) = result.plan.batch_norms
    assert norm.verdict != "folded"
    assert norm.reason is not None
    assert norm.reason.code == "sign"


def test_a_norm_before_int8_weights_cannot_go_forward_channel_by_channel() -> None:
    n = Net(2, 3, 6, 6)
    y = n.op("Conv", n.bn("x", 3), n.quantized((4, 3, 1, 1), 0, True))
    model = n.model(y)
    result = bnfold.fold(model, leftovers="all")
    (norm,) = result.plan.batch_norms
    assert norm.verdict == "reduced"
    assert norm.form == "mul"
    assert integers(result.model) == integers(model)


def test_a_dead_channel_leaves_positive_scales() -> None:
    n = Net(2, 3, 6, 6)
    y = n.op("Relu", n.bn(n.op("Conv", "x", n.quantized((4, 3, 3, 3), 0, True)), 4, [1.0, 0.0, 2.0, 0.5]))
    result = bnfold.fold(n.model(n.op("Conv", y, n.quantized((2, 4, 1, 1), 0, False))))
    scales = [numpy_helper.to_array(t) for t in result.model.graph.initializer]
    assert all((s > 0).all() for s in scales if s.dtype == np.float32 and 0 < np.abs(s).max() < 0.1)
    assert result.check is not None
    assert result.check.passed


def _exact(n: Net, output: str, verdicts: list[str], opset: int = 17) -> onnx.ModelProto:
    """Fold, compare the verdicts, and both models in onnxruntime; the folded one."""
    model = n.model(output, opset)
    result = bnfold.fold(model)
    assert [bn.verdict for bn in result.plan.batch_norms] == verdicts
    onnx.checker.check_model(result.model, full_check=True)
    x = n.rng.standard_normal(n.shape).astype(np.float32)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        before, after = (run(m, x, level) for m in (model, result.model))
        np.testing.assert_allclose(after, before, rtol=0, atol=3e-6 * np.abs(before).max())
    made: onnx.ModelProto = result.model
    return made


def _readers(model: onnx.ModelProto, name: str) -> int:
    return sum(name in node.input for node in model.graph.node)


@pytest.mark.parametrize("bare", [False, True], ids=["own", "behind a transpose"])
def test_two_layers_with_one_dequantize_linear_get_copies(bare: bool) -> None:
    n = Net(2, 3, 6, 6)
    weight = n.quantized((3, 3, 1, 1), 0, False)
    read = n.op("Transpose", weight, perm=[0, 1, 3, 2]) if bare else weight
    y = n.bn(n.op("Conv", "x", read), 3)
    y = n.bn(n.op("Conv", n.op("Sigmoid", y), read), 3, [1.0, -0.4, 0.7])
    made = _exact(n, n.op("Sigmoid", y), ["folded", "folded"])
    assert sum(node.op_type == "DequantizeLinear" for node in made.graph.node) == 2
    assert len(integers(made)) == 2  # those of the second have another sign in one channel


def test_a_layer_that_does_not_change_keeps_what_it_shares() -> None:
    n = Net(2, 3, 6, 6)
    weight = n.quantized((3, 3, 1, 1), None, True)
    first = n.op("Sigmoid", n.op("Conv", "x", weight))
    made = _exact(n, n.op("Sigmoid", n.bn(n.op("Conv", first, weight), 3)), ["folded"])
    assert sum(node.op_type == "DequantizeLinear" for node in made.graph.node) == 2
    assert _readers(made, weight) == 1
    assert len(integers(made)) == 1  # one set of integers, two scales


TYPES = {
    "int8": (np.int8, -100, 101), "uint8": (np.uint8, 20, 230), "int16": (np.int16, -9999, 9999),
    "uint16": (np.uint16, 999, 60000),
}  # fmt: skip


@pytest.mark.parametrize("axis", [None, 0], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("kind", TYPES)
def test_negative_gammas_and_gammas_of_0_go_into_the_integers(kind: str, axis: int | None) -> None:
    dtype, low, high = TYPES[kind]
    middle = (low + high) // 2
    n, count = Net(2, 3, 6, 6), () if axis is None else (5,)
    scale = n.w(n.rng.uniform(0.005, 0.02, count) * (100 / (high - low)))
    zero = n.w(np.full(count, middle), dtype)
    weight = n.w(n.rng.integers(low, high, (5, 3, 3, 3)), dtype)
    weight = n.op("DequantizeLinear", weight, scale, zero, **({} if axis is None else {"axis": axis}))
    y = n.op("Relu", n.bn(n.op("Conv", "x", weight), 5, [1.0, -0.7, 0.0, 2.0, -3e-41]))
    made = _exact(n, y, ["folded"], 21 if "16" in kind else 17)
    arrays = [numpy_helper.to_array(tensor) for tensor in made.graph.initializer]
    (stored,) = (array for array in arrays if array.dtype == dtype and array.ndim == 4)
    assert (stored[2] == middle).all()
    (factors,) = (node.input[1] for node in made.graph.node if node.op_type == "DequantizeLinear")
    assert all((numpy_helper.to_array(t) > 0).all() for t in made.graph.initializer if t.name == factors)


def test_integers_that_have_no_mirror_image_keep_their_sign() -> None:
    """-128 has none in int8; only the channel that holds one is held."""
    for gammas, verdict in (([1.0, -0.7, 1.2, -2.0], "folded"), ([-1.0, 0.7, 1.2, 2.0], "kept")):
        n = Net(2, 3, 6, 6)
        numbers = n.rng.integers(-127, 128, (4, 3, 3, 3))
        numbers[0, 0, 0, 0] = -128
        weight = n.op("DequantizeLinear", n.w(numbers, np.int8), n.w(n.rng.uniform(0.01, 0.02, 4)), axis=0)
        model = n.model(n.op("Sigmoid", n.bn(n.op("Conv", "x", weight), 4, gammas)))
        result = bnfold.fold(model)
        (norm,) = result.plan.batch_norms
        assert norm.verdict == verdict
        assert verdict == "folded" or (norm.reason is not None and norm.reason.code == "sign")


def test_before_opset_13_there_is_one_scale_only() -> None:
    n = Net(2, 3, 6, 6)
    y = n.op("Relu", n.bn(n.op("Conv", "x", n.quantized((4, 3, 3, 3), None, True)), 4))
    result = bnfold.fold(n.model(y, opset=12))
    (norm,) = result.plan.batch_norms
    assert (norm.verdict, norm.reason and norm.reason.code) == ("kept", "scale-fixed")


def test_int4_weights_keep_their_numbers() -> None:
    n = Net(2, 3, 6, 6)
    weight = n.op("DequantizeLinear", "q", n.w(n.rng.uniform(0.05, 0.2, 4)), "zero", axis=0)
    for name, shape in (("q", (4, 3, 3, 3)), ("zero", (4,))):
        numbers = n.rng.integers(-8, 8, shape).ravel().tolist()
        n.weights.append(helper.make_tensor(name, TensorProto.INT4, shape, numbers))
    model = n.model(n.op("Relu", n.bn(n.op("Conv", "x", weight), 4)), opset=21)
    model.ir_version = 10
    result = bnfold.fold(model)
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded"]
    before, after = ([t for t in m.graph.initializer if t.data_type == TensorProto.INT4] for m in (model, result.model))
    assert before == after


@pytest.mark.parametrize("moved", [False, True], ids=["direct", "identity_inside"])
@pytest.mark.parametrize("axis", [None, 0], ids=["per_tensor", "per_channel"])
def test_weights_made_outside_a_body_stay_integers(axis: int | None, moved: bool) -> None:
    """The DequantizeLinear stands outside an If, conv and norm inside."""
    n = Net(2, 3, 6, 6)
    weight = n.quantized((4, 3, 3, 3), axis, True)
    flag = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.w(0.0))
    start, bodies = len(n.nodes), []
    for source in (weight, n.w(n.rng.standard_normal((4, 3, 3, 3)))):
        y = n.op("Relu", n.bn(n.op("Conv", "x", n.op("Identity", source) if moved else source), 4))
        info = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph(n.nodes[start:], "body", [], [info]))
        del n.nodes[start:]
    model = n.model(n.op("If", flag, then_branch=bodies[0], else_branch=bodies[1]))
    result = bnfold.fold(model)
    assert sorted(bn.verdict for bn in result.plan.batch_norms) == ["folded", "kept"]
    (reason,) = (bn.reason for bn in result.plan.batch_norms if bn.reason)
    assert reason.code == "scale-fixed"
    assert "quantised weights" in reason.text
    assert integers(result.model) == integers(model)
    assert [node.op_type for node in result.model.graph.node] == [node.op_type for node in model.graph.node]
    for middle in (1.0, -1.0):  # both branches
        x = (n.rng.standard_normal(n.shape) + middle).astype(np.float32)
        before, after = (run(m, x, ort.GraphOptimizationLevel.ORT_DISABLE_ALL) for m in (model, result.model))
        np.testing.assert_allclose(after, before, rtol=0, atol=3e-6 * np.abs(before).max())
