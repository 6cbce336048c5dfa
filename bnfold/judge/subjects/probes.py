"""Inner tensors of ONNX models: the same file with more outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto

from ...core.gauge.planner import gauges
from ...errors import BnfoldError
from ...limits import LEFTOVERS
from ...onnx.files import check, load, load_whole
from ...onnx.read.read import read
from ..criteria.device import Device
from ..criteria.inputs import Array, Feed
from ..criteria.locate import Gauge
from ..criteria.scopes import SCOPES, Stem, noted, returned, spelt
from .runners import OrtRunner, ReferenceRunner, Runner
from .widen import widened, widened_feed

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "BatchNormalization"})
"""Nodes that are the whole of a module; a MatMul may have its bias in another node."""
LARGE = 1 << 31
"""Files from this size on are not looked into: a copy of all weights would be made."""


class OnnxProbe:
    """Inner tensors of the main graph of an ONNX file."""

    def __init__(self, path: Path, device: Device, engine: str) -> None:
        """`engine`: the name of the runner that judged it."""
        self.path, self.device, self.engine = path, device, engine
        self.model = load_whole(path) if path.stat().st_size < LARGE else None
        self.wide: ModelProto | None = None

    def tensors(self) -> dict[str, str]:
        """The outputs of nodes."""
        if self.model is None:
            return {}
        return {
            name: f"{node.op_type} {node.name}".strip()
            for node in self.model.graph.node
            for name in node.output
            if name
        }

    def values(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """Some of them, as the model gives them."""
        assert self.model is not None
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            path = Path(folder) / "probe.onnx"
            onnx.save(exposed(self.model, names), path)
            runner: Runner = ReferenceRunner(path) if self.engine == ReferenceRunner.name else OrtRunner(
                path, self.device
            )  # fmt: skip
            return runner.run(feed)

    def exact(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """In float64."""
        self.wide = self.wide or widened(self.path)
        if self.wide is None:
            return {}
        found = ReferenceRunner(exposed(self.wide, names)).run(widened_feed(feed))
        return {name: value for name, value in found.items() if value.dtype == np.float64}

    def returned(self) -> dict[str, str]:
        """As the nodes say which modules of PyTorch they stem from."""
        if self.model is None:
            return {}
        graph = self.model.graph
        return returned([_stem(node) for node in graph.node], [value.name for value in graph.output])

    def gauges(self) -> Iterator[Mapping[str, Gauge]]:
        """Those of each set of forms that a fold may leave; none of a file that runs and cannot be folded."""
        try:
            model = load(self.path)
            bare = check(model, self.path.name, folder=self.path.parent)
            graph = read(model, bare, self.path.name, self.path.parent, False, lambda name: False).graph
            for leftovers in LEFTOVERS:
                yield gauges(graph, leftovers=leftovers)
        except BnfoldError:
            return


def _stem(node: NodeProto) -> Stem:
    """Layers and norms go by their names where nothing else is noted."""
    notes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    path = noted(notes) if notes is not None else spelt(node.name)
    if notes is None and "/" not in node.name and node.op_type not in LAYERS:
        path = None
    return Stem(path, [*node.input, *_inside(node)], list(node.output))


def _inside(node: NodeProto) -> list[str]:
    """What the bodies of a node read, names of their own among it."""
    bodies = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    return [
        name for body in bodies for inner in body.node for name in (*inner.input, *_inside(inner))
    ] + [value.name for body in bodies for value in body.output]  # fmt: skip


def exposed(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """A copy whose outputs are these tensors."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return copy
