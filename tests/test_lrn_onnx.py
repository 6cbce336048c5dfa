"""LRN to batch norm in ONNX files: found, placed, fitted, calibrated; without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.calibration import state as states
from bnfold.cli import main
from bnfold.errors import BnfoldError, DataError, ModelError, UsageError
from bnfold.lrn.response import Response
from tests.nets import Net
from tests.test_light_models import randomised

ROOT = Path(__file__).parents[1]
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
Array = npt.NDArray[Any]


def images(count: int = 24, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)


def network(opset: int = 17, written: bool = False, act: str = "Relu", ir: int = 8, dtype: Any = np.float32) -> Net:
    """conv -> act -> LRN -> conv -> act -> MaxPool -> LRN -> dropout -> mean, with strong LRNs."""
    net = Net(seed=4, opset=opset, ir=ir, dtype=dtype)
    x = net.input("x", ("N", 3, 12, 12))
    for i, (a, b) in enumerate(((3, 8), (8, 6))):
        x = net.node(act, [net.conv(x, (a, b), f"conv{i}", pad=1)], f"act{i}")
        net.weights[f"conv{i}_weight"] *= net.dtype.type(2)
        if i:
            x = net.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
        x = spelled(net, x, i) if written else net.node("LRN", [x], f"lrn{i}", size=5, alpha=1.0, beta=0.75, bias=1.0)
    x = net.node("Dropout", [x], "drop")
    net.output(net.conv(x, (6, 4), "last"), ("N", 4, 4, 4))
    return net


def spelled(net: Net, x: str, i: int) -> str:
    """An LRN as converters write it: squares, a band matrix over channels as a 1x1 convolution, power, quotient."""
    c = 8 if i == 0 else 6
    band = (np.abs(np.subtract.outer(np.arange(c), np.arange(c))) <= 2).astype(np.float32)[:, :, None, None] * 0.2
    square = net.node("Mul", [x, x], f"square{i}")
    total = net.node("Conv", [square, net.weight(f"band{i}", band)], f"total{i}")
    one = net.weight(f"one{i}", [1.0])
    power = net.node("Pow", [net.node("Add", [total, one], f"plus{i}"), net.weight(f"beta{i}", [0.75])], f"power{i}")
    return net.node("Div", [x, power], f"lrn{i}")


def complete(net: Net) -> ModelProto:
    """Its model; initializers are inputs too where the IR version asks for that."""
    model = net.model()
    if net.ir < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    return model


def run(model: ModelProto, x: Array) -> Array:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def distance(a: ModelProto, b: ModelProto, x: Array) -> float:
    first, second = run(a, x), run(b, x)
    return float(np.sqrt(((first - second) ** 2).sum() / (first**2).sum()))


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("act", ["Relu", "LeakyRelu"])
def test_a_swapped_network_folds_and_answers_as_the_old_one_nearly_does(written: bool, act: str) -> None:
    model = network(written=written, act=act).model()
    result = bnfold.swap_lrn(model, data=images())
    assert [(site.name, site.placement, site.reason) for site in result.report.sites] == [
        ("lrn0", "foldable", None), ("lrn1", "foldable", None),
    ]  # fmt: skip
    assert {site.kind for site in result.report.sites} == {"written out" if written else "LRN"}
    assert kinds(result.model) == {"Conv": 3, "BatchNormalization": 2, act: 2, "MaxPool": 1, "Dropout": 1}
    other = images(seed=9)
    fitted = distance(model, result.model, other)
    standard = distance(model, bnfold.swap_lrn(model, data=images(), init="standard").model, other)
    assert fitted < 0.25
    assert standard > 2 * fitted
    folded = bnfold.fold(result.model)
    assert folded.plan.counts()["folded"] == 2
    assert distance(result.model, folded.model, other) < 1e-6


def test_statistics_are_those_of_the_data_and_the_fit_is_least_squares() -> None:
    model = network().model()
    result = bnfold.swap_lrn(model, data=images(), placement="in-place")
    assert {site.placement for site in result.report.sites} == {"in-place"}
    first = next(node for node in result.model.graph.node if node.op_type == "BatchNormalization")
    gamma, beta, mean, var = (value(result.model, name) for name in first.input[1:])
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("act0_out", "lrn0_out"))
    import onnxruntime as ort

    session = ort.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    x, y = (np.moveaxis(v, 1, 0).reshape(8, -1).astype(np.float64) for v in session.run(None, {"x": images()}))
    np.testing.assert_allclose(mean, x.mean(1), rtol=1e-5)
    np.testing.assert_allclose(var, x.var(1, ddof=1), rtol=1e-5)
    xhat = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, ddof=1, keepdims=True) + 1e-5)
    for c in range(8):
        wanted, *_ = np.linalg.lstsq(np.stack([xhat[c], np.ones_like(xhat[c])], 1), y[c], rcond=None)
        np.testing.assert_allclose([gamma[c], beta[c]], wanted, rtol=1e-4, atol=1e-5)


def value(model: ModelProto, name: str) -> Array:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


@pytest.mark.parametrize(
    ("change", "code"),
    [("sigmoid", "activation"), ("read", "read-elsewhere"), ("first", "no-conv"), ("add", "no-conv")],
)
def test_a_norm_stays_where_the_lrn_was_for_a_reason(change: str, code: str) -> None:
    net = Net(seed=1)
    x = net.input("x", ("N", 3, 12, 12))
    if change != "first":
        x = c = net.conv(x, (3, 8), "conv", pad=1)
        x = net.node("Sigmoid" if change == "sigmoid" else "Relu", [x], "act")
        if change == "read":
            net.output(net.node("Neg", [c], "other"), ("N", 8, 12, 12))
        if change == "add":
            x = net.node("Add", [x, c], "sum")
    net.output(net.node("LRN", [x], "lrn", size=3, alpha=0.5), ("N", None, 12, 12))
    result = bnfold.swap_lrn(net.model(), data=images())
    (site,) = result.report.sites
    assert site.placement == "in-place"
    assert site.reason is not None
    assert site.reason.code == code
    assert kinds(result.model)["LRN"] == 0
    assert kinds(result.model)["BatchNormalization"] == 1


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (9, 4), (13, 7), (17, 8)])
def test_every_opset_gets_a_norm_that_it_knows(opset: int, ir: int, tmp_path: Path) -> None:
    model = complete(network(opset=opset, ir=ir))
    onnx.save(model, tmp_path / "a.onnx")
    result = bnfold.swap_lrn(tmp_path / "a.onnx", data=images(), out=tmp_path / "b.onnx", drop_dropout=True)
    onnx.checker.check_model(onnx.load(tmp_path / "b.onnx"))
    assert result.report.dropouts == ("drop",)
    assert kinds(result.model)["Dropout"] == 0
    assert distance(model, onnx.load(tmp_path / "b.onnx"), images(seed=3)) < 0.25


def near(kind: str) -> Net:
    """A network with what is nearly an LRN behind its first convolution."""
    net = Net(seed=4)
    x = net.conv(net.input("x", ("N", 3, 12, 12)), (3, 8), "conv", pad=1)
    square = net.node("Mul", [x, x], "square")
    if kind == "rms norm":
        total, k, beta = net.node("ReduceMean", [square], "mean", axes=[1]), 1e-6, 0.5
    elif kind == "weighted window":
        band = np.maximum(0, 1 - np.abs(np.subtract.outer(np.arange(8), np.arange(8))) / 3).astype(np.float32)
        total, k, beta = net.node("Conv", [square, net.weight("band", band[:, :, None, None])], "total"), 1.0, 0.75
    else:
        pooled = net.node("AveragePool", [square], "pool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
        total, k, beta = pooled, 1.0, 0.75
    base = net.node("Add", [total, net.weight("k", [k])], "plus")
    x = net.node("Div", [x, net.node("Pow", [base, net.weight("beta", [beta])], "power")], "y")
    net.output(net.conv(net.relu(x, "relu"), (8, 4), "last"))
    return net


@pytest.mark.parametrize(
    ("kind", "said"),
    [("rms norm", "in it$"), ("weighted window", "in it$"), ("within channels", "; y normalises within channels")],
)
def test_what_only_looks_like_an_lrn_is_left(kind: str, said: str) -> None:
    with pytest.raises(ModelError, match=f"no LRN over channels in it{said.removeprefix('in it')}"):
        bnfold.swap_lrn(near(kind).model(), data=images())


@pytest.mark.parametrize("written", [False, True])
def test_inspect_lists_every_lrn(written: bool, tmp_path: Path) -> None:
    network(written=written).save(tmp_path / "a.onnx")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.onnx"), "--json"])
    others = json.loads(done.stdout)["others"]
    assert [(o["name"], o["op_type"], o["input"]) for o in others] == [
        ("lrn0", "LRN", "act0_out"), ("lrn1", "LRN", "pool_out"),
    ]  # fmt: skip
    sites: list[Any] = bnfold.find_lrn(tmp_path / "a.onnx")
    assert [site.kind for site in sites] == ["written out" if written else "LRN"] * 2
    assert [(s.response.size, s.response.alpha, s.response.k) for s in sites] == [
        (5, pytest.approx(1.0), pytest.approx(1.0))
    ] * 2  # fmt: skip
    assert sites[0].to_dict()["beta"] == pytest.approx(0.75)


def test_a_model_that_cannot_be_run_is_inspected_all_the_same(tmp_path: Path) -> None:
    model = network(written=True).model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 3  # the pooling leaves nothing of that
    model.graph.node.append(helper.make_node("Reshape", ["lrn1_out", "odd"], ["r"]))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([7, 11], np.int64), "odd"))
    model.graph.output[0].name = "r"
    onnx.save(model, tmp_path / "a.onnx")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.onnx")])
    assert done.exit_code == 0, done.output
    assert "LRNs that are no operators could not be looked for" in done.output


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_lrns_of_other_types_are_found(dtype: Any) -> None:
    """onnxruntime has no kernels for convolutions in float64; in float16 the squares of large values overflow."""
    model = network(written=True, dtype=dtype).model()
    result = bnfold.swap_lrn(model, data=images())
    assert [(site.name, site.placement) for site in result.report.sites] == [("lrn0", "foldable"), ("lrn1", "foldable")]
    wanted = bnfold.swap_lrn(network(written=True).model(), data=images()).report.sites
    assert [site.r2 for site in result.report.sites] == pytest.approx([site.r2 for site in wanted], rel=0.02)
    assert {t.data_type for t in result.model.graph.initializer} == {helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("options", [{"dynamo": False}, {"dynamo": True}], ids=["script", "dynamo"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.filterwarnings("ignore")
def test_what_exporters_of_torch_write_is_found(
    size: int, options: dict[str, Any], dynamic: bool, tmp_path: Path
) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(size, 1e-4, k=2.0), nn.Conv2d(8, 4, 3))
    shapes: dict[str, Any] = {}
    if dynamic:
        by_name = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
        shapes = {"dynamic_shapes": ({0: "n"},)} if options["dynamo"] else by_name
    torch.onnx.export(net.eval(), (torch.randn(4, 3, 12, 12),), str(tmp_path / "a.onnx"), **options, **shapes)
    model = onnx.load(tmp_path / "a.onnx")
    result = bnfold.swap_lrn(model, data=images())
    (site,) = result.report.sites
    assert (site.kind, site.placement) == ("written out", "foldable")
    assert site.r2 is not None
    assert site.r2 > 0.99
    assert [n.op_type for n in result.model.graph.node if n.op_type != "Constant"] == [
        "Conv", "BatchNormalization", "Relu", "Conv",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [3, 5, 7])
def test_the_formula_is_that_of_the_operator(size: int) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 9, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 9, 4, 4])
    node = helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.7, beta=0.6, bias=1.3)
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)],
                              ir_version=8)  # fmt: skip
    values = np.random.default_rng(0).standard_normal((2, 9, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, values), Response.of_onnx(size, 0.7, 0.6, 1.3)(values), rtol=1e-5, atol=1e-6)


# --- calibration


def test_calibration_gives_the_statistics_of_the_data_layer_after_layer(tmp_path: Path) -> None:
    net = Net(seed=2)
    x = net.bn(net.conv(net.input("x", ("N", 3, 12, 12)), (3, 8), "conv0"), 8, "bn0", gamma="both")
    net.output(net.bn(net.conv(net.relu(x, "relu"), (8, 4), "conv1"), 4, "bn1", gamma="both"), ("N", 4, 8, 8))
    model = net.model()
    onnx.save(model, tmp_path / "a.onnx")
    data = images(31)
    result = bnfold.calibrate(tmp_path / "a.onnx", data, out=tmp_path / "b.onnx", batch_size=7)
    assert result.report.order == "layerwise"
    assert [norm.values for norm in result.report.norms] == [31 * 100, 31 * 64]
    new = onnx.load(tmp_path / "b.onnx")
    for name, size in (("bn0", 8), ("bn1", 4)):
        seen = onnx.ModelProto()
        seen.CopyFrom(new)
        del seen.graph.output[:]
        seen.graph.output.append(onnx.ValueInfoProto(name=f"conv{name[-1]}_out"))
        rows = np.moveaxis(run(seen, data), 1, 0).reshape(size, -1).astype(np.float64)
        np.testing.assert_allclose(value(new, f"{name}_mean"), rows.mean(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value(new, f"{name}_var"), rows.var(1, ddof=1), rtol=1e-4)
    untouched = {t.name for t in model.graph.initializer} - {f"bn{i}_{s}" for i in (0, 1) for s in ("mean", "var")}
    assert all(np.array_equal(value(new, name), value(model, name)) for name in untouched)


WAYS: list[dict[str, Any]] = [
    {"order": "layerwise"}, {"order": "joint"}, {"order": "joint", "method": "moving", "decay": 0.6},
]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A network of two norms in torch, and as ONNX."""
    import torch
    from torch import nn

    from tests.torch_nets import alive

    torch.manual_seed(0)
    net = alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)))
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    bnfold.export(net, (torch.randn(2, 3, 12, 12),), out=path, keep_bn=True, dynamic=["batch"])
    return net, path


@pytest.mark.parametrize("way", WAYS, ids=["layerwise", "joint", "moving"])
def test_calibration_is_that_of_the_same_network_in_torch(exported: tuple[Any, Path], way: dict[str, Any]) -> None:
    net, path = exported
    mine = bnfold.calibrate(path, images(), batch_size=7, **way)
    theirs = bnfold.calibrate(net, images(), batch_size=7, **way)
    norms = [node for node in mine.model.graph.node if node.op_type == "BatchNormalization"]
    for node, norm in zip(norms, (theirs.model[1], theirs.model[4]), strict=True):
        np.testing.assert_allclose(value(mine.model, node.input[3]), norm.running_mean.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value(mine.model, node.input[4]), norm.running_var.numpy(), rtol=1e-4)
    assert [n.values for n in mine.report.norms] == [n.values for n in theirs.report.norms]


def test_the_ways_to_calibrate_differ(exported: tuple[Any, Path]) -> None:
    _, path = exported
    found = [bnfold.calibrate(path, images(), batch_size=3, **way).model for way in WAYS]
    name = [node for node in found[0].graph.node if node.op_type == "BatchNormalization"][1].input[4]
    values = [value(model, name) for model in found]
    for i in range(3):
        assert np.abs(values[i] / values[i - 1] - 1).max() > 1e-3


def calibrated(opset: int, ir: int, dtype: Any = np.float32, **way: Any) -> list[Array]:
    """The statistics that two norms get."""
    net = Net(seed=2, opset=opset, ir=ir, dtype=dtype)
    x = net.bn(net.conv(net.input("x", ("N", 3, 12, 12)), (3, 8), "conv0"), 8, "bn0", gamma="both")
    net.output(net.bn(net.conv(net.relu(x, "relu"), (8, 4), "conv1"), 4, "bn1", gamma="both"), ("N", 4, 8, 8))
    new = bnfold.calibrate(complete(net), images(), batch_size=5, **way).model
    onnx.checker.check_model(new)
    return [value(new, f"bn{i}_{part}").astype(np.float64) for i in (0, 1) for part in ("mean", "var")]


@pytest.mark.parametrize("way", WAYS, ids=["layerwise", "joint", "moving"])
@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (9, 4), (13, 7), (20, 9)])
def test_every_opset_is_calibrated_alike(opset: int, ir: int, way: dict[str, Any]) -> None:
    for found, wanted in zip(calibrated(opset, ir, **way), calibrated(17, 8, **way), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 2e-2), (np.float64, 1e-4)])
def test_other_types_are_calibrated_alike(dtype: Any, tolerance: float) -> None:
    for found, wanted in zip(
        calibrated(17, 8, dtype, order="joint"), calibrated(17, 8, order="joint"), strict=True
    ):  # fmt: skip
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_shared_statistics_and_those_of_constant_nodes_become_their_own() -> None:
    net = Net(seed=2)
    x = net.bn(net.conv(net.input("x", ("N", 3, 12, 12)), (3, 8), "conv0"), 8, "bn0", gamma="both")
    net.output(net.bn(net.conv(net.relu(x, "relu"), (8, 8), "conv1"), 8, "bn1", gamma="both"), ("N", 8, 8, 8))
    plain = net.model()
    wanted = bnfold.calibrate(plain, images()).report
    shared = ModelProto()
    shared.CopyFrom(plain)
    first, second = (node for node in shared.graph.node if node.op_type == "BatchNormalization")
    second.input[3] = first.input[3]
    constant = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(value(plain, second.input[4])))
    shared.graph.node.insert(0, constant)
    second.input[4] = "v"
    for node in shared.graph.node:
        node.name = ""
    result = bnfold.calibrate(shared, images())
    assert [norm.name for norm in result.report.norms] == ["bn0_out", "bn1_out"]
    assert np.array_equal(run(result.model, images()), run(bnfold.calibrate(plain, images()).model, images()))
    assert [norm.values for norm in result.report.norms] == [norm.values for norm in wanted.norms]
    assert value(shared, first.input[3]).tobytes() == value(plain, first.input[3]).tobytes()


class Interrupted(Exception):
    """What ends a calibration in a test."""


@pytest.mark.parametrize(
    ("way", "stage", "left"),
    [(WAYS[0], "bn1: batch 2 of 4", 3), (WAYS[1], "batch 3 of 4", 2), (WAYS[2], "batch 4 of 4", 1)],
    ids=["layerwise", "joint", "moving"],
)
def test_a_calibration_goes_on_where_it_stopped(
    way: dict[str, Any], stage: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "EVERY", 1)
    net = Net(seed=2)
    x = net.bn(net.conv(net.input("x", ("N", 3, 12, 12)), (3, 8), "conv0"), 8, "bn0", gamma="both")
    net.output(net.bn(net.conv(net.relu(x, "relu"), (8, 4), "conv1"), 4, "bn1", gamma="both"), ("N", 4, 8, 8))
    model, state = net.model(), tmp_path / "state"

    def stop(said: str) -> None:
        if said == stage:
            raise Interrupted

    whole = bnfold.calibrate(model, images(), batch_size=6, **way)
    with pytest.raises(Interrupted):
        bnfold.calibrate(model, images(), batch_size=6, resume=state, progress=stop, **way)
    assert state.exists()
    with pytest.raises(UsageError, match="batch size differ"):
        bnfold.calibrate(model, images(), batch_size=5, resume=state, **way)
    said: list[str] = []
    rest = bnfold.calibrate(model, images(), batch_size=6, resume=state, progress=said.append, **way)
    assert len(said) == left
    assert rest.model.SerializeToString() == whole.model.SerializeToString()
    assert rest.report == whole.report
    assert list(tmp_path.iterdir()) == []


# --- the command, bad input


def test_the_commands_take_onnx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network().save(Path("a.onnx"))
    np.save("x.npy", images())
    for arguments in (
        ["swap-lrn", "a.onnx", "-o", "b.onnx", "--data", "x.npy", "--report", "r.json"],
        ["calibrate", "b.onnx", "-o", "c.onnx", "--data", "x.npy"],
        ["fold", "c.onnx", "-o", "d.onnx"],
        ["verify", "c.onnx", "d.onnx"],
    ):
        done = CliRunner().invoke(main, [*arguments, "-q"])
        assert done.exit_code == 0, done.output
    assert json.loads(Path("r.json").read_text())["sites"][0]["placement"] == "foldable"
    assert kinds(onnx.load("d.onnx")) == {"Conv": 3, "Relu": 2, "MaxPool": 1, "Dropout": 1}


def nan() -> Array:
    x = images()
    x[3, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, UsageError, "init='fit' needs data"),
        ({"data": images()[:, :2]}, DataError, "samples of 2x12x12 do not fit input 'x', which takes 3x12x12"),
        ({"data": nan()}, DataError, "sample 3 of x holds NaN"),
        ({"data": images()[:0]}, DataError, "no samples in it"),
        ({"data": images(), "placement": "above"}, UsageError, "placement='above'"),
        ({"data": images(), "batch_size": 0}, UsageError, "batch_size=0"),
        ({"data": images(), "inplace": True}, UsageError, "inplace is for PyTorch"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    options: dict[str, Any], error: type[BnfoldError], said: str, tmp_path: Path
) -> None:
    network().save(tmp_path / "a.onnx")
    with pytest.raises(error, match=said):
        bnfold.swap_lrn(tmp_path / "a.onnx", out=tmp_path / "b.onnx", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx"]


def test_a_model_without_lrn_or_norms_says_so(tmp_path: Path) -> None:
    net = Net()
    net.output(net.conv(net.input("x", ("N", 3, 12, 12)), (3, 4), "conv"))
    net.save(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"a\.onnx: no LRN over channels in it"):
        bnfold.swap_lrn(tmp_path / "a.onnx", data=images())
    with pytest.raises(ModelError, match=r"a\.onnx: no batch norm with constant statistics"):
        bnfold.calibrate(tmp_path / "a.onnx", images())
    with pytest.raises(UsageError, match="order='joint' expected"):
        bnfold.calibrate(tmp_path / "a.onnx", images(), order="layerwise", method="moving")


def test_constant_channels_and_few_samples_are_warned_of() -> None:
    net = network()
    net.weights["conv0_weight"][2] = 0
    report = bnfold.swap_lrn(net.model(), data=images(1)[:, :, :, :]).report
    assert any("1 channels are constant" in text for text in report.sites[0].warnings)
    assert any("values for each channel are few" in text for text in report.sites[1].warnings) or (
        report.sites[1].values >= 100
    )


def test_nothing_of_it_imports_torch(tmp_path: Path) -> None:
    network().save(tmp_path / "a.onnx")
    np.save(tmp_path / "x.npy", images())
    code = (
        "import bnfold, sys; bnfold.swap_lrn('a.onnx', data='x.npy', out='b.onnx');"
        "bnfold.calibrate('b.onnx', 'x.npy', out='c.onnx'); assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("light_bvlc_alexnet", 2), ("light_zfnet512", 2), ("light_inception_v1", 2)]
)
def test_networks_of_the_time_of_lrn(name: str, count: int, tmp_path: Path) -> None:
    model = randomised(onnx.load(LIGHT / f"{name}.onnx"))
    assert kinds(model)["LRN"] == 2
    rng = np.random.default_rng(0)
    onnx.save(model, tmp_path / "a.onnx")
    x = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    result = bnfold.swap_lrn(tmp_path / "a.onnx", data=x, out=tmp_path / "b.onnx")
    assert {site.placement for site in result.report.sites} <= {"foldable", "in-place"}
    new = onnx.load(tmp_path / "b.onnx")
    assert kinds(new)["LRN"] == 0
    assert kinds(new)["BatchNormalization"] == 2
    assert all(site.r2 is not None and site.r2 > 0.95 for site in result.report.sites)
