"""Passes of an ONNX model over data in which its batch norms get their statistics; the methods: see `calibrate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ..errors import DataError
from ..judge.criteria.inputs import Array, Feed
from .moments import Moments, check_fits
from .onnx_run import Batches, Looking
from .onnx_training import training
from .state import State, Statistics

Progress = Callable[[str], None]


@dataclass
class OnnxJob:
    """A calibration: the model, its norms by name, in order, with statistics of their own, the data, how far it got."""

    model: ModelProto
    norms: dict[str, NodeProto]
    data: Batches
    state: State
    path: Path | None
    decay: float
    progress: Progress

    def batches(self, what: str = "") -> Iterator[tuple[int, Feed]]:
        """Those that are left, by number."""
        total = len(self.data.bounds())
        for i, feed in self.data.numbered(self.state.batch):
            self.progress(f"{what}batch {i + 1} of {total}")
            yield i, feed

    def statistics(self, name: str) -> Statistics:
        """What a norm has, in float64."""
        mean, var = (numpy_helper.to_array(self._held(i)).astype(np.float64) for i in self.norms[name].input[3:5])
        return mean, var

    def set(self, name: str, values: Statistics) -> None:
        """Give a norm its mean and variance, rounded to their type."""
        for held, value in zip(map(self._held, self.norms[name].input[3:5]), values, strict=True):
            dtype = numpy_helper.to_array(held).dtype
            check_fits(name, value, dtype.name)
            held.CopyFrom(numpy_helper.from_array(value.astype(dtype), held.name))

    def _held(self, name: str) -> TensorProto:
        held: TensorProto = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        return held


def _moments(name: str, x: Array) -> Moments:
    try:
        return Moments.of_array(x)
    except DataError as error:
        raise DataError(f"{name}: of what goes into it on these data, {error}") from error


def _pair(name: str, moments: Moments) -> Statistics:
    try:
        return moments.mean, moments.variance()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def joint(job: OnnxJob, moving: bool) -> dict[str, int]:
    """All norms in one pass, each normalising with its batch; the number of values of each."""
    state, inputs = job.state, [node.input[0] for node in job.norms.values()]
    seen = Looking(job.model, inputs)(next(iter(job.data)))
    look = Looking(training(job.model, list(job.norms.values()), seen), inputs)
    if moving:
        state.done = state.done or {name: job.statistics(name) for name in job.norms}
    for i, feed in job.batches():
        found = look(feed)
        for name, node in job.norms.items():
            part = _moments(name, found[node.input[0]])
            if moving:
                both = zip(state.done[name], _pair(name, part), strict=True)
                mean, var = (old * job.decay + new * (1 - job.decay) for old, new in both)
                state.done[name] = mean, var
            _add(state, name, part)
        state.keep(job.path, i + 1)
    for name in job.norms:
        if not moving:
            state.done[name] = _pair(name, state.moments[name])
    return {name: state.moments[name].count for name in job.norms}


def layerwise(job: OnnxJob) -> dict[str, int]:
    """One norm after another, each behind norms that are done; the number of values of each."""
    state, names = job.state, list(job.norms)
    for name in names[: state.stage]:
        job.set(name, state.done[name])
    for stage, name in list(enumerate(names))[state.stage :]:
        source = job.norms[name].input[0]
        look = Looking(job.model, [source])
        for i, feed in job.batches(f"{name}: "):
            _add(state, name, _moments(name, look(feed)[source]))
            state.keep(job.path, i + 1)
        state.done[name] = _pair(name, state.moments[name])
        job.set(name, state.done[name])
        state.stage = stage + 1
        state.keep(job.path, 0, force=True)
    return {name: state.moments[name].count for name in names}


def _add(state: State, name: str, part: Moments) -> None:
    if name in state.moments:
        state.moments[name].add(part)
    else:
        state.moments[name] = part
