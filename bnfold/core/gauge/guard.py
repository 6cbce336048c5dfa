"""The precision guard: which removals would cost too many digits.

A batch norm knows of its own input that it has mean `mean` and deviation `sqrt(var)`. Where the folded model holds
`p*x + q`, the signal sits at `mean + q/p`, and every reader loses about `|mean + q/p| / sqrt(var)` in relative
precision. That matters where a tensor has several readers: the one who asked for the shift gets what it had before,
the others do not. It matters too where nobody moves a mean that is far from zero: the layer behind the norm then adds
up values that nearly cancel, which the norm had centred before. The default limit comes from the measurement in
docs/precision.md.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ...limits import LEFTOVERS
from ..graph import Affine, Graph, Op
from .chains import Chain, chains_of
from .equations import AffinePort, Vector
from .rules import build
from .scale import Conflict
from .solve import Outcome, Solution, solve

GONE = ("gone", "max", "clip")
FAINT = 2.0**-40
"""A channel that holds so much less than the norm's largest carries nothing, whatever digits it loses."""
WEIGHTS = -1
"""In place of a channel: the weights beside a norm are why it stays."""


def solve_within(graph: Graph, limit: float, leftovers: str = LEFTOVERS[0], strained: Container[str] = ()) -> Solution:
    """Remove as many norms as the rules allow, and as precision allows, and find the gauge that does it.

    `strained`: outputs of norms that stay, since the weights that would take them up do not fit their type.
    """
    equations, gauges = build(graph)
    chains = chains_of(graph, equations)
    refused = {op: Conflict("range", WEIGHTS) for op in graph.ops if strained and op.outputs[:1][0] in strained}
    while True:
        solution = solve(graph, equations, gauges, refused, leftovers)
        found = too_costly(solution, chains, limit, graph.octaves)
        if not set(found) - set(refused):
            return solution
        refused.update(found)


def too_costly(solution: Solution, chains: Mapping[Op, Chain], limit: float, octaves: float) -> dict[Op, Conflict]:
    """The removals to take back, with the channel at which each costs too much.

    `chains`: by their first op. `limit`: the largest cost at a shared tensor, unless the original's own is a third of
    that or more; elsewhere the largest in front of a norm that goes and leaves the mean where it is, unless what comes
    out of the norm costs a third of that or more. `octaves`: how far, as a power of two, both sides of a norm may be
    from the scale they had.
    """
    shared = _shared(solution)
    sharpest, _ = _sharpest(solution, chains)
    bad = np.zeros(solution.base.size, bool)
    found = _out_of_range(solution, octaves)
    for outcome in solution.outcomes:
        port, chain = outcome.port, chains.get(outcome.port.op)
        if chain is None:
            continue
        together = shared[solution.base[port.x]]
        over = together & _moved_too_far(port, chain, solution, chains, sharpest, limit)
        bad[solution.base[port.x[over]]] = True
        left = np.flatnonzero(_left_too_far(outcome, solution, limit))
        if left.size:
            found[port.op] = Conflict("centre", int(left[0]))
    if bad.any():
        found.update(_culprits(solution, chains, bad))
    return found


def off_centre(op: Affine, limit: float, beside: Vector | float = 0.0) -> npt.NDArray[np.bool_]:
    """Where a layer that takes a batch norm up would have to take a mean out that costs more than `limit`.

    It is left to the norm unless what comes out of the norm, `|beta / gamma|`, costs a third of that or more. `beside`:
    the deviation of what is added to the norm's output.
    """
    known = op.statistics
    if known is None:
        return np.zeros(op.scale.size, bool)
    size = np.sqrt(op.scale**2 * (known.var + known.eps) + np.square(beside))
    cost, behind = np.abs(known.mean * op.scale), np.abs(known.mean * op.scale + op.offset)
    tells = cost > FAINT * size.max(initial=0.0)
    off: npt.NDArray[np.bool_] = (cost > limit * size) & (cost > 3 * behind) & tells
    return off


def _sharpest(s: Solution, chains: Mapping[Op, Chain]) -> tuple[Vector, Vector]:
    """Scale and offset of the norm that tells of the narrowest deviation, for each group of variables of one scale."""
    scale, offset = np.zeros(s.base.size), np.zeros(s.base.size)
    for chain in chains.values():
        label = s.base[chain.ports[0].x]
        rows = np.abs(chain.scale) > np.abs(scale[label])
        scale[label[rows]], offset[label[rows]] = chain.scale[rows], chain.offset[rows]
    return np.abs(scale), np.where(scale < 0, -offset, offset)


def _far_from_all(
    port: AffinePort, s: Solution, chains: Mapping[Op, Chain], sharpest: Vector, limit: float
) -> npt.NDArray[np.bool_]:
    """Where the input of a port is moved to what costs every norm too much whose deviation is to be trusted.

    That is one that is not `limit` times as wide as the narrowest.
    """
    label, moved = s.base[port.x], _moved(port, s)
    far: npt.NDArray[np.bool_] = np.isfinite(moved)
    for chain in chains.values():
        scale, offset = np.zeros(s.base.size), np.zeros(s.base.size)
        mine = s.base[chain.ports[0].x]
        scale[mine], offset[mine] = chain.scale, chain.offset
        cost, before = np.abs(scale[label] * moved - offset[label]), np.abs(offset[label])
        far &= (np.abs(scale[label]) * limit < sharpest[label]) | ((cost > limit) & (cost > 3 * before))
    return far


def _moved(port: AffinePort, s: Solution) -> Vector:
    """By how much the input of a port is moved, in the original's units; 0 where it is not held."""
    held = (s.p[port.x] != 0) & ~s.constant[port.x]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved: Vector = np.where(held, s.q[port.x] / s.p[port.x], 0.0)
    return moved


def _shared(solution: Solution) -> npt.NDArray[np.bool_]:
    """For each group of variables of one scale, whether several layers or norms read it."""
    count = np.zeros(solution.base.size, np.int64)
    eqs = solution.equations
    for x in [port.x for port in eqs.linears] + [port.x for port in eqs.affines]:
        count[solution.base[x]] += 1  # once for each reader, however often it repeats a variable
    shared: npt.NDArray[np.bool_] = count > 1
    return shared


def _moved_too_far(
    port: AffinePort, chain: Chain, s: Solution, chains: Mapping[Op, Chain], sharpest: Vector, limit: float
) -> npt.NDArray[np.bool_]:
    """Where the input of a norm is moved to what costs the norm too much, by what it tells or, if that cannot be
    trusted, by what others tell.
    """
    held = (s.p[port.x] != 0) & ~s.constant[port.x] & (chain.scale != 0)
    cost, before = np.abs(chain.scale * _moved(port, s) - chain.offset), np.abs(chain.offset)
    over: npt.NDArray[np.bool_] = held & (cost > limit) & (cost > 3 * before)
    trusted = np.abs(chain.scale) * limit >= sharpest[s.base[port.x]]
    if chain.known or trusted.all():
        return over
    return np.where(trusted, over, _far_from_all(port, s, chains, sharpest, limit))


def _left_too_far(outcome: Outcome, s: Solution, limit: float) -> npt.NDArray[np.bool_]:
    """Where the offset of a norm goes, or is rounded anew, and leaves a mean that is far from zero."""
    port, known = outcome.port, outcome.port.op.statistics
    if known is None or outcome.form == "stays":
        return np.zeros(port.x.size, bool)
    held, moved = (s.p[port.x] != 0) & ~s.constant[port.x], _moved(port, s)
    left: npt.NDArray[np.bool_] = held & (np.abs(moved) < np.abs(known.mean) / 2) & off_centre(port.op, limit)
    return left


def far(port: AffinePort, s: Solution, limit: float) -> bool:
    """Whether a norm's input, as the folded model holds it, lies over `limit` deviations from 0 in some channel."""
    known = port.op.statistics
    if known is None:
        return False
    held = (s.p[port.x] != 0) & ~s.constant[port.x]
    away = np.abs(known.mean + _moved(port, s)) > limit * np.sqrt(known.var + known.eps)
    return bool((held & away).any())


def _culprits(s: Solution, chains: Mapping[Op, Chain], bad: npt.NDArray[np.bool_]) -> dict[Op, Conflict]:
    """Of what is gone at bad channels, that which asks for the largest shifts there."""
    asked = list(_asked(s, chains, bad))
    worst = np.zeros(s.base.size)
    for first, _, size in asked:
        np.maximum.at(worst, s.base[first.x], size)
    found: dict[Op, Conflict] = {}
    for first, op, size in asked:
        rows = np.flatnonzero((size > 0) & (2 * size >= worst[s.base[first.x]]))
        if rows.size:
            found[op] = Conflict("precision", int(rows[0]))
    return found


def _asked(
    s: Solution, chains: Mapping[Op, Chain], bad: npt.NDArray[np.bool_]
) -> Iterator[tuple[AffinePort, Op, Vector]]:
    """By how much of its deviation an op wants what a norm reads moved from where it is, at bad channels.

    The first op of each norm, the op that asks, and the sizes. Norms that are no batch norms are measured by the
    narrowest deviation that any of the readers tells of.
    """
    gone = {o.port.op for o in s.outcomes if o.form in GONE}
    sharpest, centre = _sharpest(s, chains)
    for port in s.equations.affines:
        known, label = port.op.statistics, s.base[port.x]
        own, mid = sharpest[label], centre[label]
        if known is not None:
            own = 1.0 / np.sqrt(known.var + known.eps)
            mid = -known.mean * own
        chain = chains.get(port.op)
        factor, total = np.ones(port.x.size), np.zeros(port.x.size)
        for link in chain.ports if chain else [port]:
            if link.op not in gone:
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                step = link.offset / (factor * link.scale)
                factor = factor * link.scale
            total = total + np.where(factor != 0, step, 0.0)
            size = np.abs(own * total - mid)
            if step.any():
                yield port, link.op, np.where(bad[label] & (factor != 0), size, 0.0)


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
