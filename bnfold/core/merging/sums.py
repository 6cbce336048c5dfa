"""Layers of one tensor that are added: `A x + B x + diag(s) x + t = (A + B + diag(s)) x + t`.

The terms of a sum are followed back through layers to tensors that several of them start from. Terms of one tensor are
joined two by two, those first that save most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from ..graph import Reason
from .algebra import Lazy
from .cost import Cost, better, of_sum
from .ledger import Ledger
from .links import Link, links, nodes_of
from .program import Program, Step, Sum
from .reasons import COSTS
from .result import Candidate

WIDEST = 24
"""So many terms of one tensor are compared with one another at a time."""


@dataclass(frozen=True)
class Term:
    """One term of a sum."""

    factor: float
    tensor: str


@dataclass(frozen=True)
class Part:
    """Some terms of a sum, by their places, as one layer of a tensor."""

    layer: Lazy
    members: tuple[int, ...]
    steps: tuple[Step, ...]
    cost: Cost
    real: bool


@dataclass(frozen=True)
class Terms:
    """The terms of a sum and of the sums in it; `sums`: those sums, itself last."""

    root: Sum
    terms: tuple[Term, ...]
    sums: tuple[Sum, ...]


@dataclass
class Sums:
    """Merges what is added."""

    ledger: Ledger
    _known: dict[str, Step] | None = None
    _readers: dict[str, Step] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        """What is searched."""
        return self.ledger.program

    def merge(self) -> bool:
        """Merge in all sums until nothing more is better; whether anything was merged."""
        changed = False
        for root in self.program.sums():
            step: Step | None = root
            while isinstance(step, Sum) and self.program.steps.get(step.target) is step and self._whole(step):
                if not self._improve(self._terms(step)):
                    break
                changed, step = True, self.program.steps[step.target]
        return changed

    def left(self) -> Iterator[Candidate]:
        """Terms of one tensor that stay apart."""
        for step in self.program.sums():
            if self._whole(step):
                yield from self._left(self._terms(step))

    def _whole(self, step: Sum) -> bool:
        """Whether no other sum takes it up."""
        if self._known is not self.program.steps:
            self._known = self.program.steps
            self._readers = {name: other for other in self._known.values() for name in other.sources}
        reader = self._readers.get(step.target)
        return not (isinstance(reader, Sum) and self._inside(reader, step.target))

    def _inside(self, outer: Sum, tensor: str) -> bool:
        """Whether a sum is nothing but a part of another."""
        sizes, step = self.program.sizes, self.program.steps.get(tensor)
        return isinstance(step, Sum) and sizes.get(tensor) == sizes.get(outer.target) and self.program.free(tensor)

    def _terms(self, root: Sum) -> Terms:
        terms: list[Term] = []
        sums: list[Sum] = []
        waiting = [Term(1.0, root.target)]
        while waiting:
            term = waiting.pop()
            step = self.program.steps.get(term.tensor)
            if isinstance(step, Sum) and (step is root or self._inside(root, term.tensor)):
                sums.append(step)
                pairs = zip(reversed(step.factors), reversed(step.sources), strict=True)
                waiting += [Term(term.factor * factor, name) for factor, name in pairs]
            else:
                terms.append(term)
        return Terms(root, tuple(terms), tuple(reversed(sums)))

    def _improve(self, terms: Terms) -> bool:
        """Make one layer of those terms that save most; whether any do."""
        best: tuple[float, Part, str] | None = None
        for base, ways in self._shared(terms).items():
            parts = self._parts(terms, ways)[:WIDEST]
            for part in self._joined(terms, parts, base):
                saved = sum(p.cost.seconds for p in parts if set(p.members) <= set(part.members)) - part.cost.seconds
                if len(part.members) > 1 and (best is None or saved > best[0]):
                    best = saved, part, base
        if best is not None:
            self._rewrite(terms, *best[1:])
        return best is not None

    def _shared(self, terms: Terms, strict: bool = True) -> dict[str, dict[int, Link]]:
        """The tensors that several terms start from, one of them by way of a layer; for each the ways there."""
        found: dict[str, dict[int, Link]] = {}
        for i, term in enumerate(terms.terms):
            for link in links(self.program, term.tensor):
                if not strict or (link.held is None and isinstance(link.layer, Lazy)):
                    found.setdefault(link.base, {}).setdefault(i, link)
        return {base: ways for base, ways in found.items() if len(ways) > 1 and any(way.real for way in ways.values())}

    def _parts(self, terms: Terms, ways: dict[int, Link]) -> list[Part]:
        return [
            Part(way.layer.times(terms.terms[i].factor), (i,), way.steps, self.ledger.cost(way.steps), way.real)
            for i, way in ways.items()
            if isinstance(way.layer, Lazy)
        ]

    def _joined(self, terms: Terms, parts: list[Part], base: str) -> list[Part]:
        """Parts joined two by two while that is better; all of them at once where no two are."""
        tensor, count = terms.terms[parts[0].members[0]].tensor if parts else "", len(parts)
        while pairs := list(self._pairs(parts, base, tensor)):
            _, whole, *pair = max(pairs, key=lambda found: found[0])
            parts = [whole, *(part for part in parts if part not in pair)]
        return parts if len(parts) < count else self._all(parts, base, tensor)

    def _pairs(self, parts: list[Part], base: str, tensor: str) -> Iterator[tuple[float, Part, Part, Part]]:
        """Pairs that are better as one: what they save, the whole, and the two."""
        for a, b in combinations(parts, 2):
            whole = self._join(a, b, base, tensor)
            if isinstance(whole, Part) and self._saves(whole, [a, b], tensor):
                yield a.cost.seconds + b.cost.seconds - whole.cost.seconds, whole, a, b

    def _all(self, parts: list[Part], base: str, tensor: str) -> list[Part]:
        if len(parts) < 3:
            return parts
        whole: Part | Reason = parts[0]
        for part in sorted(parts[1:], key=lambda part: not part.real):
            whole = self._join(whole, part, base, tensor) if isinstance(whole, Part) else whole
        return [whole] if isinstance(whole, Part) and self._saves(whole, parts, tensor) else parts

    def _join(self, a: Part, b: Part, base: str, tensor: str) -> Part | Reason:
        """Two parts as one, or why not."""
        if not (a.real or b.real):
            return COSTS
        layer = a.layer.plus(b.layer)
        misfit = layer if isinstance(layer, Reason) else self.program.misfit(layer)
        if isinstance(layer, Reason) or misfit is not None:
            return misfit or COSTS
        cost = self.program.cost_of(layer, base, tensor)
        return Part(layer, a.members + b.members, a.steps + b.steps, cost, True)

    def _saves(self, whole: Part, parts: list[Part], tensor: str) -> bool:
        """Whether one part is better than several and their sum."""
        return better(whole.cost, sum((p.cost for p in parts), of_sum(len(parts), self.program.elements(tensor))))

    def _rewrite(self, terms: Terms, part: Part, base: str) -> None:
        """Put a part in the place of its terms, and add what is left of the sum to it."""
        root, inner = terms.root, terms.terms[part.members[0]].tensor
        layer, rest = self._shifted(terms, part, inner)
        target = self.ledger.fresh(root.target) if rest else root.target
        self.program.sizes[target] = self.program.sizes.get(inner)
        before = self.ledger.before(part.steps) + of_sum(len(part.members), self.program.elements(inner))
        steps: list[Step] = [
            self.ledger.layer("sum", target, base, layer, part.steps, terms.sums, not rest, before)
        ]  # fmt: skip
        if rest:
            sources, factors = (target, *(t.tensor for t in rest)), (1.0, *(t.factor for t in rest))
            steps.append(Sum(root.name, root.target, sources, nodes_of(terms.sums), factors, True))
        self.program.replace({step.target for step in (*part.steps, *terms.sums)}, steps)

    def _shifted(self, terms: Terms, part: Part, inner: str) -> tuple[Lazy, list[Term]]:
        """The layer with those terms in its bias that are constants along its channels, and the other terms."""
        layer = part.layer
        rest: list[Term] = []
        sizes = [self.program.sizes.get(name) for name in (inner, terms.root.target)]
        alike = sizes[0] is not None and sizes[1] is not None and len(sizes[0]) == len(sizes[1])
        for i, term in enumerate(terms.terms):
            shift = self.program.shifts.get(term.tensor) if alike and term.factor == 1 else None
            moved = None if shift is None else shift.behind(layer)
            if isinstance(moved, Lazy):
                layer = moved
            elif i not in part.members:
                rest.append(term)
        return layer, rest

    def _left(self, terms: Terms) -> Iterator[Candidate]:
        told: set[int] = set()
        for base, ways in self._shared(terms, strict=False).items():
            if not set(ways) <= told:
                told |= set(ways)
                steps = tuple(dict.fromkeys(step for way in ways.values() for step in way.steps))
                yield self.ledger.stays("sum", (*steps, *terms.sums), self._why(terms, ways, base))

    def _why(self, terms: Terms, ways: dict[int, Link], base: str) -> Reason:
        for way in ways.values():
            if isinstance(way.layer, Reason):
                return way.layer
        for a, b in combinations(self._parts(terms, ways), 2):
            found = self._join(a, b, base, terms.terms[a.members[0]].tensor)
            if isinstance(found, Reason) and found is not COSTS:
                return found
        return next((way.held for way in ways.values() if way.held), COSTS)
