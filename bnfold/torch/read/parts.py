"""Modules that torch.export cannot trace as a whole: the largest parts of them that it can.

The module runs once on its example inputs, and what each inner module was given is kept. An inner module that can be
traced with that is folded on its own, between its input and its output, which stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from ...errors import ModelError
from ..trace.capture import Capture, capture, one_line
from ..trace.memory import Key, Memory
from .read import calls_of


@dataclass(frozen=True)
class Part:
    """An inner module that was traced; `foreign` and `memory`: modules and memory in it that are used elsewhere too."""

    path: str
    module: nn.Module
    capture: Capture
    foreign: frozenset[int]
    memory: frozenset[Key]


@dataclass
class _Seen:
    """What a module was given on its calls."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def alike(self) -> bool:
        """Whether all calls differ in nothing but tensors of one rank and type."""
        return len({_form(call) for call in self.calls}) == 1


def _form(call: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves, spec = tree_flatten(call)
    kinds = tuple((leaf.dim(), leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves)
    return str(spec), kinds


def parts(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], ignore_hooks: bool, memory: Memory,
    bare: bool = False,
) -> list[Part]:  # fmt: skip
    """The largest inner modules that can be traced. ModelError where the module does not even run.

    `bare`: as for `capture`.
    """
    seen = _observe(module, args, kwargs)
    found: list[tuple[str, nn.Module, Capture]] = []
    for path, inner, call in _candidates(module, seen):
        if not any(path == other or path.startswith(f"{other}.") for other, _, _ in found):
            try:
                found.append((path, inner, capture(inner, call[0], call[1], ignore_hooks, memory, bare)))
            except ModelError:
                continue
    return [Part(path, inner, made, *_foreign(module, inner, made, seen)) for path, inner, made in found]


def _candidates(module: nn.Module, seen: Mapping[int, _Seen]) -> Iterator[tuple[str, nn.Module, Any]]:
    """Inner modules that hold a norm, outer ones first, each once, with what they were given."""
    for path, inner in module.named_modules():
        holds = any(hasattr(m, "running_var") for m in inner.modules())
        if path and holds and not isinstance(inner, nn.modules.batchnorm._BatchNorm | torch.jit.ScriptModule):
            calls = seen.get(id(inner))
            if calls is not None and calls.alike():
                yield path, inner, calls.calls[0]


def _observe(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int, _Seen]:
    """Run a module once; what each inner module was given."""
    seen: dict[int, _Seen] = defaultdict(_Seen)

    def note(inner: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen[id(inner)].calls.append((given, named))

    inside = [inner for inner in module.modules() if not isinstance(inner, torch.jit.ScriptModule)]
    handles = [inner.register_forward_pre_hook(note, with_kwargs=True) for inner in inside]
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as error:
        raise ModelError(f"{type(module).__name__} does not run on the inputs given: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _foreign(
    module: nn.Module, part: nn.Module, made: Capture, seen: Mapping[int, _Seen]
) -> tuple[frozenset[int], frozenset[Key]]:
    """Modules of a part that run outside it too, and memory that others own too."""
    paths = dict(part.named_modules(remove_duplicate=False))
    calls: dict[int, set[str]] = defaultdict(set)
    for node in made.program.graph.nodes:
        for key, path in calls_of(node).items():
            calls[id(paths.get(path))].add(key)
    times = len(seen[id(part)].calls)
    inside = {id(inner) for inner in part.modules()}
    foreign = {
        id(inner)
        for inner in part.modules()
        if inner is not part and len(seen[id(inner)].calls) > times * len(calls[id(inner)]) and calls[id(inner)]
    }
    outside = [inner for inner in module.modules() if id(inner) not in inside or id(inner) in foreign]
    memory = {
        made.memory.key(tensor) for inner in outside for tensor in (*inner.parameters(False), *inner.buffers(False))
    }
    return frozenset(foreign), frozenset(memory)
