"""Latency of two models, side by side: runs in turn, so that what else the machine does hits both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
WARM = 5
FEWEST = 6
"""Rounds below which no two of the times hold the median between them with 95 % confidence: 1 - 2 / 2^5 is less."""
NORMAL = 1.96
"""Deviations of a normal distribution that hold 95 % of it."""


@dataclass(frozen=True)
class Interval:
    """A median, and the bounds between which it lies with 95 % confidence."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Bench:
    """Latencies in seconds, one for each round, of both models.

    `ratio`: the median of candidate over reference, round by round; below 1 the candidate is faster.
    """

    names: tuple[str, str]
    runner: str
    shapes: dict[str, tuple[int, ...]]
    reference: tuple[float, ...]
    candidate: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.reference) == len(self.candidate) > 0

    def __repr__(self) -> str:
        return f"Bench({' : '.join(self.names)}, {self.rounds} rounds, ratio {self.ratio.median:.3f})"

    @property
    def rounds(self) -> int:
        """How often both were run."""
        return len(self.reference)

    def of(self, which: str) -> Interval:
        """The latency of the "reference" or of the "candidate"."""
        return interval(np.asarray(getattr(self, which)))

    @property
    def ratio(self) -> Interval:
        """Candidate over reference."""
        return interval(np.asarray(self.candidate) / np.asarray(self.reference))

    def __str__(self) -> str:
        ratio = self.ratio
        if ratio.low <= 1 <= ratio.high:
            return f"no difference beyond chance ({_said(ratio)})"
        word = "less" if ratio.median < 1 else "more"
        return f"the candidate takes {abs(1 - ratio.median):.1%} {word} time ({_said(ratio)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; seconds."""
        return {
            "reference": {"name": self.names[0], **vars(self.of("reference"))},
            "candidate": {"name": self.names[1], **vars(self.of("candidate"))},
            "ratio": vars(self.ratio),
            "rounds": self.rounds,
            "runner": self.runner,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }


def _said(ratio: Interval) -> str:
    return f"ratio {ratio.median:.3f}, 95 % from {ratio.low:.3f} to {ratio.high:.3f}"


def interval(values: Times) -> Interval:
    """The median of some values, and the values between which it lies.

    Source: the order statistics of ranks `n/2 -+ 1.96 * sqrt(n)/2`, whatever the distribution (Conover, Practical
    Nonparametric Statistics, 3.2).
    """
    ranked, n = np.sort(values), values.size
    reach = NORMAL * np.sqrt(n) / 2
    low, high = max(0, int(np.floor(n / 2 - reach))), min(n - 1, int(np.ceil(n / 2 + reach)))
    return Interval(float(np.median(ranked)), float(ranked[low]), float(ranked[high]))


def race(
    first: Callable[[], object], second: Callable[[], object], seconds: float = 5.0, rounds: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Run both in turn, each first in every second round: for some seconds, at least ten rounds, or `rounds`."""
    for call in (first, second) * WARM:
        call()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < (rounds or 10) or (rounds is None and time.perf_counter() < end):
        order = ((0, first), (1, second)) if len(times[0]) % 2 == 0 else ((1, second), (0, first))
        for which, call in order:
            start = time.perf_counter()
            call()
            times[which].append(time.perf_counter() - start)
    return tuple(times[0]), tuple(times[1])
