"""A module as it was, to be put back when an edit of it does not work out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..trace.memory import named_tensors, tangled
from .apply import write


class Undo:
    """What a module held when this was made: its modules, their attributes, the memory and values of its tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.modules = [(inner, type(inner), dict(vars(inner)), _contents(inner)) for inner in _plain(module)]
        tensors = {id(tensor): tensor for tensor in named_tensors(module).values()}.values()
        self.tensors = [(tensor, tensor.data, tensor.detach().clone()) for tensor in tensors]

    def back(self) -> None:
        """Put everything back, into the same objects."""
        for inner, kind, attributes, contents in self.modules:
            inner.__class__ = kind
            vars(inner).clear()
            vars(inner).update(attributes)
            for name, content in contents.items():
                _refill(attributes[name], content)
        for tensor, memory, value in self.tensors:
            if tensor.layout is not torch.strided:
                continue  # no edit is of a sparse tensor
            if tensor.data_ptr() != memory.data_ptr() or tensor.stride() != memory.stride():
                tensor.data = memory
            if not tangled(tensor):
                write(tensor, value)


def _plain(module: nn.Module) -> list[nn.Module]:
    return [inner for inner in module.modules() if not isinstance(inner, torch.jit.ScriptModule)]


def _contents(module: nn.Module) -> dict[str, Any]:
    """Copies of the dictionaries, lists and sets among a module's attributes, one level deep."""
    return {name: copy.copy(value) for name, value in vars(module).items() if type(value).__module__ in _HOLDERS
            and isinstance(value, dict | list | set)}  # fmt: skip


_HOLDERS = frozenset({"builtins", "collections"})


def _refill(held: Any, content: Any) -> None:
    if isinstance(held, list):
        held[:] = content
    else:
        held.clear()
        held.update(content)
