"""What a calibration did, to read and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data.samples import Array
from ..errors import UsageError
from .moments import FEW, TINY

SCHEMA = 1
METHODS = ("population", "moving")
ORDERS = ("joint", "layerwise")


def check_options(method: str, order: str, decay: float) -> None:
    """UsageError for what is not known, or does not go together."""
    for name, value, known in (("method", method, METHODS), ("order", order, ORDERS)):
        if value not in known:
            raise UsageError(f"{name}={value!r}: one of {', '.join(known)} expected")
    if method == "moving" and order != "joint":
        raise UsageError("method='moving' updates all norms together: order='joint' expected")
    if not 0 <= decay < 1:
        raise UsageError(f"decay={decay}: 0 or more, and less than 1, expected (PyTorch's momentum is 1 - decay)")


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
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, before: tuple[Array, Array], after: tuple[Array, Array], eps: float, values: int
    ) -> Calibrated:
        """From mean and variance (C,) before and after, in float64."""
        old = np.maximum(before[1] + eps, 1e-30)
        shift = float((np.abs(after[0] - before[0]) / np.sqrt(old)).max())
        ratio = (after[1] + eps) / old
        said = []
        constant = int((after[1] <= TINY).sum())
        if constant:
            said.append(f"{constant} channels are constant on the data, their variance is 0")
        if values < FEW:
            said.append(f"{values} values for each channel are few for a mean and a variance; more samples would help")
        return cls(name, len(old), values, shift, (float(ratio.min()), float(ratio.max())), tuple(said))

    def __str__(self) -> str:
        low, high = self.ratio
        return (
            f"{self.name}: {self.channels} channels, {self.values} values of each; means moved by {self.shift:.3g} "
            f"standard deviations at most, variances by factors of {low:.3g} to {high:.3g}"
            + "".join(f"\n  warning: {text}" for text in self.warnings)
        )


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did. `unused`: norms that the network did not run, which keep what they had."""

    method: str
    order: str
    samples: int
    norms: tuple[Calibrated, ...]
    unused: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"CalibrationReport({self.method}: {len(self.norms)} norms, {self.samples} samples)"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.method}, {self.order}, {self.samples} samples", *map(str, self.norms)]
        return "\n".join([*lines, *(f"{name}: not run by the network, left as it was" for name in self.unused)])


@dataclass(frozen=True)
class CalibrationResult:
    """The network with its new statistics, and what was done."""

    model: Any
    report: CalibrationReport

    def __repr__(self) -> str:
        report = self.report
        return f"CalibrationResult({report.method}: {len(report.norms)} norms, {report.samples} samples)"
