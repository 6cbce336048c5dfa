"""Which tensors of a module lie in the same memory: told by the bytes that they span, and not by their names.

Weights can be tied by one parameter under two names, by `.data` and `.detach()`, by transposed views, or by views of
one flat tensor that overlap. A copy of a module parts most of these ties; the module itself, edited in place, does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

Key = tuple[Any, ...]
EFFORT = 100_000
"""Steps that may go into telling whether strided views meet; where that is not enough, they count as tied."""


@dataclass
class Memory:
    """The groups of tensors of a module that share memory, each with a key; a tensor is known by its address.

    `frozen`: keys of memory that tensors see which are neither parameters nor buffers: nobody knows what reads it.
    """

    parents: dict[Key, Key] = field(default_factory=dict)
    held: set[Key] = field(default_factory=set)

    @classmethod
    def of(cls, module: nn.Module, original: nn.Module | None = None) -> Memory:
        """The memory of a module; with `original`, of which it is a copy, also what is tied there, by name."""
        memory, own = cls(), named_tensors(module)
        for source in (module, original):
            if source is not None:
                memory._tie(source, own)
        return memory

    def _tie(self, source: nn.Module, own: dict[str, torch.Tensor]) -> None:
        tensors = named_tensors(source)
        for first, second in _meeting([*tensors.items(), *(("", t) for t in _attributes(source, tensors.values()))]):
            places = [_address(own[name]) for name in (first, second) if name in own]
            if len(places) == 2:
                self.parents[self._root(places[0])] = self._root(places[1])
            elif places and not (first and second):
                self.held.add(places[0])

    def _root(self, place: Key) -> Key:
        while place in self.parents and self.parents[place] != place:
            place = self.parents[place]
        return place

    def key(self, tensor: torch.Tensor) -> Key:
        """The same for all tensors of a group."""
        return self._root(_address(tensor))

    @property
    def frozen(self) -> set[Key]:
        """The keys of memory that attributes of modules see too."""
        return {self._root(place) for place in self.held}


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, under all of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def tangled(tensor: torch.Tensor) -> bool:
    """Whether elements of a tensor may lie in the same place, as those of an expanded one do."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _attributes(module: nn.Module, known: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Tensors that modules hold as they hold any other value, in lists and dictionaries too."""
    seen = {id(tensor) for tensor in known}
    skipped = {"_parameters", "_buffers", "_modules"}
    open_ = [value for m in module.modules() for name, value in vars(m).items() if name not in skipped]
    while open_:
        value = open_.pop()
        if id(value) in seen or not isinstance(value, torch.Tensor | list | tuple | dict | set):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        else:
            open_ += value.values() if isinstance(value, dict) else value


def _address(tensor: torch.Tensor) -> Key:
    """Where a tensor begins; something of its own where it has no memory."""
    try:
        place = tensor.data_ptr() if tensor.numel() else 0
    except (RuntimeError, NotImplementedError, ValueError):
        place = 0
    return (place, str(tensor.device)) if place else ("", id(tensor))


def _meeting(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, str]]:
    """The names of pairs of tensors that share bytes."""
    spans = []
    for name, tensor in tensors:
        place = _address(tensor)
        if place[0]:
            reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            spans.append((place[1], place[0], place[0] + reach * tensor.element_size(), name, tensor))
    active: list[Any] = []
    for span in sorted(spans, key=lambda s: s[:3]):
        active = [other for other in active if other[0] == span[0] and other[2] > span[1]]
        yield from ((other[3], span[3]) for other in active if _meet(other, span))
        active.append(span)


def _meet(a: Any, b: Any) -> bool:
    """Whether two tensors whose spans overlap have a byte in common."""
    dense = all(end - start == t.numel() * t.element_size() for _, start, end, _, t in (a, b))
    if dense or a[1] == b[1]:
        return True
    try:
        return np.shares_memory(_Bytes(a[4]).array(), _Bytes(b[4]).array(), EFFORT)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


class _Bytes:
    """A tensor's place for numpy, which only computes with the addresses: they may be those of another device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        strides = (*(stride * size for stride in tensor.stride()), 1)  # byte by byte
        self.__array_interface__ = {"version": 3, "data": (tensor.data_ptr(), True), "shape": (*tensor.shape, size),
                                    "strides": strides, "typestr": "|u1"}  # fmt: skip

    def array(self) -> np.ndarray[Any, Any]:
        return np.asarray(self)
