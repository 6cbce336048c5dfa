"""Readers of nodes that only move channels about: Reshape, Transpose, Concat, Split, Slice, Gather and their kin."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np

from ...core.graph import Broadcast, Carry, Concat, Dim, Reshape, Shape, Take, Transpose
from .evaluators import axis_slice
from .node import Node, Ops

ALIKE = frozenset({"Cast", "Identity", "Floor", "Ceil", "Abs", "Neg", "Add", "Sub", "Mul", "Div", "Max", "Min"})
"""Operators that give as many numbers as they get."""


def reshape(node: Node) -> Ops | None:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    source, inferred = node.shape(node.inputs[0]), node.shape(node.outputs[0])
    target = _reshape_target(node, source or (), inferred)
    if target is not None:
        node.context.shapes[node.outputs[0]] = target
    return None if source is None or target is None else [Reshape(node.label, node.inputs[:1], node.outputs)]


def _reshape_target(node: Node, source: Shape, inferred: Shape | None) -> Shape | None:
    """The inferred shape, with what a target says, in numbers or by its length, where inference knows less."""
    asked = _asked(node, node.input(1)) if node.input(1) else node.ints(1, "shape")
    if asked is None or node.type != "Reshape":
        return inferred
    target: list[Dim] = []
    for i, dim in enumerate(asked):
        known = inferred[i] if inferred is not None and len(inferred) == len(asked) else None
        copied = source[i] if dim == 0 and i < len(source) and not node.attrs.get("allowzero", 0) else None
        target.append(dim if dim > 0 else copied if copied is not None else known)
    return tuple(target)


def _asked(node: Node, name: str) -> list[int] | None:
    """The numbers in a list of sizes, -1 for those that are computed; None where not even their count is known."""
    constants, shape = node.context.constants, node.shape(name)
    if name in constants:
        return [int(value) for value in constants.value(name).ravel()]
    maker = constants.producer(name)
    if maker is not None and maker.op_type == "Concat":
        parts = [_asked(node, part) for part in maker.input]
        return None if any(part is None for part in parts) else [size for part in parts for size in part or ()]
    if shape is not None and len(shape) == 1 and isinstance(shape[0], int):
        return [-1] * shape[0]
    if maker is not None and maker.op_type in ALIKE:
        sides = [_asked(node, side) for side in maker.input]
        return None if None in sides else [-1] * max(len(side or ()) for side in sides)
    if maker is not None and maker.op_type == "Gather" and maker.input[1] in constants:
        indices = constants.shape(maker.input[1])
        return [-1] * indices[0] if len(indices) == 1 else None
    return [-1] if maker is not None and maker.op_type == "Unsqueeze" else None  # of one number: it is a list then


def transpose(node: Node) -> Ops | None:
    """Transpose."""
    rank = node.rank()
    if rank is None:
        return None
    perm = tuple(node.attrs.get("perm", range(rank - 1, -1, -1)))
    return [Transpose(node.label, node.inputs, node.outputs, perm)]


def concat(node: Node) -> Ops | None:
    """Concat."""
    rank = node.rank()
    if rank is None:
        return None
    return [Concat(node.label, node.inputs, node.outputs, int(node.attrs.get("axis", 1)) % rank)]


def split(node: Node) -> Ops | None:
    """Split, of equal parts or not; the sizes come from the shapes of the outputs."""
    source = node.shape(node.inputs[0])
    if source is None:
        return None
    axis = int(node.attrs.get("axis", 0)) % len(source)
    sizes = _split_sizes(node, source, axis)
    if sizes is None:
        return [Carry(node.label, node.inputs[:1], (out,), mixes=(axis,)) for out in node.outputs]
    edges = np.cumsum([0, *sizes])
    indices = tuple(np.arange(a, b) for a, b in pairwise(edges))
    return [Take(node.label, node.inputs[:1], node.outputs, axis, indices)]


def _split_sizes(node: Node, source: Shape, axis: int) -> list[int] | None:
    asked = node.ints(1, "split")
    if asked is None and not node.input(1) and isinstance(total := source[axis], int):
        part = -(-total // len(node.outputs))
        asked = [max(0, min(part, total - i * part)) for i in range(len(node.outputs))]
    return asked if asked is not None and isinstance(source[axis], int) and sum(asked) == source[axis] else None


def cut(node: Node) -> Ops | None:
    """Slice with constant bounds, one neutral op for each axis."""
    source = node.shape(node.inputs[0])
    starts, ends = node.ints(1, "starts"), node.ints(2, "ends")
    if source is None or starts is None or ends is None:
        return None
    axes, steps = node.ints(3, "axes"), node.ints(4, "steps")
    if (node.input(3) and axes is None) or (node.input(4) and steps is None):
        return None
    ops: Ops = []
    name = node.inputs[0]
    for k, axis in enumerate(axes if axes is not None else range(len(starts))):
        axis %= len(source)
        last = k == len(starts) - 1
        out = node.outputs[0] if last else node.step(str(k), (None,) * len(source))
        size = source[axis]
        if isinstance(size, int):
            taken = np.arange(size)[axis_slice(starts[k], ends[k], steps[k] if steps else 1, size)]
            ops.append(Take(node.label, (name,), (out,), axis, (taken,)))
        else:
            ops.append(Carry(node.label, (name,), (out,), mixes=(axis,)))
        name = out
    return ops or None


def gather(node: Node) -> Ops | None:
    """Gather with a constant list of indices."""
    source = node.shape(node.inputs[0])
    if source is None or not node.constant(1) or node.constant(0):
        return None
    indices, axis = node.value(1), int(node.attrs.get("axis", 0)) % len(source)
    size = source[axis]
    if indices.ndim > 1 or not isinstance(size, int):
        return None
    taken = (indices.reshape(-1).astype(np.int64) % size,)
    if indices.ndim == 1:
        return [Take(node.label, node.inputs[:1], node.outputs, axis, taken)]
    one, rest = (*source[:axis], 1, *source[axis + 1 :]), (*source[:axis], *source[axis + 1 :])
    node.context.shapes[node.outputs[0]] = rest
    part = node.step("taken", one)
    return [Take(node.label, node.inputs[:1], (part,), axis, taken), Reshape(node.label, (part,), node.outputs)]


def tile(node: Node) -> Ops | None:
    """Tile with constant repeats, one neutral op for each axis."""
    source = node.shape(node.inputs[0])
    repeats = node.ints(1, "") if node.opset >= 6 else None
    if source is None or repeats is None or len(repeats) != len(source) or 0 in repeats:
        return None
    axes = [axis for axis, count in enumerate(repeats) if count > 1]
    name, shape = node.inputs[0], list(source)
    ops: Ops = []
    for axis in axes:
        size = source[axis]
        shape[axis] = size * repeats[axis] if isinstance(size, int) else None
        out = node.outputs[0] if axis == axes[-1] else node.step(f"tiled{axis}", tuple(shape))
        if isinstance(size, int):
            taken = np.tile(np.arange(size), repeats[axis])
            ops.append(Take(node.label, (name,), (out,), axis, (taken,)))
        else:
            ops.append(Carry(node.label, (name,), (out,), mixes=(axis,)))
        name = out
    return ops or [Carry(node.label, node.inputs[:1], node.outputs)]


def expand(node: Node) -> Ops:
    """Expand."""
    source, asked = node.shape(node.inputs[0]), _asked(node, node.input(1))
    if source is not None and asked is not None and node.shape(node.outputs[0]) is None:
        node.context.shapes[node.outputs[0]] = (None,) * max(len(source), len(asked))
    return [Broadcast(node.label, node.inputs[:1], node.outputs)]


def depth_to_space(node: Node) -> Ops | None:
    """DepthToSpace: the b*b channels of a block become neighbours, whose gauges become equal."""
    source, b = node.shape(node.inputs[0]), int(node.attrs["blocksize"])
    if source is None or len(source) != 4:
        return None
    n, c, h, w = source
    if not isinstance(c, int):
        return None
    first = node.attrs.get("mode", "DCR") == "DCR"
    split_shape: Shape = (n, b, b, c // (b * b), h, w) if first else (n, c // (b * b), b, b, h, w)
    blocks = (1, 2) if first else (2, 3)
    perm = (0, 3, 4, 1, 5, 2) if first else (0, 1, 4, 2, 5, 3)
    turned = tuple(split_shape[i] for i in perm)
    names = [node.step("split", split_shape), node.step("mixed", split_shape), node.step("turned", turned)]
    node.context.shapes.setdefault(node.outputs[0], (n, c // (b * b), _times(h, b), _times(w, b)))
    return [
        Reshape(node.label, node.inputs, (names[0],)),
        Carry(node.label, (names[0],), (names[1],), mixes=blocks),
        Transpose(node.label, (names[1],), (names[2],), perm),
        Reshape(node.label, (names[2],), node.outputs),
    ]


def space_to_depth(node: Node) -> Ops | None:
    """SpaceToDepth: every channel comes out b*b times."""
    source, b = node.shape(node.inputs[0]), int(node.attrs["blocksize"])
    if source is None or len(source) != 4:
        return None
    n, c, h, w = source
    if not isinstance(c, int):
        return None
    split_shape: Shape = (n, c, _times(h, 1, b), b, _times(w, 1, b), b)
    perm = (0, 3, 5, 1, 2, 4)
    turned = tuple(split_shape[i] for i in perm)
    names = [node.step("split", split_shape), node.step("turned", turned)]
    return [
        Reshape(node.label, node.inputs, (names[0],)),
        Transpose(node.label, (names[0],), (names[1],), perm),
        Reshape(node.label, (names[1],), node.outputs),
    ]


def _times(dim: Dim, factor: int, divisor: int = 1) -> Dim:
    return prod((dim, factor)) // divisor if isinstance(dim, int) else None
