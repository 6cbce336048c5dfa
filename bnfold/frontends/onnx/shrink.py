"""Takes channels that carry nothing out of an ONNX model: reads, decides, writes. `bnfold.shrinking` is the algebra."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from ...graph import Bound, Broadcast, Linear, Op, Opaque, Reason, Select
from ...shrinking.channels import Layer, Network, Port
from ...shrinking.decide import BLOCK, Cell, Decision, decide
from ...shrinking.rounding import Rounding
from ...shrinking.rules import Pointwise, build
from . import narrow
from .apply import Applied
from .bindings import LinearBinding
from .constants import attributes
from .editor import Editor, all_names
from .external import external_tensors
from .node import FLOATS
from .pointwise_values import FUNCTIONS, function
from .read import Source, read
from .scope import Scope
from .skeleton import misfit, skeleton

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
TINY = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
"""The smallest normal numbers; what is smaller slows CPUs down."""
Costs = tuple[int, int, int, int]
"""Multiplications before and after, bytes of weights before and after."""
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})


@dataclass(frozen=True)
class Group:
    """Channels that hold nothing, in the same tensors. `verdict`: "dropped", or "left" with its reason.

    `tensor`: where they are made; `layers`: those whose weights hold them. Of `channels`, `empty` hold a constant or
    are not read, and `dropped` are gone. `reason`: why others of the empty ones are not. `multiplications`, `bytes`: of
    the weights of these layers, before and after all groups.
    """

    tensor: str
    layers: tuple[str, ...]
    channels: int
    empty: int
    dropped: int
    verdict: str
    reason: Reason | None
    multiplications: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class Shrunk:
    """A model without its empty channels; the one that was given where none could go.

    `denormal`: layers with weights so small that CPUs compute slowly with them, and how many the result holds.
    `multiplications`, `bytes`: of all layers with weights, before and after; sizes that are not known count as 1.
    """

    applied: Applied
    groups: tuple[Group, ...]
    denormal: tuple[tuple[str, int], ...]
    multiplications: tuple[int, int]
    bytes: tuple[int, int]
    note: str = ""
    """What went wrong, where the model was left as it was for that."""

    @property
    def model(self) -> ModelProto:
        """The model."""
        return self.applied.model

    @property
    def changed(self) -> bool:
        """Whether any channel is gone."""
        return any(group.dropped for group in self.groups)


def shrink(
    applied: Applied | ModelProto,
    *,
    block: int = BLOCK,
    exact: bool = False,
    folder: Path | None = None,
    freeze_inputs: bool = False,
    kept: Container[str] = (),
) -> Shrunk:
    """A model without the channels that hold a constant, or that nobody reads, where it computes the same.

    block: of the channels of a tensor a multiple of this stays, or of what it has in common with their number; 1 drops
    all.
    exact: leave channels whose weights are so small that they are lost in what the network rounds.
    kept: names of nodes, or of the tensors that they give, whose channels stay.
    folder: where external data lie. A ModelProto is left alone, and is the result where no channel can go; of what was
    applied, which may have values still to be computed, the model becomes complete where channels go.
    """
    state = applied if isinstance(applied, Applied) else Applied(applied, {}, bool(external_tensors(applied)))
    given = state.model
    source = _read(given, folder, freeze_inputs, state)
    net = network(source, exact, kept)
    decision = decide(net, block)
    shrunk = _told(state, net, decision, _costs(source, net, decision))
    if not shrunk.changed:
        return shrunk
    model = ModelProto()
    model.CopyFrom(state.complete())
    try:
        write(model, _read(model, folder, freeze_inputs), net, decision)
        wrong = misfit(skeleton(model, folder).model)
    except MemoryError:
        raise
    except Exception as error:  # a fault of ours costs the gain, and not the model
        wrong = f"{type(error).__name__}: {error}"
    if wrong and not misfit(skeleton(given, folder).model):
        return Shrunk(state, (), shrunk.denormal, shrunk.multiplications[:1] * 2, shrunk.bytes[:1] * 2, wrong)
    return replace(shrunk, applied=Applied(model, {}, state.aside))


def _read(model: ModelProto, folder: Path | None, freeze_inputs: bool, state: Applied | None = None) -> Source:
    fresh = None if state is None else state.fresh
    return read(model, skeleton(model, folder), model.graph.name or "model", folder, freeze_inputs, fresh=fresh)


# --- read


def network(source: Source, exact: bool = False, kept: Container[str] = ()) -> Network:
    """The channels of a model's graph; what its bodies hold is left alone, and what they read stays."""
    scope, ops, layers = source.scopes[0], list(source.graph.ops), dict[int, Layer]()
    for place, (where, index) in enumerate(source.nodes):
        node = scope.graph.node[index] if where == 0 else None
        op, layer = (None, None) if node is None else _understood(ops[place], place, node, source, exact)
        ops[place] = op or Opaque(ops[place].name, ops[place].inputs, ops[place].outputs, "op")
        if layer is not None:
            layers[place] = layer
    net = build(source.graph, ops, layers)
    _hold(scope, source, net)
    _keep(scope, net, kept)
    return net


def _understood(op: Op, place: int, node: NodeProto, source: Source, exact: bool) -> tuple[Op | None, Layer | None]:
    """An op as the rules take it, with its weights; None where the writer would not know what to do with its node."""
    scope, kind = source.scopes[0], node.op_type if node.domain in ("", "ai.onnx") else ""
    if isinstance(op, Linear):
        at = source.bindings.get(place)
        known = isinstance(at, LinearBinding) and scope.graph.node[at.node].op_type in LINEAR
        layer = _layer(op, at, scope, exact) if known and isinstance(at, LinearBinding) else None
        return (None, None) if layer is None else (op, layer)
    if isinstance(op, Opaque):
        return _elementwise(op, kind, node), None
    if kind not in {*narrow.CONSTANTS, *narrow.AS_THEY_ARE, *narrow.WRITERS}:
        return None, None
    if kind == "Where" and isinstance(op, Broadcast):
        return None, None
    if kind in ("Reshape", "Expand", "Resize") and not _sized(scope, node):
        return None, None
    if isinstance(op, Bound) or (isinstance(op, Select) and len(op.inputs) > 1):
        return Pointwise(op.name, op.inputs, op.outputs, _extremum(scope, node, op)), None
    return op, None


def _elementwise(op: Opaque, kind: str, node: NodeProto) -> Op | None:
    made = function(kind, attributes(node)) if kind in FUNCTIONS and len(op.inputs) == 1 else None
    if made is None:
        return None
    f, slope = made
    return Pointwise(op.name, op.inputs, op.outputs, lambda values: f(values[0]), slope)


def _extremum(scope: Scope, node: NodeProto, op: Op) -> Any:
    """Max and Min, of data and of single numbers; of anything else it is not said what comes out of a constant."""
    given = {"Max": np.maximum, "Min": np.minimum}.get(node.op_type)
    number = [name for name in node.input if name in scope.constants]
    if given is None or len(node.input) != 2 or any(scope.constants.value(name).size > 1 for name in number):
        return None
    bound = [scope.constants.value(name).astype(np.float64).ravel() for name in number]
    return lambda values: given(values[0], values[1] if len(values) > 1 else bound[0])


def _sized(scope: Scope, node: NodeProto) -> bool:
    """Whether the sizes that a node asks for are none, or constant, or those of a Reshape joined from parts."""
    position = 3 if node.op_type == "Resize" else 1
    name = node.input[position] if position < len(node.input) else ""
    return not name or name in scope.constants or (node.op_type == "Reshape" and narrow.joined(scope, name) is not None)


def _layer(op: Linear, at: LinearBinding, scope: Scope, exact: bool) -> Layer | None:
    """The weights of a layer in one layout; None where they cannot be cut."""
    constants, node = scope.constants, scope.graph.node[at.node]
    name = node.input[at.weight]
    if at.quantized or at.bias_scale or at.halves or at.tail or not at.beta or not at.alpha or name not in constants:
        return None
    weight = constants.value(name)
    if weight.dtype.name not in FLOATS or not weight.size:
        return None
    matrix = weight.reshape(at.matrix) if at.matrix else weight
    # (groups, a, b, taps), a and b the two sides in the order of the layout
    view = matrix.reshape(at.layout.groups, matrix.shape[0] // at.layout.groups, matrix.shape[1], -1)
    view = view if at.layout.axes == "oi" else view.swapaxes(1, 2)
    bias = _bias(at, scope, op.out_channels)
    if bias is None:
        return None
    if weight.dtype.name == "bfloat16":
        view = view.astype(np.float32)
    rounding = Rounding.of(weight.dtype.name, EPS[weight.dtype.name], exact)
    with np.errstate(over="ignore", invalid="ignore"):
        layer = Layer(op, view if at.alpha == 1 else view * np.float64(at.alpha), bias, rounding)
    return layer if np.isfinite(layer.sizes).all() and np.isfinite(bias).all() else None


def _bias(at: LinearBinding, scope: Scope, size: int) -> npt.NDArray[np.float64] | None:
    """`beta * bias` for each output channel; None where it is not one number for each."""
    node = scope.graph.node[at.bias_node]
    name = node.input[at.bias] if at.bias is not None and at.bias < len(node.input) else ""
    if not name:
        return np.zeros(size)
    if name not in scope.constants:
        return None
    value = scope.constants.value(name)
    if value.size not in (1, size) or value.dtype.name not in FLOATS:
        return None
    if value.size > 1 and (value.ndim - 1 - at.behind < 0 or value.shape[value.ndim - 1 - at.behind] != size):
        return None
    return np.broadcast_to(at.beta * value.astype(np.float64).ravel(), (size,)).copy()


def _hold(scope: Scope, source: Source, net: Network) -> None:
    """Pin the channels whose number the model reads, and those that a computed condition runs along."""
    for node in scope.graph.node:
        if node.op_type in ("Shape", "Size"):
            track = net.tracks.get(_neutral(scope, node.input[0]))
            if track is not None and _reads_size(scope, node, track.axis, source):
                net.pin(
                    [track], Reason("size-read", f"{node.name or node.op_type} reads how many there are", node.name)
                )
        if node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] not in scope.constants:
            track = net.tracks.get(_neutral(scope, node.output[0]))
            if track is not None and narrow.entry(scope, node.input[1], track.axis) is None:
                net.pin(
                    [track], Reason("size-read", f"{node.name or 'Reshape'} computes how many there are", node.name)
                )
        if node.op_type == "Where" and node.input[0] not in scope.constants:
            track = net.tracks.get(_neutral(scope, node.output[0]))
            shape, rank = scope.shapes.get(node.input[0]), scope.rank(node.output[0])
            place = None if track is None or shape is None or rank is None else track.axis - (rank - len(shape))
            if place is None or (place >= 0 and shape is not None and shape[place] != 1):
                net.pin(
                    [track], Reason("read-elsewhere", f"{node.name or 'Where'} has a condition for each", node.name)
                )


def _keep(scope: Scope, net: Network, kept: Container[str]) -> None:
    """Pin the channels of nodes that are to be left alone."""
    for node in scope.graph.node:
        if node.name in kept or any(name in kept for name in node.output):
            tracks = [net.tracks.get(_neutral(scope, name)) for name in node.output]
            net.pin(
                [track for track in tracks if track is not None], Reason("skipped", "it was to be left alone (--skip)")
            )


def _neutral(scope: Scope, name: str) -> str:
    return scope.alias.get(name, name)


def _reads_size(scope: Scope, node: NodeProto, axis: int, source: Source) -> bool:
    """Whether what a Shape node gives is used for the size along an axis; not where only other sizes are gathered."""
    rank = scope.rank(node.input[0])
    if node.op_type == "Size" or rank is None or any(a.name in ("start", "end") for a in node.attribute):
        return True
    name = node.output[0]
    readers = [reader for reader in scope.graph.node if name in reader.input]
    if name in scope.pinned or not readers:
        return name in scope.pinned
    return any(axis in _sizes_taken(scope, reader, rank) for reader in readers)


def _sizes_taken(scope: Scope, reader: NodeProto, rank: int) -> set[int]:
    """Which sizes a reader of a shape takes."""
    every = np.arange(rank)
    given = [scope.constants.value(name) for name in reader.input[1:] if name and name in scope.constants]
    if len(given) < len([name for name in reader.input[1:] if name]):
        return set(every.tolist())
    if reader.op_type == "Gather":
        return set(np.atleast_1d(every[given[0]]).ravel().tolist())
    if reader.op_type == "Slice" and len(given) >= 2:
        step = int(given[3].ravel()[0]) if len(given) > 3 else 1
        return set(every[int(given[0].ravel()[0]) : int(given[1].ravel()[0]) : step].tolist())
    return set(every.tolist())


# --- write


def write(model: ModelProto, source: Source, net: Network, decision: Decision) -> None:
    """Take out of `model` what a decision lets go."""
    scope = source.scopes[0]
    editor = Editor(model, scope, all_names(model.graph), None)
    cuts = dict(_cuts(scope, net, decision))
    done, stale = set[int](), set(cuts)
    for port in net.ports:
        at = source.bindings[port.place]
        assert isinstance(at, LinearBinding)
        done |= {at.node, at.bias_node}
        keep_in = None if port.x is None else decision.keeps(port.x)
        keep_out = decision.keeps(port.y)
        if keep_in is not None or keep_out is not None:
            narrow.layer(editor, port, at, keep_in, keep_out)
            stale.update(scope.graph.node[at.node].output)
    for index in range(len(scope.graph.node)):
        node = scope.graph.node[index]
        if index in done or node.domain not in ("", "ai.onnx"):
            continue
        touched = [name for name in (*node.output, *node.input) if name in cuts]
        if touched and node.op_type in narrow.CONSTANTS:
            narrow.constants(editor, index, cuts[touched[0]])
        elif touched and node.op_type in narrow.WRITERS:
            narrow.WRITERS[node.op_type](editor, index, cuts)
    editor.finish({_neutral(scope, name) for name in cuts})
    for i in reversed([i for i, v in enumerate(model.graph.value_info) if v.name in stale]):
        del model.graph.value_info[i]


def _cuts(scope: Scope, net: Network, decision: Decision) -> Iterator[tuple[str, narrow.Cut]]:
    """What the tensors of the file lose."""
    raw = {neutral: name for name, neutral in scope.alias.items()}
    for neutral, track in net.tracks.items():
        kept, name = None if track is None else decision.keeps(track), raw.get(neutral)
        if kept is not None and track is not None and name is not None:
            yield name, narrow.Cut(track.axis, scope.rank(name) or 0, track.ids.size, kept)


# --- report


def _told(state: Applied, net: Network, decision: Decision, costs: dict[int, Costs]) -> Shrunk:
    totals = [sum(cost[i] for cost in costs.values()) for i in range(4)]
    small = [(port.name, _denormal(port, decision)) for port in net.ports]
    return Shrunk(
        state,
        tuple(_groups(net, decision, costs)),
        tuple((name, count) for name, count in small if count),
        (totals[0], totals[1]),
        (totals[2], totals[3]),
        "; ".join(f"{fault.type} {fault.name}: {fault.error}" for fault in net.faults),
    )


def _costs(source: Source, net: Network, decision: Decision) -> dict[int, Costs]:
    """For each layer its multiplications before and after, and the bytes of its weights before and after."""
    costs = {}
    for port in net.ports:
        shape = source.graph.shape(source.graph.ops[port.place].outputs[0]) or ()
        if source.graph.ops[port.place] is not port.layer.op:
            shape = ()
        pixels = prod(d for axis, d in enumerate(shape) if isinstance(d, int) and axis not in (0, port.y.axis))
        taps, item = port.layer.weight.shape[3], port.layer.weight.dtype.itemsize
        weights = [prod(port.layer.weight.shape), _left(port, decision) * taps]
        costs[port.place] = (weights[0] * pixels, weights[1] * pixels, weights[0] * item, weights[1] * item)
    return costs


def _left(port: Port, decision: Decision) -> int:
    """How many weights without the taps a layer keeps."""
    sizes = []
    for track, count in ((port.x, port.layer.op.in_channels), (port.y, port.layer.op.out_channels)):
        kept = None if track is None else decision.keeps(track)
        sizes.append(count if kept is None else int(kept.size))
    return sizes[0] * sizes[1] if port.layer.groups == 1 else sizes[1] * port.layer.weight.shape[2]


def _groups(net: Network, decision: Decision, costs: dict[int, Costs]) -> Iterator[Group]:
    """The groups of channels that hold something empty, in the order of the graph."""
    for cell, ports in zip(decision.cells, _touching(net, decision), strict=True):
        if not ports:
            continue
        makers = [port for port in ports if np.isin(decision.roots[port.y.ids], cell.members).any()]
        track = makers[0].y if makers else ports[0].x
        counts = [0, 0, 0] if track is None else _counts(decision.roots[track.ids], cell)
        total = [sum(costs[port.place][i] for port in ports) for i in range(4)]
        yield Group(
            makers[0].layer.op.outputs[0] if makers else ports[0].layer.op.inputs[0],
            tuple(port.name for port in ports),
            counts[0],
            counts[1],
            counts[2],
            "dropped" if counts[2] else "left",
            cell.reason,
            (total[0], total[1]),
            (total[2], total[3]),
        )


def _counts(roots: npt.NDArray[np.int64], cell: Cell) -> list[int]:
    """How many channels of a tensor are of a cell, how many of these are empty, and how many go."""
    parts = (cell.members, cell.members[cell.empty], cell.members[cell.gone])
    return [int(np.isin(roots, part).sum()) for part in parts]


def _touching(net: Network, decision: Decision) -> list[list[Port]]:
    """For each cell the layers whose weights hold channels of it."""
    which = np.full(decision.roots.size, -1, np.int64)
    for i, cell in enumerate(decision.cells):
        which[cell.members] = i
    found: list[list[Port]] = [[] for _ in decision.cells]
    for port in net.ports:
        ids = [track.ids for track in (port.x, port.y) if track is not None]
        for i in np.unique(which[decision.roots[np.concatenate(ids)]]).tolist():
            if i >= 0:
                found[i].append(port)
    return found


def _denormal(port: Port, decision: Decision) -> int:
    """How many weights of a layer are smaller than any normal number, and not 0, in the channels that stay."""
    tiny = TINY.get(port.layer.weight.dtype.name, 2.0**-126)
    sizes = np.abs(port.layer.weight)
    small = (sizes < tiny) & (sizes > 0)
    if not small.any():
        return 0
    if port.layer.groups == 1:
        keep_in = None if port.x is None else decision.keeps(port.x)
        keep_out = decision.keeps(port.y)
        small = small[0] if keep_out is None else small[0][keep_out]
        small = small if keep_in is None else small[:, keep_in]
    elif (kept := decision.keeps(port.y)) is not None:
        small = small.reshape(-1, *small.shape[2:])[kept]
    return int(small.sum())
