"""Passes of a network over data in which its batch norms get their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from ..data.batches import Feed
from ..errors import DataError
from .forward import run, watched
from .moments import Moments, check_fits, over_ranks, parallel
from .state import State, Statistics

Progress = Callable[[str], None]
Norm = nn.modules.batchnorm._BatchNorm


@dataclass
class Job:
    """A calibration: the network, those of its norms that it runs, the data, and how far it got."""

    root: nn.Module
    norms: dict[str, Norm]
    feed: Feed
    state: State
    path: Path | None
    decay: float
    progress: Progress

    def batches(self, what: str) -> Iterator[tuple[int, tuple[Any, ...], dict[str, Any]]]:
        """The batches that are left, by number."""
        first, total = self.state.batch, len(self.feed.bounds())
        for i, (args, kwargs) in enumerate(self.feed.batches(first), first):
            self.progress(f"{what}batch {i + 1} of {total}")
            yield i, args, kwargs


def statistics(norm: Norm) -> Statistics:
    """What a norm has."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.detach().double().cpu(), norm.running_var.detach().double().cpu()


def set_statistics(norm: Norm, values: Statistics) -> None:
    """Give a norm its mean and variance, rounded to its type."""
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(values[0])
        norm.running_var.copy_(values[1])


def check_statistics(name: str, norm: Norm, values: Statistics) -> None:
    """DataError where a norm cannot hold them."""
    assert norm.running_var is not None
    for value in values:
        check_fits(name, value, str(norm.running_var.dtype).removeprefix("torch."))


def _moments(name: str, x: torch.Tensor) -> Moments:
    try:
        return Moments.of(x)
    except DataError as error:
        raise DataError(f"{name}: of what goes into it on these data, {error}") from error


def _variance(name: str, moments: Moments) -> torch.Tensor:
    try:
        found: torch.Tensor = moments.variance()
        return found
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def joint(job: Job, moving: bool) -> dict[str, int]:
    """All norms in one pass, each normalising with its batch; the number of values of each."""
    seen: list[tuple[str, Moments]] = []
    counts = dict.fromkeys(job.norms, 0)

    def watch(name: str) -> Callable[..., None]:
        return lambda module, args: seen.append((name, _moments(name, args[0])))

    handles = [norm.register_forward_pre_hook(watch(name)) for name, norm in job.norms.items()]
    state = job.state
    if moving:
        _check_ranks(job)
        state.done = state.done or {name: statistics(norm) for name, norm in job.norms.items()}
    try:
        for norm in job.norms.values():
            norm.training = True
        for i, args, kwargs in job.batches(""):
            seen.clear()
            run(job.root, args, kwargs)
            for name, part in seen:
                if moving:
                    _average(job, name, over_ranks(part, job.feed.device))
                state.moments.setdefault(name, Moments.empty(len(part.mean))).add(part)
            job.state.keep(job.path, i + 1)
    finally:
        for handle in handles:
            handle.remove()
    for name, norm in job.norms.items():
        total = over_ranks(state.moments[name], job.feed.device)
        counts[name] = total.count
        if not moving:
            state.done[name] = total.mean, _variance(name, total)
        check_statistics(name, norm, state.done[name])
    return counts


def _average(job: Job, name: str, batch: Moments) -> None:
    """`decay * running + (1 - decay) * batch`."""
    mean, var = job.state.done[name]
    new = batch.mean, _variance(name, batch)
    job.state.done[name] = (
        mean * job.decay + new[0] * (1 - job.decay),
        var * job.decay + new[1] * (1 - job.decay),
    )


def _check_ranks(job: Job) -> None:
    """A moving average takes one step for each batch of all ranks together."""
    if not parallel():
        return
    own = len(job.feed.bounds())
    both = torch.tensor([own, -own], device=job.feed.device)
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    if int(both[0]) != -int(both[1]):
        raise DataError(f"ranks have {-int(both[1])} to {int(both[0])} batches: a moving average needs as many on each")


def layerwise(job: Job, calls: Mapping[str, int]) -> dict[str, int]:
    """One norm after another, in the order of the network; the number of values of each."""
    state, counts = job.state, {}
    names = list(calls)
    for name in names[: state.stage]:
        set_statistics(job.norms[name], state.done[name])
        counts[name] = state.moments[name].count
    for stage, name in list(enumerate(names))[state.stage :]:
        norm = job.norms[name]
        moments = state.moments.setdefault(name, Moments.empty(int(norm.num_features)))
        for i, args, kwargs in job.batches(f"{name}: "):
            for x in watched(job.root, norm, args, kwargs, calls[name], after=False):
                moments.add(_moments(name, x))
            job.state.keep(job.path, i + 1)
        total = over_ranks(moments, job.feed.device)
        state.moments[name], counts[name] = total, total.count
        state.done[name] = total.mean, _variance(name, total)
        check_statistics(name, norm, state.done[name])
        set_statistics(norm, state.done[name])
        state.stage = stage + 1
        job.state.keep(job.path, 0, force=True)
    return counts
