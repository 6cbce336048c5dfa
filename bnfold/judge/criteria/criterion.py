"""What counts as the same output: an error no worse than the reference's own, or a fixed bound that a user gives.

The question is not how far two outputs are apart, but whether the second is worse than the first: both are compared
with the reference in float64, where it does not round. docs/judging.md has the measurement behind the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...errors import UsageError
from ...limits import MULTIPLE
from .check import HISTOGRAM, Counts, Measure, OutputError
from .inputs import Array
from .parts import worst_part

LIMITS = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest `error / scale` for an output of each type, where there is no float64 to compare with."""
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""A unit in the last place of numbers near 1."""
LEAST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
"""The smallest number above 0: no unit in the last place is smaller."""
INTEGER_LIMIT = 1e-3
"""Share of the elements of an integer output (a label map, say) that may flip at ties."""
PEAK = 2.0
"""The largest error may be so many times as far beyond the reference's own as the root mean square."""
FLOOR = (0.25, 1.0)
"""Own errors, root mean square and largest, count as so many units in the last place of the largest output at least.
The root mean square of a few elements counts as what it is where one of them has the floor of the largest."""
PARTS = 8.0
"""The error of one channel may be so many times as far beyond the reference's own there as that of the whole output."""
COARSE = 1e-3
"""Where differences of this share of the largest magnitude may pass as rounding, a warning says so."""
CLEAR = 0.1
"""A difference of this share of the largest magnitude is no rounding, whatever else is measured."""
SKIPPED = "skipped"
"""Note of an entry where the reference is nowhere finite: nothing to compare with."""
EMPTY = "empty"
"""Note of an entry without elements."""
BLOCK = 1 << 22
"""Elements that are compared at a time: an output may be larger than what float64 copies of it leave room for."""


@dataclass(frozen=True)
class Criterion:
    """When an output passes.

    By default its error against float64 may be `multiple` times the reference's own. The others take the place of that,
    and where several are given all must hold: `limit`: the largest difference over the largest magnitude; `atol`,
    `rtol`: every difference is at most `atol + rtol * |reference|`; `cosine`: the least cosine similarity of each
    sample; `top_k`: the k largest entries of each sample are the same, for a share `agreement` of the samples.
    """

    multiple: float = MULTIPLE
    limit: float | None = None
    atol: float | None = None
    rtol: float | None = None
    cosine: float | None = None
    top_k: int | None = None
    agreement: float = 1.0

    def __post_init__(self) -> None:
        for name in ("limit", "atol", "rtol"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise UsageError(f"{name} {value}: a number from 0 up expected")
        if not (np.isfinite(self.multiple) and self.multiple >= 1):
            raise UsageError(f"multiple {self.multiple}: a number from 1 up expected")
        if self.cosine is not None and not -1 <= self.cosine <= 1:
            raise UsageError(f"cosine {self.cosine}: a similarity from -1 to 1 expected")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k {self.top_k}: a number from 1 up expected")
        if not 0 < self.agreement <= 1:
            raise UsageError(f"agreement {self.agreement}: a share above 0, up to 1, expected")

    @property
    def fixed(self) -> bool:
        """Whether a user gave bounds: then nothing is run to find out what the reference's own error is."""
        return any(value is not None for value in (self.limit, self.atol, self.rtol, self.cosine, self.top_k))

    def __str__(self) -> str:
        if not self.fixed:
            return f"error against float64 at most {self.multiple:g} times the reference's own"
        parts = []
        if self.limit is not None:
            parts.append(f"largest difference at most {self.limit:g} of the largest magnitude")
        if self.atol is not None or self.rtol is not None:
            parts.append(f"differences at most {self.atol or 0:g} + {self.rtol or 0:g} * |reference|")
        if self.cosine is not None:
            parts.append(f"cosine similarity at least {self.cosine:g}")
        if self.top_k is not None:
            parts.append(f"the same top {self.top_k} for {self.agreement:.4g} of the samples")
        return ", ".join(parts)

    def used(self, entries: Iterable[OutputError]) -> str:
        """In words what a verdict over some entries rests on: bounds of a type where nothing was told by float64."""
        judged = [entry for entry in entries if entry.measures]
        limits = {m.bound for e in judged if e.own is None for m in e.measures if m.name == "relative error"}
        if self.fixed or not limits:
            return str(self)
        if all(entry.error == 0 for entry in judged):
            return "no difference"
        bounds = " or ".join(f"{limit:g}" for limit in sorted(limits))
        said = f"largest difference at most {bounds} of the largest magnitude"
        both = any(entry.own is not None for entry in judged)
        return f"{self}; where that is not known, {said}" if both else said

    def measure(self, a: Array, b: Array, entry: OutputError, floor: float = 0.0) -> OutputError:
        """An entry judged by fixed bounds; without any, by the limit of the type."""
        limit = LIMITS[a.dtype.name] if not self.fixed else self.limit
        found = list(self._measures(a, b)) if self.fixed else []
        if limit is not None:
            relative = entry.relative if entry.scale > 0 else 0.0 if entry.error <= floor else float("inf")
            found.append(Measure("relative error", relative, limit))
        seen: tuple[Counts, Counts] = ((), Errors.of(b, a, entry.scale).histogram)
        finest = None if self.fixed or not entry.scale > 0 else limit
        passed = all(m.passed for m in found)
        return replace(entry, measures=tuple(found), passed=passed, histogram=seen, resolution=finest)

    def _measures(self, a: Array, b: Array) -> Iterator[Measure]:
        if self.atol is not None or self.rtol is not None:
            yield Measure("tolerance", tolerance(a, b, self.atol or 0.0, self.rtol or 0.0), 1.0)
        known = np.isfinite(a.astype(np.float64))
        x, y = (np.where(known, v, 0).astype(np.float64).reshape(len(v) if v.ndim > 1 else 1, -1) for v in (a, b))
        if self.cosine is not None:
            yield Measure("cosine distance", _cosine_distance(x, y), 1 - self.cosine)
        if self.top_k is not None:
            share = _disagreement(x, y, self.top_k)
            allowed = round(1 - self.agreement, 12)  # 1 - 0.9 is less than 0.1
            yield Measure(f"top-{self.top_k} disagreement", share, allowed, len(x))


def tolerance(a: Array, b: Array, atol: float, rtol: float) -> float:
    """The largest `|a - b| / (atol + rtol * |a|)`; 0 / 0 is no difference."""
    worst = 0.0
    for x, y in blocks(a, b):
        known = np.isfinite(x)
        x, y = x[known], y[known]
        error, allowed = np.abs(x - y), atol + rtol * np.abs(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(error == 0, 0.0, error / allowed)
        worst = max(worst, float(np.nan_to_num(shares, nan=np.inf, posinf=np.inf).max(initial=0.0)))
    return worst


def _cosine_distance(a: Array, b: Array) -> float:
    """The largest over samples; two samples of zeros are the same, and one beside another is not."""
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both = (norms[0] == 0) & (norms[1] == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # of unit vectors |u - v|^2 / 2 = 1 - u.v, without the cancellation near 1
        distance = ((a / norms[0][:, None] - b / norms[1][:, None]) ** 2).sum(1) / 2
    return float(np.where(both, 0.0, np.nan_to_num(distance, nan=1.0)).max(initial=0.0))


def _disagreement(a: Array, b: Array, k: int) -> float:
    """The share of samples whose k largest entries lie elsewhere. Entries that tie in `a` for the last place may swap.

    All entries of `b` that tie for it count: an output of one number everywhere chooses nothing.
    """
    if k > a.shape[1]:
        raise UsageError(f"top-k {k}: an output has {a.shape[1]} entries for each sample")
    last = np.partition(a, -k, axis=1)[:, -k]
    least = np.partition(b, -k, axis=1)[:, -k]
    return float(np.mean(((b >= least[:, None]) & (a < last[:, None])).any(1)))


def blocks(*values: Array) -> Iterator[tuple[Array, ...]]:
    """Parts of arrays of one shape, flat and in float64."""
    flat = [np.ravel(value) for value in values]
    for start in range(0, max(1, flat[0].size), BLOCK):
        yield tuple(value[start : start + BLOCK].astype(np.float64) for value in flat)


def facts(name: str, kind: str, a: Array, b: Array | None) -> OutputError:
    """What is so whatever the criterion: an entry with a note where no number decides, with the largest error else.

    Elements where the reference itself is not finite are left out, as long as there are others.
    """

    def settled(note: str, passed: bool = False, error: float = float("inf")) -> OutputError:
        return OutputError(name, kind, error, 0.0, passed, note)

    if b is None:
        return settled("the output is missing")
    if a.shape != b.shape or a.dtype != b.dtype:
        return settled(f"{a.dtype.name}{list(a.shape)} expected, {b.dtype.name}{list(b.shape)} found")
    if a.size == 0:
        return settled(EMPTY, True, 0.0)
    if a.dtype.name not in LIMITS:
        share = float(np.mean(a != b))
        return OutputError(
            name, kind, share, 1.0, share <= INTEGER_LIMIT, "", (Measure("flips", share, INTEGER_LIMIT),)
        )
    error, scale, finite = 0.0, 0.0, False
    for x, y in blocks(a, b):
        known = np.isfinite(x)
        if not np.isfinite(y[known]).all():
            return settled("NaN or infinity where the reference is finite")
        finite = finite or bool(known.any())
        error = max(error, float(np.abs(x[known] - y[known]).max(initial=0.0)))
        scale = max(scale, float(np.abs(x[known]).max(initial=0.0)))
    return OutputError(name, kind, error, scale, False) if finite else settled(SKIPPED, False, 0.0)


@dataclass(frozen=True)
class Errors:
    """Errors of one output against float64: root mean square, largest, over elements that are finite everywhere."""

    rms: float
    peak: float
    histogram: Counts = field(default=(), compare=False)

    @classmethod
    def of(cls, value: Array, exact: Array, scale: float = 0.0) -> Errors:
        """`value`, `exact`: of one shape. `scale`: the magnitude that the histogram is relative to."""
        total, count, peak = 0.0, 0, 0.0
        bins = np.zeros(HISTOGRAM[2], np.int64)
        for x, y in blocks(value, exact):
            with np.errstate(invalid="ignore"):
                error = np.abs(x - y)
            error = error[np.isfinite(error)]
            total, count = total + float((error**2).sum()), count + error.size
            peak = max(peak, float(error.max(initial=0.0)))
            if scale > 0:
                bins += _binned(error / scale)
        return cls(float(np.sqrt(total / max(1, count))), peak, tuple(bins.tolist()) if scale > 0 else ())


def _binned(relative: Array) -> Array:
    low, high, count = HISTOGRAM
    with np.errstate(divide="ignore"):
        place = (np.log10(relative) - low) * count / (high - low)
    return np.bincount(np.clip(place, 0, count - 1).astype(np.int64), minlength=count)


def beside(entry: OutputError, a: Array, own: Errors, new: Errors, multiple: float, part: float = 0.0) -> OutputError:
    """An entry judged by the errors of the reference and of the candidate against float64; `part`: see `apart`.

    A candidate that is nearer to float64 than the reference may be far from the reference.
    """
    unit = max(EPS[a.dtype.name] * entry.scale, LEAST[a.dtype.name])
    allowed = max(own.rms, least_rms(a.size) * unit), max(own.peak, FLOOR[1] * unit)
    nearer = new.rms <= own.rms and new.peak <= own.peak and entry.scale > 0
    relative = new.peak / entry.scale if nearer else entry.relative
    measures = (
        Measure("error ratio", _ratio(new.rms, allowed[0]), multiple),
        Measure("peak ratio", _ratio(new.peak, allowed[1]), PEAK * multiple),
        Measure("relative error", relative, CLEAR),
        *([Measure("part ratio", part, PARTS * multiple)] if part > 0 else []),
    )
    passed = all(measure.passed for measure in measures) or entry.error == 0
    seen = (own.histogram, new.histogram)
    finest = multiple * allowed[0] / entry.scale if entry.scale > 0 else None
    return replace(
        entry, passed=passed, measures=measures, own=own.rms, found=new.rms, histogram=seen, resolution=finest
    )


def least_rms(elements: int) -> float:
    """What the root mean square of so many own errors counts as at least, in units in the last place."""
    return max(FLOOR[0], FLOOR[1] / float(np.sqrt(max(1, elements))))


def apart(a: Array, b: Array, exact: Array, dtype: str, noise: Array | None = None) -> float:
    """The error of a candidate over the reference's own in the channel where that is largest; 0 without channels.

    `dtype`: what both round to. `noise`: see `worst_part`.
    """
    return worst_part(a, b, exact, FLOOR[0] * EPS[dtype], BLOCK >> 4, noise)  # what a cache holds


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0 if a == 0 else float("inf")


def in_doubt(entry: OutputError) -> bool:
    """Whether an entry failed by a number, and not because something is missing or not finite."""
    return not entry.passed and not entry.note and bool(np.isfinite(entry.error)) and entry.measure("flips") is None


def magnitude(feed: dict[str, Any]) -> float:
    """The largest magnitude of the inputs, at least 1."""
    parts = [np.abs(value.astype(np.float64)).max(initial=0.0) for value in feed.values() if value.dtype.name in LIMITS]
    return float(max([1.0, *parts]))
