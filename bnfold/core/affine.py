"""The per-channel affine map that a batch norm is at inference, in float64.

    inv   = gamma / sqrt(var + eps)
    shift = beta - mean * inv
    y     = inv * x + shift

Source: Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2, line 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """`y = inv * x + shift`, with `inv` and `shift` of shape (channels,), float64.

    >>> bn = ChannelAffine.from_batch_norm(mean=[1.0], var=[4.0], gamma=[2.0], beta=[0.5], eps=0.0)
    >>> float(bn.inv[0]), float(bn.shift[0])
    (1.0, -0.5)
    """

    inv: Vector
    shift: Vector

    @classmethod
    def from_batch_norm(
        cls,
        mean: npt.ArrayLike,
        var: npt.ArrayLike,
        gamma: npt.ArrayLike | None = None,
        beta: npt.ArrayLike | None = None,
        eps: float = 1e-5,
    ) -> ChannelAffine:
        """The map of a batch norm; gamma is 1 and beta 0 where absent. All of shape (channels,).

        Where `var + eps` is not positive the result is not finite; `finite` tells.
        """
        mean64, var64 = np.asarray(mean, np.float64), np.asarray(var, np.float64)
        gamma64 = np.ones_like(mean64) if gamma is None else np.asarray(gamma, np.float64)
        beta64 = np.zeros_like(mean64) if beta is None else np.asarray(beta, np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inv = gamma64 / np.sqrt(var64 + eps)
            return cls(inv, beta64 - mean64 * inv)

    @classmethod
    def identity(cls, channels: int) -> ChannelAffine:
        """The map that changes nothing."""
        return cls(np.ones(channels), np.zeros(channels))

    @property
    def finite(self) -> bool:
        """Whether every factor and every offset is a finite number."""
        return bool(np.isfinite(self.inv).all() and np.isfinite(self.shift).all())

    def then(self, after: ChannelAffine) -> ChannelAffine:
        """The map that applies `self` and then `after`."""
        return ChannelAffine(after.inv * self.inv, after.inv * self.shift + after.shift)

    def inverse(self) -> ChannelAffine:
        """The map that undoes this one; not finite where `inv` is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return ChannelAffine(1.0 / self.inv, -self.shift / self.inv)

    def __call__(self, x: npt.ArrayLike, axis: int = 1) -> Vector:
        """Apply to `x`, whose `axis` holds the channels; float64."""
        array = np.asarray(x, np.float64)
        shape = [1] * array.ndim
        shape[axis] = -1
        result: Vector = array * self.inv.reshape(shape) + self.shift.reshape(shape)
        return result
