"""Every LRN of a PyTorch network: what it computes, and which convolution it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .lift import Lifted, lifted, ran
from .record import Event, Record
from .response import Response

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
RELUS = {"ReLU", "relu", "relu_", "LeakyReLU", "leaky_relu", "leaky_relu_"}
ACTIVATIONS = RELUS | {
    "ReLU6", "relu6", "Hardtanh", "hardtanh", "PReLU", "prelu", "ELU", "elu", "elu_", "SELU", "selu", "GELU", "gelu",
    "SiLU", "silu", "Sigmoid", "sigmoid", "sigmoid_", "Tanh", "tanh", "tanh_", "Softplus", "softplus", "Hardswish",
    "hardswish", "Mish", "mish", "clamp", "clamp_", "clamp_min", "clamp_min_", "Hardsigmoid", "hardsigmoid",
}  # fmt: skip
POOLS = {"MaxPool1d", "MaxPool2d", "MaxPool3d", "max_pool1d", "max_pool2d", "max_pool3d", "AdaptiveMaxPool1d",
         "AdaptiveMaxPool2d", "AdaptiveMaxPool3d"}  # fmt: skip


ARGUMENTS = ("input", "size", "alpha", "beta", "k")
"""Those of torch.nn.functional.local_response_norm."""


@dataclass(frozen=True)
class Chain:
    """What lies between an LRN and the convolution before it, from the convolution on.

    `conv`: None where something else comes first. `private`: nobody else reads a value on the way.
    """

    event: Event
    conv: Event | None
    between: tuple[Event, ...]
    private: bool

    @property
    def activation(self) -> Event | None:
        """The activation, None where there is none."""
        return next((event for event in self.between if operation(event) in ACTIVATIONS), None)


@dataclass(frozen=True)
class Site:
    """An LRN of a network: `y = x / (k + alpha / size * sum of x^2)^beta`.

    `name`: the qualified name of its module, or of the one that it would become. `kind`: "module", "functional" (a call
    of local_response_norm), "handwritten", "within-channel" (its window lies in space, so that no batch norm takes its
    place). `conv`, `activation`: the convolution before it and what lies between, "" where there is none. `calls`: how
    often the network runs it. `note`: why it cannot be exchanged, where that is so. `input`, `output`: what comes right
    before it, and right after.
    """

    name: str
    kind: str
    channels: int
    size: int
    alpha: float
    beta: float
    k: float
    conv: str = ""
    activation: str = ""
    calls: int = 1
    note: str = ""
    input: str = ""
    output: str = ""
    chains: tuple[Chain, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "chains"}


@dataclass
class Survey:
    """The network with its LRNs as modules, those LRNs in the order in which they run, and the record of the run."""

    lifted: Lifted
    sites: list[Site]
    record: Record


def find_lrn(module: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> list[Site]:
    """Every LRN of a module, in the order in which they run. The module is left alone.

    `example_inputs`: a tensor, or a tuple of arguments. Found are nn.LocalResponseNorm, calls of
    torch.nn.functional.local_response_norm, and hand-written ones: modules and parts of a forward that answer random
    inputs as an LRN does. Also LRN within channels, which is listed and not exchanged. Code that torch.fx cannot follow
    hides hand-written LRNs between layers. DataError where the network does not take the inputs, ModelError where it
    cannot be copied.
    """
    return survey(module, arguments(example_inputs), dict(kwargs or {})).sites


def arguments(example_inputs: Any) -> tuple[Any, ...]:
    """A tuple of arguments, of what a caller gave."""
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)


def survey(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Survey:
    """Find the LRNs, in a copy in which each is a module."""
    made = lifted(module, args, kwargs)
    seen = ran(made.module, args, kwargs, list(made.found))
    sites = [_site(made, seen, path) for path in made.found]
    order = {event.path: i for i, event in reversed(list(enumerate(seen.events)))}
    sites.sort(key=lambda site: order.get(site.name, len(order)))
    hidden = [_hidden(seen, path, message) for path, message in made.hidden.items()]
    return Survey(made, [*sites, *hidden], seen)


def _site(made: Lifted, seen: Record, path: str) -> Site:
    found = made.found[path]
    kind = "within-channel" if found.response.within else found.kind
    return Site(path, kind, found.channels, *_numbers(found.response), **_around(seen, seen.of(path)))


def _hidden(seen: Record, path: str, message: str) -> Site:
    """The calls of local_response_norm in code that cannot be followed."""
    name = "local_response_norm"
    events = [e for e in seen.events if e.owner == path and getattr(e.function, "__name__", "") == name]
    first = events[0]
    given = {"alpha": 1e-4, "beta": 0.75, "k": 1.0, **dict(zip(ARGUMENTS, first.args, strict=False)), **first.kwargs}
    response = Response.of(*(given[argument] for argument in ARGUMENTS[1:]))
    note = f"torch.fx cannot trace the forward of {path or 'the network'} ({message})"
    channels = int(seen.shapes[first.outputs[0]][1])
    label = f"{path}.{name}" if path else name
    return Site(label, "functional", channels, *_numbers(response), note=note, **_around(seen, events))


def _numbers(response: Response) -> tuple[int, float, float, float]:
    return response.size, response.alpha, response.beta, response.k


def _around(seen: Record, events: Sequence[Event]) -> dict[str, Any]:
    """What a site says about the calls of an LRN and their surroundings."""
    chains = tuple(chain(seen, event) for event in events)
    if not chains:
        return {"calls": 0}
    first = chains[0]
    conv = first.conv.name if first.conv else ""
    act = operation(first.activation) if first.activation else ""
    before, after = _neighbours(seen, first.event)
    return {"conv": conv, "activation": act, "calls": len(chains), "input": before, "output": after, "chains": chains}


def _neighbours(seen: Record, event: Event) -> tuple[str, str]:
    """What makes the input of an LRN, and what reads its output first."""
    producer = seen.producers.get(event.inputs[0]) if event.inputs else None
    reader = next(iter(seen.readers[event.outputs[0]]), None)
    return producer.name if producer else "the input", reader.name if reader else "the output"


def operation(event: Event) -> str:
    """The class of a layer, or the name of a function."""
    if event.module is not None:
        return type(event.module).__name__
    return getattr(event.function, "__name__", "")


def is_convolution(event: Event) -> bool:
    """Whether an event is a convolution, as a layer or as a function."""
    if event.module is not None:
        return isinstance(event.module, nn.modules.conv._ConvNd)
    return operation(event) in CONVOLUTIONS


def chain(seen: Record, event: Event) -> Chain:
    """Follow an LRN back to its convolution, over one activation and max pooling."""
    between: list[Event] = []
    private, at = True, event
    while True:
        if not at.inputs:
            return Chain(event, None, tuple(between), private)
        value = at.inputs[0]
        private = private and seen.readers[value] == [at]
        producer = seen.producers.get(value)
        if producer is not None and is_convolution(producer):
            return Chain(event, producer, tuple(between), private)
        known = producer is not None and operation(producer) in ACTIVATIONS | POOLS | {"Identity"}
        if producer is None or not known or (len(producer.outputs) != 1):
            return Chain(event, None, tuple(between), private)
        between.insert(0, producer)
        at = producer
