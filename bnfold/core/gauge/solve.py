"""Which norms go: try one after the other, the most expensive first, and keep what the equations allow.

For statistics in general position the sets of removals that agree in scale are the forests of a graph, so taking the
most expensive first is optimal (the greedy algorithm on a matroid).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ...limits import LEFTOVERS
from ..graph import Affine, Graph, Op
from .equations import AffinePort, Bend, Equations, Ids, Vector
from .leftovers import allowed
from .scale import Conflict, Scale
from .shift import Shift, ranges


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one affine, and why it is not gone without a trace (`conflict`).

    `form`: "gone"; "max" or "clip", gone but the Relu or Clip behind it has bounds per channel now; "add" or "mul", one
    op is left; "conv", a depthwise convolution is written for it; "stays".
    """

    port: AffinePort
    form: str
    conflict: Conflict | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """The gauge of every variable. New values are `p*v + q`; a reader gets the original back as `u*v' + t`.

    `u` is 1/p and `t` is -q/p; where the original is a constant behind a dead channel, `u` is 0 and `t` the constant.
    All float64, one entry for each variable.
    """

    equations: Equations
    gauges: dict[str, Ids | None]
    outcomes: list[Outcome]
    p: Vector
    q: Vector
    u: Vector
    t: Vector
    constant: npt.NDArray[np.bool_]
    thresholds: list[Bend]
    """The Relus and Clips that get bounds per channel."""
    base: Ids = field(repr=False)
    """Variables that ops alone hold to one scale have the same entry here, whatever was removed."""


def solve(
    graph: Graph,
    equations: Equations,
    gauges: dict[str, Ids | None],
    refused: dict[Op, Conflict],
    leftovers: str = LEFTOVERS[0],
) -> Solution:
    """Hold Relus at q = 0 and Clips at p = 1 first. Those behind a norm that had nowhere to go may then carry more."""
    solution = _settle(graph, equations, gauges, [], refused, leftovers)
    released = [bend for bend in _in_the_way(solution) if _may_bend(bend, graph, leftovers)]
    if not released:
        return solution
    second = _settle(graph, equations, gauges, released, refused, leftovers)
    reasons = {outcome.port.op: outcome.conflict for outcome in solution.outcomes}
    form = np.zeros(equations.count, np.int64)
    for bend in second.thresholds:
        form[bend.x] = 2 if bend.pins else 1
    for port in reversed([o.port for o in second.outcomes if o.form == "gone"]):  # constants behind a norm went with it
        form[port.x] = np.maximum(form[port.x], form[port.y])
    outcomes = [
        Outcome(o.port, ("", "max", "clip")[side.max()], reasons[o.port.op])
        if o.form == "gone" and reasons[o.port.op] and (side := form[np.concatenate([o.port.y, o.port.x])]).any()
        else o
        for o in second.outcomes
    ]
    return replace(second, outcomes=outcomes) if any(o.form in ("max", "clip") for o in outcomes) else solution


def _settle(
    graph: Graph,
    equations: Equations,
    gauges: dict[str, Ids | None],
    released: list[Bend],
    refused: dict[Op, Conflict],
    leftovers: str,
) -> Solution:
    """Search until no constant Mul that stays is in the way of a shift that was already used, and every `c - x` that
    would grow was tried.
    """
    held: dict[Op, Conflict] = {}
    wanted: set[Op] = set()
    while True:
        try:
            return _Search(graph, equations, held, released, refused, leftovers, wanted).run(gauges)
        except _Held as more:
            held.update(more.found)
        except _Wanted as also:
            wanted.update(also.found)


def _may_bend(bend: Bend, graph: Graph, leftovers: str) -> bool:
    """Whether a Relu or Clip may get bounds per channel, which costs time on some runtimes."""
    return allowed(leftovers, "clip" if bend.pins else "max", bend.x.size, graph.shape(bend.op.outputs[0]))


def _in_the_way(solution: Solution) -> list[Bend]:
    """The Relus that read norms whose offset had nowhere to go, the Clips that read norms whose scale had neither."""
    stuck = {kind: np.zeros(solution.equations.count, bool) for kind in ("shift", "scale")}
    for outcome in solution.outcomes:
        if outcome.form != "gone" and outcome.port.op.listed and outcome.conflict and outcome.conflict.kind in stuck:
            stuck[outcome.conflict.kind][outcome.port.y] = True
        elif outcome.form == "gone":  # a constant behind such a norm
            for flags in stuck.values():
                flags[outcome.port.y] |= flags[outcome.port.x]
    either = stuck["shift"] | stuck["scale"]
    return [bend for bend in solution.equations.bends if (either if bend.pins else stuck["shift"])[bend.x].any()]


class _Held(Exception):
    """A constant stays that lets less through than was already used: start again with that in mind.

    A Mul holds the shifts on both sides at 0, `c - x` lets a scale through but no change of it, and so does a factor
    that is one number.
    """

    def __init__(self, found: dict[Op, Conflict]) -> None:
        self.found = found


class _Wanted(Exception):
    """Numbers from which something is subtracted would become vectors, which one wants removed: start again with that.

    Until then they let no change of scale through.
    """

    def __init__(self, found: Sequence[Op]) -> None:
        self.found = found


def _number(port: AffinePort) -> bool:
    """Whether it is a factor that is one number."""
    return port.op.kind == "mul" and not port.op.listed


@dataclass(frozen=True, eq=False)
class _Maps:
    """What elementwise ops make of constants: `(below if x < 0 else above) * x + offset`, sorted by `source`.

    `owner`: the position of the affine that does so once it is gone, or -1.
    """

    source: Ids
    target: Ids
    below: Vector
    above: Vector
    offset: Vector
    owner: Ids

    @classmethod
    def of(cls, eqs: Equations) -> _Maps:
        """Those of all activations and affines."""
        ports, none = eqs.affines, np.zeros(0)
        count = sum(unary.x.size for unary in eqs.unary)
        scale = [port.scale for port in ports]
        source = _concatenate([*(unary.x for unary in eqs.unary), *(port.x for port in ports)])
        target = _concatenate([*(unary.y for unary in eqs.unary), *(port.y for port in ports)])
        below = np.concatenate([none, *(unary.slope for unary in eqs.unary), *scale])
        above, offset = np.concatenate([np.ones(count), *scale]), np.zeros(source.size)
        offset[count:] = np.concatenate([none, *(port.offset for port in ports)])
        owner = np.concatenate([np.full(count, -1), np.repeat(np.arange(len(ports)), [p.x.size for p in ports])])
        order = np.argsort(source, kind="stable")
        return cls(source[order], target[order], below[order], above[order], offset[order], owner[order])


class _Search:
    def __init__(
        self,
        graph: Graph,
        equations: Equations,
        held: dict[Op, Conflict],
        released: list[Bend],
        refused: dict[Op, Conflict],
        leftovers: str,
        wanted: set[Op],
    ) -> None:
        self.leftovers, self.wanted = leftovers, wanted
        self.graph, self.equations, self.held, self.released = graph, equations, held, released
        self.refused = refused
        fallen = {id(demand) for bend in released for demand in bend.holds}
        self.pinned_ids = _concatenate([d.ids for d in equations.pins if id(d) not in fallen])
        self.held_ids = _concatenate([d.ids for d in equations.still if id(d) not in fallen])
        self.scale = Scale(equations.count)
        self._tie_scales()
        self.derived = _concatenate([left for left, _ in equations.sums])
        self.shift = Shift(self.scale, self._uses())
        self._tie_shifts()
        self.candidates = [p for p in equations.affines if self._is_candidate(p) and p.op not in held]
        self.order = {port.op: i for i, port in enumerate(equations.affines)}
        self.gone = np.zeros(len(equations.affines) + 1, bool)
        self.gone[-1] = True  # stands for ops that are no affines
        self.must_be_zero = np.zeros(equations.count, np.int64)
        self.must_be_zero[_concatenate([d.ids for d in equations.borders])] = 1
        for port in equations.affines:
            if port.op.kind == "mul":
                np.add.at(self.must_be_zero, port.x, 1)
        self.maps = _Maps.of(equations)

    def _is_candidate(self, port: AffinePort) -> bool:
        return port.op.candidate or port.op in self.wanted

    def _tie_scales(self) -> None:
        eqs, scale = self.equations, self.scale
        conflicts = [scale.join(_concatenate([a for a, _, _ in eqs.ties]), _concatenate([b for _, b, _ in eqs.ties]))]
        pins = self.pinned_ids
        conflicts.append(scale.join(pins, np.zeros_like(pins)))
        tied = [p for p in eqs.affines if p.op.reversed and (p.op in self.held or not self._is_candidate(p))]
        tied += [p for p in eqs.affines if p.op in self.held and _number(p)]
        conflicts.append(scale.join(_concatenate([p.x for p in tied]), _concatenate([p.y for p in tied])))
        conflicts.append(scale.positive(_concatenate([d.ids for d in eqs.positive])))
        assert not any(conflicts), "p = 1 solves everything that ops demand"
        for linear in eqs.linears:
            scale.add_readers(linear.x)
            scale.add_sources(linear.y)
        for affine in eqs.affines:
            scale.add_readers(affine.x)
            scale.add_sources(affine.y)
        scale.add_sources(_concatenate(eqs.sources))
        scale.add_readers(_concatenate(eqs.needed))
        scale.commit()
        scale.flatten()
        self.base = scale.parent.copy()

    def _tie_shifts(self) -> None:
        """Those that hold a shift at 0 first, then those between two, which leaves the sums with fewer terms."""
        eqs = self.equations
        muls = [p for p in eqs.affines if p.op in self.held and p.op.kind == "mul"]
        still = [x for p in muls if not _number(p) for x in (p.x, p.y)]
        self.shift.hold(np.unique(_concatenate([self.held_ids, *still])))
        rows = [(a, [(b, -1.0)]) for a, b, _ in eqs.equal]
        rows += [(p.y, [(p.x, -float(p.scale[0]))]) for p in muls if _number(p)]
        rows += [(bend.x, [(bend.y, -1.0)]) for bend in self.released]
        for some in (rows, [(left, [(part, -c) for part, c in parts]) for left, parts in eqs.sums]):
            conflict = self.shift.add(*_entries(some))
            assert conflict is None, "homogeneous equations conflict"

    def _uses(self) -> Ids:
        """In how many sums each variable stands."""
        parts = [part for _, parts in self.equations.sums for part, _ in parts]
        return np.bincount(_concatenate([self.derived, *parts]), minlength=self.equations.count)

    def run(self, gauges: dict[str, Ids | None]) -> Solution:
        """Decide about every candidate, then read off the gauges."""
        outcomes = {port.op: Outcome(port, "stays", self.held.get(port.op)) for port in self.equations.affines}
        ranked = sorted(self.candidates, key=self._rank)
        found: dict[Op, Conflict] = {}
        for port in ranked:
            conflict = self.refused.get(port.op) or self._remove(port)
            outcomes[port.op] = Outcome(port, "stays" if conflict else "gone", conflict)
            if conflict and (port.op.reversed or _number(port) or (port.op.kind == "mul" and self._hold(port))):
                found[port.op] = conflict
                if port.op.listed:
                    break
        if found:
            raise _Held(found)
        self._again(ranked, outcomes)
        for port in ranked:
            outcome = outcomes[port.op]
            if outcome.form == "stays" and port.op.kind == "bn":
                outcomes[port.op] = Outcome(port, self._reduce(port), outcome.conflict)
        self._again(ranked, outcomes)  # the scale of a norm that is an Add now may have left channels dead
        thresholds = [bend for bend in self.released if not self._straighten(bend)]
        while True:
            solution = self._solution(gauges, list(outcomes.values()), thresholds)
            fresh = [port for port in self.equations.affines if self._grows(port, outcomes[port.op], solution)]
            gone = [port for port in fresh if not port.op.reversed and self._remove(port) is None]
            if not gone and any(port.op.reversed for port in fresh):
                raise _Wanted([port.op for port in fresh if port.op.reversed])
            if not gone:
                return solution
            outcomes.update((port.op, Outcome(port, "gone")) for port in gone)

    def _again(self, ranked: list[AffinePort], outcomes: dict[Affine, Outcome]) -> None:
        """Channels that are 0 or constant go once their other readers are gone, or as soon as their own are dead."""
        grown = True
        while grown:
            grown = False
            for port in ranked:
                if outcomes[port.op].form != "stays" or port.op in self.refused or not self._lifeless(port):
                    continue
                if self._remove(port) is None:
                    outcomes[port.op], grown = Outcome(port, "gone"), True

    def _lifeless(self, port: AffinePort) -> bool:
        """Whether some channel of it is 0 or constant, in front of it or behind."""
        return bool((port.scale == 0).any()) or self.scale.special(port.x) or self.scale.special(port.y)

    def _grows(self, port: AffinePort, outcome: Outcome, s: Solution) -> bool:
        """Whether a number that is added, which nobody wanted removed, would become one for each channel."""
        if self._is_candidate(port) or port.op.kind != "add" or outcome.form == "gone" or port.op in self.held:
            return False
        offset = s.p[port.y] * port.offset + s.q[port.y] - port.scale * s.q[port.x]
        return port.x.size > 1 and not np.array_equal(offset, port.offset)

    def _straighten(self, bend: Bend) -> bool:
        """Let a Relu or a Clip be one still, where nothing needs it to carry more."""
        marks = self.scale.mark(), self.shift.mark()
        conflict = self.scale.join(bend.y, np.zeros_like(bend.y)) if bend.pins else None
        if (conflict or self.shift.require([(bend.y, 1.0)])) is None:
            self.scale.commit()
            return True
        self.shift.undo(marks[1])
        self.scale.undo(marks[0])
        return False

    def _rank(self, port: AffinePort) -> tuple[bool, int, bool, int]:
        """Norms first; most work first; at equal work the constants before the norms, which can take them up."""
        op = port.op
        return not op.listed, -self.graph.size(op.outputs[0]), op.kind == "bn", self.order[op]

    def _remove(self, port: AffinePort, shift: bool = True) -> Conflict | None:
        """Remove the affine, or (without `shift`) its scale only; nothing changes where that conflicts."""
        conflict = self._try(port, shift, kill=True)
        if conflict and (port.scale == 0).any() and self._try(port, shift, kill=False) is None:
            conflict = None
        if conflict is None and shift:
            self.gone[self.order[port.op]] = True
            if port.op.kind == "mul":
                np.add.at(self.must_be_zero, port.x, -1)
        return conflict

    def _try(self, port: AffinePort, shift: bool, kill: bool) -> Conflict | None:
        marks = self.scale.mark(), self.shift.mark()
        conflict = self._attempt(port, shift, kill)
        if conflict:
            self.shift.undo(marks[1])
            self.scale.undo(marks[0])
        else:
            self.scale.commit()
        return conflict

    def _attempt(self, port: AffinePort, shift: bool, kill: bool) -> Conflict | None:
        """Channel by channel: join the scales; where gamma is 0, kill the input or make a constant of the output."""
        x, y, scale = port.x, port.y, self.scale
        drained, known = scale.killed[y], ~np.isnan(scale.constant[x])
        dead = (port.scale == 0) | drained | known
        live = np.flatnonzero(~dead)
        conflict = scale.join(x[live], y[live], port.scale[live])
        if conflict:
            return Conflict(conflict.kind, int(live[conflict.row]))
        scale.add_readers(x, -1)
        scale.add_sources(y, -1)
        killed = self._kill(port, np.flatnonzero(dead & ~known & (drained | kill)))
        dead[killed] = False
        rest = np.flatnonzero(dead)
        # nobody reads what is drained: its value is any, what is constant lies behind the factor of 0 that drained it
        value = port.offset + port.scale * np.where(known, scale.constant[x], 0.0)
        if not self._constant(y[rest], np.where(drained, 0.0, value)[rest]):
            return Conflict("dead", int(rest[0]))
        if not shift:
            return None
        rows = np.delete(np.arange(x.size), rest)
        offset = np.where(drained, 0.0, port.offset)[rows] * scale.find(y[rows])[1]
        conflict = self.shift.require([(x[rows], 1.0), (y[rows], -1.0)], -offset)
        return Conflict(conflict.kind, int(rows[conflict.row])) if conflict else None

    def _kill(self, port: AffinePort, rows: Ids) -> Ids:
        """Those of `rows` whose input channels nobody misses any more; their scale is 0 from now on."""
        if not rows.size:
            return rows
        roots = self.scale.find(port.x[rows])[0]
        free = np.unique(roots[(roots != 0) & (self.scale.readers[roots] == 0)])
        members = self.scale.members(free)  # also those killed before: what was added to them since is in this scale
        root = self.scale.find(members)[0]
        gone = self.scale.kill(port.x[rows], port.y[rows])
        self.shift.kill(members[np.isin(root, roots[gone])])
        killed: Ids = rows[gone]
        return killed

    def _constant(self, ids: Ids, values: Vector) -> bool:
        """Let all readers of channels that are constant take the constants as bias, where they can."""
        if not ids.size:
            return True
        roots = self.scale.find(ids)[0]
        if (roots == 0).any() or self.scale.sources[roots].any() or np.unique(roots).size < roots.size:
            return False
        known, value = self._behind(ids, values)
        if known.size < self.scale.size[roots].sum() or (value[self.must_be_zero[known] > 0] != 0).any():
            return False
        self.scale.fix(known, value)
        return True

    def _behind(self, ids: Ids, values: Vector) -> tuple[Ids, Vector]:
        """Channels that are constant, and those that ops make of them alone."""
        known, found, maps = [ids], [values], self.maps
        while ids.size:
            first, end = (np.searchsorted(maps.source, ids, side) for side in ("left", "right"))
            row, x = ranges(first, end - first), np.repeat(values, end - first)
            row, x = row[self.gone[maps.owner[row]]], x[self.gone[maps.owner[row]]]
            ids, values = maps.target[row], np.where(x < 0, maps.below[row], maps.above[row]) * x + maps.offset[row]
            known.append(ids)
            found.append(values)
        return np.concatenate(known), np.concatenate(found)

    def _hold(self, port: AffinePort) -> Conflict | None:
        """A constant Mul that stays has no room for an offset."""
        return self.shift.require([(port.x, 1.0)]) or self.shift.require([(port.y, 1.0)])

    def _reduce(self, port: AffinePort) -> str:
        """The cheapest op that can stand for a norm that stays."""
        if port.op in self.refused and self.refused[port.op].kind in ("range", "centre"):
            return "stays"
        shape = self.graph.shape(port.op.outputs[0])
        if allowed(self.leftovers, "add", port.x.size, shape) and self._remove(port, shift=False) is None:
            return "add"
        if not allowed(self.leftovers, "mul", port.x.size, shape):
            return "stays"
        value = self.scale.constant[port.x]
        known, free = ~np.isnan(value), np.isnan(self.scale.constant[port.y])
        if self.scale.killed[port.x].any():
            return "stays"
        mark, (moved, decided) = self.shift.mark(), self.shift.decided(port.x)
        value = np.where(
            known, value, np.where(decided, -moved, 0.0)
        )  # what the input holds where the original holds 0
        offset = port.offset + port.scale * value
        offset = np.where(self.scale.killed[port.y], 0.0, offset) * self.scale.find(port.y)[1]
        still = port.x[~known & ~decided]
        if self.shift.require([(still, 1.0)]) or self.shift.require([(port.y[free], 1.0)], offset[free]):
            self.shift.undo(mark)
            return "stays"
        return "mul"

    def _solution(self, gauges: dict[str, Ids | None], outcomes: list[Outcome], thresholds: list[Bend]) -> Solution:
        everything = np.arange(self.equations.count)
        root, ratio = self.scale.find(everything)
        unit = self._units(root, ratio, gauges)
        killed, constant = self.scale.killed, ~np.isnan(self.scale.constant)
        p = np.where(killed, 0.0, np.where(constant, 1.0, ratio / unit[root]))
        q = np.where(constant, 0.0, self.shift.values(self._order()) / unit[root])
        p[self.pinned_ids] = 1.0  # what holds in real numbers holds to the last bit
        q[self.held_ids] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            u = np.where(constant, 0.0, 1.0 / p)
            t = np.where(constant, self.scale.constant, -q / p)
        t[q == 0] = np.where(constant, self.scale.constant, 0.0)[q == 0]
        return Solution(self.equations, gauges, outcomes, p, q, u, t, constant, thresholds, self.base)

    def _order(self) -> Iterator[Ids]:
        """The variables whose shifts are set to 0 where nothing decides them, late ones first; no sums of others.

        Before all, a product needs no bias where it has none of its own.
        """
        derived = np.zeros(self.equations.count, bool)
        derived[self.derived] = True
        for side in (side for port in self.equations.linears if port.op.grows for side in (port.x, port.y)):
            yield np.unique(side[~derived[side]])
        yield from (block[::-1] for block in reversed(self.equations.blocks) if block.size and not derived[block[0]])

    def _units(self, root: Ids, ratio: Vector, gauges: dict[str, Ids | None]) -> Vector:
        """For each root the ratio that becomes p = 1: it leaves most tensors as they were; the last of equals.

        Where the sign of the root is demanded, p = -1 may be the best that there is.
        """
        uses = np.zeros(root.size, np.int64)
        for ids in gauges.values():
            if ids is not None:
                uses[ids.ravel()] += 1  # once for each tensor, however often it repeats a variable
        uses[self.scale.killed] = 0
        order = np.lexsort((ratio, root))
        new_run = np.diff(root[order], prepend=-1) != 0
        new_run |= np.diff(ratio[order], prepend=np.nan) != 0
        run = np.cumsum(new_run) - 1
        votes = np.bincount(run, uses[order])
        last = np.zeros(votes.size, np.int64)
        np.maximum.at(last, run, order)
        run_root, run_ratio = root[order][new_run], ratio[order][new_run]
        best = np.lexsort((last, votes, run_root))
        unit = np.ones(root.size)
        unit[run_root[best]] = run_ratio[best]  # of repeated indices the last, the best, stays
        wrong = self.scale.sign * np.sign(unit) < 0
        unit[wrong] *= -1
        unit[0] = 1.0
        return unit


def _entries(equations: list[tuple[Ids, list[tuple[Ids, float]]]]) -> tuple[Ids, Ids, Vector, Vector]:
    """Rows, variables and coefficients of `q_left + sum coef * q_part = 0`, and the right sides."""
    size = [left.size for left, _ in equations]
    first = np.cumsum([0, *size])
    row = [np.tile(np.arange(a, b), 1 + len(e[1])) for (a, b), e in zip(pairwise(first), equations, strict=True)]
    parts = [(left.ravel(), [1.0, *(c for _, c in more)]) for left, more in equations]
    coef = [np.repeat(c, left.size) for left, c in parts]
    var = [ids for left, more in equations for ids in (left, *(part for part, _ in more))]
    return _concatenate(row), _concatenate(var), np.concatenate([np.zeros(0), *coef]), np.zeros(first[-1])


def _concatenate(parts: list[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, np.int64), *(part.ravel() for part in parts)])
