"""Errors of the parts of an output: channels whose magnitudes differ, as boxes and scores in one tensor do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from .inputs import Array

Vector = npt.NDArray[np.float64]
LEAST = 16
"""Elements that a part must have: the own error of fewer says little."""
VARIED = 0.5
"""How much of its magnitude a part must vary by: where all of it is one number, that may be small by cancelling."""


def worst_part(a: Array, b: Array, exact: Array, unit: float, block: int, noise: Array | None = None) -> float:
    """The largest error of `b` over that of `a` among the parts of an output, both against float64; 0 without parts.

    A part is what has one index along the axis of channels, or along the last. An own error counts as what the middle
    part has for its magnitude at least, and as `unit` (a share of the magnitude) at least. `block`: elements that are
    compared at a time. `noise`: own errors of each element that count too, as root mean squares of a part.
    """
    values = [a, b, exact, *([] if noise is None else [noise])]
    ratios = [_along(axis, unit, block, values) for axis in sorted({1, a.ndim - 1}) if 0 < axis < a.ndim]
    return max(ratios, default=0.0)


def _along(axis: int, unit: float, block: int, values: Sequence[Array]) -> float:
    shape = values[0].shape
    count = shape[axis]
    if count < 2 or prod(shape) // count < LEAST:
        return 0.0
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    known, own, new, noise = np.zeros((4, count))
    # (before, count, after): one part is [:, i]
    flat = [value.reshape(prod(shape[:axis]), count, -1) for value in values]
    for place, part in _blocks(flat, block):
        a, b, exact, *more = part
        fine = np.isfinite(a) & np.isfinite(b) & np.isfinite(exact)
        least, most = a, a
        if not fine.all():
            least, most = np.where(fine, a, np.inf), np.where(fine, a, -np.inf)
            a, b, exact = (np.where(fine, value, 0.0) for value in (a, b, exact))
        low[place] = np.minimum(low[place], least.min((0, 2)))
        high[place] = np.maximum(high[place], most.max((0, 2)))
        known[place] += fine.sum((0, 2))
        for total, error in ((own, a - exact), (new, b - exact), *((noise, value) for value in more)):
            total[place] += np.einsum("ijk,ijk->j", error, error)
    return _worst(low, high, unit, *(np.sqrt(total / np.maximum(1, known)) for total in (own, new, noise)))


def _blocks(values: Sequence[Array], block: int) -> Iterator[tuple[slice, list[Array]]]:
    """Some elements at a time, in float64, and which parts they belong to."""
    rows, count, after = values[0].shape
    parts = min(count, max(1, block // max(1, after)))
    step = max(1, block // max(1, parts * after))
    for row in range(0, rows, step):
        for start in range(0, count, parts):
            place = slice(start, start + parts)
            yield place, [value[row : row + step, place].astype(np.float64) for value in values]


def _worst(low: Vector, high: Vector, unit: float, own: Vector, new: Vector, noise: Vector) -> float:
    """The largest ratio of those that vary, from the bounds of each part and the root mean squares of its errors."""
    scale = np.maximum(np.abs(low), np.abs(high))
    fit = np.isfinite(scale) & (scale > 0) & (high - low >= VARIED * scale)
    if not fit.any():
        return 0.0
    usual = max(unit, float(np.median(own[fit] / scale[fit])))
    return float((new[fit] / np.maximum.reduce([own, usual * scale, noise])[fit]).max())
