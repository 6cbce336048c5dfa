"""From a neutral graph to a plan: solve the gauges, read off edits, verdicts and reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...limits import LEFTOVERS, PRECISION_LIMIT
from ..graph import Affine, Fault, Graph, Linear, Op, Opaque, Reason, Reshape, Transpose, internal
from ..plan import BatchNorm, Conditioning, Edit, Merge, OtherNorm, Plan, Remove, Replace, Rescale
from .branch import Branch, Cut, cut, find, taps
from .depthwise import with_layers
from .equations import AffinePort, Bend, BoundPort, Ids, LinearPort, Vector
from .explain import Explainer
from .guard import GONE, off_centre, solve_within
from .offered import with_biases
from .scale import Conflict
from .shift import ranges
from .solve import Outcome, Solution

LRN_TYPES = frozenset({"LRN"})


def plan(
    graph: Graph, precision_limit: float = PRECISION_LIMIT, leftovers: str = LEFTOVERS[0],
    strained: Container[str] = (),
) -> Plan:  # fmt: skip
    """What becomes of every norm of a graph. No weight is read.

    `precision_limit`: see `gauge.guard`. `leftovers`: see `gauge.leftovers`. `strained`: outputs of norms that stay,
    since the weights that would take them up do not fit their type.
    """
    chosen, made = _chosen(graph, precision_limit, leftovers, strained)
    chosen = with_layers(made.graph, _blamed(graph, chosen, precision_limit), leftovers, precision_limit)
    return _planned(graph, chosen, made)


def plan_that_fits(
    graph: Graph, precision_limit: float, leftovers: str, layers: Callable[[Plan], Collection[str]]
) -> Plan:
    """A plan whose new weights fit their types. `layers`: those of a plan whose weights do not, by name.

    The norms that go into these stay.
    """
    strained: frozenset[str] = frozenset()
    while True:
        made = plan(graph, precision_limit, leftovers, strained)
        bad = set(layers(made))
        found = {norm.output for norm in made.batch_norms if norm.verdict != "kept" and bad & set(norm.into)}
        if found <= strained:
            return made
        strained |= found


def gauges(
    graph: Graph, precision_limit: float = PRECISION_LIMIT, leftovers: str = LEFTOVERS[0]
) -> dict[str, tuple[Vector, Vector]]:
    """How the model that `plan` makes holds each tensor: `p*v + q`, both shaped to broadcast with it."""
    chosen, _ = _chosen(graph, precision_limit, leftovers)
    return {name: (chosen.p[ids], chosen.q[ids]) for name, ids in chosen.gauges.items() if ids is not None}


def _chosen(graph: Graph, limit: float, leftovers: str, strained: Container[str] = ()) -> tuple[Solution, Cut]:
    """The solution, and the graph that it solves: with identity branches cut out and biases given to products."""
    solution = solve_within(graph, limit, leftovers, strained)
    shortened = _without_branches(graph, solution, limit, leftovers, strained)
    chosen, made = shortened or (solution, Cut(graph, {}, []))
    if leftovers == "none":
        return chosen, made
    return with_biases(made, chosen, lambda with_more: solve_within(with_more, limit, leftovers, strained))


def _without_branches(
    graph: Graph, solution: Solution, limit: float, leftovers: str, strained: Container[str] = ()
) -> tuple[Solution, Cut] | None:
    """The solution with identity branches cut out, where norms stay on such branches and more go that way."""
    stuck = {outcome.port.op for outcome in solution.outcomes if outcome.form != "gone" and outcome.port.op.listed}
    branches = find(graph) if stuck else []
    useful = [branch for branch in branches if stuck & set(branch.norms) and not _off_centre(branch, limit)]
    if not useful:
        return None
    made = cut(graph, useful)
    second = solve_within(made.graph, limit, leftovers, strained)
    gone = [
        sum(o.form == "gone" and o.port.op.candidate and o.port.op.listed for o in s.outcomes)
        for s in (solution, second)
    ]
    return (second, made) if gone[1] + sum(len(branch.norms) for branch in useful) > gone[0] else None


def _off_centre(branch: Branch, limit: float) -> dict[Op, int]:
    """The norms of a branch's copy of the input whose mean the layer should not have to take out, and a channel."""
    found: dict[Op, int] = {}
    for norm in branch.norms:
        if norm.inputs[0] == branch.form.base:
            others = [other for other in branch.norms if other is not norm and other.scale.size == norm.scale.size]
            rows = off_centre(norm, limit, np.sqrt(sum((_gamma(other) ** 2 for other in others), np.zeros(1))))
            if rows.any():
                found[norm] = int(rows.argmax())
    return found


def _gamma(op: Affine) -> Vector:
    """The deviation of a batch norm's output; 0 where its input is not known."""
    known = op.statistics
    return np.zeros(1) if known is None else np.abs(op.scale) * np.sqrt(known.var + known.eps)


def _blamed(graph: Graph, solution: Solution, limit: float) -> Solution:
    """The solution with precision for the reason of norms that stay on branches which a layer could take up."""
    stays = [o for o in solution.outcomes if o.form != "gone" and o.port.op.statistics is not None]
    if not stays:
        return solution
    costly = {norm: row for branch in find(graph) for norm, row in _off_centre(branch, limit).items()}
    outcomes = [
        replace(o, conflict=Conflict("centre", costly[o.port.op])) if o in stays and o.port.op in costly else o
        for o in solution.outcomes
    ]
    return replace(solution, outcomes=outcomes)


def _planned(graph: Graph, solution: Solution, made: Cut) -> Plan:
    """The plan for `graph`, of which `made` was solved."""
    index = {op: i for i, op in enumerate(graph.ops)}
    index.update((new, index[old]) for new, old in made.origin.items())
    tapped: dict[Op, list[Vector]] = {op: vectors for branch in made.branches for op, *vectors in taps(branch)}
    linears = [
        (port, edit)
        for port in solution.equations.linears
        if (edit := _rescale(port, index[port.op], solution, tapped.get(made.origin.get(port.op, port.op))))
    ]
    affines = {outcome.port.op: _affine_edit(outcome, index, solution) for outcome in solution.outcomes}
    edits: list[Edit] = [edit for _, edit in linears] + [edit for edit in affines.values() if edit]
    edits += [_threshold(bend, index[bend.op], solution) for bend in solution.thresholds]
    bounds = [_bound(port, index[port.op], solution) for port in solution.equations.bounds]
    edits += [edit for edit in bounds if (edit.scale != 1).any() or edit.offset.any()]
    edits += [_merge(branch, index) for branch in made.branches]
    into = _Into(solution, [port for port, _ in linears])
    explainer = Explainer(made.graph, solution)
    outcomes: dict[Op, Outcome] = {outcome.port.op: outcome for outcome in solution.outcomes}
    branched = {norm: branch for branch in made.branches for norm in branch.norms}
    norms = [
        _in_branch(op, branched[op]) if op in branched else _verdict(op, outcomes.get(op), solution, into, explainer)
        for op in graph.ops
    ]
    biases = _biases(graph)
    listed = tuple(norm for op, norm in zip(graph.ops, norms, strict=True) if norm and op not in biases)
    lrns = [op for op in graph.ops if isinstance(op, Opaque) and op.type in LRN_TYPES]
    others = [OtherNorm(op.name, op.type, op.inputs[0], op.outputs[0]) for op in lrns]
    return Plan(
        graph.name,
        listed,
        tuple(others),
        tuple(sorted(edits, key=lambda edit: edit.op)),
        notes=(*(() if listed else _numbers(graph, edits)), *_faults(graph.faults.values())),
        moved=tuple(sorted(name for name in graph.annotated if _moves(name, solution))),
    )


def _biases(graph: Graph) -> set[Op]:
    """Additions behind dense layers, on the same elements however shaped, which are their biases and no norms."""
    made: dict[str, Op] = {}
    found: set[Op] = set()
    for op in graph.ops:
        if isinstance(op, Reshape | Transpose) and op.inputs[0] in made:
            made[op.outputs[0]] = made[op.inputs[0]]
        elif isinstance(op, Linear) and not op.conv and not (op.takes_bias and op.biased):
            made[op.outputs[0]] = op
        elif isinstance(op, Affine) and op.type == "Add" and op.kind == "add" and op.inputs[0] in made:
            found.add(op)
    return found


def _numbers(graph: Graph, edits: list[Edit]) -> tuple[str, ...]:
    """What is changed in a model of which no norm is listed: numbers and biases that layers beside them take up."""
    gone = [graph.ops[edit.op] for edit in edits if isinstance(edit, Remove)]
    names = [f"{op.type} {op.name}" for op in gone if isinstance(op, Affine)]
    rest = [edit.name for edit in edits if not isinstance(edit, Remove)]
    if not edits:
        return ()
    what = f"{_some(names)} went into {_some(rest)}" if names else f"{_some(rest)} changed"
    one = all(not isinstance(op, Affine) or op.scale.size == 1 for op in gone)
    return (f"no batch norms, but constants{' that are one number' if one else ''}: {what}",)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _faults(faults: Iterable[Fault]) -> tuple[str, ...]:
    """A note for each kind of fault; one operator fails the same way wherever it stands."""
    names: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        names.setdefault((fault.type, fault.error), []).append(fault.name)
    return tuple(
        f"{kind} {_some(where)} could not be handled ({error}), so what is next to it stays: a fault of bnfold, "
        "please report it with this model"
        for (kind, error), where in names.items()
    )


def _moves(name: str, s: Solution) -> bool:
    """Whether the folded model holds other values in a tensor."""
    ids = s.gauges.get(name)
    return ids is not None and not _trivial(ids, s)


def _merge(branch: Branch, index: dict[Op, int]) -> Merge:
    """The layers of a branch alone compute it."""
    layers = tuple(index[layer] for layer in branch.layers)
    drop = tuple(index[op] for op in branch.form.ops if op is not branch.root)
    return Merge(index[branch.root], branch.root.name, layers, drop)


def _in_branch(op: Op, branch: Branch) -> BatchNorm:
    """The entry of a norm that went into the layers of a branch."""
    assert isinstance(op, Affine)
    known = op.statistics
    dead = int((op.scale == 0).sum())
    cost = None if known is None else _largest(np.abs(known.mean) / np.sqrt(known.var + known.eps))
    least = None if known is None else float((known.var + known.eps).min())
    names = tuple(layer.name for layer in branch.layers)
    return BatchNorm(
        op.name, op.type, op.inputs[0], op.outputs[0], op.scale.size, "folded", "", names, None,
        Conditioning(least, dead, cost, cost),
    )  # fmt: skip


def _rescale(port: LinearPort, index: int, s: Solution, tapped: list[Vector] | None) -> Rescale | None:
    """The edit of a linear op, or None when its gauges are trivial. `tapped`: what it takes up of its own input."""
    vectors = [
        _unless(s.p[port.y], 1.0),
        _unless(s.q[port.y], 0.0),
        _unless(s.u[port.x], 1.0),
        _unless(s.t[port.x], 0.0),
    ]
    if tapped is None and all(v is None for v in vectors):
        return None
    return Rescale(index, port.op.name, *vectors, *(tapped or []))


def _trivial(ids: Ids, s: Solution) -> bool:
    """Whether the folded model holds these values as the original does."""
    return bool((s.p[ids] == 1).all() and (s.q[ids] == 0).all())


def _unless(vector: Vector, value: float) -> Vector | None:
    return None if (vector == value).all() else vector


def _affine_edit(outcome: Outcome, index: dict[Op, int], s: Solution) -> Edit | None:
    """What an affine becomes: nothing, a cheaper op, or itself with other numbers."""
    port = outcome.port
    op, x, y = port.op, port.x, port.y
    if outcome.form in GONE:
        return Remove(index[op], op.name, "input" if _trivial(x, s) and not _trivial(y, s) else "output")
    if outcome.form == "add" or op.kind == "add":
        sign = port.scale if op.reversed else np.ones(port.scale.size)
        offset = np.where(s.constant[y], 0.0, s.p[y] * port.offset + s.q[y] - sign * s.q[x])
        if op.kind == "add" and np.array_equal(offset, port.offset):
            return None
        return Replace(index[op], op.name, "add", port.axis, sign, offset)
    if outcome.form == "stays" and op.kind == "mul" and not op.listed:
        return None  # a single number lets everything through as it is
    scale = s.p[y] * port.scale * s.u[x]
    offset = s.p[y] * (port.scale * s.t[x] + port.offset) + s.q[y]
    if outcome.form == "mul" or op.kind == "mul":
        if op.kind == "mul" and np.array_equal(scale, port.scale):
            return None
        return Replace(index[op], op.name, "mul", port.axis, scale, np.zeros(scale.size))
    if outcome.form == "conv":
        return Replace(index[op], op.name, "conv", port.axis, scale, offset)
    if np.array_equal(scale, port.scale) and np.array_equal(offset, port.offset):
        return None
    known = op.statistics
    centre = None if known is None else np.where(s.constant[x], 0.0, s.p[x] * known.mean + s.q[x])
    return Replace(index[op], op.name, "bn", port.axis, scale, offset, centre)


def _threshold(bend: Bend, index: int, s: Solution) -> Replace:
    """A Relu becomes `max(x', q)`, a Clip `min(max(x', p*low + q), p*high + q)`."""
    return Replace(index, bend.op.name, "clip" if bend.pins else "max", bend.axis, s.p[bend.y], s.q[bend.y])


def _bound(port: BoundPort, index: int, s: Solution) -> Replace:
    """A constant c becomes `p*c + q`; one that is added, `p*c + q_out - q_in`."""
    offset = s.q[port.y] - s.q[port.x] if port.op.adds else s.q[port.y]
    return Replace(index, port.op.name, "constant", port.axis, s.p[port.y], offset)


@dataclass
class _Into:
    """Finds the edited linear ops next to a norm: those whose channels reach it through ops that carry scale."""

    solution: Solution
    ports: list[LinearPort]

    def __post_init__(self) -> None:
        base = self.solution.base
        labels = [base[_touched(port, self.solution)] for port in self.ports]
        # channels with the same neighbours are told by the sum of scattered numbers, one for each linear op
        token = _scramble(np.arange(1, len(labels) + 1, dtype=np.uint64))
        self.key = np.zeros(base.size, np.uint64)
        for label, number in zip(labels, token, strict=True):
            self.key[label] += number  # once for each linear op, however often it repeats a channel
        self.key[0] = 0
        each = [np.unique(label) for label in labels]
        channel = np.concatenate([np.zeros(0, np.int64), *each])
        order = np.argsort(channel, kind="stable")
        self.channel = channel[order]
        self.linear = np.repeat(np.arange(len(each)), [label.size for label in each])[order]
        self.gone: dict[str, list[AffinePort]] = defaultdict(list)
        for outcome in self.solution.outcomes:
            if outcome.form in GONE:
                for name in {*outcome.port.op.inputs, *outcome.port.op.outputs}:
                    self.gone[name].append(outcome.port)

    def __call__(self, port: AffinePort) -> tuple[str, ...]:
        near = self._near(np.concatenate([port.x, port.y]))
        found = near or self._near(np.concatenate([port.x, port.y, *self._neighbours(port)]))
        return tuple(dict.fromkeys(found))

    def _neighbours(self, port: AffinePort) -> list[Ids]:
        """The far sides of the norms that stood in a row with this one and are gone too."""
        row, wanted = dict[Op, AffinePort](), [*port.op.inputs, *port.op.outputs]
        seen = set(wanted)
        while wanted:
            for other in self.gone[wanted.pop()]:
                row[other.op] = other
                more = {*other.op.inputs, *other.op.outputs} - seen
                wanted += more
                seen |= more
        return [ids for other in row.values() for ids in (other.x, other.y)]

    def _near(self, ids: Ids) -> tuple[str, ...]:
        mine = self.solution.base[ids]
        key, first = np.unique(self.key[mine], return_index=True)
        channels = mine[first[key != 0]]
        begin, end = (np.searchsorted(self.channel, channels, side) for side in ("left", "right"))
        linears = np.unique(self.linear[ranges(begin, end - begin)]).tolist()
        return tuple(self.ports[linear].op.name for linear in linears)


def _touched(port: LinearPort, s: Solution) -> Ids:
    """The sides on which a layer was changed."""
    sides = [ids for ids in (port.x, port.y) if not _trivial(ids, s)]
    return np.concatenate(sides or [port.x, port.y])


def _scramble(number: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scatter numbers over 64 bits. Source: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    number = number * np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


def _verdict(op: Op, outcome: Outcome | None, s: Solution, into: _Into, explainer: Explainer) -> BatchNorm | None:
    """The entry of one op in the plan's list, or None where it is no norm."""
    if isinstance(op, Opaque) and op.reason:
        source, target = (op.inputs[0], op.outputs[0]) if op.inputs else op.where
        return BatchNorm(op.name, op.type, source, target, op.channels, "kept", reason=op.reason)
    if not isinstance(op, Affine) or not op.candidate or not op.listed:
        return None
    if outcome is None:
        return _misfit(op, explainer.graph) if op.kind == "bn" else None
    verdict = {"gone": "folded", "stays": "kept"}.get(outcome.form, "reduced")
    reason = explainer.reason(outcome)
    if reason and verdict == "reduced":
        reason = replace(reason, hint="")
    return BatchNorm(
        op.name,
        op.type,
        op.inputs[0],
        op.outputs[0],
        op.scale.size,
        verdict,
        outcome.form if verdict == "reduced" else "",
        into(outcome.port) if outcome.form not in ("stays", "conv") else (),
        reason,
        _conditioning(outcome.port, s),
    )


def _misfit(op: Affine, graph: Graph) -> BatchNorm:
    """The entry of a norm whose vectors do not belong to its input, or that a rule tripped over."""
    count, fault = op.scale.size, graph.faults.get(op.outputs[0])
    text = f"its vectors are for {count} channels, and its input has others" if count else "it has no channels"
    reason = internal(fault) if fault else Reason("bad-statistics", text, op.name)
    return BatchNorm(op.name, op.type, op.inputs[0], op.outputs[0], count, "kept", reason=reason)


def _conditioning(port: AffinePort, s: Solution) -> Conditioning:
    dead = int((port.scale == 0).sum())
    known = port.op.statistics
    if known is None:
        return Conditioning(dead_channels=dead)
    deviation = np.sqrt(known.var + known.eps)
    live = s.p[port.x] != 0
    moved = np.abs(known.mean + np.where(live, _moved(port.x, s), 0.0)) / deviation
    return Conditioning(
        float(deviation.min() ** 2), dead, _largest(moved[live]), _largest(np.abs(known.mean) / deviation)
    )


def _moved(x: Ids, s: Solution) -> Vector:
    """q/p: by how much the folded model moves the values, in the original's units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        moved: Vector = s.q[x] / s.p[x]
    return moved


def _largest(values: Vector) -> float | None:
    return float(values.max()) if values.size else None
