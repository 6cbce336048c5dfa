"""Finds layers that can be one, decides by cost, and rewrites the program; front ends carry it out.

First sums: the terms of each are followed back through layers to tensors that several of them start from, and terms of
the same tensor are joined two by two, those first that save most. Then rows of layers. Until nothing changes any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations

from ..graph import Reason
from .algebra import Lazy, stacked
from .cost import Cost, better, leaner, of_elements, of_sum
from .program import IDENTITY, JOINT, Join, Layer, Program, Step, Stop, Sum
from .reasons import COSTS, READ
from .result import Candidate

DEEPEST = 8
"""So many layers are followed back from a sum."""
WIDEST = 24
"""So many terms of one tensor are compared with one another at a time."""


@dataclass(frozen=True)
class Link:
    """A tensor as a layer of another, `base`, by way of `steps`; a Reason where it is none, or has to stay beside."""

    base: str
    layer: Lazy | Reason
    steps: tuple[Step, ...] = ()
    held: Reason | None = None

    @property
    def real(self) -> bool:
        """Whether there is a layer on the way."""
        return any(isinstance(step, Stop) or (isinstance(step, Layer) and step.real) for step in self.steps)


def links(program: Program, tensor: str) -> Iterator[Link]:
    """A tensor as layers of those before it, the nearest first."""
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


@dataclass(frozen=True)
class Part:
    """Some terms of a sum as one layer of the base."""

    layer: Lazy
    members: tuple[int, ...]
    steps: tuple[Step, ...]
    cost: Cost
    real: bool


@dataclass(frozen=True)
class Term:
    """One term of a sum."""

    factor: float
    tensor: str


@dataclass
class Search:
    """Merges what can be merged in a program."""

    program: Program
    merged: dict[str, tuple[Candidate, Cost]] = field(default_factory=dict)
    """By the tensors that merged layers give; with what they cost before."""
    _count: int = 0
    _known: dict[str, Step] | None = None
    _reader: dict[str, Step] = field(default_factory=dict)

    def run(self) -> list[Candidate]:
        """All candidates, those that were merged first."""
        while self._sums() or self._chains() or self._siblings():
            pass
        done = [candidate for candidate, _ in self.merged.values()]
        return [*done, *self._left()]

    # --- sums

    def _sums(self) -> bool:
        changed = False
        for step in self.program.sums():
            while step is not None and self.program.steps.get(step.target) is step and self._root(step):
                rest = self._improve(step)
                if rest is None:
                    break
                changed = True
                found = self.program.steps[step.target]
                if not isinstance(found, Sum):
                    break
                step = found
        return changed

    def _root(self, step: Sum) -> bool:
        """Whether no other sum takes it up."""
        readers = self._readers().get(step.target)
        return not (isinstance(readers, Sum) and self._inner(readers, step.target))

    def _readers(self) -> dict[str, Step]:
        if self._known is not self.program.steps:
            self._known = self.program.steps
            self._reader = {name: step for step in self._known.values() for name in step.sources}
        return self._reader

    def _inner(self, outer: Sum, tensor: str) -> bool:
        """Whether a sum is nothing but a part of another."""
        sizes = self.program.sizes
        same = sizes.get(tensor) == sizes.get(outer.target)
        return same and isinstance(self.program.steps.get(tensor), Sum) and self.program.free(tensor)

    def _terms(self, step: Sum) -> tuple[list[Term], list[Step]]:
        """The terms of a sum and of the sums in it; those sums, itself last."""
        terms: list[Term] = []
        sums: list[Step] = [step]
        waiting = [Term(1.0, step.target)]
        while waiting:
            term = waiting.pop()
            inner = self.program.steps.get(term.tensor)
            if term.tensor == step.target or (isinstance(inner, Sum) and self._inner(step, term.tensor)):
                assert isinstance(inner, Sum)
                sums += [inner] if inner is not step else []
                pairs = zip(inner.factors, inner.sources, strict=True)
                waiting += [Term(term.factor * factor, name) for factor, name in reversed(list(pairs))]
            else:
                terms.append(term)
        return terms, sums[::-1]

    def _improve(self, step: Sum) -> Part | None:
        """Make one part of terms of a sum, the one that saves most; None where none saves anything."""
        terms, sums = self._terms(step)
        best: tuple[float, Part, str] | None = None
        for base, found in self._shared(terms).items():
            parts = self._parts(terms, found, base)[:WIDEST]
            for part in _joined(self, parts, base, terms):
                saved = sum(p.cost.seconds for p in parts if set(p.members) <= set(part.members)) - part.cost.seconds
                if len(part.members) > 1 and (best is None or saved > best[0]):
                    best = saved, part, base
        if best is None:
            return None
        self._rewrite(step, terms, sums, best[1], best[2])
        return best[1]

    def _shared(self, terms: list[Term], strict: bool = True) -> dict[str, dict[int, Link]]:
        """The tensors that several terms start from, one of them by way of a layer; for each the ways there."""
        found: dict[str, dict[int, Link]] = {}
        for i, term in enumerate(terms):
            for link in links(self.program, term.tensor):
                if not strict or (link.held is None and isinstance(link.layer, Lazy)):
                    found.setdefault(link.base, {}).setdefault(i, link)
        return {base: ways for base, ways in found.items() if len(ways) > 1 and any(way.real for way in ways.values())}

    def _parts(self, terms: list[Term], ways: dict[int, Link], base: str) -> list[Part]:
        made = []
        for i, way in ways.items():
            if isinstance(way.layer, Lazy):
                cost = sum((self.program.cost(step) for step in way.steps), Cost())
                made.append(Part(way.layer.times(terms[i].factor), (i,), way.steps, cost, way.real))
        return made

    def join(self, a: Part, b: Part, base: str, tensor: str) -> Part | Reason:
        """Two parts as one, or why not."""
        if not (a.real or b.real):
            return COSTS
        layer = a.layer.plus(b.layer)
        if isinstance(layer, Reason):
            return layer
        misfit = self.program.misfit(layer)
        if misfit is not None:
            return misfit
        cost = self.program.cost_of(layer, base, tensor)
        return Part(layer, a.members + b.members, a.steps + b.steps, cost, True)

    def saves(self, whole: Part, parts: list[Part], tensor: str) -> bool:
        """Whether one part is better than several and their sum."""
        before = sum((part.cost for part in parts), of_sum(len(parts), self.program.elements(tensor)))
        return better(whole.cost, before)

    def _rewrite(self, step: Sum, terms: list[Term], sums: list[Step], part: Part, base: str) -> None:
        program = self.program
        self._count += 1
        layer = part.layer
        rest: list[Term] = []
        for i, term in enumerate(terms):
            shift = program.shifts.get(term.tensor) if term.factor == 1 else None
            moved = shift.behind(layer) if shift is not None else None
            if isinstance(moved, Lazy):
                layer = moved
            elif i not in part.members:
                rest.append(term)
        target = f"{step.target}{JOINT}{self._count}" if rest else step.target
        gone: list[Step] = [*part.steps, *sums]
        before = sum((self._before(s) for s in part.steps), Cost())
        before += of_sum(len(part.members), program.elements(step.target))
        nodes = tuple(dict.fromkeys(node for s in gone for node in s.nodes))
        own = tuple(dict.fromkeys(node for s in (part.steps if rest else gone) for node in s.nodes))
        lead = _lead(part.steps)
        program.sizes[target] = program.sizes.get(terms[part.members[0]].tensor)
        made = Layer(lead.name, target, (base,), own, layer, made=True, lead=lead.lead)
        new: list[Step] = [made]
        if rest:
            sources, factors = (target, *(t.tensor for t in rest)), (1.0, *(t.factor for t in rest))
            new.append(Sum(step.name, step.target, sources, tuple(n for s in sums for n in s.nodes), factors, True))
        names = tuple(self.program.names[node] for node in nodes)
        self._note("sum", made, names, before, part.steps)
        program.replace({s.target for s in gone}, new)

    def _before(self, step: Step) -> Cost:
        found = self.merged.get(step.target)
        return self.program.cost(step) if found is None else found[1]

    def _note(self, kind: str, made: Layer, names: tuple[str, ...], before: Cost, used: tuple[Step, ...]) -> None:
        for step in used:
            self.merged.pop(step.target, None)
        after, size = self.program.cost_of(made.layer, made.source, made.target), self.program.itemsize
        candidate = Candidate(
            kind, names, made.name, "merged", None, (before.multiplications, after.multiplications),
            (before.weights * size, after.weights * size), (before.seconds, after.seconds),
        )  # fmt: skip
        self.merged[made.target] = candidate, before

    # --- rows

    def _rows(self) -> Iterator[tuple[Layer, Link]]:
        """Layers right behind layers, and how the later one is a layer of what the earlier one reads."""
        for step in self.program.layers():
            if not step.real:
                continue
            link = Link(step.source, step.layer, (step,))
            for back in links(self.program, step.source):
                if back.steps and isinstance(back.layer, Lazy):
                    layer = step.layer.behind(back.layer)
                    link = Link(back.base, layer, (step, *back.steps), back.held)
                elif back.steps:
                    link = Link(back.base, back.layer, (step, *back.steps), back.held)
                if back.real:
                    yield step, link
                    break

    def _chains(self) -> bool:
        best: tuple[float, Layer, Link] | None = self._affine()
        for step, link in self._rows():
            if link.held is None and isinstance(link.layer, Lazy):
                before, after = self._costs(step, link)
                saved = before.seconds - after.seconds
                better_yet = leaner(after, before) and (best is None or saved > best[0])
                if better_yet and self.program.misfit(link.layer) is None:
                    best = saved, step, link
        if best is None:
            return False
        _, step, link = best
        assert isinstance(link.layer, Lazy)
        before = sum((self._before(s) for s in link.steps), Cost())
        lead = _lead(link.steps)
        nodes = tuple(dict.fromkeys(node for s in reversed(link.steps) for node in s.nodes))
        made = Layer(lead.name, step.target, (link.base,), nodes, link.layer, made=True, lead=lead.lead)
        self._note("chain", made, tuple(self.program.names[n] for n in nodes), before, link.steps)
        self.program.replace({s.target for s in link.steps}, [made])
        return True

    def _affine(self) -> tuple[float, Layer, Link] | None:
        """An affine map for each channel right behind a layer that was merged."""
        for step in self.program.layers():
            before = self.program.steps.get(step.source)
            if not step.real and isinstance(before, Layer) and before.made and self.program.free(step.source):
                layer = step.layer.behind(before.layer)
                if isinstance(layer, Lazy) and self.program.misfit(layer) is None:
                    return float("inf"), step, Link(before.source, layer, (step, before))
        return None

    def _costs(self, step: Layer, link: Link) -> tuple[Cost, Cost]:
        before = sum((self.program.cost(s) for s in link.steps), Cost())
        assert isinstance(link.layer, Lazy)
        return before, self.program.cost_of(link.layer, link.base, step.target)

    # --- siblings

    def _siblings(self) -> bool:
        """Layers of one tensor whose outputs are put together, one right behind another."""
        return any(
            self._put_together(step, start) for step in self.program.joins() for start in range(len(step.sources))
        )

    def _put_together(self, step: Join, start: int) -> bool:
        layers: list[Layer] = []
        for name in step.sources[start:]:
            layer = self.program.steps.get(name)
            fits = isinstance(layer, Layer) and layer.real and self.program.free(name)
            if not isinstance(layer, Layer) or not fits or layer.layer.geometry.axis != step.axis:
                break
            if layers and (
                layer.source != layers[0].source or isinstance(stacked([layers[0].layer, layer.layer]), Reason)
            ):
                break
            layers.append(layer)
        whole = stacked([layer.layer for layer in layers]) if len(layers) > 1 else COSTS
        if isinstance(whole, Reason):
            return False
        self._stack(step, start, layers, whole)
        return True

    def _stack(self, step: Join, start: int, layers: list[Layer], whole: Lazy) -> None:
        program, rest = self.program, (step.sources[:start], step.sources[start + len(layers) :])
        self._count += 1
        alone = not any(rest)
        target = step.target if alone else f"{step.target}{JOINT}{self._count}"
        lead = _lead(tuple(layers))
        own = tuple(dict.fromkeys(node for s in layers for node in s.nodes))
        moved = program.elements(step.target) * len(layers) // len(step.sources)
        before = sum((self._before(layer) for layer in layers), of_elements(2 * moved))
        made = Layer(
            lead.name,
            target,
            layers[0].sources,
            (*own, *step.nodes) if alone else own,
            whole,
            made=True,
            lead=lead.lead,
        )
        program.sizes[target] = self._widened(layers[0].target, step.axis, whole.geometry.outputs)
        names = tuple(program.names[node] for node in dict.fromkeys((*own, *step.nodes)))
        self._note("siblings", made, names, before, tuple(layers))
        new: list[Step] = [made]
        if not alone:
            new.append(Join(step.name, step.target, (*rest[0], target, *rest[1]), step.nodes, step.axis, True))
        program.replace({s.target for s in (*layers, step)}, new)

    def _widened(self, tensor: str, axis: int, channels: int) -> tuple[int | str | None, ...] | None:
        sizes = self.program.sizes.get(tensor)
        return None if sizes is None else (*sizes[:axis], channels, *sizes[axis + 1 :])

    # --- what stays

    def _left(self) -> Iterator[Candidate]:
        for step in self.program.sums():
            if self._root(step):
                yield from self._left_sum(step)
        for row, link in self._rows():
            reason = link.layer if isinstance(link.layer, Reason) else None
            if reason is None and not leaner(*reversed(self._costs(row, link))):
                reason = COSTS
            if reason is None and isinstance(link.layer, Lazy):
                reason = link.held or self.program.misfit(link.layer)
            yield self._stays("chain", tuple(reversed(link.steps)), reason or COSTS)

    def _left_sum(self, step: Sum) -> Iterator[Candidate]:
        terms, sums = self._terms(step)
        told: set[int] = set()
        for base, ways in self._shared(terms, strict=False).items():
            if set(ways) <= told:
                continue
            told |= set(ways)
            steps = tuple(dict.fromkeys(s for way in ways.values() for s in way.steps))
            yield self._stays("sum", (*steps, *sums), self._why(terms, ways, base))

    def _why(self, terms: list[Term], ways: dict[int, Link], base: str) -> Reason:
        for way in ways.values():
            if isinstance(way.layer, Reason):
                return way.layer
        parts = self._parts(terms, ways, base)
        for a, b in combinations(parts, 2):
            found = self.join(a, b, base, terms[a.members[0]].tensor)
            if isinstance(found, Reason) and found is not COSTS:
                return found
        return next((way.held for way in ways.values() if way.held), COSTS)

    def _stays(self, kind: str, steps: tuple[Step, ...], reason: Reason) -> Candidate:
        cost = sum((self.program.cost(step) for step in steps), Cost())
        nodes = dict.fromkeys(node for step in steps for node in step.nodes)
        size = cost.weights * self.program.itemsize
        names = tuple(self.program.names[node] for node in nodes)
        seconds = cost.seconds, cost.seconds
        return Candidate(kind, names, "", "left", reason, (cost.multiplications,) * 2, (size, size), seconds)


def _joined(search: Search, parts: list[Part], base: str, terms: list[Term]) -> list[Part]:
    """Join parts two by two, those first that save most; all of them at once where no two save anything."""
    tensor = terms[parts[0].members[0]].tensor if parts else ""
    start = list(parts)
    while True:
        best: tuple[float, Part, tuple[Part, Part]] | None = None
        for a, b in combinations(parts, 2):
            whole = search.join(a, b, base, tensor)
            if isinstance(whole, Part) and search.saves(whole, [a, b], tensor):
                saved = a.cost.seconds + b.cost.seconds - whole.cost.seconds
                if best is None or saved > best[0]:
                    best = saved, whole, (a, b)
        if best is None:
            break
        parts = [best[1], *(part for part in parts if part not in best[2])]
    return parts if len(parts) < len(start) else _all(search, parts, base, tensor)


def _all(search: Search, parts: list[Part], base: str, tensor: str) -> list[Part]:
    if len(parts) < 3:
        return parts
    whole: Part | Reason = parts[0]
    for part in sorted(parts[1:], key=lambda part: not part.real):
        whole = search.join(whole, part, base, tensor) if isinstance(whole, Part) else whole
    return [whole] if isinstance(whole, Part) and search.saves(whole, parts, tensor) else parts


def _lead(steps: tuple[Step, ...]) -> Layer:
    """The layer whose name and form the merged one takes: the largest that holds weights of its own."""
    layers = [step for step in steps if isinstance(step, Layer)]
    return max(layers, key=lambda s: (s.real and s.op != "AveragePool", s.layer.geometry.weights))
