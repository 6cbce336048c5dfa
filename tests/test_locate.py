"""Where two models part: the planted fault is named, through the gauges of a fold."""

from __future__ import annotations

import copy
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

import bnfold
from bnfold.core.gauge.planner import gauges
from bnfold.judge.criteria.check import Where
from bnfold.limits import LEFTOVERS
from bnfold.onnx.files import check, load
from bnfold.onnx.read.read import read
from bnfold.report.table import check_table
from tests.nets import Net
from tests.torch_nets import alive, positive

MODELS = Path(__file__).parents[1] / "models"


def preactivation(blocks: int = 4) -> ModelProto:
    """A residual stream that its readers want in different gauges."""
    net = Net(seed=5)
    x = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 6), "stem", pad=1)
    for i in range(blocks):
        y = net.relu(net.bn(x, 6, f"bn{i}", gamma="both"), f"relu{i}")
        y = net.conv(y, (6, 6), f"conv{i}", pad=1)
        x = net.node("Add", [x, y], f"add{i}")
    net.output(net.relu(net.bn(x, 6, "last", gamma="both"), "end"), ("N", 6, 8, 8))
    return net.model()


def damaged(model: ModelProto, node: str) -> ModelProto:
    """One weight of a layer off by a tenth."""
    wrong = ModelProto()
    wrong.CopyFrom(model)
    name = next(n for n in wrong.graph.node if n.name == node).input[1]
    tensor = next(t for t in wrong.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value.flat[np.abs(value).argmax()] *= 1.1
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return wrong


def where(tmp_path: Path, reference: ModelProto, candidate: ModelProto, **options: Any) -> Where:
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path, model in zip(paths, (reference, candidate), strict=True):
        onnx.save(model, path)
    found = bnfold.verify(*paths, **options)
    assert not found.passed
    assert found.where is not None
    return found.where


@pytest.mark.parametrize("node", ["stem", "conv0", "conv2", "conv3"])
@pytest.mark.parametrize("leftovers", LEFTOVERS)
def test_the_layer_with_a_fault_is_named_in_a_folded_network(tmp_path: Path, node: str, leftovers: str) -> None:
    original = preactivation()
    folded = bnfold.fold(original, leftovers=leftovers).model
    found = where(tmp_path, original, damaged(folded, node))
    # the first norm became one with the layer before it
    expected = ("bn0_out", "BatchNormalization bn0") if node == "stem" else (f"{node}_out", f"Conv {node}")
    assert (found.tensor, found.op) == expected
    assert found.by == f"Conv {node}"
    names = [point.tensor for point in found.profile]
    assert found.agrees == ("" if node == "stem" else names[names.index(found.tensor) - 1])
    assert str(found).startswith(f"they part first at {found.tensor}")


def test_the_layer_with_a_fault_is_named_where_nothing_was_folded(tmp_path: Path) -> None:
    original = preactivation()
    found = where(tmp_path, original, damaged(original, "conv1"))
    assert found.tensor == "conv1_out"
    assert found.agrees == "relu1_out"
    assert all(point.found == point.own for point in found.profile[: found.profile.index(_point(found, "conv1_out"))])


def _point(found: Where, name: str) -> Any:
    return next(point for point in found.profile if point.tensor == name)


def test_the_gauges_say_what_the_folded_model_holds(tmp_path: Path) -> None:
    """Every tensor with a name in both, `p*v + q`, to rounding."""
    path, out = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(preactivation(), path)
    bnfold.fold(path, out=out)
    from bnfold.judge.criteria.device import Device
    from bnfold.judge.subjects.probes import OnnxProbe

    model = load(path)
    known = gauges(read(model, check(model, "a", folder=tmp_path), "a", tmp_path, False, lambda name: False).graph)
    first, second = (OnnxProbe(p, Device(), "") for p in (path, out))
    names = [name for name in first.tensors() if name in second.tensors()]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    a, b = (probe.values(feed, names) for probe in (first, second))
    moved = 0
    for name in names:
        p, q = known[name]
        assert np.abs(p * a[name] + q - b[name]).max() < 1e-5 * np.abs(b[name]).max()
        moved += bool((p != 1).any() or (q != 0).any())
    assert moved > 3


def test_long_networks_are_searched_in_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bnfold.judge.criteria.locate as module

    monkeypatch.setattr(module, "MOST", 5)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    original = preactivation(6)
    found = where(tmp_path, original, damaged(original, "conv3"))
    assert found.tensor == "conv3_out"
    assert found.agrees == "relu3_out"
    assert len(found.profile) < len(original.graph.node)


def test_models_without_a_name_in_common_say_so(tmp_path: Path) -> None:
    original = preactivation(1)
    other = damaged(original, "conv0")
    for node in other.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name.endswith("_out") and name != other.graph.output[0].name:
                    names[i] = f"{name}_renamed"
    del other.graph.node[-1].output[:]
    other.graph.node[-1].output.append(other.graph.output[0].name)
    found = where(tmp_path, original, other)
    assert found.tensor == original.graph.output[0].name  # the output alone has a name in both


def test_faults_that_no_rounding_hides_are_the_first_even_behind_large_shifts(tmp_path: Path) -> None:
    """A real trained pre-activation network, whose stream is held in a gauge of its own."""
    path = MODELS / "preact_resnet_mnist.onnx"
    out = tmp_path / "folded.onnx"
    bnfold.fold(path, out=out)
    wrong = damaged(onnx.load(out), "node_conv2d_16")
    onnx.save(wrong, out)
    check_ = bnfold.verify(path, out)
    assert not check_.passed
    assert check_.where is not None
    assert check_.where.tensor == "conv2d_16"


def test_in_modules_submodules_are_named() -> None:
    torch.manual_seed(0)
    net = positive(alive(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 4, 1),
    )))  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    folded = bnfold.fold(net, (x,)).model
    assert bnfold.verify(net, folded, (x,)).where is None
    wrong = copy.deepcopy(folded)
    with torch.no_grad():
        wrong.get_submodule("3").weight[2] *= 1.1
    found = bnfold.verify(net, wrong, (x,))
    assert not found.passed
    assert found.where is not None
    assert (found.where.tensor, found.where.op) == ("3", "Conv2d")
    assert found.where.agrees == "2"


def test_a_verdict_is_never_lost_to_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bnfold.judge.subjects.probes as probes

    def broken(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(probes.OnnxProbe, "values", broken)
    original = preactivation(1)
    for path, model in ((tmp_path / "a.onnx", original), (tmp_path / "b.onnx", damaged(original, "conv0"))):
        onnx.save(model, path)
    found = bnfold.verify(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not found.passed
    assert found.where is None
    assert "differs" in found.message


def test_the_table_draws_the_profile(tmp_path: Path) -> None:
    from rich.console import Console

    original = preactivation()
    for path, model in ((tmp_path / "a.onnx", original), (tmp_path / "b.onnx", damaged(original, "conv1"))):
        onnx.save(model, path)
    console = Console(width=160, record=True, file=StringIO())
    console.print(check_table(bnfold.verify(tmp_path / "a.onnx", tmp_path / "b.onnx")))
    text = console.export_text()
    candidate = next(line for line in text.splitlines() if line.strip().startswith("candidate"))
    mark = next(line for line in text.splitlines() if "^ conv1_out" in line)
    assert "█" in candidate
    assert candidate[mark.index("^")] != " "  # under a bar
    assert candidate[mark.index("^") - 1] in " ▁"  # nothing before it


@pytest.mark.slow
def test_in_exported_programs_nodes_are_named_in_the_gauge_of_the_fold() -> None:
    torch.manual_seed(0)
    net = alive(nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ))  # fmt: skip
    x = (torch.randn(2, 3, 12, 12),)
    sound, wrong = torch.export.export(net, x), copy.deepcopy(net)
    with torch.no_grad():
        wrong.get_parameter("3.weight")[0, 0] *= 1.05
    result = bnfold.fold(torch.export.export(wrong, x))
    assert result.plan.counts()["folded"] == 1
    check = bnfold.verify(sound, result.model)
    assert not check.passed
    assert check.where is not None
    assert (check.where.tensor, check.where.op, check.where.agrees) == ("conv2d_1", "conv2d", "relu")


class Twin(nn.Module):
    """The network of `twins` in PyTorch."""

    def __init__(self, file: ModelProto) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.body, self.last, self.head = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)
        held = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in file.graph.initializer}
        keys = "weight", "bias", "running_mean", "running_var"
        state = {
            f"{node.name}.{key}": held[name]
            for node in file.graph.node
            for key, name in zip(keys, node.input[1:], strict=False)
        }
        self.load_state_dict(state, strict=False)
        self.eval()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        moved = self.norm(torch.relu(self.stem(values)))
        return self.head(self.last(self.body(moved)))  # type: ignore[no-any-return]


def twins() -> tuple[ModelProto, Twin]:
    """One network as an ONNX file, whose layers and norms have the names of modules, and as a module."""
    net = Net(seed=3)
    x = net.relu(net.conv(net.input("x", (2, 3, 12, 12)), (3, 6), "stem", bias=True), "")
    x = net.conv(net.bn(x, 6, "norm", gamma="both"), (6, 6), "body", bias=True)
    net.output(net.conv(net.bn(x, 6, "last", gamma="both"), (6, 4), "head", bias=True), (2, 4, 6, 6))
    return net.model(), Twin(net.model())


@pytest.mark.parametrize("side", ["neither", "reference", "candidate"])
@pytest.mark.parametrize("first", ["file", "module"])
def test_files_and_modules_are_matched_by_the_names_of_modules(tmp_path: Path, first: str, side: str) -> None:
    file, module = twins()
    path, x = tmp_path / "a.onnx", torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    folding = (first, side) in (("file", "reference"), ("module", "candidate"))
    made = bnfold.fold(file).model if folding else file
    other = bnfold.fold(module, (x,)).model if side != "neither" and not folding else module
    pair: tuple[Any, Any] = (path, other) if first == "file" else (other, path)
    onnx.save(made, path)
    assert bnfold.verify(pair[0], pair[1], (x,)).passed
    onnx.save(damaged(made, "head"), path)
    found = bnfold.verify(pair[0], pair[1], (x,)).where
    assert found is not None
    assert (found.tensor, {found.op, found.by}) == ("head", {"Conv head", "Conv2d"})
    assert found.agrees in ("last", "body")
    assert len(found.profile) >= 3


def test_models_of_two_kinds_without_modules_in_common_say_so(tmp_path: Path) -> None:
    file, module = twins()
    wrong = damaged(file, "body")
    for node in wrong.graph.node:
        node.name = f"node_{node.name}"
    onnx.save(wrong, tmp_path / "a.onnx")
    found = bnfold.verify(module, tmp_path / "a.onnx", (torch.ones(2, 3, 12, 12),))
    assert not found.passed
    assert str(found.where) == "no inner tensor could be matched in both models by its name and shape"


@pytest.mark.slow
def test_programs_and_modules_are_matched_by_the_names_of_modules() -> None:
    _, module = twins()
    x, wrong = (torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)),), copy.deepcopy(module)
    with torch.no_grad():
        wrong.body.weight[1, 1] *= 1.2
    folded = bnfold.fold(torch.export.export(module, x)).model
    pairs: list[tuple[Any, Any]] = [(folded, wrong), (wrong, folded)]
    for reference, candidate in pairs:
        found = bnfold.verify(reference, candidate, x).where
        assert found is not None
        assert found.tensor == "body"


def test_a_module_returns_the_only_tensor_that_is_made_inside_and_read_outside() -> None:
    from bnfold.judge.criteria.scopes import Stem, returned

    nodes = [
        Stem("block.conv", ["x"], ["a"]), Stem("block", ["a"], ["b"]), Stem("block", ["b", "x"], ["c"]),
        Stem("twice", ["c"], ["d"]), Stem("twice", ["d", "c"], ["e"]), Stem("pair", ["c"], ["f"]),
        Stem("", ["c"], ["g"]), Stem("part.conv", ["g"], ["h"]), Stem(None, ["h"], ["i"]), Stem("part", ["i"], ["j"]),
    ]  # fmt: skip
    assert returned(nodes, ["d", "e", "f", "j"]) == {"block.conv": "a", "block": "c", "pair": "f", "part.conv": "h"}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("layer1.0.conv1", "layer1.0.conv1"),
        ("/layer1/layer1.0/downsample/downsample.0/Conv", "layer1.0.downsample.0"),
        ("/Relu", ""),
        ("", None),
        ("model/conv:0", None),
    ],
)
def test_older_exporters_write_modules_into_the_names_of_nodes(name: str, path: str | None) -> None:
    from bnfold.judge.criteria.scopes import spelt

    assert spelt(name) == path
