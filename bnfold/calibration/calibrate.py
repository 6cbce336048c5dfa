"""The running statistics of batch norms anew, from data.

Which method is right:

- population, joint: what training approximates. Every norm normalises with the statistics of its batch, as in training,
  and its own statistics are those of all values that it was given (Ioffe and Szegedy 2015, algorithm 2, where they are
  taken after training). One pass. Take it after training or retraining in train mode; batches should be as large as
  they were there.
- population, layerwise: what inference needs. Each norm is calibrated on what it will be given at inference, behind
  norms that are calibrated already. As many passes as norms. Take it when weights were not trained with these norms:
  after a fold, a swap, quantization or an average of weights; the batch size does not matter.
- moving: `running = decay * running + (1 - decay) * batch`, from the values that the norms have, as training updates
  them. PyTorch's momentum is `1 - decay`. Take it to reproduce a framework that did so.

Variances are unbiased: `m / (m - 1)` times the variance of the m values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from ..data.batches import Feed, feed
from ..data.samples import Pixels
from ..errors import DataError, ModelError
from ..torch.write.fold import copied
from .forward import run
from .moments import parallel
from .passes import Job, Norm, Progress, joint, layerwise, set_statistics, statistics
from .report import Calibrated, CalibrationReport, CalibrationResult, check_options
from .state import SAMPLED, State, Statistics, fingerprint


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
    share: bool = False,
    resume: str | PathLike[str] | None = None,
    progress: Progress = lambda stage: None,
) -> CalibrationResult:
    """Estimate the running mean and variance of every batch norm of a network anew; of a copy, unless `inplace`.

    `data`: see `bnfold.data.open_data`; also tensors. `example_inputs`, `kwargs`: arguments; data take the place of the
    tensors in them; not needed for a network of one input. `method`, `order`, `decay`: see this module; "moving" knows
    "joint" only. `resume`: a file for the state, from which a rerun with the same arguments goes
    on, and which goes when all is done. Under torch.distributed every rank gives its own part of the data, or with
    `share` all of them, of whose batches it takes its part, and all get the statistics of all ("joint": of all batches
    of all ranks); where one fails, the others wait for it. Modes, dropout and everything else stay as they were.

    UsageError for arguments that do not fit, ModelError where there is no batch norm with running statistics, DataError
    for data that do not fit, hold or lead to NaN, or give a norm a single value.
    """
    check_options(method, order, decay)
    norms = _norms(module)
    root = module if inplace else copied(module)
    given = None if example_inputs is None else (
        tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,))  # fmt: skip
    batches = feed(root, data, given, dict(kwargs or {}), batch_size, samples, pixels)
    if share and parallel():
        batches = _shared(batches)
    own = {name: inner for name, inner in root.named_modules() if name in norms and isinstance(inner, Norm)}
    before = {name: statistics(norm) for name, norm in own.items()}
    with _kept(root, own):
        order_of = _calls(root, own, batches)
        used = {name: own[name] for name in order_of}
        signature = _signature(root, batches, method, order, decay, list(used))
        path = _state_path(resume)
        state = State(signature) if path is None else State.load(path, signature).converted(torch.from_numpy)
        job = Job(root, used, batches, state, path, decay, progress)
        values = layerwise(job, order_of) if order == "layerwise" else joint(job, method == "moving")
    for name, norm in used.items():
        set_statistics(norm, state.done[name])
    if path is not None:
        path.unlink(missing_ok=True)
    changed = tuple(_changed(name, used[name], before[name], values[name]) for name in used)
    report = CalibrationReport(method, order, len(batches), changed, tuple(name for name in own if name not in used))
    return CalibrationResult(root, report)


def _shared(batches: Feed) -> Feed:
    """Those batches that this rank takes. DataError where there is none for some rank."""
    count = distributed.get_world_size()
    if len(batches.bounds()) < count:
        raise DataError(f"{batches.samples.source}: {len(batches.bounds())} batches for {count} processes")
    return replace(batches, rank=distributed.get_rank(), ranks=count)


def _norms(module: nn.Module) -> list[str]:
    found = [
        name for name, inner in module.named_modules()
        if isinstance(inner, Norm) and isinstance(inner.running_mean, torch.Tensor)
    ]  # fmt: skip
    if not found:
        raise ModelError(f"{type(module).__name__}: no batch norm with running statistics in it")
    return found


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
    rows = np.unique(np.linspace(0, len(batches) - 1, SAMPLED).astype(int))
    seen = batches.samples.rows(rows).values()
    return {
        "method": method, "order": order, "decay": decay, "batch size": batches.size, "samples": len(batches),
        "norms": names, "weights": _fingerprint(list(root.parameters())), "data": fingerprint(seen),
    }  # fmt: skip


def _fingerprint(tensors: list[torch.Tensor]) -> str:
    return fingerprint(t.detach().double().cpu().numpy() for t in tensors if t.is_floating_point())


def _state_path(resume: str | PathLike[str] | None) -> Path | None:
    """Each rank of torch.distributed has a file of its own."""
    if resume is None:
        return None
    rank = f".{distributed.get_rank()}" if parallel() else ""
    return Path(fspath(resume) + rank)


def _changed(name: str, norm: Norm, before: Statistics, values: int) -> Calibrated:
    old, new = ((mean.numpy(), var.numpy()) for mean, var in (before, statistics(norm)))
    return Calibrated.of(name, old, new, norm.eps, values)
