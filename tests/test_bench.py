"""bnfold bench: what it says of its numbers. Nothing here is timed for its own sake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bnfold
from bnfold.cli import main
from bnfold.errors import ModelError, UsageError, VerificationError
from bnfold.judge.latency import Bench, interval, race
from tests.nets import Net, conv_bn


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        found = interval(rng.exponential(1.0, 51))
        covered += found.low <= np.log(2) <= found.high
    assert 0.92 <= covered / 400 <= 0.995


def test_both_run_in_turn_and_each_first_as_often() -> None:
    calls: list[str] = []
    first, second = race(lambda: calls.append("a"), lambda: calls.append("b"), rounds=6)
    assert (len(first), len(second)) == (6, 6)
    measured = calls[10:]
    assert "".join(measured) == "abba" * 3


@pytest.mark.parametrize(
    ("factor", "said"), [(0.5, "50.0% less time"), (1.25, "25.0% more time"), (1.0, "no difference beyond chance")]
)
def test_the_sentence_says_what_the_numbers_say(factor: float, said: str) -> None:
    rng = np.random.default_rng(1)
    reference = tuple(rng.uniform(0.9, 1.1, 200).tolist())
    noise = rng.uniform(0.99, 1.01, 200)
    candidate = tuple((factor * np.asarray(reference) * noise).tolist())
    bench = Bench(("a", "b"), "runner", {}, reference, candidate)
    assert bench.ratio.median == pytest.approx(factor, rel=0.01)
    shown = str(bench)
    assert said.split()[-2:] == shown.split(" (")[0].split()[-2:]


def test_the_command_prints_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    conv_bn().save(Path("model.onnx"))
    bnfold.fold("model.onnx", out="folded.onnx")
    done = CliRunner().invoke(main, ["bench", "model.onnx", "folded.onnx", "--rounds", "6", "-q"])
    assert done.exit_code == 0, done.output
    assert "6 rounds in turn (onnxruntime (CPU, optimisations on); x 2x3x8x8)" in " ".join(done.stdout.split())
    arguments = ["bench", "model.onnx", "folded.onnx", "--rounds", "6", "--json", "--no-optimise", "--threads", "1"]
    data = json.loads(CliRunner().invoke(main, [*arguments, "--shape", "1x3x8x8"]).stdout)
    assert data["shapes"] == {"x": [1, 3, 8, 8]}
    assert data["runner"].endswith("optimisations off)")
    assert 0 < data["ratio"]["low"] <= data["ratio"]["median"] <= data["ratio"]["high"]
    assert 0 < data["reference"]["low"] <= data["reference"]["median"]


@pytest.mark.slow
def test_a_module_beside_a_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(1, 3, 8, 8)
    bnfold.export(net, (x,), out=tmp_path / "net.onnx")
    bench = bnfold.bench(net, tmp_path / "net.onnx", (x,), rounds=6)
    assert bench.rounds == 6
    assert bench.runner == "torch (CPU) beside onnxruntime (CPU, optimisations on)"


def test_what_cannot_run_is_an_error(tmp_path: Path) -> None:
    net = Net()
    net.output(net.conv(net.input("x", ("N", 3, "h", "w")), (3, 4), "conv", k=5))
    net.save(tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="--shape"):
        bnfold.bench(tmp_path / "model.onnx", tmp_path / "model.onnx", shapes={"x": (1, 3, 2, 2)})
    with pytest.raises(ModelError):
        bnfold.bench(tmp_path / "model.onnx", tmp_path / "missing.onnx")
    other = Net()
    other.output(other.conv(other.input("z", ("N", 3, "h", "w")), (3, 4), "conv", k=5))
    other.save(tmp_path / "other.onnx")
    with pytest.raises(VerificationError, match=r"the candidate other.onnx cannot be run.*\(\['z'\]\) are missing"):
        bnfold.bench(tmp_path / "model.onnx", tmp_path / "other.onnx", rounds=6)
    with pytest.raises(UsageError, match="rounds 5: at least 6"):
        bnfold.bench(tmp_path / "model.onnx", tmp_path / "model.onnx", rounds=5)
