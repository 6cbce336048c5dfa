"""Quantised layers of every kind: types, granularities, signs; dynamic quantisation; integers that a model computes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from tests.test_quantized import Net, run

Array = npt.NDArray[Any]
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
KINDS: dict[str, tuple[int, Any, int, int]] = {  # type, numpy's, zero point, how far the numbers go on both sides
    "int8": (TensorProto.INT8, np.int8, 0, 127),
    "uint8": (TensorProto.UINT8, np.uint8, 128, 127),
    "int4": (TensorProto.INT4, ml_dtypes.int4, 0, 7),
    "uint4": (TensorProto.UINT4, ml_dtypes.uint4, 8, 7),
    "e4m3fn": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 0, 100),
    "e4m3fnuz": (TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz, 0, 100),
    "e5m2": (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2, 0, 100),
    "e5m2fnuz": (TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz, 0, 100),
}
GRAINS: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {  # the shape of the scale of weights (6, 8), attributes
    "tensor": ((), {}),
    "channel": ((6,), {"axis": 0}),
    "blocks": ((6, 2), {"axis": 1, "block_size": 4}),
    "uneven blocks": ((6, 3), {"axis": 1, "block_size": 3}),
    "blocks of outputs": ((2, 8), {"axis": 0, "block_size": 3}),
}
GAMMAS = {"positive": [1.2, 0.7, 0.5, 1.1, 2.0, 0.3], "mixed": [1.2, -0.7, 0.0, -1.1, 2.0, -3e-41]}


def outputs(model: onnx.ModelProto, x: Array) -> Array:
    """By onnxruntime, by onnx where it has no kernel."""
    try:
        return run(model, x, LEVELS[0])
    except Exception:
        return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])  # type: ignore[index]


def _spread(value: Array, grain: str) -> Array:
    """What DequantizeLinear makes of a scale or zero point, for weights (6, 8), written down once more."""
    if grain == "tensor":
        return np.broadcast_to(value, (6, 8))
    if grain == "channel":
        return np.broadcast_to(value[:, None], (6, 8))
    axis, block = GRAINS[grain][1]["axis"], GRAINS[grain][1]["block_size"]
    index = [np.arange(size) // (block if i == axis else 1) for i, size in enumerate((6, 8))]
    return np.asarray(value[np.ix_(*index)])


@pytest.mark.parametrize("signs", GAMMAS)
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_and_granularity_takes_factors_of_every_sign(kind: str, grain: str, signs: str) -> None:
    code, dtype, zero, reach = KINDS[kind]
    shape, attrs = GRAINS[grain]
    n = Net(3, 8)
    q = n.rng.uniform(-reach, reach, (6, 8)) + zero
    q = (np.rint(q) if "int" in kind else q).astype(dtype).astype(np.float64)
    scale = n.rng.uniform(0.5, 1.5, shape).astype(np.float32) / np.float32(reach)
    n.weights.append(helper.make_tensor("q", code, (6, 8), q.ravel().tolist()))
    n.weights.append(helper.make_tensor("z", code, shape, [zero] * max(1, int(np.prod(shape)))))
    bias = n.rng.standard_normal(6).astype(np.float32)
    weight = n.op("DequantizeLinear", "q", n.w(scale), "z", **attrs)
    y = n.bn(n.op("Gemm", "x", weight, n.w(bias), transB=1), 6, GAMMAS[signs])
    vectors = [numpy_helper.to_array(t).astype(np.float64) for t in n.weights[-4:]]
    model = n.model(n.op("Sigmoid", y), opset=21)
    model.ir_version = 10

    x = n.rng.standard_normal((3, 8)).astype(np.float32)
    gamma, beta, mean, var = vectors
    whole = x.astype(np.float64) @ ((q - zero) * _spread(scale.astype(np.float64), grain)).T + bias
    truth = 1 / (1 + np.exp(-((whole - mean) * gamma / np.sqrt(var + 1e-3) + beta)))

    result = bnfold.fold(model)
    (norm,) = result.plan.batch_norms
    if grain == "blocks of outputs":  # one scale is that of several channels
        assert (norm.verdict, norm.reason and norm.reason.code) == ("kept", "scale-fixed")
        return
    assert norm.verdict == "folded"
    onnx.checker.check_model(result.model, full_check=True)
    np.testing.assert_allclose(outputs(result.model, x), truth, rtol=0, atol=2e-6)
    stored = {t.name: t for t in result.model.graph.initializer}
    (node,) = (node for node in result.model.graph.node if node.op_type == "DequantizeLinear")
    assert stored[node.input[0]].data_type == code
    assert (numpy_helper.to_array(stored[node.input[1]]) >= 0).all()
    assert len(stored[node.input[1]].dims) == max(1, len(shape))
    if signs == "positive":
        assert stored[node.input[0]] == next(t for t in model.graph.initializer if t.name == "q")


def dynamic(op: str, scale: str, bias: bool, gammas: list[float]) -> Net:
    """As onnxruntime quantises: the product of both scales behind the product of the integers, then the bias."""
    conv = op == "ConvInteger"
    n = Net(2, 3, 6, 6) if conv else Net(5, 8)
    n.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], "dynamic"))
    behind, count = (1, 1) if conv else (), len(gammas)
    held = n.w(n.rng.uniform(0.005, 0.02, (count, *behind) if scale == "channel" else ()))
    factor = n.op("Mul", "xs", held)
    weight = n.w(n.rng.integers(-127, 128, (count, 3, 3, 3) if conv else (8, count)), np.int8)
    y = n.op("Mul", n.op("Cast", n.op(op, "xq", weight, "xz"), to=TensorProto.FLOAT), factor)
    if bias:
        y = n.op("Add", y, n.w(n.rng.standard_normal((1, count, *behind) if conv else count)))
    n.bn(y, count, gammas)
    return n


def same(before: onnx.ModelProto, after: onnx.ModelProto, n: Net) -> None:
    """Both models give the same in onnxruntime, however it optimises; the second is sound."""
    onnx.checker.check_model(after, full_check=True)
    x = n.rng.standard_normal(n.shape).astype(np.float32)
    for level in LEVELS:
        old, new = (run(m, x, level) for m in (before, after))
        np.testing.assert_allclose(new, old, rtol=0, atol=3e-6 * np.abs(old).max())


@pytest.mark.parametrize("gammas", [[1.2, 0.7, 0.5, 1.1], [1.2, -0.7, 0.0, -3e-41]], ids=["positive", "mixed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("scale", ["tensor", "channel"])
@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_dynamic_quantisation_takes_the_norm(op: str, scale: str, bias: bool, gammas: list[float]) -> None:
    n = dynamic(op, scale, bias, gammas)
    model = onnx.shape_inference.infer_shapes(n.model(n.op("Sigmoid", n.nodes[-1].output[0])))  # says all shapes
    result = bnfold.fold(model, leftovers="all")
    (norm,) = result.plan.batch_norms  # neither the scale nor the bias is called one
    assert (norm.verdict, norm.form) == (("folded", "") if bias else ("reduced", "add"))
    assert [node.op_type for node in result.model.graph.node].count("Add") == 1
    same(model, result.model, n)


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_a_constant_scale_behind_integers_is_no_norm_and_takes_one(op: str) -> None:
    n = dynamic(op, "channel", True, [1.2, -0.7, 0.5, 1.1])
    (inner,) = (node for node in n.nodes if node.output[0] == "mul1")
    n.nodes.remove(inner)
    for node in n.nodes:
        node.input[:] = [inner.input[1] if name == "mul1" else name for name in node.input]
    model = n.model(n.op("Sigmoid", n.nodes[-1].output[0]))
    result = bnfold.fold(model)
    assert [norm.verdict for norm in result.plan.batch_norms] == ["folded"]
    left = [node.op_type for node in result.model.graph.node]
    assert (left.count("Mul"), left.count("Add")) == (1, 1)
    same(model, result.model, n)


def test_a_scale_that_others_read_stays() -> None:
    n = dynamic("MatMulInteger", "tensor", True, [1.2, -0.7, 0.5, 1.1])
    y = n.op("Add", n.nodes[-1].output[0], "mul1")
    model = n.model(n.op("Sigmoid", y))
    result = bnfold.fold(model)
    assert [norm.verdict for norm in result.plan.batch_norms if norm.op_type == "BatchNormalization"] == ["kept"]
    same(model, result.model, n)


def integers(n: Net, per_channel: bool, size: float = 0.05) -> str:
    """What a QLinearConv gives, as floats."""
    small = [n.w(0.03), n.w(3, np.int8), n.w(0.01), n.w(0, np.int8), n.w(0.05), n.w(-5, np.int8)]
    weight = n.w(n.rng.integers(-127, 128, (4, 3, 3, 3)), np.int8)
    x = n.op("QuantizeLinear", "x", *small[:2])
    y = n.op("QLinearConv", x, *small[:2], weight, *small[2:], n.w(n.rng.integers(-999, 999, 4), np.int32))
    count = (4,) if per_channel else ()
    scale = n.w(n.rng.uniform(0.5, 1.5, count) * size)
    return n.op("DequantizeLinear", y, scale, n.w(np.full(count, -5), np.int8), axis=1)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
def test_the_scale_of_integers_that_the_model_computes_takes_that_of_a_norm(per_channel: bool) -> None:
    n = Net(2, 3, 8, 8)
    y = n.op("Sigmoid", n.bn(integers(n, per_channel), 4))
    model = n.model(y)
    result = bnfold.fold(model, leftovers="all")
    (norm,) = result.plan.batch_norms
    assert (norm.verdict, norm.form, norm.reason and norm.reason.code) == ("reduced", "add", "shift-fixed")
    assert "dequantizelinear" in str(norm.reason)
    same(model, result.model, n)


def test_a_layer_behind_takes_the_offset_and_the_norm_is_gone() -> None:
    n = Net(2, 3, 8, 8)
    y = n.bn(integers(n, False), 4)
    model = n.model(n.op("Sigmoid", n.op("Conv", y, n.quantized((5, 4, 1, 1), 0, True))))
    result = bnfold.fold(model)
    assert [norm.verdict for norm in result.plan.batch_norms] == ["folded"]
    same(model, result.model, n)


@pytest.mark.parametrize(
    ("gammas", "size", "opset", "code"),
    [
        ([1.0, -0.7, 1.2, 2.0], 0.05, 17, "sign"),
        ([1.0, 0.0, 1.2, 2.0], 0.05, 17, "dead-channel"),
        ([1.0, 0.7, 1.2, 2.0], 0.05, 12, "scale-fixed"),
        ([1.0, 1e-9, 1.2, 2.0], 1e-37, 17, "range"),
    ],
)
def test_why_integers_that_the_model_computes_take_no_norm(
    gammas: list[float], size: float, opset: int, code: str
) -> None:
    n = Net(2, 3, 8, 8)
    y = n.bn(integers(n, False, size), 4, gammas)
    if opset < 13:  # it knows no axis
        for node in n.nodes:
            del node.attribute[:]
    model = n.model(n.op("Sigmoid", y), opset)
    result = bnfold.fold(model, leftovers="all" if code == "range" else "fast")
    (norm,) = result.plan.batch_norms
    assert (norm.verdict != "folded", norm.reason and norm.reason.code) == (True, code)
    same(model, result.model, n)


@pytest.mark.parametrize(("gammas", "code"), [([1.0, 0.7, 2.0, 0.4], "shift-fixed"), ([1.0, -0.7, 2.0, 0.4], "sign")])
def test_a_norm_behind_a_layer_and_its_rounding_stays_and_says_why(gammas: list[float], code: str) -> None:
    """QuantizeLinear and DequantizeLinear stand between the layer and the norm."""
    n = Net(2, 3, 6, 6)
    grid = n.w(0.05), n.w(-5, np.int8)
    y = n.op("Conv", "x", n.quantized((4, 3, 3, 3), 0, True))
    y = n.bn(n.op("DequantizeLinear", n.op("QuantizeLinear", y, *grid), *grid), 4, gammas)
    model = n.model(n.op("Sigmoid", y))
    (norm,) = (result := bnfold.fold(model)).plan.batch_norms
    assert (norm.verdict, norm.reason and norm.reason.code) == ("kept", code)
    assert "dequantizelinear" in str(norm.reason)
    same(model, result.model, n)


def biased(n: Net, x: str, layers: int, low: int = -9999) -> tuple[list[str], str]:
    """Convs of quantised data with one int32 bias, whose scale is the product of the other two."""
    grid = n.w(0.03), n.w(3, np.int8)
    x = n.op("DequantizeLinear", n.op("QuantizeLinear", x, *grid), *grid)
    scale = n.rng.uniform(0.005, 0.02, 4).astype(np.float32)
    stored = n.rng.integers(-9999, 9999, 4)
    stored[1] = low
    bias = n.op("DequantizeLinear", n.w(stored, np.int32), n.w(scale * np.float32(0.03)), axis=0)
    held = n.w(scale)
    weights = [
        n.op("DequantizeLinear", n.w(n.rng.integers(-127, 128, (4, 3, 3, 3)), np.int8), held, axis=0)
        for _ in range(layers)
    ]
    return [n.op("Conv", x, weight, bias) for weight in weights], bias


@pytest.mark.parametrize("layers", [1, 2], ids=["own", "shared"])
def test_an_int32_bias_stays_one_and_its_scale_the_product_of_the_others(layers: int) -> None:
    n = Net(2, 3, 6, 6)
    made, _ = biased(n, "x", layers)
    factors = [n.w(np.array(f).reshape(4, 1, 1)) for f in ([1.2, -0.7, 0.5, 1.1], [0.3, 0.9, -2.0, 1.0])]
    parts = [n.op("Sigmoid", n.op("Mul", y, f)) for y, f in zip(made, factors, strict=False)]
    model = n.model(parts[0] if layers == 1 else n.op("Add", *parts))
    result = bnfold.fold(model)
    assert [norm.verdict for norm in result.plan.batch_norms] == ["folded"] * layers
    same(model, result.model, n)
    stored = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    made_by = {node.output[0]: node for node in result.model.graph.node}
    for conv in (node for node in result.model.graph.node if node.op_type == "Conv"):
        x, weight, bias = (made_by[name] for name in conv.input)
        assert stored[bias.input[0]].dtype == np.int32
        product = stored[x.input[1]].astype(np.float64) * stored[weight.input[1]]
        np.testing.assert_allclose(stored[bias.input[1]], product, rtol=3e-7)


def test_an_offset_makes_an_int32_bias_a_float_one() -> None:
    """It would be rounded to a step of the integers."""
    n = Net(2, 3, 6, 6)
    made, _ = biased(n, "x", 1)
    model = n.model(n.op("Sigmoid", n.bn(made[0], 4)))
    result = bnfold.fold(model)
    assert [norm.verdict for norm in result.plan.batch_norms] == ["folded"]
    same(model, result.model, n)
    (conv,) = (node for node in result.model.graph.node if node.op_type == "Conv")
    assert conv.input[2] in {t.name for t in result.model.graph.initializer if t.data_type == TensorProto.FLOAT}


def test_an_int32_bias_that_has_no_mirror_image_becomes_a_float_one() -> None:
    n = Net(2, 3, 6, 6)
    made, _ = biased(n, "x", 1, -(2**31))
    model = n.model(n.op("Tanh", n.op("Mul", made[0], n.w(np.reshape([1.2, -0.7, 0.5, 1.1], (4, 1, 1))))))
    result = bnfold.fold(model)
    assert [norm.verdict for norm in result.plan.batch_norms] == ["folded"]
    same(model, result.model, n)


def random_net(seed: int) -> tuple[Net, onnx.ModelProto]:
    """Layers in a row with weights of random types and granularities, norms of random signs, and what lies between."""
    n = Net(2, 4, 7, 7)
    n.rng = np.random.default_rng(seed)
    y, c, size, held = "x", 4, 7, ""
    for _ in range(int(n.rng.integers(2, 5))):
        kind = list(KINDS)[int(n.rng.integers(0, 4))]
        code, _, zero, reach = KINDS[kind]
        out = int(n.rng.choice([2, 4, 6]))
        k = int(n.rng.choice([1, 3])) if size > 3 else 1
        shape = (out, c, k, k)
        grain = str(n.rng.choice(["tensor", "channel", "blocks"]))
        scales: tuple[int, ...] = {"tensor": (), "channel": (out,), "blocks": (out, c // 2, k, k)}[grain]
        attrs = {"tensor": {}, "channel": {"axis": 0}, "blocks": {"axis": 1, "block_size": 2}}[grain]
        low = -reach - (n.rng.random() < 0.3)
        name = f"q{len(n.weights)}"
        if not (held and n.rng.random() < 0.3 and held.split("|")[1] == str((out, c, k))):
            numbers = n.rng.integers(low, reach + 1, shape) + zero
            n.weights.append(helper.make_tensor(name, code, shape, numbers.ravel().tolist()))
            n.weights.append(helper.make_tensor(f"{name}z", code, scales, [zero] * max(1, int(np.prod(scales)))))
            factor = n.w(n.rng.uniform(0.5, 1.5, scales) / reach / np.sqrt(c * k * k))
            held = n.op("DequantizeLinear", name, factor, f"{name}z", **attrs) + f"|{(out, c, k)}"
        padded = k == 3 and n.rng.random() < 0.5
        bias = [n.w(n.rng.standard_normal(out))] if n.rng.random() < 0.7 else []
        y = n.op("Conv", y, held.split("|")[0], *bias, pads=[int(padded)] * 4)
        c, size = out, size if padded else size - k + 1
        gammas = n.rng.normal(0.6, 0.8, c) * (n.rng.random(c) > 0.1)
        places = ["before", "behind", "both", "none"]
        place = str(n.rng.choice(places, p=[0.5, 0.2, 0.1, 0.2]))
        y = n.bn(y, c, gammas.tolist()) if place in ("before", "both") else y
        if n.rng.random() < 0.25:
            grid = n.w(0.04), n.w(int(n.rng.integers(-9, 9)), np.int8)
            y = n.op("DequantizeLinear", n.op("QuantizeLinear", y, *grid), *grid)
        y = n.op(str(n.rng.choice(["Relu", "Sigmoid", "Identity"])), y)
        y = n.bn(y, c, np.abs(gammas).tolist()) if place in ("behind", "both") else y
    model = n.model(n.op("Identity", y), opset=21)
    model.ir_version = 10
    return n, model


def attack(seed: int) -> tuple[int, int]:
    """How many norms one such network has, and how many fold; its outputs stay, but for steps of a rounding."""
    n, model = random_net(seed)
    result = bnfold.fold(model, verify=False)
    onnx.checker.check_model(result.model, full_check=True)
    x = n.rng.standard_normal(n.shape).astype(np.float32)
    old, new = (run(m, x, LEVELS[0]) for m in (model, result.model))
    error = np.abs(new - old) / max(1.0, np.abs(old).max())
    rounded = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert np.quantile(error, 0.9) < 3e-5 if rounded else error.max() < 3e-5, (seed, error.max())
    fates = [norm.verdict for norm in result.plan.batch_norms]
    return len(fates), fates.count("folded")


def test_random_quantised_networks_keep_their_outputs() -> None:
    found = np.array([attack(seed) for seed in range(40)]).sum(0)
    assert found[1] > found[0] / 4
