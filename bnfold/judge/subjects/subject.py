"""What the judge compares: models of any kind, as something that has inputs and can be run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ...onnx.files import bare, load_whole
from ..criteria.device import Device
from ..criteria.inputs import Array, Feed, InputSpec
from ..criteria.locate import Probe
from .nudges import Nudged, NudgedFile
from .runners import CPU, OrtRunner, ReferenceRunner, Runner, engine_name
from .widen import parted, too_large, widened_feed

_UNKNOWN = object()


@dataclass(frozen=True)
class Engine:
    """A way to run a model: `open` loads it, and raises whatever goes wrong."""

    name: str
    open: Callable[[], Runner]


class Subject(Protocol):
    """A model under judgement. `named`: callers know its inputs and outputs by name, and not by their order."""

    name: str
    named: bool

    def specs(self) -> list[InputSpec]:
        """The inputs that a caller must give."""

    def engines(self) -> Sequence[Engine]:
        """Ways to run it, the best first."""

    def exact(self, feed: Feed) -> dict[str, Array]:
        """What it gives in float64; raises, or gives nothing, where nothing here computes that."""

    def nudged(self, engine: str) -> Nudged:
        """Itself in the engine of that name, its weights moved; raises where that cannot be had."""

    def given(self) -> Feed | None:
        """Inputs that came with the model."""

    def operators(self) -> dict[str, int]:
        """How many there are of each type."""

    def timed(self, feed: Feed, threads: int) -> tuple[str, Callable[[], object]]:
        """What runs it, and a call that does; `threads`: of the CPU, 0 for as many as there are cores."""

    def probe(self, engine: str) -> Probe | None:
        """A look at its inner tensors, as the runner of that name computes them; None where there is none."""


class OnnxSubject:
    """An ONNX file."""

    named = True

    def __init__(self, path: Path, specs: list[InputSpec] | None = None, device: Device = CPU) -> None:
        """`specs`: its inputs, where they are known already."""
        self.path, self.name, self.device = path, path.name, device
        self._specs = specs
        self._wide: object = _UNKNOWN

    def specs(self) -> list[InputSpec]:
        """The inputs that have no default."""
        from ...onnx.files import load
        from .runners import input_specs

        if self._specs is None:
            self._specs = input_specs(load(self.path))
        return self._specs

    def engines(self) -> Sequence[Engine]:
        """onnxruntime on the device; on the CPU the reference evaluator of onnx too."""
        first = Engine(engine_name(self.device), partial(OrtRunner, self.path, self.device))
        if self.device.name != "cpu":
            return [first]
        return [first, Engine(ReferenceRunner.name, partial(ReferenceRunner, self.path))]

    def exact(self, feed: Feed) -> dict[str, Array]:
        """In float64, by the reference evaluator."""
        if self._wide is _UNKNOWN:
            self._wide = None if too_large(self.path) else ReferenceRunner(*parted(load_whole(self.path)))
        return self._wide.run(widened_feed(feed)) if isinstance(self._wide, ReferenceRunner) else {}

    def nudged(self, engine: str) -> Nudged:
        """A copy of the file with other weights."""
        return NudgedFile(self.path, self.device, engine)

    def given(self) -> Feed | None:
        """A file brings no inputs."""
        return None

    def timed(self, feed: Feed, threads: int) -> tuple[str, Callable[[], object]]:
        """In onnxruntime."""
        runner = OrtRunner(self.path, self.device, threads, timed=True)
        return runner.name, runner.prepared(feed)

    def operators(self) -> dict[str, int]:
        """The nodes of the main graph by type."""
        return dict(Counter(node.op_type for node in bare(self.path).graph.node).most_common())

    def probe(self, engine: str) -> Probe | None:
        """The tensors of the main graph."""
        from .probes import OnnxProbe

        return OnnxProbe(self.path, self.device, engine)


@dataclass
class Aligned:
    """A runner under the names that another model has for its inputs and outputs, matched by their order."""

    runner: Runner
    inputs: Sequence[str]
    outputs: Sequence[str]

    def __post_init__(self) -> None:
        self.name = self.runner.name

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by the other model's names."""
        return self.named(self.runner.run(self.renamed(feed)))

    def renamed(self, feed: Feed) -> Feed:
        """Inputs under its own names."""
        return dict(zip(self.inputs, feed.values(), strict=True))

    def named(self, found: dict[str, Array]) -> dict[str, Array]:
        """Outputs under the other model's names."""
        if list(found) == list(self.outputs) or len(found) != len(self.outputs):
            return found
        return dict(zip(self.outputs, found.values(), strict=True))
