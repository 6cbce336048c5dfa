"""Checkpoints of a run: all that is needed to go on as if it had never been stopped."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.feed import Feed
from ..errors import OutputError, UsageError
from ..files import at_once, written
from ..torch.trace.capture import one_line
from .history import History

FILE = "retrain.pt"
SCHEMA = 1


@dataclass
class Position:
    """How far a run is: `step` steps of epoch `epoch`, counted from 0, and what they gave.

    `order`: the samples of this epoch, int64 (n,). `loss`, `right`, `seen`: sums over its steps. `waited`: epochs since
    the best validation loss, `best`. `kept`: the weights of that epoch.
    """

    epoch: int = 0
    step: int = 0
    order: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    loss: float = 0.0
    right: float = 0.0
    seen: float = 0.0
    waited: int = 0
    best: float = float("inf")
    kept: dict[str, torch.Tensor] | None = None
    done: bool = False
    history: History = field(default_factory=History)

    def to_dict(self) -> dict[str, Any]:
        """As plain data and tensors."""
        return {**vars(self), "history": self.history.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Position:
        """The other way."""
        return cls(**{**data, "history": History.from_dict(data["history"])})


def seed(number: int, device: torch.device) -> None:
    """Seed torch's random generators that a run uses, and no other."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The states of torch's random generators that a run uses."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """The other way; what a run on another kind of device left out stays as it is."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def fingerprint(net: nn.Module, teacher: nn.Module | None, feeds: list[Feed | None]) -> dict[str, Any]:
    """Numbers that tell networks and data apart: a run goes on only with those that it began with."""
    found: dict[str, Any] = {"network": _sum_of(net.state_dict())}
    found["teacher"] = None if teacher is None else _sum_of(teacher.state_dict())
    for name, feed in zip(("data", "validation"), feeds, strict=True):
        found[name] = None if feed is None else [len(feed), _sum_of(_ends(feed))]
    return found


def _sum_of(tensors: Mapping[str, Any]) -> int:
    total = 0
    for name, tensor in tensors.items():
        total = zlib.crc32(name.encode(), total)
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), total)
    return total


def _ends(feed: Feed) -> dict[str, torch.Tensor]:
    """The first and the last sample."""
    batch = feed.batch(torch.tensor([0, len(feed) - 1]))
    tensors = {**{str(i): tensor for i, tensor in enumerate(batch.args)}, **batch.kwargs}
    return tensors if batch.labels is None else {**tensors, "labels": batch.labels}


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint: whole, or the one before stays."""
    with at_once(), written(folder / FILE) as temporary:
        torch.save({"schema": SCHEMA, **content}, temporary)


def load(folder: Path) -> dict[str, Any] | None:
    """The checkpoint in a folder, None where there is none. UsageError where it cannot be read."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, {SCHEMA} expected")
    except Exception as error:
        raise UsageError(
            f"{path}: no checkpoint of a run that can be read ({one_line(error)}); resume=False (--no-resume) starts "
            "anew"
        ) from error
    return dict(content)


def check_same(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UsageError where a checkpoint is of another run."""
    other = [name for name in now if was.get(name) != now[name]]
    if other:
        said = ", ".join(_difference(name, was.get(name), now[name]) for name in other)
        raise UsageError(
            f"{path / FILE}: a run with other settings ({said}); use those, name another folder, or start anew with "
            "resume=False (--no-resume)"
        )


def _difference(name: str, was: Any, now: Any) -> str:
    return f"another {name}" if name in ("network", "teacher", "data", "validation") else f"{name} {was}, now {now}"


def prepare(folder: Path) -> None:
    """Make the folder of checkpoints where it is not there. OutputError where that cannot be."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: no folder for checkpoints ({error.strerror or error})") from error
