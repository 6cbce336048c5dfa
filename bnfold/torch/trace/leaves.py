"""The tensors in what a module returns, also inside objects that are no containers of torch's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any, within: tuple[int, ...] = ()) -> Iterator[torch.Tensor]:
    """In order: those of lists, tuples, dictionaries; of dataclasses by field; of other objects by attribute."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif id(leaf) not in within:
            for inner in _held(leaf):
                yield from tensors_in(inner, (*within, id(leaf)))


def opened(value: Any) -> Any:
    """A list of the tensors in it where some are inside objects, which torch.export does not open; else the value."""
    return list(tensors_in(value)) if any(map(_held, tree_leaves(value))) else value


def _held(leaf: Any) -> list[Any]:
    """What an object holds; nothing for tensors, modules, classes and functions."""
    if isinstance(leaf, torch.Tensor | nn.Module | type) or callable(leaf):
        return []
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, list | tuple):
        return list(leaf)
    if is_dataclass(leaf):
        return [getattr(leaf, field.name) for field in fields(leaf)]
    return list(vars(leaf).values()) if hasattr(leaf, "__dict__") else []
