"""Biases that products do not have: an addition behind a product without bias is what a bias is.

A MatMul has no room for a bias, so an offset that it would take has nowhere to go. It may get an addition of its own
where at least as many norms go for it as additions come: `inv * (W x) + shift = (diag(inv) W) x + shift`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from ..graph import Graph, Linear, Op
from .branch import Cut
from .equations import AffinePort, Ids, LinearPort
from .scale import Scale
from .solve import Outcome, Solution

STUCK = frozenset({"shift", "dead"})
"""What a bias may help: an offset, or a constant channel, that has nowhere to go."""
BETTER = frozenset({"gone", "max", "clip"})
"""Forms of norms that leave no op of their own."""


def with_biases(made: Cut, solution: Solution, solve: Callable[[Graph], Solution]) -> tuple[Solution, Cut]:
    """The solution and its graph, with biases for products where norms go for them; as given where none do."""
    stuck = {op: o.conflict for op, o in _norms(solution).items() if o.form not in BETTER}
    helped = any(conflict is not None and conflict.kind in STUCK for conflict in stuck.values())
    offered = {op for op in made.graph.ops if helped and isinstance(op, Linear) and op.grows and not op.takes_bias}
    while offered:
        cut = _given(made, offered)
        second = solve(cut.graph)
        gained = [o for op, o in _norms(second).items() if op in stuck and o.form in BETTER]
        used = [port for port in second.equations.linears if _uses(port, second)]
        bad = {cut.origin[port.op] for port in _too_many(used, gained, second)}
        lost = sum(o.form not in BETTER for op, o in _norms(second).items() if op not in stuck)
        if not bad:
            return (second, _composed(made, cut)) if len(gained) > lost else (solution, made)
        offered = offered - bad
    return solution, made


def _norms(solution: Solution) -> dict[Op, Outcome]:
    return {o.port.op: o for o in solution.outcomes if o.port.op.listed and o.port.op.candidate}


def _given(made: Cut, offered: Collection[Op]) -> Cut:
    """The graph in which the products have biases; `origin` leads to the products of the graph before."""
    new = {op: replace(op, takes_bias=True) for op in made.graph.ops if isinstance(op, Linear) and op in offered}
    graph = replace(made.graph, ops=[new.get(op, op) if isinstance(op, Linear) else op for op in made.graph.ops])
    return Cut(graph, {product: op for op, product in new.items()}, made.branches)


def _composed(made: Cut, cut: Cut) -> Cut:
    """`origin` leads to the ops of the first graph of all."""
    later = {product: made.origin.get(op, op) for product, op in cut.origin.items()}
    return replace(cut, origin={**made.origin, **later})


def _uses(port: LinearPort, s: Solution) -> bool:
    """Whether a product has a bias that it did not have."""
    return port.op.grows and port.op.takes_bias and bool(s.q[port.y].any() or s.t[port.x].any())


def _too_many(used: list[LinearPort], gained: list[Outcome], s: Solution) -> list[LinearPort]:
    """The products that belong to groups in which more biases come than norms go."""
    near = _near(used, s)
    ports: list[LinearPort | AffinePort] = [*used, *(outcome.port for outcome in gained)]
    place = [int(near[np.concatenate([port.x, port.y])].max()) for port in ports]
    biases, norms = Counter(place[: len(used)]), Counter(place[len(used) :])
    return [port for port, group in zip(used, place, strict=False) if norms[group] < biases[group]]


def _near(used: list[LinearPort], s: Solution) -> Ids:
    """The group of each variable: tensors that shifts reach from one another; 0 for what stays as it is."""
    eqs, groups = s.equations, Scale(s.base.size)
    ports: list[LinearPort | AffinePort] = [*used, *(o.port for o in s.outcomes if o.form in BETTER)]
    pairs = [(left, part) for left, parts in eqs.sums for part, _ in parts] + [(a, b) for a, b, _ in eqs.equal]
    for ids in (np.concatenate([port.x, port.y]) for port in ports):
        held = ids[ids != 0]
        pairs.append((np.broadcast_to(held[:1], held.shape), held))
    for a, b in pairs:
        both = (a != 0) & (b != 0)
        groups.join(a[both], b[both])
    groups.commit()
    found: Ids = groups.find(np.arange(s.base.size))[0]
    return found
