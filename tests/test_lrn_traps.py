"""What went wrong once with LRNs, statistics and the data for them: a named test each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import bnfold
from bnfold.cli import main
from bnfold.errors import DataError, UsageError
from bnfold.judge.subjects.reference import operators
from bnfold.lrn.response import Response
from tests.nets import Net

pytestmark = pytest.mark.usefixtures("one_thread")
Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 3, 16, 16)).astype(np.float32)
ROOT = Path(__file__).parents[1]


def lrn_net(dtype: Any = np.float32, alpha: float = 1.0, scale: float = 0.3) -> Net:
    net = Net(seed=5, dtype=dtype)
    c = net.conv(net.input("x", ("N", 3, 16, 16)), (3, 8), "conv")
    net.weights["conv_weight"] = (RNG.standard_normal((8, 3, 3, 3)) * scale).astype(dtype)
    x = net.node("LRN", [net.relu(c, "relu")], "lrn", size=5, alpha=alpha)
    net.output(net.conv(x, (8, 4), "last", k=1), ("N", 4, 14, 14))
    return net


def vectors(model: ModelProto, part: str) -> Array:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name.endswith(part))).astype(np.float64)


@pytest.mark.parametrize("batch", [3, 32])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_the_evaluator_knows_what_an_lrn_computes(batch: int, size: int) -> None:
    net = Net()
    x = net.input("x", ("N", 7, 4, 4))
    net.output(net.node("LRN", [x], "lrn", size=size, alpha=0.7, beta=0.6, bias=1.3), ("N", 7, 4, 4))
    values = RNG.standard_normal((batch, 7, 4, 4)).astype(np.float32)
    answers: Any = ReferenceEvaluator(net.model(), new_ops=operators(17)).run(None, {"x": values})
    (found,) = answers
    np.testing.assert_allclose(found, Response.of_onnx(size, 0.7, 0.6, 1.3)(values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [4, 32])
def test_a_float64_network_is_fitted_as_the_float32_one(batch: int) -> None:
    model = lrn_net().model()
    wide = lrn_net(np.float64)
    wide.weights = {name: value.astype(np.float64) for name, value in lrn_weights(model).items()}
    a = bnfold.swap_lrn(model, data=X, batch_size=batch).model
    b = bnfold.swap_lrn(wide.model(), data=X.astype(np.float64), batch_size=batch).model
    np.testing.assert_allclose(vectors(b, "gamma"), vectors(a, "gamma"), rtol=1e-3)


def lrn_weights(model: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_statistics_beyond_float16_are_an_error(tmp_path: Path) -> None:
    lrn_net(np.float16, alpha=1e-7, scale=1.0).save(tmp_path / "a.onnx")
    with pytest.raises(DataError, match=r"lrn: a number of .* is beyond the range of float16"):
        bnfold.swap_lrn(tmp_path / "a.onnx", data=(X * 90).astype(np.float16), out=tmp_path / "b.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for order in ("joint", "layerwise"):
        with pytest.raises(DataError, match=r"1: a number of .* is beyond the range of float16"):
            bnfold.calibrate(net, torch.from_numpy(X * 2000).half(), order=order, inplace=True)
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_a_norm_gets_the_type_of_its_tensor() -> None:
    net = Net(seed=5)
    c = net.conv(net.input("x", ("N", 3, 16, 16)), (3, 8), "first")
    half = net.node("Cast", [c], "half", to=TensorProto.FLOAT16)
    net.weights["second_weight"] = (RNG.standard_normal((8, 8, 3, 3)) * 0.1).astype(np.float16)
    d = net.node("Conv", [half, "second_weight"], "second")
    x = net.node("LRN", [net.relu(d, "relu")], "lrn", size=5, alpha=1.0)
    net.output(net.node("Cast", [x], "back", to=TensorProto.FLOAT), ("N", 8, 12, 12))
    swapped = bnfold.swap_lrn(net.model(), data=X).model
    ort.InferenceSession(swapped.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {t.data_type for t in swapped.graph.initializer if "norm" in t.name} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_norm_before_pooling_has_a_positive_gamma(kind: str) -> None:
    """A strong offset makes an LRN answer more with less, which a maximum behind the norm would turn around."""
    torch.manual_seed(0)
    conv: Any = nn.Conv2d(3, 8, 3)
    conv.bias.data += 5
    net = nn.Sequential(conv, nn.MaxPool2d(3, 2), nn.LocalResponseNorm(1, alpha=5.0), nn.Conv2d(8, 4, 3)).eval()
    if kind == "torch":
        result = bnfold.swap_lrn(net, torch.from_numpy(X[:2]), data=X)
        gamma = next(m for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)).weight.detach().numpy()
    else:
        graph = Net(seed=5)
        c = graph.conv(graph.input("x", ("N", 3, 16, 16)), (3, 8), "conv")
        graph.weights["conv_weight"] = conv.weight.detach().numpy()
        graph.weights["conv_bias"] = conv.bias.detach().numpy()
        p = graph.node("MaxPool", [c], "pool", kernel_shape=[3, 3], strides=[2, 2])
        x = graph.node("LRN", [p], "lrn", size=1, alpha=5.0)
        graph.output(graph.conv(x, (8, 4), "last"), ("N", 4, None, None))
        result = bnfold.swap_lrn(graph.model(), data=X)
        gamma = vectors(result.model, "gamma")
    (site,) = result.report.sites
    assert site.placement == "foldable"
    assert (gamma > 0).all()
    error, r2 = result.report.output_error, site.r2
    assert error is not None
    assert r2 is not None
    assert r2 < 0.9  # what a positive gamma cannot give is said


def test_a_norm_before_an_activation_behind_pooling_folds_and_says_so() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.ReLU(), nn.LocalResponseNorm(5, alpha=1.0), nn.Conv2d(8, 4, 1)]
    x = torch.from_numpy(X[:2])
    result = bnfold.swap_lrn(nn.Sequential(*layers).eval(), x, data=X)
    assert [site.placement for site in result.report.sites] == ["foldable"]
    assert bnfold.fold(result.model, (x,)).plan.counts()["folded"] == 1


def test_a_convolution_that_is_used_twice_takes_no_norm() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), conv, nn.Tanh(), conv, nn.ReLU(), nn.LocalResponseNorm(5, alpha=1.0)).eval()
    (site,) = bnfold.swap_lrn(net, torch.from_numpy(X[:2]), data=X).report.sites
    assert site.placement == "in-place"
    assert site.reason is not None
    assert site.reason.code == "no-place"


def test_an_exported_lrn_is_swapped_without_data(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.Conv2d(8, 4, 1)).eval()
    torch.onnx.export(net, (torch.from_numpy(X[:2]),), str(tmp_path / "a.onnx"), dynamo=False)
    result = bnfold.swap_lrn(tmp_path / "a.onnx", init="standard", data=None)
    assert [site.channels for site in result.report.sites] == [8]
    assert result.report.sites[0].warnings


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_calibration_warns_of_few_values_and_of_constants(kind: str) -> None:
    if kind == "torch":
        few = bnfold.calibrate(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval(), torch.randn(2, 4)).report
        none = bnfold.calibrate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), X * 0).report
    else:
        net = Net(seed=5)
        net.output(net.bn(net.conv(net.input("x", ("N", 3, 16, 16)), (3, 4), "conv", k=15), 4, "bn"), ("N", 4, 2, 2))
        few, none = bnfold.calibrate(net.model(), X[:2]).report, bnfold.calibrate(net.model(), X * 0).report
    assert "are few for a mean and a variance" in str(few)
    assert "4 channels are constant on the data" in str(none)


class Two(nn.Module):
    """Two inputs, one of which is called like classes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.c = nn.Linear(4, 6), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.c(torch.relu(self.n(self.a(x) + self.b(y))))
        return found


def test_an_input_may_be_called_like_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Two().eval()
    data = {"x": RNG.standard_normal((64, 4)).astype(np.float32), "y": RNG.standard_normal((64, 5)).astype(np.float32)}
    assert bnfold.calibrate(net, data).report.samples == 64
    assert len(bnfold.retrain(net, data, teacher=net, epochs=1).history.epochs) == 2
    labelled = {**data, "labels": RNG.integers(0, 3, 64)}
    assert len(bnfold.retrain(net, labelled, epochs=1).history.epochs) == 2
    args = (torch.from_numpy(data["x"][:4]), torch.from_numpy(data["y"][:4]))
    bnfold.export(net, args, out=tmp_path / "a.onnx", keep_bn=True, dynamic=["batch"])
    assert len(bnfold.retrain(tmp_path / "a.onnx", labelled, epochs=1).history.epochs) == 2


def test_arrays_of_text_are_an_error() -> None:
    with pytest.raises(DataError, match=r"holds <U.*; numbers expected"):
        bnfold.calibrate(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval(), {"x": np.full((8, 4), "a")})


def test_bfloat16_data_are_taken() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    a, b = (
        bnfold.calibrate(net, data).model[1].running_var
        for data in (torch.from_numpy(X), torch.from_numpy(X).bfloat16())
    )
    torch.testing.assert_close(a, b, rtol=0.02, atol=0.0)


def test_nothing_that_a_command_reads_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lrn_net().save(tmp_path / "a.onnx")
    np.savez("d.npz", x=X)
    before = Path("d.npz").read_bytes()
    for command in (["swap-lrn", "a.onnx", "-o", "b.onnx", "--report", "d.npz"], ["retrain", "a.onnx", "-o", "d.npz"],
                    ["retrain", "a.onnx", "-o", "b.onnx", "--html", "d.npz"]):  # fmt: skip
        done = CliRunner().invoke(main, [*command, "--data", "d.npz"])
        assert done.exit_code == UsageError.exit_code
        assert "d.npz" in done.stderr
    assert Path("d.npz").read_bytes() == before
    assert not Path("b.onnx").exists()


NETWORK = """
from torch import nn

def Net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 3))
"""


@pytest.mark.slow
def test_commands_share_the_work_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    torch.save(space["Net"]().state_dict(), "m.pt")
    np.savez("d.npz", x=X, y=RNG.integers(0, 3, 32))
    common = ["--arch", "net.py:Net", "--data", "d.npz", "--batch-size", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(*command: str, processes: int = 2) -> str:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "bnfold"]
        starter = torchrun if processes > 1 else ["-m", "bnfold"]
        done = subprocess.run(
            [sys.executable, *starter, *command, *common], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("calibrate", "m.pt", "-o", "two.pt").count("wrote two.pt") == 1
    run("calibrate", "m.pt", "-o", "one.pt", processes=1)
    one, two = torch.load("one.pt"), torch.load("two.pt")
    assert all(torch.allclose(one[name].double(), two[name].double(), rtol=1e-6) for name in one)
    said = run("retrain", "m.pt", "-o", "r.pt", "--epochs", "1")
    assert said.count("wrote r.pt") == 1
    assert "2 processes" in said
