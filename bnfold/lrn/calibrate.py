"""The running statistics of batch norms anew, from data.

Which method is right:

- population, joint: what training approximates. Every norm normalises with the statistics of its batch, as in training,
  and its own statistics are those of all values that it was given (Ioffe and Szegedy 2015, algorithm 2, where they are
  taken after training). One pass. Take it after training or retraining in train mode; batches should be as large as
  they were there.
- population, layerwise: what inference needs. Each norm is calibrated on what it will be given at inference, behind norms
  that are calibrated already. As many passes as norms. Take it when weights were not trained with these norms: after a
  fold, a swap, quantization or an average of weights; the batch size does not matter.
- moving: `running = decay * running + (1 - decay) * batch`, from the values that the norms have, as training updates
  them. PyTorch's momentum is `1 - decay`. Take it to reproduce a framework that did so.

Variances are unbiased: `m / (m - 1)` times the variance of the m values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from ..data import Pixels
from ..errors import DataError, ModelError, UsageError
from ..frontends.torch.fold import copied
from .batches import Feed, feed
from .gather import run, watched
from .moments import Moments, over_ranks, parallel
from .state import State, Statistics, fingerprint, weights_of

Progress = Callable[[str], None]
Norm = nn.modules.batchnorm._BatchNorm
METHODS = ("population", "moving")
ORDERS = ("joint", "layerwise")
EVERY = 20
"""Batches between two writes of the state."""


@dataclass(frozen=True)
class Calibrated:
    """One norm. `values`: of each channel, in its statistics. `shift`: how far its mean moved at most, in standard
    deviations of before; `ratio`: the smallest and the largest new variance over the old one.
    """

    name: str
    channels: int
    values: int
    shift: float
    ratio: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.ratio
        return (
            f"{self.name}: {self.channels} channels, {self.values} values of each; means moved by {self.shift:.3g} "
            f"standard deviations at most, variances by factors of {low:.3g} to {high:.3g}"
        )


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did. `unused`: norms that the network did not run, which keep what they had."""

    method: str
    order: str
    samples: int
    norms: tuple[Calibrated, ...]
    unused: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": 1, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.method}, {self.order}, {self.samples} samples", *map(str, self.norms)]
        return "\n".join([*lines, *(f"{name}: not run by the network, left as it was" for name in self.unused)])


@dataclass(frozen=True)
class CalibrationResult:
    """The network with its new statistics, and what was done."""

    model: nn.Module
    report: CalibrationReport


@dataclass
class _Job:
    root: nn.Module
    norms: dict[str, Norm]
    feed: Feed
    state: State
    path: Path | None
    decay: float
    progress: Progress

    def saved(self, batch: int, force: bool = False) -> None:
        """Write the state every few batches."""
        self.state.batch = batch
        if self.path is not None and (force or batch % EVERY == 0):
            self.state.save(self.path)

    def batches(self, what: str) -> Iterator[tuple[int, tuple[Any, ...], dict[str, Any]]]:
        """The batches that are left, by number."""
        first, total = self.state.batch, len(self.feed.bounds())
        for i, (args, kwargs) in enumerate(self.feed.batches(first), first):
            self.progress(f"{what}batch {i + 1} of {total}")
            yield i, args, kwargs


def calibrate(
    module: nn.Module,
    data: Any,
    example_inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    method: str = "population",
    order: str = "joint",
    decay: float = 0.99,
    batch_size: int = 64,
    samples: int | None = None,
    pixels: Pixels | None = None,
    inplace: bool = False,
    resume: str | PathLike[str] | None = None,
    progress: Progress = lambda stage: None,
) -> CalibrationResult:
    """Estimate the running mean and variance of every batch norm of a network anew; of a copy, unless `inplace`.

    `data`: see `bnfold.data.open_data`; also tensors. `example_inputs`, `kwargs`: arguments that are not data, and which
    are (the tensors); not needed for a network of one input. `method`, `order`, `decay`: see this module; "moving" knows
    "joint" only. `resume`: a file for the state, from which a rerun with the same arguments goes on, and which goes when
    all is done. Under torch.distributed every rank gives its own part of the data, and all get the statistics of all
    ("joint": as of all batches of all ranks). Modes, dropout and everything else stay as they were.

    UsageError for arguments that do not fit, ModelError where there is no batch norm with running statistics, DataError
    for data that do not fit, hold or lead to NaN, or give a norm a single value.
    """
    _check(method, order, decay)
    norms = _norms(module)
    root = module if inplace else copied(module)
    given = None if example_inputs is None else (
        tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,))  # fmt: skip
    batches = feed(root, data, given, dict(kwargs or {}), batch_size, samples, pixels)
    own = {name: inner for name, inner in root.named_modules() if name in norms and isinstance(inner, Norm)}
    before = {name: _statistics(norm) for name, norm in own.items()}
    with _kept(root, own):
        order_of = _calls(root, own, batches)
        used = {name: own[name] for name in order_of}
        signature = _signature(root, batches, method, order, decay, list(used))
        path = _state_path(resume)
        state = State(signature) if path is None else State.load(path, signature)
        job = _Job(root, used, batches, state, path, decay, progress)
        values = _layerwise(job, order_of) if order == "layerwise" else _joint(job, method == "moving")
    for name, norm in used.items():
        _set(norm, state.done[name])
    if path is not None:
        path.unlink(missing_ok=True)
    changed = tuple(_changed(name, used[name], before[name], values[name]) for name in used)
    report = CalibrationReport(method, order, len(batches), changed, tuple(name for name in own if name not in used))
    return CalibrationResult(root, report)


def _check(method: str, order: str, decay: float) -> None:
    for name, value, known in (("method", method, METHODS), ("order", order, ORDERS)):
        if value not in known:
            raise UsageError(f"{name}={value!r}: one of {', '.join(known)} expected")
    if method == "moving" and order != "joint":
        raise UsageError("method='moving' updates all norms together: order='joint' expected")
    if not 0 <= decay < 1:
        raise UsageError(f"decay={decay}: 0 or more, and less than 1, expected (PyTorch's momentum is 1 - decay)")


def _norms(module: nn.Module) -> list[str]:
    found = [
        name for name, inner in module.named_modules()
        if isinstance(inner, Norm) and isinstance(inner.running_mean, torch.Tensor)
    ]  # fmt: skip
    if not found:
        raise ModelError(f"{type(module).__name__}: no batch norm with running statistics in it")
    return found


def _statistics(norm: Norm) -> Statistics:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.detach().double().cpu(), norm.running_var.detach().double().cpu()


def _set(norm: Norm, values: Statistics) -> None:
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(values[0])
        norm.running_var.copy_(values[1])


@contextmanager
def _kept(root: nn.Module, norms: Mapping[str, Norm]) -> Iterator[None]:
    """The network in eval mode inside the block; after it every mode and every buffer of the norms as before."""
    modes = {inner: inner.training for inner in root.modules()}
    buffers = [(b, b.detach().clone()) for norm in norms.values() for b in norm.buffers(recurse=False)]
    root.eval()
    try:
        yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _calls(root: nn.Module, norms: Mapping[str, Norm], batches: Feed) -> dict[str, int]:
    """How often the network calls each norm, in the order in which it does first."""
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, args: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return seen

    handles = [norm.register_forward_pre_hook(count(name)) for name, norm in norms.items()]
    try:
        run(root, *next(batches.batches()))
    finally:
        for handle in handles:
            handle.remove()
    if not counts:
        raise ModelError(f"{type(root).__name__}: it runs none of its batch norms")
    return counts


def _signature(
    root: nn.Module, batches: Feed, method: str, order: str, decay: float, names: list[str]
) -> dict[str, Any]:
    """What a state depends on."""
    args, kwargs = next(batches.batches())
    first = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    return {
        "method": method, "order": order, "decay": decay, "batch size": batches.size, "samples": len(batches),
        "norms": names, "weights": fingerprint(weights_of(root)), "data": fingerprint(first),
    }  # fmt: skip


def _state_path(resume: str | PathLike[str] | None) -> Path | None:
    """Each rank of torch.distributed has a file of its own."""
    if resume is None:
        return None
    rank = f".{distributed.get_rank()}" if parallel() else ""
    return Path(fspath(resume) + rank)


def _moments(name: str, x: torch.Tensor) -> Moments:
    try:
        return Moments.of(x)
    except DataError as error:
        raise DataError(f"{name}: of what goes into it on these data, {error}") from error


def _variance(name: str, moments: Moments) -> torch.Tensor:
    try:
        return moments.variance()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _joint(job: _Job, moving: bool) -> dict[str, int]:
    """All norms in one pass, each normalising with its batch; the number of values of each."""
    seen: list[tuple[str, Moments]] = []
    counts = dict.fromkeys(job.norms, 0)

    def watch(name: str) -> Callable[..., None]:
        return lambda module, args: seen.append((name, _moments(name, args[0])))

    handles = [norm.register_forward_pre_hook(watch(name)) for name, norm in job.norms.items()]
    state = job.state
    if moving:
        _check_ranks(job)
        state.done = state.done or {name: _statistics(norm) for name, norm in job.norms.items()}
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
            job.saved(i + 1)
    finally:
        for handle in handles:
            handle.remove()
    for name in job.norms:
        total = over_ranks(state.moments[name], job.feed.device)
        counts[name] = total.count
        if not moving:
            state.done[name] = total.mean, _variance(name, total)
    return counts


def _average(job: _Job, name: str, batch: Moments) -> None:
    """`decay * running + (1 - decay) * batch`."""
    mean, var = job.state.done[name]
    new = batch.mean, _variance(name, batch)
    job.state.done[name] = (
        mean * job.decay + new[0] * (1 - job.decay),
        var * job.decay + new[1] * (1 - job.decay),
    )


def _check_ranks(job: _Job) -> None:
    """A moving average takes one step for each batch of all ranks together."""
    if not parallel():
        return
    own = len(job.feed.bounds())
    both = torch.tensor([own, -own], device=job.feed.device)
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    if int(both[0]) != -int(both[1]):
        raise DataError(f"ranks have {-int(both[1])} to {int(both[0])} batches: a moving average needs as many on each")


def _layerwise(job: _Job, calls: Mapping[str, int]) -> dict[str, int]:
    """One norm after another, in the order of the network; the number of values of each."""
    state, counts = job.state, {}
    names = list(calls)
    for name in names[: state.stage]:
        _set(job.norms[name], state.done[name])
        counts[name] = state.moments[name].count
    for stage, name in list(enumerate(names))[state.stage :]:
        norm = job.norms[name]
        moments = state.moments.setdefault(name, Moments.empty(int(norm.num_features)))
        for i, args, kwargs in job.batches(f"{name}: "):
            for x in watched(job.root, norm, args, kwargs, calls[name], after=False):
                moments.add(_moments(name, x))
            job.saved(i + 1)
        total = over_ranks(moments, job.feed.device)
        state.moments[name], counts[name] = total, total.count
        state.done[name] = total.mean, _variance(name, total)
        _set(norm, state.done[name])
        state.stage = stage + 1
        job.saved(0, force=True)
    return counts


def _changed(name: str, norm: Norm, before: Statistics, values: int) -> Calibrated:
    after = _statistics(norm)
    shift = ((after[0] - before[0]).abs() / (before[1] + norm.eps).sqrt()).max()
    ratio = (after[1] + norm.eps) / (before[1] + norm.eps)
    return Calibrated(name, int(norm.num_features), values, float(shift), (float(ratio.min()), float(ratio.max())))
