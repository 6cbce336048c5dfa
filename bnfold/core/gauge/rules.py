"""One rule per class of op: which gauges it carries across. This is the table of docs/how-it-works.md.

A rule gets its op, the gauges of the op's inputs and the equations to add to, and returns the gauges of the outputs.
Index ops need no equations: what they do to the channels they do to the array of variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..graph import (
    Affine,
    Bound,
    Broadcast,
    Carry,
    Clipped,
    Concat,
    Gate,
    Graph,
    Homogeneous,
    Linear,
    Op,
    Opaque,
    Reshape,
    Select,
    Sum,
    Take,
    Transpose,
    fault,
)
from .equations import AffinePort, Bend, BoundPort, Demand, Equations, Ids, LinearPort, Unary
from .reshape import reshape_ids

Gauges = Sequence[Ids]


def build(graph: Graph) -> tuple[Equations, dict[str, Ids | None]]:
    """The equations of a graph, and the gauge of each tensor (None where the rank is unknown)."""
    eqs, gauges = Equations(), dict[str, Ids | None]()
    for op in graph.ops:
        for tensor, ids in zip(op.outputs, _outputs(op, graph, gauges, eqs), strict=True):
            if ids is not None and tensor in graph.pinned:
                eqs.pin(ids, op, graph.pinned[tensor])
            gauges[tensor] = ids
    return eqs, gauges


def _outputs(op: Op, graph: Graph, gauges: dict[str, Ids | None], eqs: Equations) -> Sequence[Ids | None]:
    """Apply the rule of an op, or pin everything where there is none."""
    inputs = [gauges[t] if t in gauges else pinned(graph.rank(t)) for t in op.inputs]
    if isinstance(op, Linear) and inputs[0] is None:  # nothing is known of the input but that it stays as it is
        inputs = [pinned(op.rank)]
    known = [ids for ids in inputs if ids is not None]
    why = f"{_kind(op)} needs the values themselves"
    if not isinstance(op, Opaque) and len(known) == len(inputs):
        before = eqs.mark()
        try:
            outputs = None if _empty(op, known) else RULES[type(op)](op, known, eqs, graph)
            if outputs is not None:
                assert len(outputs) == len(op.outputs), f"{len(outputs)} gauges for {len(op.outputs)} outputs"
                return outputs
        except MemoryError:
            raise
        except Exception as error:  # a fault of ours costs what the op touches, and not the model
            eqs.undo(before)
            graph.faults["".join(op.outputs[:1])] = fault(op.name, _kind(op), error)
            why = "could not be handled (see the notes)"
    for ids in known:
        eqs.pin(ids, op, why)
    return [pinned(graph.rank(t)) for t in op.outputs]


def _empty(op: Op, inputs: Gauges) -> bool:
    """Whether an op works on no elements, along the channels: there is nothing to carry."""
    if isinstance(op, Concat):
        return False
    sizes = [ids.size for ids in inputs]
    if isinstance(op, Linear):
        sizes += [op.in_channels, op.out_channels]
    elif isinstance(op, Affine):
        sizes.append(op.scale.size)
    elif isinstance(op, Homogeneous):
        sizes.append(op.slope.size)
    return 0 in sizes


def _kind(op: Op) -> str:
    return op.type if isinstance(op, Opaque | Affine) else type(op).__name__


def pinned(rank: int | None) -> Ids | None:
    """The gauge of a tensor that nothing may change."""
    return None if rank is None else np.zeros((1,) * rank, np.int64)


def linear(op: Linear, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges | None:
    """W' = diag(p_out) W diag(1/p_in); b' = p_out*b + q_out - sum_taps(W') q_in."""
    if inputs[0].shape[op.in_axis] not in (1, op.in_channels):
        return None
    x = eqs.channels(inputs[0], op.in_axis, op.in_channels, op)
    first = eqs.shared.get(op.shared)
    y = eqs.fresh([op.out_channels]) if first is None else first.y
    if first is not None:
        eqs.same(first.x, x, op)
    if not op.carries_shift:
        eqs.hold(x, op, "pads its input with zeros", zeros=True)
    if not op.takes_bias:
        eqs.hold(x, op, "has no bias that could take an offset", border=True)
        eqs.hold(y, op, "has no bias that could take an offset")
    if op.scales == "out":
        eqs.tie(np.broadcast_to(x[:1], x[1:].shape), x[1:], op)
        held = y if op.free is None else y[~op.free]
        eqs.demand_positive(np.concatenate([x, held]), op, op.sign)
        eqs.needed.append(y if op.free is None else y[:0])
    elif op.scales == "none":
        eqs.fix(np.concatenate([x, y]), op, op.why)
    eqs.linears.append(LinearPort(op, x, y))
    if op.shared:
        eqs.shared.setdefault(op.shared, eqs.linears[-1])
    return [_along(y, op.out_axis, op.rank)]


def affine(op: Affine, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges | None:
    """Removed: p_in = p_out*scale, q_in = p_out*offset + q_out. Kept: whatever `kind` can hold."""
    x, length = inputs[0], op.scale.size
    if op.kind == "bn":
        if x.shape[op.axis] not in (1, length):
            return None
        x = _along(eqs.channels(x, op.axis, length, op), op.axis, x.ndim)
    varying = [axis for axis, size in enumerate(x.shape) if size > 1]
    axis = op.axis if length > 1 else (varying or [0])[0]
    width = x.shape[axis] if x.ndim else 1
    if any(other != axis for other in varying) or (length > 1 and width not in (1, length)):
        return _bystander(op, x, eqs)
    size = max(length, width)
    flat = np.broadcast_to(x.ravel(), size)
    y = eqs.fresh([size])
    if op.kind == "add" and not op.reversed:
        eqs.tie(flat, y, op)
    scale, offset = (np.broadcast_to(v, size) for v in (op.scale, op.offset))
    eqs.affines.append(AffinePort(op, flat, y, scale, offset, axis))
    return [_along(y, axis, x.ndim)]


def _bystander(op: Affine, x: Ids, eqs: Equations) -> Gauges:
    """A constant that runs along another axis than the channels: a factor lets the scale through, an offset nothing."""
    eqs.bystanders.append(op)
    if op.kind == "mul" and op.scale.size == 1:
        y = eqs.fresh(x.shape)
        eqs.tie(x, y, op)
        eqs.sums.append((y.ravel(), [(x.ravel(), float(op.scale[0]))]))
        eqs.sources.append(y.ravel())
        return [y]
    if op.kind == "mul":
        return gate_output(op, x, eqs)
    eqs.pin(x, op, "adds a constant that does not run along the channels")
    return [np.zeros((1,) * x.ndim, np.int64)]


def homogeneous(op: Homogeneous, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges:
    """p_out = p_in > 0, q_in = q_out = 0; a Relu that becomes a Max may have q_in = q_out instead."""
    x = inputs[0]
    y = eqs.fresh(x.shape)
    eqs.tie(x, y, op)
    eqs.demand_positive(x, op, "lets only positive scales through")
    for side in (x, y):
        eqs.hold(side, op, "bends at zero, so its input cannot be shifted")
    varying = [axis for axis, size in enumerate(x.shape) if size > 1]
    if op.takes_threshold and len(varying) <= 1:
        eqs.bends.append(Bend(op, x.ravel(), y.ravel(), varying[0] if varying else 0, tuple(eqs.still[-2:])))
    if op.slope.size == 1:
        eqs.unary.append(Unary(x.ravel(), y.ravel(), np.full(x.size, op.slope.item())))
    elif op.slope.ndim <= x.ndim and np.broadcast_shapes(op.slope.shape, x.shape) == x.shape:
        eqs.unary.append(Unary(x.ravel(), y.ravel(), np.broadcast_to(op.slope, x.shape).ravel()))
    else:
        eqs.sources.append(y.ravel())
    return [y]


def clipped(op: Clipped, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges | None:
    """p = 1, q = 0; with bounds per channel p_out = p_in > 0, q_out = q_in."""
    x = inputs[0]
    varying = [axis for axis, size in enumerate(x.shape) if size > 1]
    if len(varying) > 1:
        return None
    y = eqs.fresh(x.shape)
    eqs.tie(x, y, op)
    eqs.demand_positive(x, op, "keeps the order of values only under a positive scale")
    holds: list[Demand] = []
    for side in (x, y):
        eqs.pin(side, op, "has fixed bounds")
        if (side != 0).any():
            holds += [eqs.pins[-1], eqs.still[-1]]
    eqs.bends.append(Bend(op, x.ravel(), y.ravel(), varying[0] if varying else 0, tuple(holds)))
    eqs.sources.append(y.ravel())
    return [y]


def bound(op: Bound, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges | None:
    """p_out = p_in (> 0 where the order matters), q_out = q_in (free where it adds); the constant moves along."""
    x = inputs[0]
    varying = [axis for axis, size in enumerate(x.shape) if size > 1]
    if len(varying) > 1 and not op.adds:
        return None
    y, axis = eqs.fresh(x.shape), varying[0] if varying else 0
    eqs.tie(x, y, op)
    eqs.sources.append(y.ravel())
    held = op.adds and (len(varying) > 1 or _would_grow(op.shape, axis, x))
    if held:
        eqs.fix(x.ravel(), op, "adds a constant that does not run along the channels")
    if held or not op.adds:
        eqs.equal.append((x.ravel(), y.ravel(), op))
    if op.ordered:
        eqs.demand_positive(x, op, "keeps the order of values only under a positive scale")
    if not held:
        eqs.bounds.append(BoundPort(op, x.ravel(), y.ravel(), axis))
    return [y]


def _would_grow(shape: tuple[int, ...], axis: int, x: Ids) -> bool:
    """Whether a constant of several numbers would have to be repeated along the axis on which the gauge varies."""
    place = axis - x.ndim
    return x.size > 1 and max(shape, default=1) > 1 and (-place > len(shape) or shape[place] == 1)


def select(op: Select, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges:
    """p_out = p_in > 0 (of any sign where the order does not matter), q_out = q_in; of several inputs all alike."""
    shape = np.broadcast_shapes(*(x.shape for x in inputs))
    first, *others = (np.broadcast_to(x, shape) for x in inputs)
    for other in others:
        eqs.same(first, other, op)
    if others:
        y = eqs.fresh(shape)
        eqs.same(first, y, op)
        eqs.sources.append(y.ravel())
        first = y
    ids = eqs.collapse(first, op.axes, op)
    if op.ordered:
        eqs.demand_positive(ids, op, "keeps the order of values only under a positive scale")
    return [ids if op.keepdims else np.squeeze(ids, op.axes)]


def carry(op: Carry, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges:
    """p_out = p_in, q_out = q_in (0 where a fixed zero is blended in; added channels of zeros are pinned)."""
    ids = eqs.collapse(inputs[0], (*op.mixes, *op.axes), op)
    if not op.carries_shift:
        eqs.hold(ids, op, "blends in zeros at the border", zeros=True)
    if op.zeros is not None:
        ids = _among_zeros(op, ids, eqs)
    return [ids if op.keepdims else np.squeeze(ids, op.axes)]


def _among_zeros(op: Carry, ids: Ids, eqs: Equations) -> Ids:
    """Zeros along an axis: new channels that are 0, or, where the gauge does not vary there, new values in each."""
    axis, front, back = op.zeros or (0, 0, 0)
    if ids.shape[axis] == 1:
        if max(front, back) > 0:
            eqs.hold(ids, op, "blends in zeros at the border", zeros=True)
        return ids
    kept = np.take(ids, range(max(0, -front), ids.shape[axis] - max(0, -back)), axis)
    new = [np.zeros(_with(list(ids.shape), axis, max(0, n)), np.int64) for n in (front, back)]
    return np.concatenate([new[0], kept, new[1]], axis)


def total(op: Sum, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges:
    """p equal on every branch, q_out = the weighted sum of the branches'."""
    shape = np.broadcast_shapes(*(x.shape for x in inputs))
    y = eqs.fresh(shape)
    parts = [np.broadcast_to(x, shape).ravel() for x in inputs]
    for part in parts:
        eqs.tie(part, y.ravel(), op)
    eqs.sums.append((y.ravel(), list(zip(parts, op.factors, strict=True))))
    eqs.sources.append(y.ravel())
    return [y]


def gate(op: Gate, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges:
    """p_out = p_in, q = 0; the gate is pinned.

    The gate is the input that is pinned already, else the smaller one; of a division the divisor.
    """
    x, g = inputs
    if not op.divides and (not x.any(), -graph.size(op.inputs[0])) > (not g.any(), -graph.size(op.inputs[1])):
        x, g = g, x
    eqs.pin(g, op, "uses it as a gate")
    return gate_output(op, np.broadcast_to(x, np.broadcast_shapes(x.shape, g.shape)), eqs)


def gate_output(op: Op, x: Ids, eqs: Equations) -> Gauges:
    """The gauge behind a factor that is not a constant per channel."""
    y = eqs.fresh(x.shape)
    eqs.tie(x, y, op)
    for side in (x, y):
        eqs.hold(side, op, "multiplies by a value that is not constant per channel")
    eqs.sources.append(y.ravel())
    return [y]


def reshape(op: Reshape, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges | None:
    """The same index map on the variables."""
    source, target = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    ids = None if source is None or target is None else reshape_ids(inputs[0], source, target)
    return None if ids is None else [ids]


def transpose(op: Transpose, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges:
    """The same index map on the variables."""
    return [inputs[0].transpose(op.perm)]


def concat(op: Concat, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges | None:
    """The same index map on the variables; along an axis that holds no channels, the inputs' gauges become equal."""
    if all(x.shape[op.axis] == 1 for x in inputs) and any(x.size > 1 for x in inputs):
        return _alike(op, inputs, eqs)
    if all(x.size == 1 and x.item() == 0 for x in inputs):
        return [inputs[0]]
    shapes = [graph.shape(t) for t in op.inputs]
    sizes = [None if shape is None else shape[op.axis] for shape in shapes]
    parts = []
    for x, size in zip(inputs, sizes, strict=True):
        if not isinstance(size, int):
            return None
        parts.append(np.repeat(x, size, op.axis) if x.shape[op.axis] == 1 else x)
    common = list(np.broadcast_shapes(*(_with(list(x.shape), op.axis, 1) for x in parts)))
    return [np.concatenate([np.broadcast_to(x, _with(common, op.axis, x.shape[op.axis])) for x in parts], op.axis)]


def _alike(op: Op, inputs: Gauges, eqs: Equations) -> Gauges:
    shape = np.broadcast_shapes(*(x.shape for x in inputs))
    first, *others = (np.broadcast_to(x, shape) for x in inputs)
    for other in others:
        eqs.same(first, other, op)
    return [first]


def take(op: Take, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges:
    """The same index map on the variables."""
    x = inputs[0]
    return [x if x.shape[op.axis] == 1 else np.take(x, indices, op.axis) for indices in op.indices]


def broadcast(op: Broadcast, inputs: Gauges, eqs: Equations, graph: Graph) -> Gauges | None:
    """The same gauge, with leading axes added where the rank grows."""
    rank = graph.rank(op.outputs[0])
    if rank is None or rank < inputs[0].ndim:
        return None
    return [inputs[0].reshape((1,) * (rank - inputs[0].ndim) + inputs[0].shape)]


def _along(vector: Ids, axis: int, rank: int) -> Ids:
    """(n,) -> (1, .., n, .., 1), (1,) -> () for rank 0."""
    return vector.reshape(_with([1] * rank, axis, vector.size) if rank else ())


def _with(shape: list[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


RULES: dict[type[Op], Callable[[Any, Gauges, Equations, Graph], Gauges | None]] = {
    Linear: linear,
    Affine: affine,
    Homogeneous: homogeneous,
    Clipped: clipped,
    Bound: bound,
    Select: select,
    Carry: carry,
    Sum: total,
    Gate: gate,
    Reshape: reshape,
    Transpose: transpose,
    Concat: concat,
    Take: take,
    Broadcast: broadcast,
}
