"""Whether two modules with the same numbers give the same on one call, run as they are and not as copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ...torch.trace.leaves import tensors_in
from ..criteria.check import OutputError
from ..criteria.criterion import EMPTY, LIMITS, SKIPPED, facts
from .modulecalls import to_array, unchanged


def difference(
    expected: Sequence[torch.Tensor], module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """Where a module gives something else than `outputs` gave for another, but for rounding, in words; else ""."""
    try:
        found = outputs(module, args, kwargs)
    except Exception as error:
        return f"it does not run: {' '.join(str(error).split())[:300] or type(error).__name__}"
    if len(found) != len(expected):
        return f"{len(expected)} outputs expected, {len(found)} found"
    entries = [facts(f"output_{i}", "given", to_array(a), to_array(b))
               for i, (a, b) in enumerate(zip(expected, found, strict=True))]  # fmt: skip
    wrong = [entry for entry, value in zip(entries, expected, strict=True) if not _near(entry, value)]
    return f"{wrong[0].output} differs{wrong[0].note and ': ' + wrong[0].note}" if wrong else ""


def _near(entry: OutputError, value: torch.Tensor) -> bool:
    if entry.note in (SKIPPED, EMPTY) or entry.passed:
        return True
    limit = LIMITS.get(str(value.dtype).removeprefix("torch."), 0.0)
    return not entry.note and entry.error <= limit * entry.scale


def outputs(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """What a call gives, on copies of the arguments, with the same random numbers each time. Buffers are put back."""
    given, named = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (tuple(args), dict(kwargs)))
    with torch.no_grad(), _seeded(module), unchanged(module):
        return [tensor.detach().clone() for tensor in tensors_in(module(*given, **named))]


@contextmanager
def _seeded(module: nn.Module) -> Iterator[None]:
    """The same random numbers each time, on the CPU and where the module is; the caller's go on behind them."""
    cards = {t.device for t in (*module.parameters(), *module.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng([card.index for card in cards]):
        torch.default_generator.manual_seed(0)
        for card in cards:
            torch.cuda.default_generators[card.index].manual_seed(0)
        yield
