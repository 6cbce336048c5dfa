"""A copy of a network in which every LRN that can be exchanged is a module, whatever it was before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import DataError, ModelError
from ..torch.trace.capture import one_line
from ..torch.write.fold import copied, evaluated
from .record import CONTAINERS, Record, is_layer, record
from .response import Response
from .slices import lrn_of, rewritten, slices, traced, with_dropouts

LARGEST = 4_000_000
"""Weights of a module that is still tried as an LRN; hand-written ones hold a small kernel at most."""


@dataclass(frozen=True)
class Found:
    """An LRN that a module computes. `kind`: "module", "functional", "handwritten"."""

    response: Response
    kind: str
    channels: int


@dataclass
class Lifted:
    """A network whose LRNs are modules: those at the paths in `found`.

    `graphs`: modules that became graphs for that, with what is to be said about each. `hidden`: LRN calls in code that
    torch.fx does not follow, by the path of the module that calls, with its message.
    """

    module: nn.Module
    found: dict[str, Found] = field(default_factory=dict)
    graphs: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)


def lifted(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Lifted:
    """Find the LRNs of a network and make each a module. The network itself is left alone; the copy is in eval mode.

    ModelError where it cannot be copied, DataError where it cannot be run with these inputs.
    """
    made = Lifted(evaluated(copied(module)))
    seen = ran(made.module, args, kwargs)
    _modules(made, seen)
    _functions(made, seen)
    return made


def ran(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], layers: Sequence[str] = ()) -> Record:
    """The record of one run. DataError with torch's message where the network does not take the inputs."""
    try:
        return record(module, args, kwargs, layers)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{type(module).__name__} cannot be run with these inputs: {one_line(error)}") from error


def _modules(made: Lifted, seen: Record) -> None:
    """Modules that are an LRN as a whole, the innermost of those that hold one another."""
    for path, inner in sorted(made.module.named_modules(), key=lambda item: -item[0].count(".")):
        if not path or path not in seen.calls or any(name.startswith(f"{path}.") for name in made.found):
            continue
        shape = _shape(*seen.calls[path][0])
        if shape is None or not _possible(inner):
            continue
        response = lrn_of(inner, shape)
        if response is not None:
            kind = "module" if isinstance(inner, nn.LocalResponseNorm) else "handwritten"
            made.found[path] = Found(response, kind, shape[1])


def _shape(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Size | None:
    """The shape of the only argument, where that is a tensor with channels."""
    given = [*args, *kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], torch.Tensor) or given[0].dim() < 2:
        return None
    return given[0].shape


def _possible(inner: nn.Module) -> bool:
    if isinstance(inner, nn.LocalResponseNorm):
        return True
    if is_layer(inner) or isinstance(inner, CONTAINERS):
        return False
    return sum(p.numel() for p in (*inner.parameters(), *inner.buffers())) <= LARGEST


def _functions(made: Lifted, seen: Record) -> None:
    """LRNs in the code of modules, which become graphs."""
    for path, owner in sorted(made.module.named_modules(), key=lambda item: -item[0].count(".")):
        inside = any(path == name or path.startswith(f"{name}.") for name in made.found)
        if path not in seen.calls or inside or is_layer(owner) or isinstance(owner, CONTAINERS):
            continue
        try:
            graph = traced(owner)
            parts = slices(owner, graph, *seen.calls[path][0])
        except Exception as error:  # whatever torch.fx trips over in the code of a user
            if any(event.owner == path and event.function is F.local_response_norm for event in seen.events):
                made.hidden[path] = one_line(error)
            continue
        parts = [part for part in parts if not part.response.within]
        if not parts:
            continue
        dropouts, same = with_dropouts(owner, graph)
        graph_module, names = rewritten(owner, graph, parts)
        for name, dropout in dropouts.items():
            graph_module.add_module(name, dropout.eval())
        _recompiled(graph_module)
        graph_module.train(False)
        made.graphs[path] = "" if same else "its code differs in train mode; the graph holds that of eval mode"
        made.module = exchanged(made.module, owner, graph_module)
        for name, part in zip(names, parts, strict=True):
            kind = "handwritten" if part.written else "functional"
            made.found[f"{path}.{name}" if path else name] = Found(part.response, kind, part.shape[1])


def _recompiled(module: nn.Module) -> None:
    module.graph.lint()  # type: ignore[union-attr, operator]
    module.recompile()  # type: ignore[operator]


def exchanged(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, under every name that it has; the root, which may be the new one."""
    if root is old:
        return new
    places = [(inner, name) for inner in root.modules() for name, child in inner._modules.items() if child is old]
    if not places:
        raise ModelError(f"{type(old).__name__}: not a part of {type(root).__name__}")
    for inner, name in places:
        inner._modules[name] = new
    return root
