"""How far a calibration got, in a file from which a rerun goes on. An .npz file: a header in JSON, and arrays."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.samples import Array
from ..errors import DataError, UsageError
from ..files import at_once, written
from .moments import Moments

Statistics = tuple[Any, Any]
"""Mean and variance (C,), in float64: arrays, or tensors on the CPU."""
MARK = "bnfold_calibration"
SAMPLED = 64
"""Samples, spread over all, by which data are told from others."""
EVERY = 20
"""Batches between two writes of the state."""


@dataclass
class State:
    """The layer (`stage`) and the batch that come next, what was gathered for that layer, and what is done.

    `signature`: what the calibration depends on, as JSON holds it; a file of another one is refused.
    """

    signature: dict[str, Any]
    stage: int = 0
    batch: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    done: dict[str, Statistics] = field(default_factory=dict)

    def keep(self, path: Path | None, batch: int, force: bool = False) -> None:
        """Note the batch that comes next, and write it all every few batches, if there is a file for it."""
        self.batch = batch
        if path is not None and (force or batch % EVERY == 0):
            self.save(path)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        header = {
            MARK: self.signature, "stage": self.stage, "batch": self.batch,
            "moments": {name: m.count for name, m in self.moments.items()}, "done": list(self.done),
        }  # fmt: skip
        arrays: dict[str, Any] = {MARK: np.asarray(json.dumps(header))}
        for kind, pairs in (("moments", [(m.mean, m.m2) for m in self.moments.values()]), ("done", self.done.values())):
            for i, pair in enumerate(pairs):
                arrays |= {f"{kind}_{i}_{j}": np.asarray(vector) for j, vector in enumerate(pair)}
        with at_once(), written(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, signature: dict[str, Any]) -> State:
        """The state in a file, its vectors as arrays; a new one where there is none.

        DataError for a file that is none, UsageError for one of another calibration.
        """
        if not path.exists():
            return cls(signature)
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file[MARK]))
                found = header[MARK]
                moments = {
                    name: Moments(int(count), *_pair(file, "moments", i))
                    for i, (name, count) in enumerate(header["moments"].items())
                }
                done = {name: _pair(file, "done", i) for i, name in enumerate(header["done"])}
            state = cls(found, int(header["stage"]), int(header["batch"]), moments, done)
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError, OSError, AttributeError) as error:
            raise DataError(f"{path}: not the state of a calibration, or a damaged one; name another file") from error
        different = [name for name in signature if found.get(name) != signature[name]]
        if different:
            raise UsageError(
                f"{path}: the state of another calibration ({', '.join(different)} differ); name another file"
            )
        return state

    def converted(self, vector: Any) -> State:
        """With `vector` applied to every vector."""
        moments = {name: Moments(m.count, vector(m.mean), vector(m.m2)) for name, m in self.moments.items()}
        done = {name: (vector(mean), vector(var)) for name, (mean, var) in self.done.items()}
        return State(self.signature, self.stage, self.batch, moments, done)


def _pair(file: Any, kind: str, i: int) -> tuple[Array, Array]:
    first, second = (file[f"{kind}_{i}_{j}"] for j in range(2))
    if first.dtype != np.float64 or first.ndim != 1 or first.shape != second.shape or second.dtype != np.float64:
        raise ValueError(f"{kind} {i}: two vectors of float64 expected")
    return first, second


def fingerprint(arrays: Iterable[Array]) -> str:
    """A number that other weights would hardly have."""
    total = 0.0
    for i, array in enumerate(arrays):
        total += float(np.sum(array, dtype=np.float64)) * (1 + i % 7)
    return total.hex()
