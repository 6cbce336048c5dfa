"""Tensors as layers of the tensors before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..graph import Reason
from .algebra import Lazy
from .program import IDENTITY, Layer, Program, Step, Stop
from .reasons import READ

DEEPEST = 8
"""So many layers are followed back."""


@dataclass(frozen=True)
class Link:
    """A tensor as a layer of another, `base`, by way of `steps`, the last one first.

    `layer` is a Reason where no layer does the same; `held`: why something between has to stay.
    """

    base: str
    layer: Lazy | Reason
    steps: tuple[Step, ...] = ()
    held: Reason | None = None

    @property
    def real(self) -> bool:
        """Whether there is a layer on the way."""
        return any(isinstance(step, Stop) or (isinstance(step, Layer) and step.real) for step in self.steps)


def links(program: Program, tensor: str) -> Iterator[Link]:
    """A tensor as layers of those before it, the nearest first: to begin with, of itself."""
    link = Link(tensor, IDENTITY)
    yield link
    for _ in range(DEEPEST):
        step = program.steps.get(link.base)
        if not isinstance(step, Layer | Stop) or isinstance(link.layer, Reason):
            return
        held = link.held or (None if program.free(link.base) else _held(program, link.base))
        layer = step.reason if isinstance(step, Stop) else link.layer.behind(step.layer)
        link = Link(step.sources[0], layer, (*link.steps, step), held)
        yield link


def _held(program: Program, tensor: str) -> Reason:
    why = program.held.get(tensor)
    return READ if why is None else replace(READ, text=f"{tensor} {why}")


def lead_of(steps: Iterable[Step]) -> Layer:
    """The layer whose name and form a merged one takes: the largest that holds weights of its own."""
    layers = [step for step in steps if isinstance(step, Layer)]
    return max(layers, key=lambda s: (s.real and s.op != "AveragePool", s.layer.geometry.weights))


def nodes_of(steps: Iterable[Step]) -> tuple[int, ...]:
    """The nodes of some steps, each once."""
    return tuple(dict.fromkeys(node for step in steps for node in step.nodes))
