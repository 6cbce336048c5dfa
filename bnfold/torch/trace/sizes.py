"""Example inputs of other sizes, to see whether a fold holds where the code computes with the sizes of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

Given = tuple[tuple[Any, ...], dict[str, Any]]


def resized(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Given]:
    """The arguments with one sample, row and column more, or with some of these; the last are repeated."""
    given = (tuple(args), dict(kwargs))
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
    batch = max((tensor.shape[0] for tensor in tensors if tensor.dim() > 1), default=0)
    for samples, space in ((True, True), (True, False), (False, True)):

        def one(tensor: torch.Tensor, samples: bool = samples, space: bool = space) -> torch.Tensor:
            axes = [0] if samples and tensor.dim() > 0 and tensor.shape[0] == batch else []
            axes += range(max(2, tensor.dim() - 2), tensor.dim()) if space and tensor.is_floating_point() else []
            return _longer(tensor, axes)

        yield tree_map_only(torch.Tensor, one, given)


def _longer(tensor: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """One more along some axes, the last once again; nothing where there is none."""
    for axis in axes:
        if tensor.shape[axis]:
            tensor = torch.cat([tensor, tensor.narrow(axis, tensor.shape[axis] - 1, 1)], axis)
    return tensor


def shapes(given: Given) -> str:
    """The sizes of tensors in words: `3x3x33x33`."""
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    return ", ".join("x".join(map(str, tensor.shape)) or "a number" for tensor in tensors)
