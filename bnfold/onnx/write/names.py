"""Which name a tensor has once the op between two tensors is gone."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto


class Renaming:
    """Groups of names that become one. Names in `fixed` never change: graph inputs and outputs, initializers, names
    that a subgraph reads.
    """

    def __init__(self, fixed: set[str]) -> None:
        self.fixed = fixed
        self.final: dict[str, str] = {}
        self.members: dict[str, list[str]] = {}

    def merge(self, source: str, target: str, keep_source: bool) -> bool:
        """Let two names become one, by preference the source's or the target's; False where both must stay."""
        a, b = self.final.get(source, source), self.final.get(target, target)
        if a in self.fixed and b in self.fixed:
            return False
        winner = a if a in self.fixed or (keep_source and b not in self.fixed) else b
        group = [*self.members.pop(a, [a]), *self.members.pop(b, [b])]
        self.members[winner] = group
        self.final.update((name, winner) for name in group)
        return True

    def vanished(self) -> set[str]:
        """Names that no tensor has any more."""
        return {name for name, winner in self.final.items() if name != winner}

    def apply(self, nodes: Iterable[NodeProto]) -> None:
        """Rename inputs and outputs."""
        if not self.final:
            return
        for node in nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    winner = self.final.get(name, name)
                    if winner != name:
                        names[i] = winner
