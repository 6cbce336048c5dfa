"""What a calibration did, to read and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1


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
        return {"schema": SCHEMA, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.method}, {self.order}, {self.samples} samples", *map(str, self.norms)]
        return "\n".join([*lines, *(f"{name}: not run by the network, left as it was" for name in self.unused)])


@dataclass(frozen=True)
class CalibrationResult:
    """The network with its new statistics, and what was done."""

    model: Any
    report: CalibrationReport
