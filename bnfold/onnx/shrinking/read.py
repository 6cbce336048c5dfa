"""From an ONNX model, read into the neutral graph, to its channels: which ops the writer can take channels out of."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from ...core.graph import Bound, Broadcast, Linear, Op, Opaque, Reason, Select
from ...core.shrinking.channels import Layer, Network
from ...core.shrinking.rounding import Rounding
from ...core.shrinking.rules import Pointwise, build
from ..read.bindings import LinearBinding
from ..read.constants import attributes
from ..read.node import FLOATS
from ..read.read import Source
from ..read.scope import Scope
from . import narrow
from .values import BOUNDS, FUNCTIONS, function

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})


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
    _hold_unlisted(scope, source, net)
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
    return Pointwise(op.name, op.inputs, op.outputs, lambda values: f(values[0]), slope, BOUNDS.get(kind, np.inf))


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
            track = net.tracks.get(neutral(scope, node.input[0]))
            if track is not None and _reads_size(scope, node, track.axis, source):
                net.pin(
                    [track], Reason("size-read", f"{node.name or node.op_type} reads how many there are", node.name)
                )
        if node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] not in scope.constants:
            track = net.tracks.get(neutral(scope, node.output[0]))
            if track is not None and narrow.entry(scope, node.input[1], track.axis) is None:
                net.pin(
                    [track], Reason("size-read", f"{node.name or 'Reshape'} computes how many there are", node.name)
                )
        if node.op_type == "Where" and node.input[0] not in scope.constants:
            track = net.tracks.get(neutral(scope, node.output[0]))
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
            tracks = [net.tracks.get(neutral(scope, name)) for name in node.output]
            net.pin(tracks, Reason("skipped", "it was to be left alone (--skip)"))


def _hold_unlisted(scope: Scope, source: Source, net: Network) -> None:
    """Pin the channels of tensors that a node reads and its ops in the neutral graph do not.

    A condition, the branch of a Where that is not taken, a tensor of which CastLike reads the type.
    """
    listed: dict[int, set[str]] = {}
    for op, (where, index) in zip(source.graph.ops, source.nodes, strict=False):
        if where == 0:
            listed.setdefault(index, set()).update(op.inputs)
    for index, names in listed.items():
        node = scope.graph.node[index]
        others = [] if node.op_type in ("Shape", "Size") else [neutral(scope, name) for name in node.input if name]
        tracks = [net.tracks.get(name) for name in others if name not in names]
        net.pin(tracks, Reason("read-elsewhere", f"{node.name or node.op_type} reads them beside others", node.name))


def neutral(scope: Scope, name: str) -> str:
    """The name of a tensor in the neutral graph."""
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
