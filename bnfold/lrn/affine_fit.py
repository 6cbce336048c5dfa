"""Gamma and beta of a batch norm that answers as an LRN does, as well as one affine map for each channel can.

In place: least squares of `gamma * xhat + beta` to the LRN's output. Before a (leaky) ReLU: least squares of
`relu(gamma * xhat + beta)`, by Gauss-Newton steps: each solves the linear problem of the samples that are active now,
which is exact as long as the same ones stay active; the best answer is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

STEPS = 25
CLOSE = 1e-9
"""A smaller gain, relative to the squared error, is none."""
TINY = 1e-12


@dataclass(frozen=True)
class Fit:
    """`gamma`, `beta` (C,) in float64; `r2`: the share of the target's variance that is met, over all channels.

    `worst`: the smallest share of a channel; `constant`: channels whose input does not vary.
    """

    gamma: torch.Tensor
    beta: torch.Tensor
    r2: float
    worst: float
    constant: int


def fit(x: torch.Tensor, target: torch.Tensor, small: tuple[torch.Tensor, torch.Tensor], slope: float | None) -> Fit:
    """Fit `act(gamma * x + beta)` to `target`, both (n, C) in float64, x normalised.

    `small`: the gamma and beta that the LRN has for weak signals, which serve where data say nothing. `slope`: of the
    activation below zero (0 for ReLU), None where there is none.
    """
    varies = x.var(0, unbiased=False) > TINY
    best = _linear(x, target, torch.ones_like(target), small)
    if slope is not None:
        best = _rectified(x, target, small, slope)
    gamma, beta = best
    residual = (_answer(x, gamma, beta, slope) - target).square().sum(0)
    return Fit(gamma, beta, *_explained(residual, target), int((~varies).sum()))


def quality(x: torch.Tensor, target: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, slope: float | None) -> Fit:
    """The same for a gamma and beta that are given."""
    residual = (_answer(x, gamma, beta, slope) - target).square().sum(0)
    constant = int((x.var(0, unbiased=False) <= TINY).sum())
    return Fit(gamma, beta, *_explained(residual, target), constant)


def _answer(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, slope: float | None) -> torch.Tensor:
    line = x * gamma + beta
    return line if slope is None else torch.where(line > 0, line, line * slope)


def _linear(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, small: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of `weight * (gamma x + beta)` to `target`, for each channel; weights of 0 leave samples out."""
    square = weight.square()
    total = square.sum(0).clamp_min(TINY)
    pull = weight * target
    mean_x, mean_y = (square * x).sum(0) / total, pull.sum(0) / total
    centred = x - mean_x
    spread = (square * centred.square()).sum(0)
    known = (spread > TINY * total) & (weight != 0).any(0)
    gamma = torch.where(known, (centred * pull).sum(0) / spread.clamp_min(TINY), small[0])
    beta = torch.where((weight != 0).any(0), mean_y - gamma * mean_x, small[1])
    return gamma, beta


def _rectified(
    x: torch.Tensor, target: torch.Tensor, small: tuple[torch.Tensor, torch.Tensor], slope: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of the Gauss-Newton steps from two beginnings; gamma stays positive."""
    best, error = small, _error(x, target, small, slope)
    positive = (target > 0).to(x.dtype)
    for start in (_linear(x, target * positive, positive, small), small):
        at = _kept_positive(start, small)
        for step in range(STEPS):
            loss = _error(x, target, at, slope)
            better = loss < error
            settled = not bool((loss < error * (1 - CLOSE)).any())
            best = (torch.where(better, at[0], best[0]), torch.where(better, at[1], best[1]))
            error = torch.minimum(loss, error)
            if settled and step > 2:
                break
            active = x * at[0] + at[1] > 0
            weight = torch.where(active, torch.ones_like(x), torch.full_like(x, slope))
            new = _kept_positive(_linear(x, target, weight, small), small)
            if torch.equal(new[0], at[0]) and torch.equal(new[1], at[1]):
                break
            at = new
    return best


def _kept_positive(
    at: tuple[torch.Tensor, torch.Tensor], small: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """An LRN never turns a sign, so a channel whose gamma would is taken as for weak signals."""
    good = at[0] > 0
    return torch.where(good, at[0], small[0]), torch.where(good, at[1], small[1])


def _error(x: torch.Tensor, target: torch.Tensor, at: tuple[torch.Tensor, torch.Tensor], slope: float) -> torch.Tensor:
    return (_answer(x, *at, slope) - target).square().sum(0)


def _explained(residual: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """R^2 over all channels, and the smallest of those channels whose target varies."""
    spread = (target - target.mean(0)).square().sum(0)
    varies = spread > TINY * max(float(spread.max()), TINY)
    if not bool(varies.any()):
        return 1.0, 1.0
    each = 1 - residual[varies] / spread[varies]
    return 1 - float(residual.sum() / spread.sum()), float(each.min())
