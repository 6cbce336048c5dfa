"""What the old network answers and what the new one is given, at one LRN, on the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..calibration.forward import run, watched
from ..calibration.moments import Moments
from ..data.batches import Feed
from ..errors import DataError
from .placement import Place

KEPT = 1_000_000
"""Numbers that are kept of each side for a fit: values of a channel, times channels."""


@dataclass
class Gathered:
    """The moments of all that goes into a norm; and, at `n` places, chosen at random where there are too many, what
    goes into it behind the pooling (n, C), and what the LRN answered there (n, C), in float64.
    """

    moments: Moments
    inputs: torch.Tensor
    targets: torch.Tensor


def gather(
    old: nn.Module, lrn: nn.Module, new: nn.Module, norm: nn.Module, where: Place, feed: Feed, seed: int
) -> Gathered:
    """Run both networks over the data, up to an LRN. DataError where a value is NaN or infinite."""
    generator = torch.Generator().manual_seed(seed)
    moments = Moments.empty(where.site.channels)
    inputs, targets = list[torch.Tensor](), list[torch.Tensor]()
    share = 1.0
    for args, kwargs in feed.batches():
        answers = watched(old, lrn, args, kwargs, where.site.calls, after=True)
        given = watched(new, norm, args, kwargs, where.site.calls, after=False)
        for z, target in zip(given, answers, strict=True):
            moments.add(_moments(where.site.name, z))
            pooled = where.pooled(new, z)
            if not inputs:
                places = pooled.numel() / len(pooled) / where.site.channels * len(feed) * where.site.calls
                share = min(1.0, KEPT / (places * where.site.channels))
            x, y = _rows(pooled), _rows(target)
            chosen = torch.randperm(len(x), generator=generator)[: max(1, math.ceil(share * len(x)))]
            inputs.append(x[chosen] if share < 1 else x)
            targets.append(y[chosen] if share < 1 else y)
    x, y = torch.cat(inputs), torch.cat(targets)
    if not bool(torch.isfinite(y).all()):
        raise DataError(f"{where.site.name}: the LRN answers the data with NaN or infinity")
    try:
        moments.variance()
    except DataError as error:
        raise DataError(f"{where.site.name}: {error}") from error
    return Gathered(moments, x, y)


def _moments(name: str, z: torch.Tensor) -> Moments:
    try:
        return Moments.of(z)
    except DataError as error:
        raise DataError(f"{name}: of what goes into it on these data, {error}") from error


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(N, C, *space) -> (N * space, C), in float64 on the CPU."""
    return x.movedim(1, -1).reshape(-1, x.shape[1]).double().cpu()


def output_error(old: nn.Module, new: nn.Module, feed: Feed) -> float:
    """The root of the squared differences of all outputs over the data, over that of the old outputs' squares."""
    difference = total = 0.0
    for args, kwargs in feed.batches():
        first, second = (tree_leaves(run(root, args, kwargs)) for root in (old, new))
        for a, b in zip(first, second, strict=True):
            if isinstance(a, torch.Tensor) and a.is_floating_point():
                difference += float((a.double() - b.double()).square().sum())
                total += float(a.double().square().sum())
    return math.sqrt(difference / max(total, 1e-300))
