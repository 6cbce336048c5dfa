"""ONNX models over data, batch after batch, with inner tensors to look at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from ..data.samples import Pixels, Samples, open_data
from ..errors import DataError, UsageError
from ..judge.criteria.device import Device
from ..judge.criteria.inputs import Array, Feed, Inputs, InputSpec
from ..judge.subjects.probes import exposed
from ..judge.subjects.runners import OrtRunner, ReferenceRunner, Runner, input_specs


@dataclass(frozen=True)
class Batches:
    """Samples as inputs of a model, `size` at a time; a last batch of one sample goes to the batch before it.

    A model with a fixed batch gets that, and the rest is left out.
    """

    samples: Samples
    specs: tuple[InputSpec, ...]
    size: int
    limit: int | None
    fixed: bool

    def __len__(self) -> int:
        count = len(self.samples) if self.limit is None else min(self.limit, len(self.samples))
        return count - count % self.size if self.fixed else count

    def bounds(self) -> list[tuple[int, int]]:
        """The first sample of each batch, and the one behind its last."""
        starts = list(range(0, len(self), self.size))
        if not self.fixed and len(starts) > 1 and len(self) - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], len(self)], strict=True))

    def __iter__(self) -> Iterator[Feed]:
        yield from (feed for _, feed in self.numbered())

    def numbered(self, first: int = 0) -> Iterator[tuple[int, Feed]]:
        """From batch `first` on, with their numbers."""
        for i, (start, stop) in list(enumerate(self.bounds()))[first:]:
            rows = self.samples.rows(slice(start, stop))
            yield i, {spec.name: np.asarray(rows[spec.name]).astype(spec.dtype) for spec in self.specs}


def batches(model: ModelProto, data: Any, size: int, limit: int | None, pixels: Pixels | None = None) -> Batches:
    """Data for a model. UsageError for a size or a limit below 1, DataError where they do not fit."""
    for name, value in (("batch_size", size), ("samples", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: 1 or more expected")
    specs = input_specs(model)
    if len(specs) == 1 and (pixels is None or pixels.size is None):
        pixels = _pixels(specs[0], pixels or Pixels())
    samples = open_data(data, [spec.name for spec in specs], pixels)
    for spec in specs:
        shape = np.asarray(samples.inputs[spec.name][:1]).shape[1:]
        wanted = spec.shape[1:]
        if len(shape) != len(wanted) or any(isinstance(w, int) and w != s for w, s in zip(wanted, shape, strict=True)):
            said = "x".join("?" if w is None else str(w) for w in wanted)
            raise DataError(f"{samples.source}: samples of {'x'.join(map(str, shape))} do not fit input {spec.name!r}, "
                            f"which takes {said}")  # fmt: skip
    first = specs[0].shape[0] if specs and specs[0].shape else None
    fixed = isinstance(first, int)
    own = first if isinstance(first, int) else size
    found = Batches(samples, tuple(specs), own, limit, fixed)
    if not len(found):
        raise DataError(f"{samples.source}: {len(samples)} samples, the model takes batches of {own}")
    return found


def _pixels(spec: InputSpec, given: Pixels) -> Pixels:
    """How images become an input of images: of its size and channels."""
    if len(spec.shape) != 4:
        return given
    _, channels, height, width = spec.shape
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return replace(given, size=size, channels=1 if channels == 1 else 3, dtype=spec.dtype)


def made_up(model: ModelProto) -> Feed:
    """Random inputs that a model takes. DataError where none of the sizes that are tried will do."""
    names = [value.name for value in model.graph.output]
    look = Looking(model, names)
    error = DataError(f"{model.graph.name}: no sizes found for its inputs")
    for choice in Inputs().choices(input_specs(model)):
        _, feed = next(choice.feeds())
        try:
            look(feed)
        except DataError as found:
            error = found
            continue
        return feed
    raise error


class Looking:
    """A model in onnxruntime that gives inner tensors; `more`: nodes that compute some of them from others.

    `refused`: why onnxruntime does not take it, so that the reference evaluator of onnx runs it.
    """

    def __init__(self, model: ModelProto, names: Sequence[str], more: Sequence[NodeProto] = ()) -> None:
        seen = exposed(model, list(dict.fromkeys(names)))
        seen.graph.node.extend(more)
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            path = Path(folder) / "look.onnx"
            onnx.save(seen, path)
            try:
                self.runner: Runner = OrtRunner(path, Device(optimise=True))
                self.refused = ""
            except Exception as error:  # no kernels for a type, float64 above all: the slow way
                self.refused = " ".join(str(error).split())[:300]
                self.runner = ReferenceRunner(path)

    def __call__(self, feed: Feed) -> dict[str, Array]:
        """The tensors by name. DataError where the model does not take the samples."""
        try:
            return self.runner.run(feed)
        except Exception as error:
            shapes = ", ".join("x".join(map(str, value.shape)) for value in feed.values())
            said = " ".join(str(error).split())[:300]
            raise DataError(f"the model does not take a batch of shape {shapes}: {said}") from error
