"""Forwards of a network without gradients: as a whole, and up to a module that is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..errors import DataError
from ..torch.trace.capture import one_line


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
