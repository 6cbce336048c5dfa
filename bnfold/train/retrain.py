"""Retrain a network after a change to it, with labels or with the network as it was for a teacher."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.feed import Feed, check_labels, feed
from ..data.samples import Pixels, matched
from ..errors import DataError, UsageError
from ..torch.write.fold import copied, evaluated
from . import checkpoints
from .history import History
from .loop import Loop, Progress, Saving
from .objective import Objective
from .ranks import Ranks
from .recipe import CLIP, WARMUP, Recipe


@dataclass(frozen=True)
class RetrainResult:
    """A retrained network in eval mode, and what happened on the way."""

    model: Any
    history: History

    def __repr__(self) -> str:
        return f"RetrainResult({self.history!r})"


def retrain(
    module: nn.Module,
    data: Any,
    *,
    validation: Any = None,
    teacher: nn.Module | None = None,
    labels: bool | None = None,
    distil: str = "outputs",
    feature_names: Iterable[str] = (),
    temperature: float | None = None,
    epochs: int = 2,
    lr: float = 0.05,
    batch_size: int = 64,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = WARMUP,
    clip: float | None = CLIP,
    seed: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_steps: int | None = None,
    resume: bool = True,
    patience: int | None = None,
    inplace: bool = False,
    device: str | torch.device = "cpu",
    pixels: Pixels | None = None,
    progress: Progress = lambda stage: None,
) -> RetrainResult:
    """The loop behind `bnfold.retrain`, which says what everything means."""
    where = _device(device)
    _check(module, teacher, temperature, distil)
    recipe = Recipe(
        epochs, lr, batch_size, momentum, weight_decay, warmup, seed, patience,
        teacher is None if labels is None else labels, distil, temperature, tuple(feature_names), clip,
    ).check()  # fmt: skip
    if patience is not None and validation is None:
        raise UsageError("patience: needs validation data, which tell when to stop")
    if checkpoint_steps is not None and (checkpoint is None or checkpoint_steps < 1):
        raise UsageError("checkpoint_steps: 1 or more expected, and a folder in checkpoint")
    ranks = Ranks.found(where)
    net = evaluated(copied(module).to(where))
    master = None if teacher is None else evaluated(copied(teacher).to(where)).requires_grad_(False)
    feeds = _feeds(net, data, validation, recipe, ranks, pixels, master is not None)
    saving = _saving(checkpoint, checkpoint_steps, recipe, ranks, net, master, feeds)
    cuda = [where.index] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.cuda.device(where) if cuda else nullcontext():
        checkpoints.seed(seed + ranks.rank, where)
        history, state = _run(recipe, net, master, feeds, ranks, saving, resume, progress)
    result = module if inplace else copied(module)
    result.load_state_dict(state)
    return RetrainResult(result.eval(), history)


def _run(
    recipe: Recipe, net: nn.Module, teacher: nn.Module | None, feeds: tuple[Feed, Feed | None], ranks: Ranks,
    saving: Saving, resume: bool, progress: Progress,
) -> tuple[History, dict[str, torch.Tensor]]:  # fmt: skip
    """What happened, and the state_dict at the end."""
    net = ranks.prepared(net)
    objective = Objective(recipe, net, teacher)
    try:
        wrapped = ranks.wrapped(net)
        loop = Loop(recipe, net, wrapped, objective, *feeds, ranks, saving, progress)
        if saving.folder is not None and resume:
            stored = ranks.shared(checkpoints.load(saving.folder) if ranks.first else None)
            if stored is not None:
                checkpoints.check_same(saving.folder, stored["identity"], saving.identity or {})
                loop.go_on(stored)
        known = feeds[0].samples.labels is not None
        loop.at.history.accuracy_of = "labels" if known else "teacher" if teacher is not None else ""
        loop.at.history.notes = (*_notes(loop), *ranks.notes())
        loop.run()
    finally:
        objective.close()
    return loop.at.history, net.state_dict()


def _notes(loop: Loop) -> tuple[str, ...]:
    over = len(loop.train) - loop.steps * loop.size * loop.ranks.count
    if not over:
        return ()
    return (f"{over} of {len(loop.train)} samples, others each time, are left out of an epoch: no full batch",)


def _device(device: str | torch.device) -> torch.device:
    """The device with its number. UsageError where there is none."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device={device!r}: cpu, cuda or cuda:1 expected") from error
    if found.type == "cuda":
        if not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"device={device!r}: torch finds {torch.cuda.device_count()} CUDA devices here")
        return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    return found


def _check(module: Any, teacher: Any, temperature: float | None, distil: str) -> None:
    for name, given in (("module", module), ("teacher", teacher)):
        if not isinstance(given, nn.Module) and (name == "module" or given is not None):
            raise UsageError(f"{name}: a torch.nn.Module expected, {type(given).__name__} found")
        if isinstance(given, torch.jit.ScriptModule):
            raise UsageError(f"{name}: a TorchScript module cannot be retrained; the module that it was made from can")
    if teacher is None and (temperature is not None or distil == "features"):
        raise UsageError("temperature and distil say how to learn from a teacher, and there is none")


def _feeds(
    net: nn.Module, data: Any, validation: Any, recipe: Recipe, ranks: Ranks, pixels: Pixels | None, taught: bool
) -> tuple[Feed, Feed | None]:
    """The data to train on and those to measure on, after a look whether they fit. DataError where they do not."""
    train = feed(data, net, ranks.device, pixels, recipe.labels and taught)
    if not taught and (train.samples.labels is None or not recipe.labels):
        raise DataError(
            f"{train.samples.source}: no classes in it, and no teacher; give the classes as an array 'y' or as "
            "folders, or the network as it was before the change as the teacher"
        )
    if len(train) < 2 * ranks.count:
        raise DataError(f"{train.samples.source}: {len(train)} samples; at least 2 expected for each process")
    held = None if validation is None else feed(validation, net, ranks.device, pixels, recipe.labels)
    if held is not None:
        held = replace(held, samples=matched(held.samples, train.samples.classes))
    for one in (train, held):
        if one is not None:
            logits = one.fits(net)
            if one.samples.labels is not None:
                check_labels(one.samples, logits, one is train and recipe.labels)
    return train, held


def _saving(
    checkpoint: str | PathLike[str] | None, steps: int | None, recipe: Recipe, ranks: Ranks, net: nn.Module,
    teacher: nn.Module | None, feeds: tuple[Feed, Feed | None],
) -> Saving:  # fmt: skip
    """Where checkpoints go, and what tells this run from others."""
    if checkpoint is None:
        return Saving()
    folder = Path(fspath(checkpoint))
    if ranks.first:
        checkpoints.prepare(folder)
    identity = {**recipe.to_dict(), "processes": ranks.count, **checkpoints.fingerprint(net, teacher, list(feeds))}
    return Saving(folder, steps, identity)
