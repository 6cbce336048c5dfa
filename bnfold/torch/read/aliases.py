"""In-place ops behind norms that go: what they would overwrite.

A batch norm gives a tensor of its own, and an in-place activation behind it may write into that. Once the norm is gone,
the same op writes into what the norm read: a residual stream, say, which others read afterwards.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import getitem
from typing import Any

from torch import fx

from ..trace.capture import RESULT, SEEN
from ..trace.constants import op_name
from .pointwise import DROPOUTS
from .read import module_call

PERHAPS = frozenset({"contiguous", "reshape", "flatten", "to", "type_as", "expand_as", "view_as", "chunk", "split",
                     "split_with_sizes", "unflatten", "_unsafe_view", *DROPOUTS, SEEN})  # fmt: skip
"""Ops that give their input itself, or a view of it, where that is possible."""


class Aliases:
    """Which values of a graph share memory, when the modules `gone` give back what they get."""

    def __init__(self, graph: fx.Graph, gone: Collection[str], parameters: Collection[str]) -> None:
        self.nodes = list(graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.gone = set(gone)
        self.before = _Groups(self.nodes)
        self.after = _Groups(self.nodes)
        self.writes: list[tuple[fx.Node, fx.Node]] = []
        self.sources: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.nodes}
        constant: set[fx.Node] = set()
        for node in self.nodes:
            computed = node.op == "call_function" and all(inner in constant for inner in node.all_input_nodes)
            if computed or node.name in parameters:
                constant.add(node)
            for source, written in _shares(node):
                self.before.join(node, source)
                self.after.join(node, source)
                self.sources[node].append(source)
                if written:
                    self.writes.append((node, source))
            if self._vanishes(node):
                for source in node.all_input_nodes:
                    if source not in constant:
                        self.after.join(node, source)
                        self.sources[node].append(source)

    def _vanishes(self, node: fx.Node) -> bool:
        return node.op == "call_function" and module_call(node)[1] in self.gone

    def conflicts(self) -> list[tuple[fx.Node, fx.Node]]:
        """In-place ops, with what they write to, that would change a value that is read afterwards."""
        return [(node, target) for node, target in self.writes if self._hurts(node, target)]

    def _hurts(self, write: fx.Node, target: fx.Node) -> bool:
        own, merged = self.before.root(target), self.after.root(target)
        later = self._made_from(write, own)
        for node in self.nodes:
            if self.after.root(node) is not merged or self.before.root(node) is own or node in later:
                continue
            if node.op in ("placeholder", "get_attr"):
                return True
            if any(self._reads_later(user, write) for user in node.users):
                return True
        return False

    def _made_from(self, write: fx.Node, own: fx.Node) -> set[fx.Node]:
        """What was made after an in-place op from the memory that it wrote: that is meant to be written."""
        found = {write}
        for node in self.nodes[self.place[write] :]:
            if any(source in found or self.before.root(source) is own for source in self.sources[node]):
                found.add(node)
        return found

    def _reads_later(self, user: fx.Node, write: fx.Node) -> bool:
        return not self._vanishes(user) and (user.op == "output" or self.place[user] > self.place[write])

    def behind(self, target: fx.Node) -> set[str]:
        """The modules gone whose output shares the memory of a value in the graph as it was."""
        own = self.before.root(target)
        return {module_call(n)[1] for n in self.nodes if self._vanishes(n) and self.before.root(n) is own}

    def replaceable(self, write: fx.Node, target: fx.Node) -> bool:
        """Whether nothing reads what an in-place activation wrote but by its result, an alias in the trace."""
        own = self.before.root(target)
        if any(op_name(user) != RESULT or module_call(user) != module_call(write) for user in write.users):
            return False
        for node in self.nodes:
            if self.before.root(node) is own and node is not write:
                later = any(u.op == "output" or self.place[u] > self.place[write] for u in node.users if u is not write)
                if later and self.place[node] < self.place[write]:
                    return False
        return True


class _Groups:
    """Disjoint sets of nodes."""

    def __init__(self, nodes: list[fx.Node]) -> None:
        self.parent = {node: node for node in nodes}

    def root(self, node: fx.Node) -> fx.Node:
        while self.parent[node] is not node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, a: fx.Node, b: fx.Node) -> None:
        self.parent[self.root(a)] = self.root(b)


def _shares(node: fx.Node) -> list[tuple[fx.Node, bool]]:
    """The inputs whose memory the outputs of a node may share, and whether it writes there."""
    if node.op != "call_function":
        return []
    if node.target is getitem or op_name(node) in PERHAPS:
        return [(source, False) for source in node.all_input_nodes[:1]]
    schema: Any = getattr(node.target, "_schema", None)
    found = []
    for i, argument in enumerate(schema.arguments if schema is not None else ()):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None:
            values = value if isinstance(value, list | tuple) else [value]
            found += [(v, bool(argument.alias_info.is_write)) for v in values if isinstance(v, fx.Node)]
    return found
