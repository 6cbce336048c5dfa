"""Batches of real data as the arguments of a network."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import DataError, UsageError
from .feed import arguments
from .samples import Pixels, Samples, open_data

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Feed:
    """Samples, and which argument of the network each of their arrays is: a position, or a name.

    `args`, `kwargs`: the arguments that are the same for every batch, and room for the others. `rank`, `ranks`: every
    `ranks`-th batch is this process's, from `rank` on.
    """

    samples: Samples
    slots: Mapping[str, int | str]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int
    limit: int | None
    dtype: torch.dtype
    device: torch.device
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples) if self.limit is None else min(self.limit, len(self.samples))

    def bounds(self) -> list[tuple[int, int]]:
        """Where batches begin and end. A last one of a single sample goes to the batch before it."""
        starts = list(range(0, len(self), self.size))
        if len(starts) > 1 and len(self) - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], len(self)], strict=True))[self.rank :: self.ranks]

    def batches(self, first: int = 0) -> Iterator[Arguments]:
        """The arguments of each batch, from one on."""
        for start, stop in self.bounds()[first:]:
            args, kwargs = list(self.args), dict(self.kwargs)
            for name, values in self.samples.rows(slice(start, stop)).items():
                slot = self.slots[name]
                if isinstance(slot, int):
                    args[slot] = self._tensor(values)
                else:
                    kwargs[slot] = self._tensor(values)
            yield tuple(args), kwargs

    def _tensor(self, values: Any) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(values))
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)


def feed(
    module: nn.Module, data: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any], batch_size: int,
    samples: int | None, pixels: Pixels | None = None,
) -> Feed:  # fmt: skip
    """Data for a network. `args`: example arguments, None where there are none; see `bnfold.data.open_data`.

    Arrays of several inputs go by the names of the arguments of forward. Floating arrays get the type of the network's
    weights. UsageError for a batch size or a number of samples below 1, DataError where arrays do not fit.
    """
    for name, value in (("batch_size", batch_size), ("samples", samples)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: 1 or more expected")
    names = _names(module)
    first = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.zeros(1))
    common: dict[str, Any] = {"size": batch_size, "limit": samples, "dtype": first.dtype, "device": first.device}
    if args is None:
        needed = [name for name, must in arguments(module).items() if must]
        opened = open_data(_arrays(data), (), pixels, inputs=needed if len(needed) > 1 else ())
        return Feed(opened, _guessed(opened, names), (None,) if len(opened.inputs) == 1 else (), {}, **common)
    slots: dict[str, int | str] = {
        names[i] if i < len(names) else f"input_{i}": i for i, a in enumerate(args) if isinstance(a, torch.Tensor)
    }
    slots |= {name: name for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    opened = open_data(_arrays(data), tuple(slots), pixels)
    if set(opened.inputs) != set(slots) and len(slots) == len(opened.inputs) == 1:
        slots = {next(iter(opened.inputs)): next(iter(slots.values()))}
    if set(opened.inputs) != set(slots):
        raise DataError(f"{opened.source}: arrays for {', '.join(slots)} expected, {', '.join(opened.inputs)} found")
    return Feed(opened, slots, tuple(args), kwargs, **common)


def _guessed(samples: Samples, names: Sequence[str]) -> dict[str, int | str]:
    """The only array is the first argument; several go by name."""
    if len(samples.inputs) == 1:
        return {next(iter(samples.inputs)): 0}
    unknown = [name for name in samples.inputs if name not in names]
    if unknown:
        raise DataError(f"{samples.source}: {unknown[0]!r} is no argument of forward, which has {', '.join(names)}")
    return {name: name for name in samples.inputs}


def _names(module: nn.Module) -> list[str]:
    """The names of the arguments of forward that can be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind in kinds]


def _arrays(data: Any) -> Any:
    """Tensors as arrays, anything else as it is."""
    if isinstance(data, torch.Tensor):
        return _array(data)
    if isinstance(data, Mapping):
        return {k: _array(v) if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    return data


def _array(tensor: torch.Tensor) -> Any:
    """Types that numpy does not know become float32."""
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()
