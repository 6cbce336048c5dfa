"""Where two models part: the first tensor, in the reference's order, at which the candidate is worse than rounding.

Tensors are matched by name, in models of two kinds by the names of modules. A folded model holds `p*v + q` where the
original holds `v`; the gauges `(p, q)` come from the plan, and since nothing tells which of the two was folded, and
with which options, each set that it may have is tried: the one that fits best counts. Two runtimes round differently:
what the candidate computes in float64 is held against the reference then, as the judge does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from .check import Point, Where
from .criterion import EPS, FLOOR, LIMITS, PARTS, PEAK, apart
from .inputs import Array, Feed

Gauge = tuple[Array, Array]
Values = Mapping[str, Array]
CLEARLY = 4.0
"""A tensor that is shared by several readers may lose some digits to a fold; so many times the multiple is more."""
AT_ONCE = 24
"""Tensors that are held at a time, of each model."""
MOST = 192
"""Tensors of the first round; between two of them the search goes on."""


class Probe(Protocol):
    """A model whose inner tensors can be looked at."""

    def tensors(self) -> dict[str, str]:
        """What computes each inner tensor, in the order in which they are computed."""

    def values(self, feed: Feed, names: Sequence[str]) -> Values:
        """Some of them."""

    def exact(self, feed: Feed, names: Sequence[str]) -> Values:
        """In float64; none where nothing here computes that."""

    def returned(self) -> dict[str, str]:
        """The tensor that each module returns, as far as that is known; modules by qualified name."""

    def gauges(self) -> Iterator[Mapping[str, Gauge]]:
        """How folded models of this one may hold its tensors; `(p, q)` broadcast to them."""


def locate(
    reference: Probe, candidate: Probe, feed: Feed, kind: str, multiple: float,
    progress: Callable[[str], None] = lambda stage: None, runtimes: int = 1,
) -> Where:  # fmt: skip
    """The first tensor at which two models part on some inputs. `runtimes`: how many they run in."""
    ops, theirs = reference.tensors(), candidate.tensors()
    names = [name for name in ops if name in theirs]
    gauges = list(reference.gauges()), list(candidate.gauges())

    def measured(chosen: Sequence[str]) -> list[Point]:
        found = []
        for start in range(0, len(chosen), AT_ONCE):
            progress(f"looking for the tensor at which they part: {start} of {len(chosen)}")
            some = chosen[start : start + AT_ONCE]
            sets = [reference.values(feed, some), candidate.values(feed, some), reference.exact(feed, some)]
            sets += [candidate.exact(feed, some)] if runtimes > 1 else []
            for name in some:
                point = _point(name, ops[name], [values.get(name) for values in sets], gauges)
                if point is not None:
                    found.append(point)
        return found

    step = -(-len(names) // MOST) if names else 1
    profile = measured(names[::step])
    first = _first(profile, multiple)
    if step > 1 and first is not None:
        last = names.index(profile[first - 1].tensor) + 1 if first else 0
        between = measured(names[last : names.index(profile[first].tensor)])
        profile = [*profile[:first], *between, *profile[first:]]
        first = _first(profile, multiple)
    if first is None:
        return Where("", "", profile[-1].tensor if profile else "", kind, tuple(profile))
    before = profile[first - 1].tensor if first else ""
    parting = profile[first]
    return Where(parting.tensor, parting.op, before, kind, tuple(profile), theirs[parting.tensor])


def _first(profile: Sequence[Point], multiple: float) -> int | None:
    """The first that is clearly worse than rounding; where none is, the first that is worse at all."""
    for bound in (CLEARLY * multiple, multiple):
        found = next((i for i, point in enumerate(profile) if not point.ratio <= bound), None)
        if found is not None:
            return found
    return None


def _point(
    name: str, op: str, values: Sequence[Array | None], gauges: Sequence[Sequence[Mapping[str, Gauge]]]
) -> Point | None:
    """How one tensor compares, under the gauge that fits best; None where it cannot be compared.

    `values`: of the reference and of the candidate, of the reference in float64, and of the candidate in float64 where
    that runs in another runtime. `gauges`: how folded models of the reference hold it, and of the candidate.
    """
    a, b, exact, *other = values
    if a is None or b is None or a.shape != b.shape or a.size == 0 or a.dtype != b.dtype or a.dtype.name not in LIMITS:
        return None
    told = _covers(exact, a) and all(_covers(value, b) for value in other)
    mine = [a.astype(np.float64), exact if told and exact is not None else a.astype(np.float64)]
    theirs = [b.astype(np.float64), *(other if told else [])]
    points = []
    for (p, q), (r, s) in _distinct(name, gauges):
        wide, truth = (p * value + q for value in mine)
        found, *held = (r * value + s for value in theirs if value is not None)
        point = _compared(name, op, wide, held[0] if held else found, truth, a.dtype.name, told)
        points.append(_rounded(point, found, held[0], truth, a.dtype.name) if held else point)
    return min(points, key=lambda point: point.found)


def _covers(exact: Array | None, value: Array) -> bool:
    """Whether float64 has a number wherever there is one."""
    return exact is not None and exact.shape == value.shape and bool((np.isfinite(exact) | ~np.isfinite(value)).all())


def _rounded(point: Point, b: Array, held: Array, truth: Array, dtype: str) -> Point:
    """A point with the error of `b`, where a runtime may be as far as the limit of the type from `held` in float64."""
    ok = np.isfinite(truth) & np.isfinite(held)
    if not np.isfinite(b[ok]).all():
        return replace(point, found=float("inf"), ratio=float("inf"))
    size = float(np.abs(held[ok]).max(initial=0.0))
    fine = not ok.any() or float(np.abs((b - held)[ok]).max()) <= LIMITS[dtype] * size
    return replace(
        point, found=_rms((b - truth)[ok]) / (_rms(truth[ok]) or 1.0), ratio=point.ratio if fine else float("inf")
    )


def _distinct(name: str, gauges: Sequence[Sequence[Mapping[str, Gauge]]]) -> Iterator[tuple[Any, Any]]:
    """Gauges to bring the reference and the candidate to: that of a folded candidate, or of a folded reference."""
    same = 1.0, 0.0
    yield same, same
    yield from ((known[name], same) for known in gauges[0] if name in known)
    yield from ((same, known[name]) for known in gauges[1] if name in known)


def _compared(name: str, op: str, a: Array, b: Array, truth: Array, dtype: str, known: bool) -> Point:
    """`a`, `b`, `truth`: in one gauge, float64. Without a float64 run the limit of the type counts.

    The ratio is that of the root mean squares, or of the largest errors or the channels, as far as these go further.
    """
    ok = np.isfinite(a) & np.isfinite(truth)
    if not np.isfinite(b[ok]).all():
        return Point(name, op, 0.0, float("inf"), float("inf"))
    size = _rms(truth[ok]) or 1.0
    own, found = _rms((a - truth)[ok]), _rms((b - truth)[ok])
    unit = EPS[dtype] * float(np.abs(truth[ok]).max(initial=0.0))
    allowed = max(own, FLOOR[0] * unit) if known else LIMITS[dtype] * size / 32
    ratio = found / allowed if allowed else float(found > 0) * 1e300
    if known and ok.any():
        peaks = [float(np.abs((value - truth)[ok]).max()) for value in (a, b)]
        highest = peaks[1] / max(peaks[0], FLOOR[1] * unit) if unit else 0.0
        ratio = max(ratio, highest / PEAK, apart(a, b, truth, dtype) / PARTS)
    return Point(name, op, own / size, found / size, ratio)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
