"""What an LRN computes, and which function is one: identified from what it answers, whatever code is behind it.

    y = x / (k + alpha / size * sum of x^2 over a window)^beta

The window goes over neighbouring channels (Krizhevsky et al. 2012, section 3.3; `alpha` divided by `size` as in Caffe,
ONNX and PyTorch), or over a square of neighbours within the channel (WITHIN_CHANNEL of Caffe).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]
Shape = tuple[int, ...]
GRID: list[float] = [10.0 ** (i / 4 - 2) for i in range(33)]
"""Magnitudes from 0.01 to 1e6 at which the answer is measured."""
CHANGED = 1e-6
EVERYWHERE_K = 1e-3
"""A sum over all channels with a smaller `k` is a norm of the whole vector (RMS, L2, pixel norm), no LRN."""


@dataclass(frozen=True)
class Response:
    """The parameters of an LRN. `before`, `after`: how far the window reaches; `within`: over space, not channels."""

    size: int
    alpha: float
    beta: float
    k: float
    before: int
    after: int
    within: bool = False

    @classmethod
    def of(cls, size: int, alpha: float, beta: float, k: float) -> Response:
        """The LRN of torch.nn.functional.local_response_norm."""
        return cls(int(size), float(alpha), float(beta), float(k), int(size) // 2, (int(size) - 1) // 2)

    @classmethod
    def of_onnx(cls, size: int, alpha: float, beta: float, k: float) -> Response:
        """That of the operator LRN of ONNX: windows of even size reach one channel further up, not down."""
        return cls(size, alpha, beta, k, (size - 1) // 2, size // 2)

    @property
    def weak(self) -> float:
        """What it multiplies weak signals by; 1 where that is infinite."""
        return float(self.k**-self.beta) if self.k > 0 else 1.0

    def __call__(self, x: Array) -> Array:
        """(N, C, *space) -> the same shape, in float64."""
        wide = x.astype(np.float64)
        axes = tuple(range(2, x.ndim)) if self.within else (1,)
        padded = np.pad(wide**2, [(self.before, self.after) if i in axes else (0, 0) for i in range(x.ndim)])
        total = np.zeros_like(wide)
        for starts in product(range(self.size), repeat=len(axes)):
            window = [slice(None)] * x.ndim
            for axis, start in zip(axes, starts, strict=True):
                window[axis] = slice(start, start + x.shape[axis])
            total += padded[tuple(window)]
        answer: Array = wide / (self.k + self.alpha / self.size ** len(axes) * total) ** self.beta
        return answer


def identify(function: Function, shape: Sequence[int], dtype: npt.DTypeLike = np.float64) -> Response | None:
    """The LRN that a function of arrays of this shape is; None where it is none, or fails.

    The window comes from impulses, `beta`, `k` and `alpha` from a channel of growing magnitude; the whole is then
    confirmed on random inputs of three magnitudes.
    """
    if len(shape) < 2 or not math.prod(shape):
        return None
    kind = np.dtype(dtype)
    try:
        with np.errstate(all="ignore"):
            found = _measured(function, tuple(shape), kind)
            return found if found is not None and _confirmed(function, found, tuple(shape), kind) else None
    except Exception:  # code of others, on values that it was not written for
        return None


def _measured(function: Function, shape: Shape, dtype: np.dtype[Any]) -> Response | None:
    middle = tuple(size // 2 for size in shape[2:])
    channel = shape[1] // 2
    ratios = _ratios(function, shape, dtype, channel, middle)
    curve = _curve(ratios)
    if curve is None:
        return None
    k, slope, beta, strong = curve
    reach = [_reached(function, shape, dtype, c, middle, strong) for c in (0, shape[1] - 1, channel)]
    if any(r is None for r in reach):
        return None
    first, last, inner = (r for r in reach if r is not None)
    if first[1] or last[1] or inner[1]:
        return _within(inner, k, slope, beta, len(shape) - 2)
    before, after = max(first[0]), shape[1] - 1 - min(last[0])
    if before >= shape[1] - 1 and after >= shape[1] - 1 and shape[1] > 1 and k < EVERYWHERE_K:
        return None
    size = before + after + 1
    return Response(size, _rounded(slope * size), beta, k, before, after)


def _ratios(function: Function, shape: Shape, dtype: np.dtype[Any], channel: int, middle: Shape) -> list[float]:
    """x / y at one position that alone is not zero, for each magnitude of the grid."""
    place = (0, channel, *middle)
    found = []
    for magnitude in GRID:
        x = np.zeros(shape, dtype)
        x[place] = magnitude
        y = function(x)
        if y.shape != x.shape or not np.isfinite(y).all():
            return []
        value = float(y[place])
        if value <= 0 or np.count_nonzero(y) != 1:
            return []
        found.append(magnitude / value)
    return found


def _curve(ratios: list[float]) -> tuple[float, float, float, float] | None:
    """`(k, slope, beta, strong)` so that ratio = (k + slope * magnitude^2)^beta; None where there is no such curve.

    For the right beta, ratio^(1/beta) is a line over magnitude^2: beta is where three points of it lie on one.
    `strong`: a magnitude that moves the ratio far.
    """
    if not ratios or ratios[-1] < ratios[0] * 1.01 or any(not math.isfinite(r) or r <= 0 for r in ratios):
        return None
    top = next((i for i, r in enumerate(ratios) if r > 30 * ratios[0]), len(ratios) - 1)
    mid = min(range(top), key=lambda i: abs(math.log(ratios[i] ** 2 / (ratios[0] * ratios[top]))))
    points = [(GRID[i] * GRID[i], math.log(ratios[i])) for i in (0, mid or 1, top)]

    def bend(beta: float) -> float:
        (s1, l1), (s2, l2), (s3, l3) = points
        u1, u2 = math.exp((l1 - l3) / beta), math.exp((l2 - l3) / beta)
        return (u2 - u1) / (s2 - s1) - (1 - u1) / (s3 - s1)

    low, high = 0.02, 20.0
    if top < 2 or bend(low) * bend(high) > 0:
        return None
    for _ in range(200):
        mean = (low + high) / 2
        low, high = (mean, high) if bend(low) * bend(mean) > 0 else (low, mean)
    beta = _rounded((low + high) / 2)
    (s1, l1), _, (s3, l3) = points
    slope = (math.exp(l3 / beta) - math.exp(l1 / beta)) / (s3 - s1)
    k = max(math.exp(l1 / beta) - slope * s1, 0.0)
    return _rounded(k), slope, beta, GRID[top]


def _rounded(value: float) -> float:
    """To seven significant digits: parameters are decimal numbers that people chose."""
    return float(f"{value:.7g}")


def _reached(
    function: Function, shape: Shape, dtype: np.dtype[Any], channel: int, middle: Shape, strong: float
) -> tuple[set[int], set[tuple[int, ...]]] | None:
    """Which channels at its place, and which other places, an impulse has an effect on; None beyond its sample."""
    quiet = np.full(shape, strong * 1e-3, dtype)
    loud = quiet.copy()
    loud[(0, channel, *middle)] = strong
    ratio = (loud / function(loud)) / (quiet / function(quiet))
    moved = np.abs(ratio - 1) > CHANGED * (1 if dtype == np.float64 else 100)
    places = [tuple(map(int, place)) for place in np.argwhere(moved)]
    if not places or any(place[0] for place in places):
        return None
    channels = {place[1] for place in places if place[2:] == middle}
    return channels, {place[2:] for place in places if place[2:] != middle}


def _within(
    reach: tuple[set[int], set[tuple[int, ...]]], k: float, slope: float, beta: float, space: int
) -> Response | None:
    """An LRN over a square of space, from where an impulse of one channel is felt."""
    channels, places = reach
    if len(channels) != 1 or not places:
        return None
    rows = {place[-1] for place in places}
    side = max(rows) - min(rows) + 1
    if side**space != len(places) + 1:
        return None
    return Response(side, _rounded(slope * side**space), beta, k, side // 2, (side - 1) // 2, within=True)


def _confirmed(function: Function, found: Response, shape: Shape, dtype: np.dtype[Any]) -> bool:
    """Whether the function and the LRN answer alike on random inputs."""
    rng = np.random.default_rng(5)
    limit = 1e-5 if dtype == np.float64 else 2e-3
    unit = math.sqrt(max(found.k, 1e-12) / max(found.alpha, 1e-30))
    for scale in (0.3, 1.0, 10.0):
        x = (rng.standard_normal(shape) * (unit * scale)).astype(dtype)
        want, have = found(x), function(x.copy())
        if not (np.abs(want - have) <= limit * np.abs(want).max()).all():
            return False
    return True
