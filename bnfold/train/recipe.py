"""How a network is retrained: the numbers of the recipe, and whether they make sense."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError

WARMUP = 0.05
"""Part of all steps in which the learning rate rises to its peak."""
CLIP = 1.0
"""The longest gradient; one that is longer is shortened, as the first ones after a change to a network often are."""
DISTIL = ("outputs", "features")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run besides the network, the data and the device. See `retrain` for the meaning."""

    epochs: int = 2
    lr: float = 0.05
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = WARMUP
    seed: int = 0
    patience: int | None = None
    labels: bool = True
    distil: str = DISTIL[0]
    temperature: float | None = None
    feature_names: tuple[str, ...] = ()
    clip: float | None = CLIP

    def check(self) -> Recipe:
        """The recipe itself; UsageError where a number is out of its range."""
        within = (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("lr", 0 < self.lr < float("inf"), "a number above 0"),
            ("batch_size", self.batch_size >= 2, "2 or more (a batch norm has no variance over one sample)"),
            ("momentum", 0 <= self.momentum < 1, "0 or more, below 1"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "a part of the steps: 0 or more, below 1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("patience", self.patience is None or self.patience >= 1, "1 or more, or None"),
            ("distil", self.distil in DISTIL, " or ".join(DISTIL)),
            ("clip", self.clip is None or self.clip > 0, "a number above 0, or None"),
            ("temperature", self.temperature is None or 0 < self.temperature < float("inf"), "a number above 0"),
        )
        for name, fine, wanted in within:
            if not fine:
                raise UsageError(f"{name}={getattr(self, name)!r}: {wanted} expected")
        if (self.distil == "features") != bool(self.feature_names):
            raise UsageError('distil="features" and feature_names, the modules to compare, go together')
        return self

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return {**asdict(self), "feature_names": list(self.feature_names)}
