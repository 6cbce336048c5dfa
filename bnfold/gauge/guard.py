"""The precision guard: which removals would cost too many digits.

A batch norm knows of its own input that it has mean `mean` and deviation `sqrt(var)`. Where the folded model holds
`p*x + q`, the signal sits at `mean + q/p`, and every reader loses about `|mean + q/p| / sqrt(var)` in relative
precision. That matters where a tensor has several readers: the one who asked for the shift gets what it had before,
the others do not. It matters too where nobody moves a mean that is far from zero: the layer behind the norm then adds
up values that nearly cancel, which the norm had centred before. The default limit comes from the measurement in
docs/precision.md.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import numpy.typing as npt

from ..graph import Graph, Op
from ..limits import LEFTOVERS
from .equations import AffinePort, Vector
from .rules import build
from .scale import Conflict
from .solve import Outcome, Solution, solve

GONE = ("gone", "max", "clip")
WEIGHTS = -1
"""In place of a channel: the weights beside a norm are why it stays."""


def solve_within(graph: Graph, limit: float, leftovers: str = LEFTOVERS[0], strained: Container[str] = ()) -> Solution:
    """Remove as many norms as the rules allow, and as precision allows, and find the gauge that does it.

    `strained`: outputs of norms that stay, since the weights that would take them up do not fit their type.
    """
    equations, gauges = build(graph)
    refused = {op: Conflict("range", WEIGHTS) for op in graph.ops if strained and op.outputs[:1][0] in strained}
    while True:
        solution = solve(graph, equations, gauges, refused, leftovers)
        found = too_costly(solution, limit, graph.octaves)
        if not set(found) - set(refused):
            return solution
        refused.update(found)


def too_costly(solution: Solution, limit: float, octaves: float) -> dict[Op, Conflict]:
    """The removals to take back, with the channel at which each costs too much.

    `limit`: the largest cost at a shared tensor, unless the original's own is a third of that or more; elsewhere the
    largest in front of a norm that goes and leaves the mean where it is, unless what comes out of the norm costs a
    third of that or more. `octaves`: how far, as a power of two, both sides of a norm may be from the scale they had.
    """
    shared = _shared(solution)
    bad = np.zeros(solution.base.size, bool)
    for outcome in solution.outcomes:
        rows = np.flatnonzero(_violations(outcome, solution, shared, limit))
        bad[solution.base[outcome.port.x[rows]]] = True
    found = _out_of_range(solution, octaves)
    if bad.any():
        found.update(_culprits(solution, bad))
    return found


def _shared(solution: Solution) -> npt.NDArray[np.bool_]:
    """For each group of variables of one scale, whether several layers or norms read it."""
    count = np.zeros(solution.base.size, np.int64)
    eqs = solution.equations
    for x in [port.x for port in eqs.linears] + [port.x for port in eqs.affines]:
        count[solution.base[x]] += 1  # once for each reader, however often it repeats a variable
    shared: npt.NDArray[np.bool_] = count > 1
    return shared


def _violations(outcome: Outcome, s: Solution, shared: npt.NDArray[np.bool_], limit: float) -> npt.NDArray[np.bool_]:
    port, known = outcome.port, outcome.port.op.statistics
    if known is None:
        return np.zeros(port.x.size, bool)
    deviation = np.sqrt(known.var + known.eps)
    held = (s.p[port.x] != 0) & ~s.constant[port.x]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where(held, s.q[port.x] / s.p[port.x], 0.0)
        behind = np.nan_to_num(np.abs(known.mean + port.offset / port.scale) / deviation, posinf=0.0)  # |beta / gamma|
    costs = np.abs(known.mean + moved) / deviation
    together = shared[s.base[port.x]]
    before = np.abs(known.mean) / deviation
    left_there = (outcome.form in GONE) & (np.abs(moved) < np.abs(known.mean) / 2) & (costs > 3 * behind)
    violations: npt.NDArray[np.bool_] = held & (costs > limit) & np.where(together, costs > 3 * before, left_there)
    return violations


def far(port: AffinePort, s: Solution, limit: float) -> bool:
    """Whether a norm's input, as the folded model holds it, lies over `limit` deviations from 0 in some channel."""
    known = port.op.statistics
    if known is None:
        return False
    held = (s.p[port.x] != 0) & ~s.constant[port.x]
    x, deviation = port.x[held], np.sqrt(known.var + known.eps)[held]
    return bool((np.abs(known.mean[held] + s.q[x] / s.p[x]) > limit * deviation).any())


def _culprits(s: Solution, bad: npt.NDArray[np.bool_]) -> dict[Op, Conflict]:
    """Of the norms that are gone at bad channels, those that ask for the largest shifts there."""
    asked = {o.port.op: _asked(o, s, bad) for o in s.outcomes if o.form in GONE}
    worst = np.zeros(s.base.size)
    for outcome in s.outcomes:
        if outcome.port.op in asked:
            np.maximum.at(worst, s.base[outcome.port.x], asked[outcome.port.op])
    found: dict[Op, Conflict] = {}
    for outcome in s.outcomes:
        size = asked.get(outcome.port.op)
        if size is not None:
            rows = np.flatnonzero((size > 0) & (2 * size >= worst[s.base[outcome.port.x]]))
            if rows.size:
                found[outcome.port.op] = Conflict("precision", int(rows[0]))
    return found


def _asked(outcome: Outcome, s: Solution, bad: npt.NDArray[np.bool_]) -> Vector:
    """By how much of its deviation each norm wants its input moved from where it is, at bad channels."""
    port, known = outcome.port, outcome.port.op.statistics
    deviation = np.ones(port.x.size) if known is None else np.sqrt(known.var + known.eps)
    mean = np.zeros(port.x.size) if known is None else known.mean
    with np.errstate(divide="ignore", invalid="ignore"):
        asked = np.abs(mean + port.offset / port.scale) / deviation
    return np.where(bad[s.base[port.x]] & (port.scale != 0), asked, 0.0)


def _out_of_range(s: Solution, octaves: float) -> dict[Op, Conflict]:
    """Norms that are gone between tensors which both left the scale that they had by too much."""
    found: dict[Op, Conflict] = {}
    with np.errstate(divide="ignore"):
        away = np.abs(np.log2(np.abs(s.p)))
    away[(s.p == 0) | s.constant] = 0.0
    for outcome in s.outcomes:
        far = np.minimum(away[outcome.port.x], away[outcome.port.y])
        if outcome.form != "stays" and outcome.form != "mul" and far.max(initial=0.0) > octaves:
            found[outcome.port.op] = Conflict("range", int(far.argmax()))
    return found
