"""Where two models part: the first tensor, in the reference's order, at which the candidate is worse than rounding.

Tensors are matched by name. A folded model holds `p*v + q` where the original holds `v`; the gauges `(p, q)` come from
the plan, and since nothing tells with which options a candidate was folded, each set that it may have is tried: the one
that fits best counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from .check import plain
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


@dataclass(frozen=True)
class Point:
    """One tensor of the reference: root mean squares of both models' errors, over that of the values."""

    tensor: str
    op: str
    own: float
    found: float
    ratio: float


@dataclass(frozen=True)
class Where:
    """Where two models part.

    `tensor`, `op`, `by`: the first tensor at which they do, and what computes it in the reference and in the candidate;
    "" where all with a name in both agree.
    `agrees`: the last one before it. `kind`: the inputs. `profile`: errors along the network, in the reference's order.
    """

    tensor: str
    op: str
    agrees: str
    kind: str
    profile: tuple[Point, ...]
    by: str = ""

    def __str__(self) -> str:
        if not self.profile:
            return "no inner tensor has the same name and shape in both models"
        if not self.tensor:
            return f"all {len(self.profile)} tensors with a name in both models agree; they part behind {self.agrees}"
        before = f"; {self.agrees} still agrees" if self.agrees else "; it is the first tensor with a name in both"
        op = self.op if self.by in ("", self.op) else f"{self.op}; in the candidate {self.by}"
        return f"they part first at {self.tensor} ({op}) on {self.kind} inputs{before}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return plain({"text": str(self), **asdict(self)})


class Probe(Protocol):
    """A model whose inner tensors can be looked at."""

    def tensors(self) -> dict[str, str]:
        """What computes each inner tensor, in the order in which they are computed."""

    def values(self, feed: Feed, names: Sequence[str]) -> Values:
        """Some of them."""

    def exact(self, feed: Feed, names: Sequence[str]) -> Values:
        """In float64; none where nothing here computes that."""

    def gauges(self) -> Iterator[Mapping[str, Gauge]]:
        """How folded models of this one may hold its tensors; `(p, q)` broadcast to them."""


def locate(
    reference: Probe, candidate: Probe, feed: Feed, kind: str, multiple: float,
    progress: Callable[[str], None] = lambda stage: None,
) -> Where:  # fmt: skip
    """The first tensor at which two models part on some inputs."""
    ops, theirs = reference.tensors(), candidate.tensors()
    names = [name for name in ops if name in theirs]
    gauges = [{}, *reference.gauges()]

    def measured(chosen: Sequence[str]) -> list[Point]:
        found = []
        for start in range(0, len(chosen), AT_ONCE):
            progress(f"looking for the tensor at which they part: {start} of {len(chosen)}")
            some = chosen[start : start + AT_ONCE]
            sets = reference.values(feed, some), candidate.values(feed, some), reference.exact(feed, some)
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


def _point(name: str, op: str, values: Sequence[Array | None], gauges: Sequence[Mapping[str, Gauge]]) -> Point | None:
    """How one tensor compares, under the gauge that fits best; None where it cannot be compared."""
    a, b, exact = values
    if a is None or b is None or a.shape != b.shape or a.size == 0 or a.dtype != b.dtype or a.dtype.name not in LIMITS:
        return None
    points = []
    for p, q in _distinct(name, gauges):
        wide = p * a.astype(np.float64) + q
        told = exact is not None and exact.shape == a.shape and bool((np.isfinite(exact) | ~np.isfinite(a)).all())
        truth = p * exact + q if told else wide
        points.append(_compared(name, op, wide, b.astype(np.float64), truth, a.dtype.name, truth is not wide))
    return min(points, key=lambda point: point.found)


def _distinct(name: str, gauges: Sequence[Mapping[str, Gauge]]) -> Iterator[tuple[Any, Any]]:
    yield 1.0, 0.0
    for known in gauges:
        if name in known:
            yield known[name]


def _compared(name: str, op: str, a: Array, b: Array, truth: Array, dtype: str, known: bool) -> Point:
    """`a`, `b`, `truth`: in the candidate's gauge, float64. Without a float64 run the limit of the type counts.

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
