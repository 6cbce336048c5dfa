"""Verdicts that were wrong once: a named test each, of models that must fail, and of models that must pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bnfold
from bnfold.cli import main
from tests.nets import Net

pytestmark = pytest.mark.usefixtures("one_thread")


def added(path: Path, value: Any) -> Path:
    """x + value on [n, 8]."""
    net = Net()
    net.output(net.node("Add", [net.input("x", ("n", 8)), net.weight("m", value)], "y"), ("n", 8))
    net.save(path)
    return path


def test_a_mask_of_infinities_must_be_there(tmp_path: Path) -> None:
    mask = np.zeros((1, 8))
    mask[0, 4:] = -np.inf
    a, b = added(tmp_path / "a.onnx", mask), added(tmp_path / "b.onnx", mask * 0 + np.zeros((1, 8)).astype(np.float32))
    net = Net()
    net.output(net.node("Add", [net.input("x", ("n", 8)), net.weight("m", np.zeros((1, 8)))], "y"), ("n", 8))
    net.save(b)
    options: list[dict[str, Any]] = [{}, {"atol": 1.0}, {"limit": 0.5}]
    for given in options:
        check = bnfold.verify(a, b, **given)
        assert not check.passed
        assert "infinite" in check.message
        assert bnfold.verify(a, a, **given).passed


def test_a_random_reference_proves_nothing() -> None:
    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    check = bnfold.verify(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train(), Zero(), (torch.randn(4, 8),))
    assert not check.passed
    assert "runs again on the same inputs" in check.message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [32, 112, 224])
def test_an_export_that_another_runtime_rounds_otherwise_passes(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3, 2, 1)
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    x = torch.randn(1, 3, size, size)
    torch.onnx.export(net, (x,), str(tmp_path / "a.onnx"), dynamo=True)
    assert bnfold.verify(net, tmp_path / "a.onnx", (x,)).passed
    with torch.no_grad():
        conv.weight[3, 1, 1, 1] *= 1.01
    assert not bnfold.verify(net, tmp_path / "a.onnx", (x,)).passed


def test_inputs_of_the_same_names_go_by_them(tmp_path: Path) -> None:
    class Difference(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    for order, passed in ((["a", "b"], True), (["b", "a"], False)):
        net = Net()
        for name in ("b", "a"):
            net.input(name, (2, 4))
        net.output(net.node("Sub", order, "y"), (2, 4))
        net.save(tmp_path / "a.onnx")
        x = torch.randn(2, 4), torch.randn(2, 4)
        assert bnfold.verify(Difference(), tmp_path / "a.onnx", x).passed is passed


def test_whole_numbers_keep_to_a_tolerance(tmp_path: Path) -> None:
    def rounded(path: Path, offset: float) -> Path:
        net = Net()
        moved = net.node("Add", [net.input("x", ("n", 4000)), net.weight("o", np.eye(1, 4000)[0] * offset)], "moved")
        net.output(net.node("Cast", [moved], "y", to=onnx.TensorProto.INT64), ("n", 4000), np.int64)
        net.save(path)
        return path

    a, far, near = (rounded(tmp_path / f"{i}.onnx", o) for i, o in enumerate((0.0, 1e6, 1.0)))
    assert not bnfold.verify(a, far, atol=0.0).passed
    assert bnfold.verify(a, near, atol=1.0).passed
    assert not bnfold.verify(a, near, atol=0.5).passed


def test_code_that_ends_the_program_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("import sys\nfrom torch import nn\nNet = lambda: nn.Linear(4, 4)\nsys.exit(0)\n")
    torch.save(nn.Linear(4, 4).state_dict(), "a.pt")
    done = CliRunner().invoke(main, ["verify", "a.pt", "a.pt", "--arch", "net.py:Net", "--input", "2x4"])
    assert done.exit_code == 1
    assert "ended the program" in done.stderr


def test_reports_spare_what_is_read_and_hold_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    added(Path("a.onnx"), np.ones((1, 8)))
    np.savez("d.npz", x=np.ones((4, 8), np.float32))
    before = Path("d.npz").read_bytes()
    done = CliRunner().invoke(main, ["verify", "a.onnx", "a.onnx", "--data", "d.npz", "--report", "d.npz"])
    assert done.exit_code == 2
    assert Path("d.npz").read_bytes() == before
    Path("c.toml").write_text('[[pairs]]\nname = "a\\u0001b"\nreference = "a.onnx"\ncandidate = "a.onnx"\n')
    text = Path("c.toml").read_text()
    for target in ("c.toml", "j.xml"):
        done = CliRunner().invoke(main, ["verify", "--config", "c.toml", "--junit", target])
        assert done.exit_code == (2 if target == "c.toml" else 0), done.output
    assert Path("c.toml").read_text() == text
    assert ElementTree.parse("j.xml").getroot()[0].get("name", "").startswith("a")
