"""What the old network answers and what the new one is given, at one LRN, on the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..errors import DataError
from ..frontends.torch.capture import one_line
from .batches import Feed
from .moments import Moments
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


class _Stop(Exception):
    """The rest of a forward is not needed."""


@dataclass
class _Watch:
    """The tensors that pass a module, in one forward; ends it after `calls` of them."""

    calls: int
    seen: list[torch.Tensor] = field(default_factory=list)

    def see(self, tensor: torch.Tensor) -> None:
        self.seen.append(tensor.detach().clone())
        if len(self.seen) == self.calls:
            raise _Stop


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


def watched(
    root: nn.Module, inner: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], calls: int, after: bool
) -> list[torch.Tensor]:
    """What goes into, or comes out of, a module in one forward of its network, which ends there."""
    watch = _Watch(calls)
    if after:
        handle = inner.register_forward_hook(lambda module, given, result: watch.see(result))
    else:
        handle = inner.register_forward_pre_hook(lambda module, given: watch.see(given[0]))
    try:
        run(root, args, kwargs)
    except _Stop:
        pass
    finally:
        handle.remove()
    return watch.seen


def run(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A forward without gradients. DataError where the network does not take the samples."""
    try:
        with torch.no_grad():
            return root(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = [tuple(t.shape) for t in tree_leaves((args, dict(kwargs))) if isinstance(t, torch.Tensor)]
        said = ", ".join("x".join(map(str, shape)) for shape in shapes)
        raise DataError(f"{type(root).__name__} does not take a batch of shape {said}: {one_line(error)}") from error


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
