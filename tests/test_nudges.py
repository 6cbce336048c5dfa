"""The second hearing: no sound fold is refused for luck in the reference's own rounding, and no fault passes for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from benchmarks.judging import FAULTS
from benchmarks.small_networks import Small
from bnfold.judge.criteria.criterion import Criterion, Errors, beside, facts
from bnfold.judge.criteria.inputs import Inputs
from bnfold.judge.judge import Hearing, Noise, Nudges, judge
from bnfold.judge.subjects.nudges import NudgedFile, nudged, weights
from bnfold.judge.subjects.runners import CPU, OrtRunner
from bnfold.judge.subjects.subject import OnnxSubject

from .nets import Net, conv_bn, initializer
from .test_judge import append, copied, judged

Array = npt.NDArray[Any]


# --- sound folds, each of which a judge that moves the inputs only refuses


@pytest.mark.parametrize("number", [17, 95, 723, 213, 364, 595, 1044, 1114, 20395, 21294])
def test_folds_of_small_networks_pass(number: int) -> None:
    """Few output numbers behind half precision, a saturated end, a grid of whole numbers, or means far from 0."""
    result = bnfold.fold(Small.of(number).model())
    assert result.plan.counts()["folded"] > 0
    assert result.check is not None
    assert result.check.passed


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 75, 25))
def test_folds_of_small_networks_of_every_kind_pass(start: int) -> None:
    for number in range(start, start + 25):
        bnfold.fold(Small.of(number).model())


def test_one_number_behind_a_quantised_input_passes(tmp_path: Path) -> None:
    """Its error is 0 in the reference, by luck; one unit in the last place in the candidate is no fault."""

    def model(factor: float) -> ModelProto:
        net = Net(seed=5)
        grid = [net.weight("step", 0.02), "zero"]
        net.weights["zero"] = np.array(3, np.int8)
        x = net.node("QuantizeLinear", [net.input("x", (1, 3, 6, 6)), *grid], "quantised")
        x = net.relu(
            net.bn(net.conv(net.node("DequantizeLinear", [x, *grid], "back"), (3, 8), "conv"), 8, "bn"), "relu"
        )
        x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pool")], "flat")
        out = net.node("Gemm", [x, net.filter("fc", 1, 8), net.weight("bias", [0.3])], "gemm", transB=1)
        net.output(net.node("Mul", [out, net.weight("factor", factor)], "scaled"), (1, 1))
        return net.model()

    for units in (1, 2, 4):
        assert judged(tmp_path, model(1.0), model(1.0 + units * 2.0**-23)).passed
    assert not judged(tmp_path, model(1.0), model(1.0 + 1e-4)).passed


@pytest.mark.parametrize("end", ["Identity", "Sigmoid", "Tanh"])
def test_modules_on_zeros_pass(end: str) -> None:
    """A generator, and a convolution that is called twice: on zeros all their numbers come from a few of the norms."""
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from bnfold.judge.subjects.modules import ModuleSubject

    class Twice(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 1)
            self.end = getattr(nn, end)()

        def forward(self, x: Any) -> Any:
            for _ in range(2):
                x = torch.relu(self.bn(self.conv(x)))
            return self.end(self.fc(x.mean((2, 3))))

    def filled(net: Any, seed: int) -> Any:
        g = torch.Generator().manual_seed(seed)
        norms: list[Any] = [inner for inner in net.modules() if isinstance(inner, nn.BatchNorm2d)]
        for norm in norms:
            norm.weight.data.uniform_(0.5, 1.5, generator=g)
            norm.bias.data.normal_(0, 0.3, generator=g)
            norm.running_mean.normal_(0, 0.3, generator=g)
            norm.running_var.uniform_(0.3, 2, generator=g)
        return net.eval()

    def same(first: nn.Module, second: nn.Module, x: Any) -> bool:
        subjects = ModuleSubject(first, (x,)), ModuleSubject(second, (x,))
        return judge(*subjects, Inputs(kinds=("normal", "constant", "zeros")), locating=False).passed

    for seed in (41, 42):
        torch.manual_seed(seed)
        layers = (
            nn.ConvTranspose2d(4, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 1, 4, 2, 1),
        )
        net, gan = filled(Twice(), seed), filled(nn.Sequential(*layers, getattr(nn, end)()), seed)
        twice, folded = copy.deepcopy(net), copy.deepcopy(gan)
        twice.conv, twice.bn = fuse_conv_bn_eval(net.conv, net.bn), nn.Identity()
        folded[0], folded[1] = fuse_conv_bn_eval(gan[0], gan[1], transpose=True), nn.Identity()
        for first, second, x in ((net, twice, torch.randn(1, 3, 6, 6)), (gan, folded, torch.randn(1, 4, 1, 1))):
            before = copy.deepcopy(first.state_dict())
            assert same(first, second, x), seed
            assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
            with torch.no_grad():
                next(second.parameters()).mul_(1.003)
            assert not same(first, second, x), seed


@pytest.mark.slow
def test_a_program_is_heard_with_other_weights() -> None:
    torch = pytest.importorskip("torch")
    from bnfold.judge.subjects.modules import ModuleSubject

    x = torch.randn(2, 4)
    program = torch.export.export(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).eval(), (x,))
    subject = ModuleSubject(program.module(), (x,))
    feed = {spec.name: np.zeros((2, 4), np.float32) for spec in subject.specs()}
    runs = [found["output_0"] for _, found in Nudges(subject, subject.engines()[0].open(), 0).runs(feed)]
    assert len({run.tobytes() for run in runs}) > 2
    assert np.ptp(runs, axis=0).max() < 1e-5


# --- faults


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.__name__ in ("border", "offset", "gamma")])
def test_numbers_that_nearly_cancel_are_no_excuse(fault: Any) -> None:
    """A unit in the last place of a mean of 50 is 0.03 in half precision; the original itself is 1e-4 from float64."""
    sound = Small.of(62).model()
    wrong = copied(sound)
    assert fault(wrong, np.random.default_rng(0))
    assert not bnfold.verify(sound, bnfold.fold(wrong, verify=False).model).passed


def test_a_candidate_whose_own_rounding_is_large_is_no_excuse(tmp_path: Path) -> None:
    """It adds 1e5 and takes it off again: its own noise would explain what the reference's does not."""
    model, wrong = conv_bn().model(), conv_bn().model()
    append(wrong, "Add", np.float32(1e5))
    output = wrong.graph.output[0].name
    wrong.graph.node[-1].output[0] = "far"
    wrong.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e5, np.float32), "back"))
    wrong.graph.node.append(helper.make_node("Sub", ["far", "back"], [output]))
    assert not judged(tmp_path, model, wrong).passed


def test_a_candidate_that_is_nearer_to_float64_passes_however_far_the_reference_is() -> None:
    exact = np.linspace(1.0, 2.0, 50)
    signs = np.where(np.arange(50) % 2, 1.0, -1.0)
    a, near, far = ((exact + error * signs).astype(np.float32) for error in (0.4, 0.01, -0.41))
    own = Errors.of(a, exact)
    assert beside(facts("y", "normal", a, near), a, own, Errors.of(near, exact), 8.0).passed
    assert not beside(facts("y", "normal", a, far), a, own, Errors.of(far, exact), 8.0).passed


def test_few_numbers_have_the_floor_of_the_largest() -> None:
    for count, units, passed in ((1, 7.0, True), (1, 9.0, False), (4, 4.0, True), (4, 5.0, False), (100, 3.0, False)):
        exact = np.ones(count)
        a, b = exact.astype(np.float32), (exact + units * 2.0**-23).astype(np.float32)
        entry = beside(facts("y", "normal", a, b), a, Errors.of(a, exact), Errors.of(b, exact), 8.0)
        assert entry.passed == passed, (count, units)


def labels(bias: list[float]) -> ModelProto:
    """The largest of three scores, of two samples."""
    net = Net(seed=0)
    scores = net.node("Gemm", [net.input("x", (2, 4)), net.filter("w", 3, 4), net.weight("b", bias)], "gemm", transB=1)
    net.weights["w"][:] = net.weights["w"][0]  # they differ by the bias alone
    net.output(net.node("ArgMax", [scores], "best", axis=1, keepdims=0), (2,), np.int64)
    return net.model()


def test_labels_flip_at_ties_only(tmp_path: Path) -> None:
    tie, other = [0.3, 0.3, -1.0], [0.3, np.nextafter(np.float32(0.3), np.float32(1)), -1.0]
    assert judged(tmp_path, labels(tie), labels(other)).passed
    check = judged(tmp_path, labels(tie), labels([0.3, -1.0, 0.31]))
    assert not check.passed
    assert not judged(tmp_path, labels([0.3, 0.3001, -1.0]), labels([0.3001, 0.3, -1.0])).passed


# --- what is nudged


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_numbers_move_by_units_in_the_last_place_both_ways(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    value = np.random.default_rng(0).normal(0, 3, 200).astype(kind)
    value[:3] = 0
    up, down = (nudged(value, np.random.default_rng(1), units) for units in (2.0, -2.0))
    assert up.dtype == value.dtype
    assert not up[:3].any()
    moved, back = (np.asarray(v[3:], np.float64) - np.asarray(value[3:], np.float64) for v in (up, down))
    assert (moved * back < 0).all()
    unit = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7}[dtype]
    relative = np.abs(moved / np.asarray(value[3:], np.float64)) / unit
    assert 0.4 < relative.min() < relative.max() < 4.1
    whole = np.arange(5)
    assert nudged(whole, np.random.default_rng(0), 1.0) is whole
    odd = np.array([np.inf, np.nan, np.finfo(np.float32).max], np.float32)
    assert np.array_equal(nudged(odd, np.random.default_rng(0), 4.0)[:2], odd[:2], equal_nan=True)


def test_sizes_and_steps_keep_their_values(tmp_path: Path) -> None:
    net = Net(seed=2)
    net.weights["zero"] = np.array(0, np.int8)
    grid = [net.weight("step", 0.1), "zero"]
    x = net.node("QuantizeLinear", [net.input("x", (1, 3, 4, 4)), *grid], "q")
    x = net.conv(net.node("DequantizeLinear", [x, *grid], "d"), (3, 2), "conv", pad=1)
    held = helper.make_tensor("value", TensorProto.FLOAT, [2, 1, 1], [0.25, -0.5])
    x = net.node("Add", [x, net.node("Constant", [], "held", value=held)], "sum")
    net.output(net.node("Resize", [x, "", net.weight("scales", [1.0, 1.0, 2.0, 2.0])], "resize"), (1, 2, 8, 8))
    path = net.save(tmp_path / "model.onnx")
    assert {t.name for t in weights(net.model())} == {"conv_weight", "conv_bias"}
    moving = NudgedFile(path, CPU, OrtRunner(path).name)
    assert set(moving.weights) == {"conv_weight", "conv_bias", "held_out"}
    feed = {"x": np.ones((1, 3, 4, 4), np.float32)}
    plain = OrtRunner(path).run(feed)["resize_out"]
    found = moving.run(feed, np.random.default_rng(0), 1.0)["resize_out"]
    assert found.shape == plain.shape
    assert 0 < np.abs(found - plain).max() < 1e-5


def test_noise_is_looked_for_until_it_is_enough() -> None:
    expected = {"y": np.zeros(3, np.float32)}
    runs = [(1.0, {"y": np.full(3, i, np.float32)}) for i in range(6)]
    noise = Noise(iter(runs), expected)
    assert [float(moved.max()) for moved in noise.of("y")] == [1.0, 3.0, 5.0]
    assert [float(moved.max()) for moved in noise.of("y")] == [5.0]
    halved = Noise(iter([(2.0, {"y": np.ones(3, np.float32)}), (1.0, {"y": np.ones(2, np.float32)})]), expected)
    assert [float(moved.max()) for moved in halved.of("y")] == [0.5]


def test_nothing_is_run_where_nothing_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Any, feed: Any) -> Any:
        raise AssertionError("run without doubt")
        yield

    monkeypatch.setattr(Nudges, "runs", never)
    conv_bn().save(tmp_path / "a.onnx")
    onnx.save(bnfold.fold(conv_bn().model(), verify=False).model, tmp_path / "b.onnx")
    assert judge(OnnxSubject(tmp_path / "a.onnx"), OnnxSubject(tmp_path / "b.onnx")).passed


def test_a_model_that_cannot_be_copied_is_heard_by_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, engine: str) -> Any:
        raise MemoryError

    path = conv_bn().save(tmp_path / "a.onnx")
    monkeypatch.setattr(OnnxSubject, "nudged", fails)
    subject, runner = OnnxSubject(path), OrtRunner(path)
    feed = {"x": np.ones((1, 3, 8, 8), np.float32)}
    plain = runner.run(feed)["bn2_out"]
    moved = next(Noise(Nudges(subject, runner, 0).runs(feed), {"bn2_out": plain}).of("bn2_out"))
    assert 0 < moved.max() < 1e-5
    assert Hearing(subject, Nudges(subject, runner, 0), Criterion(), lambda stage: None).failed is False


# --- inputs of strings, and operators that one runtime alone has


def test_an_input_of_strings_gets_any(tmp_path: Path) -> None:
    def model(weight: float = 1.0) -> ModelProto:
        net = Net(seed=1)
        net.inputs.append(helper.make_tensor_value_info("text", TensorProto.STRING, ["N", 1]))
        x = net.node("Cast", ["text"], "number", to=TensorProto.FLOAT)
        x = net.node("Gemm", [x, net.filter("fc", 6, 1), net.weight("bias", net.rng.normal(0, 1, 6))], "gemm", transB=1)
        net.weights["fc"] *= weight
        net.output(net.relu(net.bn(x, 6, "bn", gamma="both"), "relu"), ("N", 6))
        net.outputs.append(helper.make_tensor_value_info("same_out", TensorProto.STRING, ["N", 1]))
        net.node("Identity", ["text"], "same")
        return net.model()

    result = bnfold.fold(model())
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert result.check.passed
    assert {entry.output for entry in result.check.outputs} == {"relu_out", "same_out"}
    assert not judged(tmp_path, model(), model(1.01)).passed


def gelu(factor: float = 1.0) -> Net:
    """A convolution, a norm, and an activation that onnx itself does not know."""
    net = Net(seed=1)
    net.domains["com.microsoft"] = 1
    x = net.bn(net.conv(net.input("x", (2, 3, 6, 6)), (3, 4), "conv"), 4, "bn", gamma="both")
    net.weights["conv_weight"] *= factor
    net.output(net.node("Gelu", [x], "gelu", domain="com.microsoft"), (2, 4, 4, 4))
    return net


def test_what_only_onnxruntime_can_run_is_judged_by_it(tmp_path: Path) -> None:
    result = bnfold.fold(gelu().model())
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert result.check.passed
    assert "onnxruntime" in result.check.runner
    assert any("nothing here computes the reference in float64" in warning for warning in result.check.warnings)
    assert not judged(tmp_path, gelu().model(), gelu(1.01).model()).passed


def test_a_file_that_only_onnxruntime_can_run_is_held_against_a_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from bnfold.judge.subjects.modules import ModuleSubject

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GELU()).eval()
    names = ["conv_weight", "conv_bias", "bn_gamma", "bn_beta", "bn_mean", "bn_var"]
    tensors = [net[0].weight, net[0].bias, net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var]
    with torch.no_grad():
        for name, tensor in zip(names, tensors, strict=True):
            tensor.copy_(torch.from_numpy(initializer(gelu().model(), name).copy()))
    for factor, passed in ((1.0, True), (1.01, False)):
        path = gelu(factor).save(tmp_path / "gelu.onnx")
        subjects = ModuleSubject(net, (torch.randn(2, 3, 6, 6),)), OnnxSubject(path)
        assert judge(*subjects, Inputs(kinds=("normal", "image")), locating=False).passed == passed
