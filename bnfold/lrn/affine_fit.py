"""Gamma and beta of a batch norm that answers as an LRN does, as well as one affine map for each channel can.

In place: least squares of `gamma * xhat + beta` to the LRN's output. Before a (leaky) ReLU: least squares of
`relu(gamma * xhat + beta)`, by Gauss-Newton steps: each solves the linear problem of the samples that are active now,
which is exact as long as the same ones stay active; the best answer is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.moments import FEW, TINY

Array = npt.NDArray[np.float64]
STEPS = 25
CLOSE = 1e-9
"""A smaller gain, relative to the squared error, is none."""
FLAT = 1e-3
"""Gamma of a norm that answers nearly the same to everything, over the deviation of the target."""
RISING = 1.0
"""The slope of no activation at all, which asks for a positive gamma: a maximum goes through no other."""


@dataclass(frozen=True)
class Fit:
    """`gamma`, `beta` (C,) in float64; `r2`: the share of the target's variance that is met, over all channels.

    `worst`: the smallest share of a channel; `constant`: channels whose input does not vary.
    """

    gamma: Array
    beta: Array
    r2: float
    worst: float
    constant: int

    def warnings(self, count: int) -> list[str]:
        """What makes the fit worth less than it looks. `count`: values of each channel in the statistics."""
        said = []
        if self.constant:
            said.append(f"{self.constant} channels are constant on the data, their variance is 0")
        if count < FEW:
            said.append(f"{count} values for each channel are few for a mean and a variance; more samples would help")
        return said


def fit(x: Array, target: Array, small: tuple[Array, Array], slope: float | None) -> Fit:
    """Fit `act(gamma * x + beta)` to `target`, both (n, C) in float64, x normalised.

    `small`: the gamma and beta that the LRN has for weak signals, which serve where data say nothing. `slope`: of the
    activation below zero (0 for ReLU), None where there is none.
    """
    best = _linear(x, target, np.ones_like(target), small) if slope is None else _rectified(x, target, small, slope)
    return quality(x, target, *best, slope)


def quality(x: Array, target: Array, gamma: Array, beta: Array, slope: float | None) -> Fit:
    """The same for a gamma and beta that are given."""
    residual = _error(x, target, (gamma, beta), slope)
    return Fit(gamma, beta, *_explained(residual, target), int((x.var(0) <= TINY).sum()))


def _answer(x: Array, gamma: Array, beta: Array, slope: float | None) -> Array:
    line: Array = x * gamma + beta
    return line if slope is None else np.where(line > 0, line, line * slope)


def _linear(x: Array, target: Array, weight: Array, small: tuple[Array, Array]) -> tuple[Array, Array]:
    """Least squares of `weight * (gamma x + beta)` to `target`, for each channel; weights of 0 leave samples out."""
    square = weight**2
    total = np.maximum(square.sum(0), TINY)
    pull = weight * target
    mean_x, mean_y = (square * x).sum(0) / total, pull.sum(0) / total
    centred = x - mean_x
    spread = (square * centred**2).sum(0)
    some = (weight != 0).any(0)
    known = (spread > TINY * total) & some
    gamma = np.where(known, (centred * pull).sum(0) / np.maximum(spread, TINY), small[0])
    return gamma, np.where(some, mean_y - gamma * mean_x, small[1])


def _rectified(x: Array, target: Array, small: tuple[Array, Array], slope: float) -> tuple[Array, Array]:
    """The best of the Gauss-Newton steps from two beginnings; gamma stays positive.

    Where an LRN answers strong signals with weaker ones, nearly the same answer for all is the best that is left.
    """
    best, error = small, _error(x, target, small, slope)
    flat = np.maximum(FLAT * target.std(0), TINY), target.mean(0)
    better = _error(x, target, flat, slope) < error
    best = np.where(better, flat[0], best[0]), np.where(better, flat[1], best[1])
    error = _error(x, target, best, slope)
    positive = (target > 0).astype(x.dtype)
    for start in (_linear(x, target * positive, positive, small), small):
        at = _kept_positive(start, small)
        for step in range(STEPS):
            loss = _error(x, target, at, slope)
            better = loss < error
            settled = not (loss < error * (1 - CLOSE)).any()
            best = np.where(better, at[0], best[0]), np.where(better, at[1], best[1])
            error = np.minimum(loss, error)
            if settled and step > 2:
                break
            weight = np.where(x * at[0] + at[1] > 0, 1.0, slope)
            new = _kept_positive(_linear(x, target, weight, small), small)
            if all(np.array_equal(a, b) for a, b in zip(new, at, strict=True)):
                break
            at = new
    return best


def _kept_positive(at: tuple[Array, Array], small: tuple[Array, Array]) -> tuple[Array, Array]:
    """An LRN never turns a sign, so a channel whose gamma would is taken as for weak signals."""
    good = at[0] > 0
    return np.where(good, at[0], small[0]), np.where(good, at[1], small[1])


def _error(x: Array, target: Array, at: tuple[Array, Array], slope: float | None) -> Array:
    error: Any = ((_answer(x, *at, slope) - target) ** 2).sum(0)
    return np.asarray(error)


def _explained(residual: Array, target: Array) -> tuple[float, float]:
    """R^2 over all channels, and the smallest of those channels whose target varies."""
    spread = ((target - target.mean(0)) ** 2).sum(0)
    varies = spread > TINY * max(float(spread.max()), TINY)
    if not varies.any():
        return 1.0, 1.0
    each = 1 - residual[varies] / spread[varies]
    return 1 - float(residual.sum() / spread.sum()), float(each.min())
