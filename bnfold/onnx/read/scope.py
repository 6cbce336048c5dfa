"""A graph with its own names: the model's, or the body of an If, Loop or Scan, which sees the names around it too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from onnx import GraphProto

from ...core.graph import Shape
from ..store.skeleton import nested_graphs, sparse_names
from .constants import Constants

BODIES = frozenset({"If", "Loop", "Scan"})
"""The operators whose bodies are read."""


INNER = "\N{WORD JOINER}::"
"""In the names of tensors between the neutral ops that one node became. Its first character is not seen, and no name of
a file holds it.
"""


@dataclass(eq=False)
class Scope:
    """What is known of one graph, by the names that the file gives its tensors.

    `alias`: the names in the neutral graph, which are different where two bodies use the same one. `parent`: the scope
    around a body. `uses`: how often each tensor is read, in nested bodies too.
    """

    graph: GraphProto
    constants: Constants
    shapes: dict[str, Shape | None]
    dtypes: dict[str, int]
    uses: Counter[str]
    pinned: dict[str, str]
    label: str = ""
    parent: Scope | None = None
    alias: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        produced = {name for node in self.graph.node for name in node.output}
        given = {value.name for value in self.graph.input} | {tensor.name for tensor in self.graph.initializer}
        self.local = produced | given | sparse_names(self.graph)

    def neutral(self, name: str, taken: dict[str, Shape | None]) -> str:
        """The name of a tensor in the neutral graph; a new one gets its own, unless the name is `taken`."""
        if name in self.alias:
            return self.alias[name]
        if self.parent is not None and name not in self.local and INNER not in name:
            return self.parent.neutral(name, taken)
        self.alias[name] = f"{self.label}/{name}" if name in taken else name
        return self.alias[name]

    def rank(self, name: str) -> int | None:
        """The number of axes of a tensor, or None."""
        shape = self.shapes.get(name)
        if shape is None and self.parent is not None and name not in self.shapes:
            return self.parent.rank(name)
        return None if shape is None else len(shape)

    def dtype(self, name: str) -> int:
        """The ONNX element type of a tensor, 0 where it is not known."""
        if name in self.dtypes or self.parent is None:
            return self.dtypes.get(name, 0)
        return self.parent.dtype(name)


def count_uses(graph: GraphProto) -> Counter[str]:
    """How often each tensor is read: by nodes, in the bodies of nodes too, and as graph output."""
    uses: Counter[str] = Counter(value.name for value in graph.output)
    for node in graph.node:
        uses.update(name for name in node.input if name)
        for body in nested_graphs(node):
            uses.update(count_uses(body))
    return uses


def pinned(graph: GraphProto, body_of: str = "") -> dict[str, str]:
    """Tensors that keep their values whatever happens, and why. `body_of`: the node whose body the graph is."""
    where = f" of the body of {body_of}" if body_of else ""
    held = {value.name: f"is {'an' if body_of else 'a graph'} output{where}" for value in graph.output}
    for node in graph.node:
        for body in nested_graphs(node):
            why = f"is read inside the body of {node.name or node.op_type}"
            held.update((name, why) for name in count_uses(body))
    held.update((value.name, f"is {'an' if body_of else 'a graph'} input{where}") for value in graph.input)
    held.update((name, "is a sparse tensor") for name in sparse_names(graph))
    return held
