"""What a tensor's channels look like on standard normal inputs, estimated as the network is built.

Every BN of a trained network knows its input's mean and variance. Random weights with random statistics would not: the
signal then drowns in constants within some forty layers, and an output that ignores its input tests nothing. So each
channel is followed as an independent normal variable, weights are drawn to give chosen moments, and each BN takes its
statistics from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SHARED = 0.2  # the part of the variance that channels and neighbours have in common; random rows hardly see it


@dataclass(frozen=True)
class Moments:
    """Mean and variance per channel, each of shape (C,)."""

    mean: Array
    var: Array

    @classmethod
    def standard(cls, channels: int) -> Moments:
        """Return those of standard normal channels."""
        return cls(np.zeros(channels), np.ones(channels))

    @property
    def std(self) -> Array:
        """The deviation per channel."""
        return np.asarray(np.sqrt(self.var))

    def affine(self, scale: npt.ArrayLike, shift: npt.ArrayLike) -> Moments:
        """Return those of scale * x + shift."""
        factor = np.asarray(scale, dtype=np.float64)
        return Moments(factor * self.mean + np.asarray(shift), factor**2 * self.var)

    def pointwise(self, function: Callable[[Array], Array]) -> Moments:
        """Return those of function(x), by Gauss-Hermite quadrature."""
        values = function(self.mean[:, None] + self.std[:, None] * NODES)  # (C, nodes)
        mean = values @ WEIGHTS
        return Moments(mean, np.maximum(values**2 @ WEIGHTS - mean**2, 0.0))

    def plus(self, other: Moments) -> Moments:
        """Return those of a sum."""
        return Moments(self.mean + other.mean, self.var + other.var)

    def times(self, other: Moments) -> Moments:
        """Return those of a product."""
        square = (self.var + self.mean**2) * (other.var + other.mean**2)
        mean = self.mean * other.mean
        return Moments(mean, square - mean**2)

    def index(self, channels: npt.NDArray[np.intp] | slice) -> Moments:
        """Return those of some channels, in the order given."""
        return Moments(self.mean[channels], self.var[channels])

    def averaged(self, keep: float) -> Moments:
        """Return those of averages, which keep the given part of the variance."""
        return Moments(self.mean, keep * self.var)

    def maximum(self) -> Moments:
        """Return those of the maximum over a small window of correlated values, roughly."""
        return Moments(self.mean + self.std, 0.6 * self.var)


def concatenate(parts: Sequence[Moments]) -> Moments:
    """Return those of tensors joined along channels."""
    return Moments(np.concatenate([p.mean for p in parts]), np.concatenate([p.var for p in parts]))


def aim(weight: Array, source: Moments, target: Moments) -> tuple[Array, Moments]:
    """Change weights of shape (out, in / groups, taps) so that outputs have the target moments; return what they get.

    1. Take out of each row what answers to the input's mean. 2. Scale the row to the variance. 3. Add as much of the
    input's mean as gives the output's, unless the input is centred and the row would have to be huge.
    """
    out, per_group, taps = weight.shape
    groups = len(source.mean) // per_group
    mean = np.repeat(source.mean.reshape(groups, per_group, 1), out // groups, axis=0)  # (out, in / groups, 1)
    # Channels behind a zero gamma do not vary; rows that meet only those must not be blown up.
    var = np.repeat(np.maximum(source.var, 0.05).reshape(groups, per_group, 1), out // groups, axis=0)
    square = taps * np.sum(mean**2, axis=(1, 2), keepdims=True) + 1e-12
    weight = weight - np.sum(weight * mean, axis=(1, 2), keepdims=True) / square * mean
    reached = np.sum(weight**2 * var, axis=(1, 2))
    weight = weight * np.sqrt(target.var / np.maximum(reached, 1e-2))[:, None, None]
    wanted = np.where(square[:, 0, 0] > 0.1 * taps, target.mean, 0.0)
    level = wanted[:, None, None] / square * mean
    shared = SHARED * (taps * np.sum(level * np.sqrt(var), axis=(1, 2))) ** 2
    weight = weight + level
    return weight, Moments(np.sum(weight * mean, axis=(1, 2)), np.sum(weight**2 * var, axis=(1, 2)) + shared)
