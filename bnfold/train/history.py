"""What happened in a run, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One pass over the data. Number 0 is the network before the first step, which has no training loss.

    `loss`: the mean over the pass, of the network as it was at each step. `accuracy`: the part of samples whose class
    is right, or, where there are no classes, is the teacher's; None where there are no logits of classes.
    """

    number: int
    loss: float | None
    accuracy: float | None
    lr: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    seconds: float = 0.0


@dataclass
class History:
    """All epochs of a run. `accuracy_of`: what accuracy is measured against, "labels", "teacher", or "" for neither.

    `best`: the epoch whose weights were kept, where validation decided that. `stopped`: the loss stopped falling before
    the last epoch. `resumed`: steps that an earlier run had done. `notes`: what a reader should know.
    """

    epochs: list[Epoch] = field(default_factory=list)
    accuracy_of: str = ""
    best: int | None = None
    stopped: bool = False
    resumed: int = 0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"History({len(self.epochs)} epochs)"

    def column(self, name: str) -> list[tuple[int, float]]:
        """The epochs that have a number under this name, with it."""
        found = [(epoch.number, getattr(epoch, name)) for epoch in self.epochs]
        return [(number, value) for number, value in found if value is not None]

    def to_dict(self) -> dict[str, Any]:
        """The history as plain data, for JSON and for checkpoints."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """The other way."""
        epochs = [Epoch(**epoch) for epoch in data["epochs"]]
        return cls(**{**data, "epochs": epochs, "notes": tuple(data["notes"])})
