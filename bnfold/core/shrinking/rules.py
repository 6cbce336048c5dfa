"""One rule per class of op: what it does to the channels of its inputs, as variables and as constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..gauge.reshape import reshape_ids
from ..graph import (
    Affine,
    Broadcast,
    Carry,
    Clipped,
    Concat,
    Gate,
    Graph,
    Homogeneous,
    Linear,
    Op,
    Reason,
    Reshape,
    Select,
    Sum,
    Take,
    Transpose,
    fault,
)
from .channels import Layer, Network, Port, Track, Vector, fixed, joined, zeros
from .rounding import from_zero

SMALL = 1e-12
"""A constant below this may count as 0, give or take itself, where zeros are put beside it."""
Tracks = Sequence[Track | None]
Pair = tuple[Vector, Vector]
"""Values and radii."""


@dataclass(frozen=True, eq=False)
class Pointwise(Op):
    """`y = f(x, ..)`, element by element. `function`: of what each input holds, (channels,) each; None where it is not
    known. `slope`: how far y moves at most when x moves by 1; None where that is not known.
    """

    function: Callable[[Sequence[Vector]], Vector] | None = None
    slope: float | None = None
    bound: float = np.inf
    """No result is larger."""


def build(graph: Graph, ops: Sequence[Op], layers: dict[int, Layer]) -> Network:
    """The channels of a graph with `ops` in the place of its own; `layers`: the weights of its linear ops, by place."""
    net = Network()
    for place, op in enumerate(ops):
        made = _outputs(op, layers.get(place), net, graph, place)
        for name, track in zip(op.outputs, made, strict=True):
            net.tracks[name] = track
            if name in graph.pinned:
                net.pin([track], Reason("held", f"{name} {graph.pinned[name]}", op.name))
    return net


def _outputs(op: Op, layer: Layer | None, net: Network, graph: Graph, place: int) -> Tracks:
    """Apply the rule of an op; where there is none, what it reads stays."""
    inputs = [net.tracks.get(name) for name in op.inputs]
    try:
        rule = RULES.get(type(op))
        if isinstance(op, Linear):
            made = None if layer is None else _linear(op, layer, inputs, net, place)
        else:
            made = None if rule is None else rule(op, inputs, net, graph)
        if made is not None and len(made) == len(op.outputs):
            return made
    except MemoryError:
        raise
    except Exception as error:  # a fault of ours costs what the op touches, and not the model
        net.faults.append(fault(op.name, type(op).__name__, error))
    net.pin(inputs, Reason("read-elsewhere", f"{op.name} needs all of them", op.name))
    return [None] * len(op.outputs)


def _linear(op: Linear, layer: Layer, inputs: Tracks, net: Network, place: int) -> Tracks:
    x = inputs[0]
    if x is not None and (x.axis != op.in_axis or x.ids.size != op.in_channels):
        net.pin([x], Reason("read-elsewhere", f"{op.name} mixes along another axis", op.name))
        x = None
    y = Track(op.out_axis, net.variables.fresh(op.out_channels), *layer.outputs(x))
    if layer.groups > 1:
        _tie_groups(layer, x, y, net)
    net.ports.append(Port(layer, x, y, op.name, place))
    return [y]


def _tie_groups(layer: Layer, x: Track | None, y: Track, net: Network) -> None:
    """The channels of a group leave together: all that go in, all that come out."""
    why = Reason("grouped", f"{layer.op.name} works on groups of channels", layer.op.name)
    if x is None:
        net.pin([y], why)
        return
    x_ids, y_ids = x.ids.reshape(layer.groups, -1), y.ids.reshape(layer.groups, -1)
    both = np.concatenate([x_ids, y_ids], 1)
    net.variables.tie(np.broadcast_to(both[:, :1], both[:, 1:].shape).ravel(), both[:, 1:].ravel(), why)


def pointwise(
    op: Op, inputs: Tracks, net: Network, graph: Graph, values: Callable[[list[Pair]], Pair | None]
) -> Tracks:
    """Channels stay in place, those of several inputs are one. `values`: what comes out of what the inputs hold."""
    rank = graph.rank(op.outputs[0])
    placed = [_placed(track, graph.rank(name), rank) for track, name in zip(inputs, op.inputs, strict=True)]
    if any(track is not None and track.ids.size > 1 for track in placed):  # one channel alone stays, beside others
        placed = [track if track is not None and track.ids.size > 1 else None for track in placed]
    tracks = [track for track in placed if track is not None]
    if rank is None or not tracks or len({(track.axis, track.ids.size) for track in tracks}) > 1:
        net.pin(inputs, Reason("read-elsewhere", f"{op.name} has inputs that do not line up", op.name))
        return [None] * len(op.outputs)
    first, *others = tracks
    why = Reason("tied", f"{op.name} reads them with channels that stay", op.name)
    for other in others:
        net.variables.tie(first.ids, other.ids, why)
    pairs: list[Pair] = []
    for track, name in zip(placed, op.inputs, strict=True):
        if track is None and not _spread(graph, name, first.axis, rank):
            net.variables.pin(first.ids, why)
        pairs.append((track or first.live()).value_and_radius())
    made = values(pairs)
    value, radius = first.live().value_and_radius() if made is None else made
    size = np.min([track.size for track in tracks], 0)
    shape = first.ids.shape
    made_of = (np.broadcast_to(value, shape), np.broadcast_to(radius, (2, *shape)), size)
    bound = first.bound if isinstance(op, Homogeneous) and (np.abs(op.slope) <= 1).all() else np.inf
    return [Track(first.axis, first.ids, *made_of, bound)] * len(op.outputs)


def _placed(track: Track | None, rank: int | None, out: int | None) -> Track | None:
    """A track as the output has its axes; None where it cannot be told."""
    return None if track is None or rank is None or out is None else replace(track, axis=track.axis + out - rank)


def _spread(graph: Graph, name: str, axis: int, rank: int) -> bool:
    """Whether a tensor holds the same for all channels along an axis of a tensor of the given rank, or is a constant
    of the op, which can lose channels.
    """
    shape = graph.shape(name)
    place = None if shape is None else axis - (rank - len(shape))
    own = name.endswith("constant") and "::" in name
    return own or (shape is not None and place is not None and (place < 0 or shape[place] == 1))


def _alone(function: Callable[[Vector], Vector], slope: float | Vector | None) -> Callable[[list[Pair]], Pair | None]:
    """The values of an op with one input."""

    def values(pairs: list[Pair]) -> Pair | None:
        value, radius = pairs[0]
        with np.errstate(all="ignore"):
            moved = np.where(radius == 0, 0.0, np.inf if slope is None else radius * (0.0 if slope is None else slope))
            return np.asarray(function(value), np.float64), moved

    return values


def _mapped(op: Pointwise, inputs: Tracks, net: Network, graph: Graph) -> Tracks:
    """Any function of each channel alone; of several inputs only where all are constant."""

    def several(pairs: list[Pair]) -> Pair | None:
        if op.function is None:
            return None
        radius = sum((radius for _, radius in pairs), np.zeros(()))
        with np.errstate(all="ignore"):
            return op.function([value for value, _ in pairs]), np.where(
                radius == 0, 0.0, np.inf if op.slope is None else radius * (op.slope or 0.0)
            )

    return _bounded(pointwise(op, inputs, net, graph, several), op.bound)


def _affine(op: Affine, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """`scale * c + offset`; behind a scale of 0 everything is constant."""
    x = inputs[0]
    if x is None:
        return None
    along = op.scale.size == 1 or (op.axis == x.axis and op.scale.size == x.ids.size)

    def values(pairs: list[Pair]) -> Pair | None:
        if not along:
            return None
        value, radius = pairs[0]
        unit = np.abs(op.scale).max(initial=0.0) or 1.0
        off = np.abs(op.scale) * np.where(op.scale == 0, 0.0, radius) / np.array([[1.0], [unit]])
        return op.scale * np.where((off == 0).all(0), np.nan_to_num(value), value) + op.offset, off

    return pointwise(op, inputs, net, graph, values)


def _homogeneous(op: Homogeneous, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """`max(c, 0) + slope * min(c, 0)`."""
    x, rank = inputs[0], graph.rank(op.inputs[0])
    if x is None or rank is None or op.slope.ndim > rank:
        return None
    slopes = op.slope.reshape((1,) * (rank - op.slope.ndim) + op.slope.shape)
    along = np.moveaxis(slopes, x.axis, 0).reshape(slopes.shape[x.axis], -1)
    if along.shape[0] not in (1, x.ids.size):
        return None
    slope = np.where((along == along[:, :1]).all(1), along[:, 0], np.nan)  # (channels,) or (1,)
    steep = np.maximum(1.0, np.abs(along).max(1))

    def bent(c: Vector) -> Vector:
        below = np.minimum(c, 0)
        return np.asarray(np.maximum(c, 0) + below * np.where(below == 0, 0.0, slope))

    return pointwise(op, inputs, net, graph, _alone(bent, steep))


def _clipped(op: Clipped, inputs: Tracks, net: Network, graph: Graph) -> Tracks:
    made = pointwise(op, inputs, net, graph, _alone(lambda c: np.clip(c, op.low, op.high), 1.0))
    return _bounded(made, max(abs(op.low), abs(op.high)))


def _bounded(tracks: Tracks, bound: float) -> Tracks:
    return [None if track is None else replace(track, bound=bound) for track in tracks]


def _sum(op: Sum, inputs: Tracks, net: Network, graph: Graph) -> Tracks:
    def values(pairs: list[Pair]) -> Pair:
        return (
            sum((f * value for f, (value, _) in zip(op.factors, pairs, strict=False)), np.zeros(())),
            sum((abs(f) * radius for f, (_, radius) in zip(op.factors, pairs, strict=False)), np.zeros(())),
        )

    return pointwise(op, inputs, net, graph, values)


def _gate(op: Gate, inputs: Tracks, net: Network, graph: Graph) -> Tracks:
    """A product of constants; 0 times anything is 0, and nearly 0 times what is bounded nearly 0."""
    bounds = [np.inf if track is None else track.bound for track in inputs]

    def values(pairs: list[Pair]) -> Pair:
        (x, r), (g, s) = pairs
        with np.errstate(all="ignore"):
            if op.divides:  # 0 / 0 and what lies near it is no constant
                return x / g, np.where((r == 0) & (s == 0) & (g != 0), 0.0, np.inf)
            both = np.where((r == 0) & (s == 0), 0.0, np.abs(x) * s + np.abs(g) * r + r * s)
            beside = [_beside(x, r, bounds[1]), _beside(g, s, bounds[0])]
        known = np.isfinite(both).all(0)
        best = np.where(known, both, np.minimum(*beside))
        return np.where(known, x * g, 0.0), best

    return pointwise(op, inputs, net, graph, values)


def _beside(value: Vector, radius: Vector, bound: float) -> Vector:
    """How far from 0 a value within `radius` lies when it is multiplied by anything up to a bound."""
    off = from_zero(value, radius)
    return np.where(off == 0, 0.0, np.where(off < SMALL, off * bound, np.inf))


def _select(op: Select, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """The largest of constants is the constant."""
    if len(inputs) > 1:
        return None
    return _moved(inputs[0], op.axes, op.axes, op.keepdims)


def _carry(op: Carry, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """A mean of a constant is the constant; where zeros are blended in, only 0 is."""
    x = inputs[0]
    if op.zeros is not None and x is not None:
        x = _among_zeros(x, op.zeros, net)
    made = _moved(x, op.axes, (*op.axes, *op.mixes), op.keepdims)
    if made is None or made[0] is None or op.carries_shift:
        return made
    track = made[0]
    off = from_zero(track.value, track.radius)
    off = np.where((off == 0) | ((off < SMALL) & (not op.axes)).any(0), off, np.inf)  # a sum is of many
    return [replace(track, value=0 * track.value, radius=off)]


def _among_zeros(x: Track, added: tuple[int, int, int], net: Network) -> Track | None:
    """Channels of zeros in front and behind, which may leave."""
    axis, front, back = added
    if axis != x.axis or min(front, back) < 0:
        return None
    ends = [zeros(axis, net.variables.fresh(size)) for size in (front, back)]
    return joined(axis, [ends[0], x, ends[1]])


def _moved(x: Track | None, gone: Sequence[int], touched: Sequence[int], keepdims: bool) -> list[Track | None] | None:
    """A track behind an op that blends along the axes `touched` and drops the axes `gone`."""
    if x is None or x.axis in touched:
        return None
    return [x if keepdims else replace(x, axis=x.axis - sum(axis < x.axis for axis in gone))]


def _reshape(op: Reshape, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """The index map of the reshape; where a channel axis is cut in two, what lies along the smaller one is one."""
    x, source, target = inputs[0], graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    if x is None or source is None or target is None:
        return None
    places = np.arange(x.ids.size).reshape([-1 if axis == x.axis else 1 for axis in range(len(source))])
    moved = reshape_ids(places, source, target)
    return None if moved is None else [_along_one(moved, x, op, net)]


def _along_one(places: npt.NDArray[np.int64], x: Track, op: Op, net: Network) -> Track | None:
    ids = x.ids[places]
    varying = [axis for axis in range(ids.ndim) if (ids != np.take(ids, [0], axis)).any()]
    if not varying:
        net.pin([x], Reason("read-elsewhere", f"{op.name} takes channels apart", op.name))
        return None
    axis = max(varying, key=lambda axis: ids.shape[axis])
    # (..., n, ...) -> (n, others): the channels along `axis`, and what has to be one with each
    rows = np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)
    first, rest = rows[:, :1], rows[:, 1:]
    why = Reason("tied", f"{op.name} lays channels side by side", op.name)
    net.variables.tie(x.ids[np.broadcast_to(first, rest.shape)].ravel(), x.ids[rest].ravel(), why)
    made = x.at(first[:, 0], axis)
    alike = (x.value[rows] == made.value[:, None]).all(1)
    return replace(
        made, value=np.where(alike, made.value, np.nan), radius=np.where(alike, x.radius[:, rows].max(2), np.inf)
    )


def _transpose(op: Transpose, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    x = inputs[0]
    return None if x is None else [replace(x, axis=op.perm.index(x.axis))]


def _concat(op: Concat, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """Behind one another along the channels; along another axis the channels of all inputs are one."""
    axes = {track.axis for track in inputs if track is not None}
    shapes = [graph.shape(name) for name in op.inputs]
    if len(axes) != 1:
        return None
    axis = axes.pop()
    if axis != op.axis:
        return None if any(track is None for track in inputs) else _stacked(op, inputs, net)
    parts = []
    for track, shape in zip(inputs, shapes, strict=True):
        size = None if shape is None else shape[axis]
        if track is None and not isinstance(size, int):
            return None
        parts.append(fixed(axis, size) if track is None and isinstance(size, int) else track)
    return [joined(axis, [part for part in parts if part is not None])]


def _stacked(op: Op, inputs: Tracks, net: Network) -> Tracks | None:
    first, *others = [track for track in inputs if track is not None]
    value, radius = first.value, first.radius
    for other in others:
        if other.ids.size != first.ids.size:
            return None
        net.variables.tie(first.ids, other.ids, Reason("tied", f"{op.name} joins them with others", op.name))
        value, radius = np.where(value == other.value, value, np.nan), np.maximum(radius, other.radius)
    return [replace(first, value=value, radius=np.where(np.isnan(value), np.inf, radius))]


def _take(op: Take, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """The index map of a Split, Slice or Gather."""
    x = inputs[0]
    if x is None:
        return None
    return [x.at(places) if op.axis == x.axis else x for places in op.indices]


def _broadcast(op: Broadcast, inputs: Tracks, net: Network, graph: Graph) -> Tracks | None:
    """Repeated along other axes."""
    x, before, behind = inputs[0], graph.rank(op.inputs[0]), graph.shape(op.outputs[0])
    if x is None or before is None or behind is None:
        return None
    axis = x.axis + len(behind) - before
    return [replace(x, axis=axis)] if behind[axis] == x.ids.size else None


RULES: dict[type[Op], Callable[[Any, Tracks, Network, Graph], Tracks | None]] = {
    Affine: _affine,
    Homogeneous: _homogeneous,
    Clipped: _clipped,
    Pointwise: _mapped,
    Sum: _sum,
    Gate: _gate,
    Select: _select,
    Carry: _carry,
    Reshape: _reshape,
    Transpose: _transpose,
    Concat: _concat,
    Take: _take,
    Broadcast: _broadcast,
}
