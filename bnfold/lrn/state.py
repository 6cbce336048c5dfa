"""How far a calibration got, in a file from which a rerun goes on."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import DataError, UsageError
from ..files import written
from .moments import Moments

Statistics = tuple[torch.Tensor, torch.Tensor]
"""Mean and variance (C,), in float64."""


@dataclass
class State:
    """The layer (`stage`) and the batch that come next, what was gathered for that layer, and what is done.

    `signature`: what the calibration depends on; a file of another one is refused.
    """

    signature: dict[str, Any]
    stage: int = 0
    batch: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    done: dict[str, Statistics] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        content = {
            "bnfold_calibration": self.signature,
            "stage": self.stage,
            "batch": self.batch,
            "moments": {name: (m.count, m.mean, m.m2) for name, m in self.moments.items()},
            "done": self.done,
        }
        with written(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: Path, signature: dict[str, Any]) -> State:
        """The state in a file, a new one where there is none.

        DataError for a file that is none, UsageError for one of another calibration.
        """
        if not path.exists():
            return cls(signature)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = content["bnfold_calibration"]
            moments = {name: Moments(*values) for name, values in content["moments"].items()}
            state = cls(found, int(content["stage"]), int(content["batch"]), moments, dict(content["done"]))
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError) as error:
            raise DataError(f"{path}: not the state of a calibration, or a damaged one; name another file") from error
        different = [name for name in signature if found.get(name) != signature[name]]
        if different:
            raise UsageError(
                f"{path}: the state of another calibration ({', '.join(different)} differ); name another file"
            )
        return state


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """A number that other weights would hardly have."""
    total = 0.0
    for i, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            total += float(tensor.detach().double().sum()) * (1 + i % 7)
    return total.hex()


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    """What a calibration does not change."""
    return [tensor.detach() for tensor in module.parameters()]
