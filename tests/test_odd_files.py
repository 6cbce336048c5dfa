"""Valid ONNX files of kinds that are rare: types that weights leave, names like our own, empty slices, old opsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.onnx.read.scope import INNER
from tests.nets import Net

Array = npt.NDArray[Any]


def run(model: ModelProto, x: Array) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, {"x": x})
    return found


def same(model: ModelProto, tolerance: float = 1e-5) -> bnfold.FoldResult:
    """Folded, checked by the judge and once more by onnxruntime."""
    result = bnfold.fold(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    kind = model.graph.input[0].type.tensor_type.elem_type
    x = x.astype(helper.tensor_dtype_to_np_dtype(kind))
    for a, b in zip(run(model, x), run(result.model, x), strict=True):
        assert np.abs(a.astype(np.float64) - b).max() <= tolerance * np.abs(a).max()
    return result


def codes(result: bnfold.FoldResult) -> list[str]:
    return [bn.reason.code if bn.reason else bn.verdict for bn in result.plan.batch_norms]


def half(scale: float, gamma: float, var: float, eps: float = 1e-5) -> ModelProto:
    """conv -> BN (statistics in float32) -> ReLU -> conv in float16."""
    net = Net(seed=1, dtype=np.float16)
    a = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "first")
    net.weights["first_weight"] = (net.rng.standard_normal((4, 3, 3, 3)) * scale).astype(np.float16)
    net.weights["first_bias"] = np.zeros(4, np.float16)
    sides = {"gamma": np.full(4, gamma), "beta": np.full(4, 0.2), "mean": np.zeros(4), "var": np.full(4, var)}
    for name, value in sides.items():
        net.weights[name] = value.astype(np.float32)
    h = net.node("BatchNormalization", [a, *sides], "norm", epsilon=eps)
    net.output(net.conv(net.relu(h, "relu"), (4, 3), "second", k=1), ("N", 3, None, None))
    return net.model()


@pytest.mark.parametrize(
    ("scale", "gamma", "var", "code"),
    [(1e-3, 0.05, 100.0, "range"), (1.0, 1.0, 1e-10, "range"), (0.2, -0.7, 2.0, "folded"), (0.2, 1.5, 0.3, "folded")],
    ids=["underflow", "overflow", "mild", "grown"],
)
def test_weights_that_leave_float16_stay(scale: float, gamma: float, var: float, code: str) -> None:
    model = half(scale, gamma, var, eps=1e-12)
    assert [bn.reason.code if bn.reason else bn.verdict for bn in bnfold.inspect(model).batch_norms] == [code]
    result = bnfold.fold(model)
    assert codes(result) == [code]
    if code == "range":
        assert result.plan.batch_norms[0].reason is not None
        assert "weights" in result.plan.batch_norms[0].reason.text
    wide = ModelProto()
    wide.CopyFrom(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float16) * np.float16(
        1e4 if var > 10 else 1e-6
    )
    reference = _float64(model, x.astype(np.float64))
    errors = [np.sqrt(np.mean((run(m, x)[0].astype(np.float64) - reference) ** 2)) for m in (model, result.model)]
    assert np.isfinite(errors[0])
    assert errors[1] <= 3 * errors[0]


def _float64(model: ModelProto, x: Array) -> Array:
    """conv -> BN -> ReLU -> 1x1 conv by numpy."""
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    a = np.einsum("nchwij,ocij->nohw", patches, w["first_weight"])
    eps = next(a.f for n in model.graph.node if n.op_type == "BatchNormalization" for a in n.attribute)
    column = (slice(None), None, None)
    h = (a - w["mean"][column]) / np.sqrt(w["var"] + eps)[column] * w["gamma"][column] + w["beta"][column]
    y = np.einsum("nchw,oc->nohw", np.maximum(h, 0), w["second_weight"][:, :, 0, 0])
    return np.asarray(y + w["second_bias"][column] if "second_bias" in w else y)


def test_float32_weights_that_overflow_stay() -> None:
    net = Net(seed=1)
    a = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "first")
    net.weights["first_weight"] *= np.float32(1e25)
    for name, value in {"gamma": 1.0, "beta": 0.3, "mean": 0.0, "var": 1e-36}.items():
        net.weights[name] = np.full(4, value, np.float32)
    net.output(net.relu(net.node("BatchNormalization", [a, "gamma", "beta", "mean", "var"], "n", epsilon=0.0), "r"))
    assert codes(bnfold.fold(net.model(), verify=False)) == ["range"]


@pytest.mark.parametrize("inner", ["constant", "split", "0"])
def test_names_like_those_between_our_own_ops(inner: str) -> None:
    net = Net(seed=2)
    x = net.input("x", ("N", 3, 8, 8))
    assert INNER.endswith("::")
    a = net.conv(x, (3, 8), "a")
    s = net.bn(a, 8, "s", gamma="both")
    full = net.node("Add", [s, net.weight("k", net.rng.standard_normal((8, 6, 6)))], "t")
    deep = net.node("DepthToSpace", [full], "deep", blocksize=2)
    other = net.conv(x, (3, 8), "b")
    for node in net.nodes:  # the convolution gives what an inner step would be called
        for names in (node.input, node.output):
            names[:] = [f"{full}::{inner}" if name == other else name for name in names]
    net.output(net.conv(deep, (2, 3), "c"))
    net.output(net.conv(net.relu(net.bn(f"{full}::{inner}", 8, "q", gamma="both"), "r"), (8, 3), "d"))
    assert "folded" in codes(same(net.model()))


def test_an_empty_slice_of_channels() -> None:
    net = Net(seed=2)
    h = net.bn(net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "conv"), 4, "bn", gamma="both")
    zero, one = net.weight("zero", [0]), net.weight("one", [1])
    empty = net.node("Slice", [h, zero, zero, one], "empty")
    net.output(net.relu(net.node("Concat", [h, empty], "both", axis=1), "relu"))
    assert codes(same(net.model())) == ["folded"]


def test_no_channels_at_all() -> None:
    net = Net()
    none = net.node("Slice", [net.input(), net.weight("a", [0]), net.weight("b", [0]), net.weight("axis", [1])], "none")
    net.output(net.node("Mul", [net.bn(none, 0, "bn"), net.weight("k", np.zeros((1, 0, 1, 1)))], "mul"))
    net.output(net.bn(net.conv("x", (3, 4), "conv"), 4, "bn2"))
    norms = {bn.name: bn for bn in bnfold.fold(net.model()).plan.batch_norms}
    assert norms["bn"].reason is not None
    assert norms["bn"].reason.code == "bad-statistics"
    assert norms["bn2"].verdict == "folded"


def test_a_resize_of_one_axis_elsewhere() -> None:
    net = Net(seed=2)
    x = net.input("x", ("N", 3, 8, 8))
    flat = net.node("Reshape", [x, net.weight("flat", [-1])], "row")
    net.output(net.node("Resize", [flat, "", net.weight("twice", [2.0])], "wide", mode="nearest"), ("L",))
    net.output(net.bn(net.conv(x, (3, 4), "conv"), 4, "bn", gamma="both"))
    assert codes(same(net.model())) == ["folded"]


def test_a_scale_of_caffe_in_opset_6_is_verified() -> None:
    net = Net(seed=2, opset=6)
    a = net.bn(net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "conv"), 4, "bn", gamma="both", is_test=1)
    g = net.weight("g", [0.5, -1.5, 2.0, 0.7])
    b = net.node("Mul", [a, g], "scaled", broadcast=1, axis=1)
    net.output(net.node("Add", [b, net.weight("o", [1.0, -2.0, 0.3, 0.0])], "moved", broadcast=1, axis=1))
    result = bnfold.fold(net.model())
    assert result.check is not None
    assert result.check.passed
    assert set(codes(result)) == {"folded"}


def test_dequantized_weights_of_another_type_than_their_scale() -> None:
    net = Net(seed=2, opset=23, ir=11, dtype=np.float16)
    x = net.input("x", ("N", 3, 8, 8))
    net.weights["q"] = net.rng.integers(-99, 99, (4, 3, 3, 3)).astype(np.int8)
    net.weights["scale"] = np.abs(net.rng.standard_normal(4)).astype(np.float32) * np.float32(0.01)
    w = net.node("DequantizeLinear", ["q", "scale"], "w", axis=0, output_dtype=TensorProto.FLOAT16)
    net.output(net.relu(net.bn(net.node("Conv", [x, w], "conv"), 4, "bn"), "relu"))
    try:
        run(net.model(), np.zeros((1, 3, 8, 8), np.float16))
    except ort.capi.onnxruntime_pybind11_state.Fail:
        if not ort.__version__.startswith("1.28."):
            raise
        pytest.skip("this onnxruntime cannot dequantise to float16")
    result = same(net.model(), 5e-3)
    assert codes(result) == ["folded"]
    onnx.checker.check_model(result.model)
    assert {t.data_type for t in result.model.graph.initializer if t.name == "q"} == {TensorProto.INT8}


@pytest.mark.parametrize("program", [False, True])
def test_weights_of_torch_that_leave_float16_stay(program: bool) -> None:
    import copy

    import torch
    from torch import nn

    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    net[0].weight.data *= 0.01
    for name, value in (("weight", 0.05), ("bias", 0.2), ("running_mean", 0.1), ("running_var", 100.0)):
        getattr(net[1], name).data.fill_(value)
    x = torch.randn(2, 3, 8, 8)
    for made, code in ((net.eval(), "folded"), (copy.deepcopy(net).half().eval(), "range")):
        x = x.to(next(made.parameters()).dtype)
        given: Any = torch.export.export(made, (x,)) if program else made
        assert codes(bnfold.fold(given, (x,), verify=False)) == [code]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1], [2]])
def test_a_sum_over_static_space_carries_an_offset(keep: int, axes: list[int]) -> None:
    net = Net(seed=2, opset=18)
    h = net.relu(net.conv(net.input("x", (2, 3, 8, 8)), (3, 4), "conv"), "relu")
    h = net.bn(h, 4, "bn", gamma="both")
    s = net.node("ReduceSum", [h, net.weight("axes", axes)], "sum", keepdims=keep)
    if keep:
        net.output(net.conv(s, (4, 3), "last", k=1), (2, 3, None, None))
    else:
        flat = net.node("Reshape", [s, net.weight("flat", [2, -1])], "flat")
        features = 4 * 6 ** (2 - len(axes))
        net.output(net.node("Gemm", [flat, net.filter("w", features, 3)], "fc"), (2, 3))
    assert codes(same(net.model(), 1e-4)) == ["folded"]


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_a_pad_that_names_its_axes(mode: str) -> None:
    net = Net(seed=2, opset=18)
    h = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "conv"), "relu")
    h = net.bn(h, 4, "bn", gamma="both")
    p = net.node("Pad", [h, net.weight("pads", [1, 0, 2, 1]), "", net.weight("axes", [-1, 2])], "pad", mode=mode)
    net.output(net.conv(p, (4, 3), "last"))
    assert codes(same(net.model())) == ["zero-padding" if mode == "constant" else "folded"]


def test_a_resize_that_names_its_axes() -> None:
    net = Net(seed=2, opset=19, ir=9)
    h = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "conv"), "relu")
    h = net.bn(h, 4, "bn", gamma="both")
    r = net.node("Resize", [h, "", net.weight("scales", [2.0, 1.5])], "up", axes=[2, -1], mode="linear")
    net.output(net.conv(r, (4, 3), "last"))
    assert codes(same(net.model())) == ["folded"]


@pytest.mark.parametrize("axis", [0, -4])
def test_weights_dequantized_along_a_negative_axis(axis: int) -> None:
    net = Net(seed=2)
    x = net.input("x", ("N", 3, 8, 8))
    net.weights["q"] = net.rng.integers(-99, 99, (4, 3, 3, 3)).astype(np.int8)
    net.weights["scale"] = np.abs(net.rng.standard_normal(4)).astype(np.float32) * np.float32(0.01)
    w = net.node("DequantizeLinear", ["q", "scale"], "w", axis=axis)
    net.output(net.relu(net.bn(net.node("Conv", [x, w], "conv"), 4, "bn"), "relu"))
    assert codes(same(net.model())) == ["folded"]


@pytest.mark.parametrize("kind", ["norm", "factor", "activation", "layer", "pooled"])
def test_tensors_without_elements(kind: str) -> None:
    """What a slice of no channels, or a window larger than the map, leaves: nothing to fold, and the rest folds."""
    net = Net(seed=6)
    x = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "first")
    y = net.bn(x, 4, "folds")
    none = [net.weight(name, np.array([v])) for name, v in (("from", 2), ("to", 2), ("axis", 1))]
    empty = net.node("Slice", [x, *none], "empty")
    net.output(net.conv(net.relu(y, "relu"), (4, 3), "second", k=1), ("N", 3, None, None))
    if kind == "norm":
        empty = net.bn(empty, 0, "bare")
    elif kind == "factor":
        empty = net.node("Mul", [empty, net.weight("none", np.zeros((0, 1, 1), np.float32))], "times")
    elif kind == "activation":
        empty = net.node("PRelu", [empty, net.weight("slope", np.zeros((0, 1, 1), np.float32))], "prelu")
    elif kind == "layer":
        flat = net.node("Flatten", [empty], "flat")
        sum_of_none = net.node("MatMul", [flat, net.weight("rows", np.zeros((0, 5), np.float32))], "sum_of_none")
        empty = net.bn(sum_of_none, 5, "behind")
    else:
        empty = net.bn(net.node("Relu", [empty], "bent"), 0, "bare")
    net.output(empty, (None,) * (2 if kind == "layer" else 4))
    plan = bnfold.fold(net.model(), verify=False).plan
    assert [bn.verdict for bn in plan.batch_norms if bn.name == "folds"] == ["folded"]
    assert all(bn.reason for bn in plan.batch_norms if bn.verdict != "folded")
    assert len(plan.batch_norms) == (2 if kind in ("norm", "layer", "pooled") else 1)


def test_a_norm_of_other_channels_than_its_input_has_a_reason() -> None:
    """Behind an operator that is not known nothing says so but the layer there."""
    net = Net(seed=7)
    x = net.conv(net.node("Mystery", [net.input("x", ("N", 3, 8, 8))], "odd", domain="custom"), (3, 4), "first")
    net.output(net.bn(x, 6, "norm"), ("N", None, None, None))
    model = net.model()
    model.opset_import.append(helper.make_opsetid("custom", 1))
    (bn,) = bnfold.inspect(model).batch_norms
    assert bn.verdict == "kept"
    assert bn.reason is not None
    assert bn.reason.code == "bad-statistics"


@pytest.mark.parametrize("bounds", [np.zeros(4, np.float32), np.zeros(0, np.float32)])
def test_a_clip_whose_bound_is_no_number_is_left(bounds: Array) -> None:
    net = Net(seed=8)
    x = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "first")
    y = net.node("Clip", [net.bn(x, 4, "norm"), net.weight("low", bounds)], "clip")
    net.output(y, ("N", 4, None, None))
    assert bnfold.inspect(net.model()).counts()["folded"] == 1


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_norms_whose_optional_outputs_have_no_name_are_verified(opset: int, tmp_path: Path) -> None:
    """onnxruntime ends the whole process on these."""
    net = Net(seed=4, opset=opset)
    net.output(net.bn(net.relu(net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "one"), "relu"), 4, "two"))
    for node in net.nodes:
        node.output.extend([""] * 4 if node.op_type == "BatchNormalization" else [])
    path = net.save(tmp_path / "m.onnx")
    result = bnfold.fold(path, out=tmp_path / "out.onnx")
    assert codes(result)[0] == "folded"
    assert result.check is not None
    assert "onnxruntime" in result.check.runner
    assert bnfold.verify(path, tmp_path / "out.onnx").passed


@pytest.mark.parametrize("bare", [("input",), ("output",), ("input", "output")], ids=" ".join)
def test_inputs_and_outputs_without_a_shape(bare: tuple[str, ...], tmp_path: Path) -> None:
    """onnx.checker refuses these; exporters write them, and onnxruntime runs them."""
    net = Net(seed=7)
    x = net.relu(net.bn(net.conv(net.input(), (3, 4), "one"), 4, "bn1", "both"), "relu")
    net.output(net.bn(net.conv(x, (4, 5), "two"), 5, "bn2"), ("N", 5, None, None))
    model = net.model()
    for field in bare:
        getattr(model.graph, field)[0].type.tensor_type.ClearField("shape")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    result = bnfold.fold(tmp_path / "m.onnx", out=tmp_path / "out.onnx")
    assert codes(result) == ["folded", "folded"]
    new = onnx.load(tmp_path / "out.onnx")
    assert (new.graph.input, new.graph.output) == (model.graph.input, model.graph.output)
    assert bnfold.verify(tmp_path / "m.onnx", tmp_path / "out.onnx").passed


def test_an_input_without_a_shape_that_no_layer_reads_is_no_internal_error() -> None:
    net = Net(seed=7)
    net.output(net.bn(net.input(), 3, "bn"))
    model = net.model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(bnfold.VerificationError, match="no tensor of known rank"):
        bnfold.verify(model, model)
    assert bnfold.fold(model).model == model  # nothing goes, so nothing is run


CARRIERS: dict[str, tuple[str, list[str]]] = {
    "tiled space": ("Tile", ["data", "repeats"]),
    "tiled channels": ("Tile", ["data", "channels"]),
    "Max of three": ("Max", ["data", "column", "other"]),
    "Min of four": ("Min", ["number", "data", "other", "column"]),
    "Max of one and two constants": ("Max", ["column", "data", "number"]),
    "Sum of three": ("Sum", ["data", "column", "other"]),
    "Sum of four": ("Sum", ["number", "data", "column", "other"]),
    "Sum with a row": ("Sum", ["data", "row", "other"]),
}


@pytest.mark.parametrize("name", CARRIERS)
def test_constants_among_several_and_tiles_carry(name: str) -> None:
    """conv -> BN -> op -> conv, with another conv and BN as second operand; constants move with the gauge."""
    op, inputs = CARRIERS[name]
    net = Net(seed=9)
    x = net.input()
    names = {"data": net.bn(net.conv(x, (3, 4), "one"), 4, "bn1"), "other": ""}
    if "other" in inputs:
        names["other"] = net.conv(x, (3, 4), "two")
    net.weight("repeats", [1, 1, 2, 3])
    net.weight("channels", [1, 2, 1, 1])
    net.weight("column", np.linspace(-0.5, 0.7, 4).reshape(4, 1, 1))
    net.weight("number", 0.3)
    net.weight("row", np.linspace(-0.4, 0.9, 6))
    held = {"repeats", "channels", "column", "number", "row"}
    y = net.node(op, [i if i in held else names[i] for i in inputs], "op")
    net.weights = {k: v for k, v in net.weights.items() if k not in held or k in inputs}
    width = 8 if "channels" in inputs else 4
    z = net.bn(net.conv(y, (width, 4), "mid", k=1), 4, "bn2", "both")
    net.output(net.conv(net.relu(z, "relu"), (4, 2), "last", k=1))
    assert codes(same(net.model())) == ["folded", "folded"]


def test_a_pad_with_a_number_carries_what_is_one_for_all_channels() -> None:
    """The number becomes p*v + q; where channels differ, there is no such number, and the norm stays."""
    for alike in (True, False):
        net = Net(seed=9)
        y = net.relu(net.input(), "first")
        y = net.bn(y, 3, "bn")
        if alike:
            for part, value in (("gamma", 1.7), ("beta", 0.4), ("mean", -0.6), ("var", 2.3)):
                net.weights[f"bn_{part}"] = np.full(3, value, np.float32)
        y = net.node("Pad", [y, net.weight("pads", [0, 0, 1, 1, 0, 0, 2, 0]), net.weight("frame", 0.8)], "pad")
        net.output(net.conv(y, (3, 4), "conv"))
        result = same(net.model())
        stays = codes(result) != ["folded"]
        assert stays is not alike
        frame = next(t for t in result.model.graph.initializer if "frame" in t.name or "constant" in t.name)
        assert (numpy_helper.to_array(frame) == np.float32(0.8)) == stays
        assert list(frame.dims) == []


@pytest.mark.parametrize("place", ["large", "small", "sparse"])
def test_two_initializers_of_one_name_are_named(place: str) -> None:
    """onnx speaks of graph inputs, or sees only those of few elements."""
    net = Net(seed=2)
    net.output(net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn"))
    model = net.model()
    again = next(t for t in model.graph.initializer if t.name == ("conv_weight" if place == "large" else "bn_mean"))
    if place == "sparse":
        values = numpy_helper.from_array(np.array([0.3], np.float32), again.name)
        where = numpy_helper.from_array(np.array([2], np.int64), "indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4]))
    else:
        model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(again) + 1, again.name))
    with pytest.raises(bnfold.ModelError, match=f"2 initializers are called '{again.name}'"):
        bnfold.inspect(model)
