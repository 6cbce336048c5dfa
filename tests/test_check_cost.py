"""What the check runs and what it does not: nothing for what is unchanged; it lets go of what nobody reads any more."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

import bnfold
from bnfold.cli import main
from bnfold.judge import judge
from bnfold.judge.judge import Pace
from bnfold.judge.subjects import runners, windows
from bnfold.judge.subjects.runners import ReferenceRunner
from tests.nets import Net

X = (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def _net(norm: bool = True) -> Net:
    net = Net(3)
    h = net.conv(net.input(), (3, 4), "conv")
    net.output(net.conv(net.relu(net.bn(h, 4, "bn", "both") if norm else h, "relu"), (4, 2), "last"))
    return net


def _plain(kind: str) -> onnx.ModelProto:
    """A model in which nothing goes: without a norm; with one that stays; with an If whose condition is constant."""
    net = Net(3)
    if kind == "kept":
        net.output(net.relu(net.bn(net.relu(net.input("x", ("N", 4, 8, 8)), "a"), 4, "bn", "both"), "b"))
        return net.model()
    if kind == "If":
        flag = net.node("Constant", [], "flag", value=numpy_helper.from_array(np.array([True])))
        value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        body = onnx.helper.make_graph([onnx.helper.make_node("Relu", [net.input()], ["y"])], "body", [], [value])
        net.output(net.node("If", [flag], "choice", then_branch=body, else_branch=body))
        return net.model()
    return _net(norm=False).model()


@pytest.mark.parametrize("external", [False, True], ids=["single", "external"])
@pytest.mark.parametrize("kind", ["no norm", "kept", "If"])
def test_where_nothing_changes_nothing_is_run(
    kind: str, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "judge", lambda *_: pytest.fail("the judge was called"))
    monkeypatch.setattr(runners.OrtRunner, "__init__", lambda *_: pytest.fail("the model was run"))
    path, out, model = tmp_path / "model.onnx", tmp_path / "out.onnx", _plain(kind)
    held = onnx.ModelProto()
    held.CopyFrom(model)  # saving moves the weights out
    onnx.save(held, path, save_as_external_data=external, size_threshold=0)
    done = CliRunner().invoke(main, ["fold", str(path), "-o", str(out), "--leftovers", "none"])
    assert done.exit_code == 0, done.output
    assert "nothing was changed, so nothing was run" in done.stdout
    assert "NOT VERIFIED" not in done.stdout
    if external:
        assert onnx.load(out) == onnx.load(path)
    else:
        assert out.read_bytes() == path.read_bytes()
    result = bnfold.fold(model, leftovers="none")
    assert result.check is not None
    assert result.check.passed
    assert result.model == model
    assert result.model is not model


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2"])
def test_files_of_torch_in_which_nothing_changes_are_copied(suffix: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    path, out = tmp_path / f"net{suffix}", tmp_path / f"out{suffix}"
    if suffix == ".pt2":
        torch.export.save(torch.export.export(net, X), path)
    elif suffix == ".pt":
        torch.save({"state_dict": net.state_dict(), "epoch": 3}, path)
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), path, {"made by": "a test"})
    arch: dict[str, Any] = {} if suffix == ".pt2" else {"inputs": X, "arch": lambda: net}
    result = bnfold.fold(path, out=out, **arch)
    assert result.check is not None
    assert result.check.passed
    assert not result.check.outputs
    assert out.read_bytes() == path.read_bytes()


def test_modules_in_which_nothing_changes_are_not_run() -> None:
    calls: list[Any] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_exporting():
                calls.append(x.shape)
            found: torch.Tensor = self.inner(x)
            return found

    result = bnfold.fold(Counting().eval(), X)
    assert result.check is not None
    assert result.check.passed
    assert not calls


def test_fold_takes_the_inputs_of_the_check(tmp_path: Path) -> None:
    path, out, data = (tmp_path / name for name in ("m.onnx", "o.onnx", "d.npy"))
    path.write_bytes(_net().model().SerializeToString())
    np.save(data, np.random.default_rng(0).integers(0, 255, (5, 3, 8, 8)).astype(np.float32))
    for options, given, kinds in (
        (["--kind", "image", "--kind", "zeros"], {"kinds": ["image", "zeros"]}, {"image", "zeros"}),
        (["--data", str(data), "--samples", "3"], {"data": data, "samples": 3}, {"data"}),
    ):
        done = CliRunner().invoke(main, ["fold", str(path), "-o", str(out), *options])
        assert done.exit_code == 0, done.output
        found = bnfold.fold(path, **given)
        assert found.check is not None
        assert {entry.kind for entry in found.check.outputs} == kinds
        assert all(f" {kind} " in done.stdout for kind in kinds)
    done = CliRunner().invoke(main, ["fold", str(path), "-o", str(out), "--kind", "nonsense"])
    assert done.exit_code == 2
    assert "nonsense" in done.stderr


def test_export_and_modules_take_the_inputs_of_the_check(tmp_path: Path) -> None:
    net, out = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), tmp_path / "o.onnx"
    data = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    for found, kinds in (
        (bnfold.export(net, X, out=out, kinds=["tiny"], dynamic=["batch"]), {"tiny"}),
        (bnfold.export(net, X, out=out, data=data), {"data"}),
        (bnfold.fold(net, X, kinds=["tiny"]), {"tiny"}),
        (bnfold.fold(net, X, data=data), {"data"}),
    ):
        assert found.check is not None
        assert {entry.kind for entry in found.check.outputs} - {"given", "resized"} == kinds


def test_progress_counts_and_tells_how_long_the_rest_takes() -> None:
    said: list[str] = []
    times = iter([0.0, 0.0, 2.0, 4.5])
    pace = Pace(said.append, 3, lambda: next(times))
    pace.begin("normal")
    pace.begin("image")
    pace.note("measuring")
    pace.begin("zeros")
    assert said == [
        "comparing 1 of 3: normal",
        "comparing 2 of 3: image, about 4 s left",
        "comparing 2 of 3: image, about 4 s left; measuring",
        "comparing 3 of 3: zeros, about 2 s left",
    ]


def test_the_judge_says_how_far_it_is() -> None:
    said: list[str] = []
    bnfold.fold(_net().model(), progress=said.append)
    steps = [line.split(",")[0].split(";")[0] for line in said if line.startswith("comparing")]
    kinds = ("normal", "uniform", "image", "large", "constant", "tiny", "zeros")
    expected = [*(f"comparing {i} of 7: {kind}" for i, kind in enumerate(kinds, 1)), "comparing 8 of 8: resized"]
    assert list(dict.fromkeys(steps)) == expected


def test_what_no_node_reads_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the body of a later node reads stays until that node."""
    net = Net(1)
    early = h = net.relu(net.input("x", ("N", 3, 8, 8)), "early")
    for i in range(6):
        h = net.relu(net.conv(h, (3, 3), f"conv{i}", pad=1), f"relu{i}")
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    body = onnx.helper.make_graph([onnx.helper.make_node("Add", [early, h], ["y"])], "body", [], [value])
    flag = net.node("Cast", [net.node("ReduceMax", [h], "most", keepdims=0)], "flag", to=onnx.TensorProto.BOOL)
    net.output(net.node("If", [flag], "choice", then_branch=body, else_branch=body))
    held: list[int] = []
    runner, plain = ReferenceRunner(net.model()), windows.Conv._run

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        frame: Any = sys._getframe(1)
        while frame.f_code.co_name != "_values":
            frame = frame.f_back
        held.append(sum(name.endswith("_out") for name in frame.f_locals["values"]))
        return plain(self, *args, **kwargs)

    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    (expected,) = runner.evaluator.run(None, feed)
    monkeypatch.setattr(windows.Conv, "_run", watched)
    np.testing.assert_array_equal(runner.run(feed)["choice_out"], expected)
    assert max(held) == 2  # the one that the body reads, and what the layer reads


def test_blocks_of_patches_give_what_one_product_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(1, np.float64)
    h = net.conv(net.input("x", ("N", 4, 13, 9)), (4, 6), "a", pad=1, strides=[2, 1])
    net.output(net.node("Conv", [h, net.filter("w", 4, 3, 3, 3)], "b", dilations=[1, 2], group=2))
    runner = ReferenceRunner(net.model())
    feed = {"x": np.random.default_rng(0).standard_normal((5, 4, 13, 9))}
    expected = runner.run(feed)["b_out"]
    for size in (1, 1000, 20_000):
        monkeypatch.setattr(windows, "BLOCK", size)
        np.testing.assert_allclose(runner.run(feed)["b_out"], expected, rtol=1e-13, atol=1e-13)


def test_memory_keeps_to_its_bound() -> None:
    """The formula of docs/judging.md, on a network that is deep, and one whose patches are 9 times its input."""
    net = Net(1, np.float64)
    h = net.input("x", ("N", 8, 160, 160))
    for i in range(12):
        h = net.relu(net.conv(h, (8, 8), f"conv{i}", pad=1), f"relu{i}")
    net.output(h)
    runner, x = ReferenceRunner(net.model()), np.zeros((2, 8, 160, 160))
    alive = 3 * x.size  # the input of the network, that of a layer, its result
    weights = sum(value.size for value in net.weights.values())
    tracemalloc.start()
    runner.run({"x": x})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * (weights + alive + 2 * 8 * 162 * 162) + 2 * windows.BLOCK
