"""Where models run: no silent fall-back to the CPU. Where there is a card, the checks themselves run there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bnfold
from bnfold.api import bench, verify
from bnfold.cli import main
from bnfold.errors import UsageError, VerificationError
from bnfold.judge.criteria.device import PROVIDERS, Device, check_placement, placements, require
from bnfold.judge.subjects.runners import OrtRunner
from tests.nets import conv_bn
from tests.torch_nets import alive
from tests.torch_zoo import ZOO, Entry

CUDA_ORT = "CUDAExecutionProvider" in ort.get_available_providers() and torch.cuda.is_available()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(conv_bn().model(), path)
    return path


def test_a_provider_that_is_not_built_in_is_an_error() -> None:
    with pytest.raises(VerificationError, match=r"this onnxruntime has no CUDAExecutionProvider \(it has CPUExec"):
        require(Device("cuda"), ["CPUExecutionProvider"])
    with pytest.raises(VerificationError, match="TensorrtExecutionProvider could not be loaded"):
        require(Device("tensorrt"), [*PROVIDERS.values()], ["CUDAExecutionProvider", "CPUExecutionProvider"])
    require(Device("cuda"), [*PROVIDERS.values()], ["CUDAExecutionProvider", "CPUExecutionProvider"])
    require(Device("cpu"), ["CPUExecutionProvider"], ["CPUExecutionProvider"])


@pytest.mark.skipif(CUDA_ORT, reason="there is a card here")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_session_that_fell_back_to_the_cpu_is_an_error(
    model: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime lists the providers that it was built with, and goes on with the CPU where one cannot be loaded."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*PROVIDERS.values()])
    with pytest.raises(VerificationError, match=f"device {device}: {PROVIDERS[device]} could not be loaded"):
        bnfold.verify(model, model, device=device)
    done = CliRunner().invoke(main, ["verify", str(model), str(model), "--device", device, "-q"])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "could not be loaded" in done.stderr


def test_without_the_provider_nothing_is_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(VerificationError, match="onnxruntime-gpu has it"):
        bnfold.verify(model, model, device="cuda")


@pytest.fixture
def profile(model: Path, tmp_path: Path) -> Path:
    """What onnxruntime says of a run on the CPU."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "run")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    return Path(session.end_profiling())


def test_where_the_nodes_ran_is_read_from_the_profile(profile: Path) -> None:
    placed = placements(profile)
    nodes = onnx.load(profile.parent / "model.onnx").graph.node
    assert {name.rpartition(" (")[0] for name in placed} == {node.name for node in nodes}
    assert set(placed.values()) == {"CPUExecutionProvider"}
    check_placement(Device("cpu"), placed)
    with pytest.raises(VerificationError, match=rf"{len(nodes)} of {len(nodes)} nodes ran on the CPU: conv1 \(Conv\)"):
        check_placement(Device("cuda"), placed)


def test_nodes_that_compute_sizes_may_run_on_the_cpu(profile: Path, tmp_path: Path) -> None:
    events = json.loads(profile.read_text())
    for event in events:
        if "args" in event and "output_type_shape" in event["args"] and "relu" in event["name"]:
            event["args"]["output_type_shape"] = [{"int64": [4]}]
        elif "args" in event and "provider" in event["args"]:
            event["args"]["provider"] = "CUDAExecutionProvider"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(events))
    check_placement(Device("cuda"), placements(changed))
    with pytest.raises(VerificationError, match="does not say where the nodes ran"):
        check_placement(Device("cuda"), {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_a_module_does_not_fall_back_either() -> None:
    net, x = nn.Linear(3, 2), torch.ones(1, 3)
    with pytest.raises(VerificationError, match="torch finds no card"):
        bnfold.verify(net, net, (x,), device="cuda")
    with pytest.raises(VerificationError, match="torch modules do not run there"):
        bnfold.verify(net, net, (x,), device="tensorrt")


def test_an_unknown_device_is_a_usage_error(model: Path) -> None:
    with pytest.raises(UsageError, match="device 'tpu': one of cpu, cuda, tensorrt expected"):
        bnfold.verify(model, model, device="tpu")


def test_settings_of_each_device_reach_onnxruntime() -> None:
    assert Device("cuda").providers()[0] == (
        "CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    )  # fmt: skip
    assert Device("cuda", tf32=True).providers()[0][1]["use_tf32"] == "1"
    assert [name for name, _ in Device("tensorrt").providers()] == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ]  # fmt: skip


def test_the_float32_of_torch_is_left_as_it_was() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    net, x = nn.Linear(3, 2), torch.ones(1, 3)
    assert bnfold.verify(net, net, (x,), device="cpu").passed
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_optimised_graphs_can_be_compared_too(model: Path, tmp_path: Path) -> None:
    folded = tmp_path / "folded.onnx"
    bnfold.fold(model, out=folded)
    check = bnfold.verify(model, folded, optimise=True)
    assert check.passed
    assert check.runner == "onnxruntime (CPU, optimisations on)"
    assert OrtRunner(model).name == "onnxruntime (CPU, optimisations off)"


@pytest.mark.skipif(not CUDA_ORT, reason="no card, or an onnxruntime without CUDA")
def test_onnxruntime_on_cuda(model: Path, tmp_path: Path) -> None:
    folded = tmp_path / "folded.onnx"
    bnfold.fold(model, out=folded)
    check = bnfold.verify(model, folded, device="cuda")
    assert check.passed
    assert check.runner == "onnxruntime (CUDA, TF32 off, optimisations off)"
    conv_bn(seed=1).save(tmp_path / "other.onnx")
    assert not bnfold.verify(model, tmp_path / "other.onnx", device="cuda").passed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no card that torch can use")
@pytest.mark.parametrize("tf32", [False, True])
def test_torch_on_cuda(tf32: bool) -> None:
    torch.manual_seed(0)
    net = alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    x: Any = torch.randn(2, 3, 16, 16)
    folded = bnfold.fold(net, (x,)).model
    check = bnfold.verify(net, folded, (x,), device="cuda", tf32=tf32)
    assert check.passed
    assert check.runner == f"torch (CUDA, TF32 {'on' if tf32 else 'off'})"
    with torch.no_grad():
        folded[3].weight[1] *= 1.05
    assert not bnfold.verify(net, folded, (x,), device="cuda", tf32=tf32).passed


@pytest.mark.slow
def test_the_checks_for_a_card_fail_where_a_planted_fault_is_not_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from scripts import gpu_checks

    def lenient(*models: Any, **options: Any) -> Any:
        return verify(*models, **options, limit=1e9)

    monkeypatch.setattr(gpu_checks, "ZOO", {"none": Entry(missing, {}), "repvgg": ZOO["repvgg"]})
    monkeypatch.setattr(gpu_checks, "ONNX_ZOO", {})
    monkeypatch.setattr(bnfold, "bench", lambda *models, seconds, **options: bench(*models, **options, rounds=6))
    monkeypatch.setattr("sys.argv", ["gpu_checks", "--device", "cpu", "--out", str(tmp_path)])
    assert gpu_checks.main() == 0
    (written,) = tmp_path.glob("*.md")
    assert "| none | torch | skipped |" in written.read_text()
    assert written.read_text().count(gpu_checks.FAULT) == 2
    monkeypatch.setattr(bnfold, "verify", lenient)
    assert gpu_checks.main() == 1
    monkeypatch.setattr(gpu_checks, "ZOO", {"none": Entry(missing, {})})
    monkeypatch.setattr(gpu_checks, "onnx_rows", lambda device, few: iter(()))
    assert gpu_checks.main() == 1  # where nothing was planted, nothing was caught


def missing() -> Any:
    raise ImportError("no such package")


def test_a_card_is_checked_without_what_reads_onnx_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scripts import gpu_checks

    monkeypatch.setattr(gpu_checks, "find_spec", lambda name: None)
    (row,) = gpu_checks.onnx_rows("cpu", True)
    assert (row.state, row.note) == ("skipped", "onnx-graphsurgeon is not installed")
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    with pytest.raises(UsageError, match="pip install onnx-graphsurgeon"):
        bnfold.inspect(conv_bn().model())
