"""Mean and variance per channel of values that come in parts: exact in any order, to rounding.

Parts are merged by the formula of Chan, Golub and LeVeque (1979), in float64:

    n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M2 = M2_a + M2_b + d^2 n_a n_b / n
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    import torch

TINY = 1e-12
"""A variance below which a channel is constant."""
FEW = 100
"""Values of a channel below which its statistics are said to be uncertain."""


@dataclass
class Moments:
    """The number of values of each channel, their mean (C,), and the sum of squared differences to it (C,), float64.

    Of tensors the vectors are tensors, on the CPU, of arrays they are arrays; the two are not mixed.
    """

    count: int
    mean: Any
    m2: Any

    @classmethod
    def of_array(cls, x: Any) -> Moments:
        """Of an array (N, C, *space). DataError where it holds NaN or infinity."""
        rows = np.moveaxis(np.asarray(x), 1, 0).reshape(x.shape[1], -1).astype(np.float64)  # (C, N * space)
        mean = rows.mean(1)
        m2 = ((rows - mean[:, None]) ** 2).sum(1)
        if not np.isfinite(mean + m2).all():
            raise DataError(f"channel {int(np.flatnonzero(~np.isfinite(mean + m2))[0])} holds NaN or infinity")
        return cls(rows.shape[1], mean, m2)

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """No values of a tensor."""
        import torch

        return cls(0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))

    @classmethod
    def of(cls, x: torch.Tensor) -> Moments:
        """Of a tensor (N, C, *space). DataError where it holds NaN or infinity."""
        import torch

        rows = x.detach().double().transpose(0, 1).reshape(x.shape[1], -1)  # (N, C, *space) -> (C, N * space)
        mean = rows.mean(1)
        m2 = (rows - mean[:, None]).square().sum(1)
        if not bool(torch.isfinite(mean + m2).all()):
            bad = int(torch.nonzero(~torch.isfinite(mean + m2))[0])
            raise DataError(f"channel {bad} holds NaN or infinity")
        return cls(rows.shape[1], mean.cpu(), m2.cpu())

    def add(self, other: Moments) -> None:
        """Take up the values of another."""
        if not other.count:
            return
        total = self.count + other.count
        step = other.mean - self.mean
        self.mean = self.mean + step * (other.count / total)
        self.m2 = self.m2 + other.m2 + step * step * (self.count * other.count / total)
        self.count = total

    def variance(self, unbiased: bool = True) -> Any:
        """`M2 / (n - 1)`, which is `n / (n - 1)` times the variance of the values, or `M2 / n`.

        DataError where there are too few values.
        """
        if self.count < (2 if unbiased else 1):
            raise DataError(f"{self.count} value for each channel: a variance needs two at least")
        return self.m2 / (self.count - 1 if unbiased else self.count)


def check_fits(name: str, values: Any, dtype: str) -> None:
    """DataError where numbers (C,) are finite, and not in the type in which a network holds them."""
    wide = np.asarray(values, np.float64)
    limit = {"float16": 65504.0, "float32": 3.4e38, "bfloat16": 3.4e38}.get(dtype, np.inf)
    if (np.abs(wide) > limit).any():
        raise DataError(
            f"{name}: a number of {np.abs(wide).max():.3g} on these data is beyond the range of {dtype}; use the "
            "network in float32, and convert it after it is folded"
        )


def over_ranks(moments: Moments, device: torch.device) -> Moments:
    """The moments of the values of all ranks of torch.distributed; the same where it does not run.

    Two sums over the ranks: of `n` and `n mean`, then of `M2 + n (mean - mean of all)^2`.
    """
    if not parallel():
        return moments
    import torch
    from torch import distributed

    count = torch.tensor([float(moments.count)], dtype=torch.float64)
    first = torch.cat([count, moments.mean * moments.count]).to(device)
    distributed.all_reduce(first)
    total = float(first[0])
    mean = (first[1:] / max(total, 1.0)).cpu()
    second = (moments.m2 + (moments.mean - mean).square() * moments.count).to(device)
    distributed.all_reduce(second)
    return Moments(round(total), mean, second.cpu())


def parallel() -> bool:
    """Whether several ranks of torch.distributed work together."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
