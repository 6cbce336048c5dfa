"""What the judge compares: models of any kind, as something that has inputs and can be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from .inputs import Array, Feed, InputSpec
from .runners import OrtRunner, ReferenceRunner, Runner
from .widen import widened, widened_feed


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

    def given(self) -> Feed | None:
        """Inputs that came with the model."""


class OnnxSubject:
    """An ONNX file."""

    named = True

    def __init__(self, path: Path, specs: list[InputSpec] | None = None) -> None:
        """`specs`: its inputs, where they are known already."""
        self.path, self.name, self._specs = path, path.name, specs

    def specs(self) -> list[InputSpec]:
        """The inputs that have no default."""
        from ..frontends.onnx.files import load
        from .runners import input_specs

        if self._specs is None:
            self._specs = input_specs(load(self.path))
        return self._specs

    def engines(self) -> Sequence[Engine]:
        """onnxruntime, then the reference evaluator of onnx."""
        return [Engine(make.name, partial(make, self.path)) for make in (OrtRunner, ReferenceRunner)]

    def exact(self, feed: Feed) -> dict[str, Array]:
        """In float64, by the reference evaluator."""
        model = widened(self.path)
        return {} if model is None else ReferenceRunner(model).run(widened_feed(feed))

    def given(self) -> Feed | None:
        """A file brings no inputs."""
        return None


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
        found = self.runner.run(dict(zip(self.inputs, feed.values(), strict=True)))
        if list(found) == list(self.outputs) or len(found) != len(self.outputs):
            return found
        return dict(zip(self.outputs, found.values(), strict=True))
