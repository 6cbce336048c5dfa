"""The data flow of a network as it runs: which layer or function made each tensor, and who read it.

The network runs once, so that code which no tracer follows is no obstacle. A tensor that is overwritten in place counts
as a new value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Value = tuple[int, int]
"""The identity of a tensor, and how often it had been written."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(eq=False)
class Event:
    """A call of a layer (`path`, `module`) or of a function of torch outside of layers (`function`)."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    path: str = ""
    module: nn.Module | None = None
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""
    """The module in whose code the function was called."""

    @property
    def name(self) -> str:
        """How to call it in a message."""
        return self.path or getattr(self.function, "__name__", str(self.function))


@dataclass
class Record:
    """The events in the order in which they ran. Tensors are kept, so that identities stay unique."""

    events: list[Event] = field(default_factory=list)
    producers: dict[Value, Event] = field(default_factory=dict)
    readers: dict[Value, list[Event | None]] = field(default_factory=lambda: defaultdict(list))
    """Who reads a value; None stands for the caller of the network."""
    shapes: dict[Value, torch.Size] = field(default_factory=dict)
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    """The arguments of each call of each module, by path."""
    _kept: list[torch.Tensor] = field(default_factory=list)
    _versions: dict[int, int] = field(default_factory=dict)

    def of(self, path: str) -> list[Event]:
        """The calls of a layer."""
        return [event for event in self.events if event.path == path and event.module is not None]

    def value(self, tensor: torch.Tensor) -> Value:
        """The value that a tensor holds now."""
        if id(tensor) not in self._versions:
            self._versions[id(tensor)] = 0
            self._kept.append(tensor)
        return id(tensor), self._versions[id(tensor)]

    def add(self, inputs: Sequence[Value], result: Any, **what: Any) -> None:
        """An event that has just run."""
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not made:
            return
        taken = {value[0] for value in inputs}
        for tensor in made:
            if id(tensor) in taken:
                self._versions[id(tensor)] += 1
        event = Event(tuple(inputs), tuple(self.value(tensor) for tensor in made), **what)
        self.events.append(event)
        for value in event.inputs:
            self.readers[value].append(event)
        for value, tensor in zip(event.outputs, made, strict=True):
            self.producers[value] = event
            self.shapes[value] = tensor.shape


class _Functions(TorchFunctionMode):
    """Records the functions of torch that are called outside of layers."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if self.recorder.inside:
            return func(*args, **given)
        inputs = self.recorder.values((args, given))
        result = func(*args, **given)
        owner = self.recorder.stack[-1] if self.recorder.stack else ""
        self.recorder.record.add(inputs, result, function=func, args=args, kwargs=given, owner=owner)
        return result


class _Recorder:
    def __init__(self, module: nn.Module, layers: Collection[str]) -> None:
        self.record, self.inside, self.stack = Record(), 0, list[str]()
        self.pending: list[tuple[Value, ...]] = []
        self.handles: list[Any] = []
        for path, inner in module.named_modules():
            self._watch(path, inner, path in layers or is_layer(inner))

    def values(self, given: Any) -> tuple[Value, ...]:
        """The values of the tensors in what a call was given."""
        return tuple(self.record.value(leaf) for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))

    def _watch(self, path: str, inner: nn.Module, layer: bool) -> None:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self.inside:
                self.record.calls[path].append((args, kwargs))
            self.stack.append(path)
            if layer:
                self.pending.append(self.values((args, kwargs)))
                self.inside += 1

        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self.stack.pop()
            if not layer:
                return
            self.inside -= 1
            inputs = self.pending.pop()
            if not self.inside:
                self.record.add(inputs, result, path=path, module=inner)

        self.handles.append(inner.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        self.handles.append(inner.register_forward_hook(leave, with_kwargs=True))


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of torch.nn, whose inside does not matter."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, CONTAINERS)


def record(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], layers: Collection[str] = ()) -> Record:
    """Run a network once and say what happened. `layers`: paths of further modules to take as a whole.

    The module runs in the mode that it is in; its hooks stay.
    """
    recorder = _Recorder(module, layers)
    try:
        with torch.no_grad(), _Functions(recorder):
            result = module(*args, **kwargs)
    finally:
        for handle in recorder.handles:
            handle.remove()
    for value in recorder.values(result):
        recorder.record.readers[value].append(None)
    return recorder.record
