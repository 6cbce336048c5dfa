"""Errors of the parts of an output: channels whose magnitudes differ, as boxes and scores in one tensor do."""

from __future__ import annotations

from collections.abc import Iterator

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
    values = (a, b, exact, np.zeros_like(exact) if noise is None else noise)
    ratios = [_along(axis, unit, block, *values) for axis in sorted({1, a.ndim - 1}) if 0 < axis < a.ndim]
    return max(ratios, default=0.0)


def _along(axis: int, unit: float, block: int, *values: Array) -> float:
    count, size = values[0].shape[axis], values[0].size
    if count < 2 or size // count < LEAST:
        return 0.0
    rows = [_measured(*part) for part in _slices(axis, max(1, block * count // size), *values)]
    scale, spread, own, new, noise = (np.concatenate(column) for column in zip(*rows, strict=True))
    fit = (scale > 0) & (spread >= VARIED * scale)
    if not fit.any():
        return 0.0
    usual = max(unit, float(np.median(own[fit] / scale[fit])))
    return float((new[fit] / np.maximum.reduce([own, usual * scale, noise])[fit]).max())


def _slices(axis: int, step: int, *values: Array) -> Iterator[tuple[Array, ...]]:
    """Some parts at a time, in float64: (parts, elements)."""
    for start in range(0, values[0].shape[axis], step):
        yield tuple(_rows(np.moveaxis(value, axis, 0)[start : start + step]) for value in values)


def _rows(value: Array) -> Array:
    return value.astype(np.float64).reshape(len(value), -1)


def _measured(a: Array, b: Array, exact: Array, noise: Array) -> tuple[Vector, ...]:
    """Of each row: the largest magnitude, from least to most, the root mean squares of both errors and of the noise."""
    known = np.isfinite(a) & np.isfinite(b) & np.isfinite(exact)
    counts = np.maximum(1, known.sum(1))
    low, high = np.where(known, a, np.inf).min(1), np.where(known, a, -np.inf).max(1)
    scale = np.where(known, np.abs(a), 0).max(1)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        errors = (a - exact, b - exact, noise)
    roots = (np.sqrt((np.where(known, error, 0) ** 2).sum(1) / counts) for error in errors)
    return (scale, np.maximum(high - low, 0), *roots)
