"""The program while it is rewritten, and the candidates that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..graph import Reason
from .algebra import Lazy
from .cost import Cost
from .links import lead_of, nodes_of
from .program import JOINT, Layer, Program, Step
from .result import Candidate


@dataclass
class Ledger:
    """`merged`: by the tensors that merged layers give, with what they cost before; a layer may be merged again."""

    program: Program
    merged: dict[str, tuple[Candidate, Cost]] = field(default_factory=dict)
    _count: int = 0

    def fresh(self, tensor: str) -> str:
        """The name of a new tensor beside one that stays."""
        self._count += 1
        return f"{tensor}{JOINT}{self._count}"

    def before(self, steps: Iterable[Step]) -> Cost:
        """What steps cost in the program as it was read."""
        return sum((self._before(step) for step in steps), Cost())

    def _before(self, step: Step) -> Cost:
        found = self.merged.get(step.target)
        return self.program.cost(step) if found is None else found[1]

    def cost(self, steps: Iterable[Step]) -> Cost:
        """What steps cost now."""
        return sum((self.program.cost(step) for step in steps), Cost())

    def layer(self, kind: str, target: str, base: str, layer: Lazy, used: Sequence[Step], around: Sequence[Step],
              own: bool, before: Cost) -> Layer:  # fmt: skip
        """A merged layer in the place of the layers `used`, and of the steps `around` where those are its `own`."""
        lead, program = lead_of(used), self.program
        mine = nodes_of((*used, *around) if own else used)
        made = Layer(lead.name, target, (base,), mine, layer, made=True, lead=lead.lead)
        for step in used:
            self.merged.pop(step.target, None)
        after, size = program.cost_of(layer, base, target), program.itemsize
        candidate = Candidate(
            kind, self.names((*used, *around)), made.name, "merged", None,
            (before.multiplications, after.multiplications), (before.weights * size, after.weights * size),
            (before.seconds, after.seconds),
        )  # fmt: skip
        self.merged[target] = candidate, before
        return made

    def stays(self, kind: str, steps: Sequence[Step], reason: Reason) -> Candidate:
        """What looks as if it could be merged and is not."""
        cost, size = self.cost(steps), self.program.itemsize
        same = (cost.multiplications,) * 2, (cost.weights * size,) * 2, (cost.seconds,) * 2
        return Candidate(kind, self.names(steps), "", "left", reason, *same)

    def names(self, steps: Iterable[Step]) -> tuple[str, ...]:
        """The names of the nodes of some steps."""
        return tuple(self.program.names[node] for node in nodes_of(steps))
