"""Readers of ops that only move channels about: view, permute, cat, split, slice and their kin."""

from __future__ import annotations

from itertools import pairwise
from operator import getitem

import numpy as np
from torch import fx

from ...core.graph import Broadcast, Carry, Concat, Dim, Reshape, Shape, Take, Transpose
from .node import Node, Ops


def reshape(node: Node) -> Ops | None:
    """view, reshape, flatten, squeeze, unsqueeze; not view as another type, which reads the bits."""
    if node.args.get("dtype") is not None:
        return None
    return [Reshape(node.label, (node.input,), (node.name,))]


def permute(node: Node) -> Ops | None:
    """permute, transpose, t, movedim by its shapes."""
    rank = node.rank
    if not rank:
        return None
    if node.type == "permute":
        order = [int(axis) % rank for axis in node.args["dims"]]
    elif node.type == "transpose":
        order = list(range(rank))
        a, b = int(node.args["dim0"]) % rank, int(node.args["dim1"]) % rank
        order[a], order[b] = b, a
    else:  # t, numpy_T
        order = list(range(rank))[::-1]
    return [Transpose(node.label, (node.input,), (node.name,), tuple(order))]


def concat(node: Node) -> Ops | None:
    """cat."""
    tensors = node.args["tensors"]
    shape = node.out_shape
    if shape is None or any(len(node.shape(t) or ()) != len(shape) for t in tensors):  # torch skips empty vectors
        return None
    return [Concat(node.label, tuple(t.name for t in tensors), (node.name,), int(node.args["dim"]) % len(shape))]


def stack(node: Node) -> Ops | None:
    """stack: a new axis in each, then cat."""
    tensors, shape = node.args["tensors"], node.out_shape
    if shape is None:
        return None
    axis = int(node.args["dim"]) % len(shape)
    single: Shape = (*shape[:axis], 1, *shape[axis + 1 :])
    names = [node.step(str(i), single) for i in range(len(tensors))]
    ops: Ops = [Reshape(node.label, (t.name,), (name,)) for t, name in zip(tensors, names, strict=True)]
    return [*ops, Concat(node.label, tuple(names), (node.name,), axis)]


def split(node: Node) -> Ops | None:
    """split, split_with_sizes, chunk: the sizes come from what torch made."""
    source, values = node.shape(node.first), node.fx.meta.get("val")
    if source is None or values is None:
        return None
    axis = int(node.args.get("dim", 0)) % len(source)
    outputs = _outputs(node, len(values))
    sizes = [value.shape[axis] for value in values]
    if not all(isinstance(size, int) for size in sizes):
        return [Carry(node.label, (node.input,), (out,), mixes=(axis,)) for out in outputs]
    indices = tuple(np.arange(a, b) for a, b in pairwise(np.cumsum([0, *sizes])))
    return [Take(node.label, (node.input,), tuple(outputs), axis, indices)]


def unbind(node: Node) -> Ops | None:
    """unbind: an axis taken apart."""
    source, values = node.shape(node.first), node.fx.meta.get("val")
    if source is None or values is None:
        return None
    axis = int(node.args.get("dim", 0)) % len(source)
    one: Shape = (*source[:axis], 1, *source[axis + 1 :])
    parts = [node.step(f"part{i}", one) for i in range(len(values))]
    indices = tuple(np.array([i]) for i in range(len(values)))
    ops: Ops = [Take(node.label, (node.input,), tuple(parts), axis, indices)]
    return ops + [Reshape(node.label, (p,), (out,)) for p, out in zip(parts, _outputs(node, len(values)), strict=True)]


def _outputs(node: Node, count: int) -> list[str]:
    """The names of the parts: those of the getitem nodes that take them."""
    names = [f"{node.name}::{i}" for i in range(count)]
    rest: Shape | None = node.shape(node.first)
    for i, name in enumerate(names):
        users = [u for u in node.fx.users if u.target is getitem and u.args[1] in (i, i - count)]
        names[i] = users[0].name if users else name
        node.context.shapes.setdefault(names[i], None if rest is None else (None,) * len(rest))
    return names


def cut(node: Node) -> Ops | None:
    """slice, narrow, select, index_select."""
    source = node.shape(node.first)
    if not source:
        return None
    axis = int(node.args.get("dim", 0)) % len(source)
    size: Dim = source[axis]
    if node.type == "index_select":
        index = node.args["index"]
        if not node.constant(index):
            return None
        taken = node.context.constants.value(index).astype(np.int64)
    elif not isinstance(size, int):
        return [Carry(node.label, (node.input,), (node.name,), mixes=(axis,))] if node.type == "slice" else None
    elif node.type == "select":
        return _select(node, source, axis, int(node.args["index"]) % size)
    elif node.type == "slice":
        bounds = [node.args[name] for name in ("start", "end", "step")]
        if any(isinstance(bound, fx.Node) for bound in bounds):
            return None
        taken = np.arange(size)[slice(*bounds)]
    else:
        start = node.args["start"]
        if not isinstance(start, int) or not isinstance(node.args["length"], int):
            return None
        taken = np.arange(start % max(size, 1), start % max(size, 1) + int(node.args["length"]))
    return [Take(node.label, (node.input,), (node.name,), axis, (taken,))]


def _select(node: Node, source: Shape, axis: int, index: int) -> Ops:
    part = node.step("part", (*source[:axis], 1, *source[axis + 1 :]))
    take = Take(node.label, (node.input,), (part,), axis, (np.array([index]),))
    return [take, Reshape(node.label, (part,), (node.name,))]


def expand(node: Node) -> Ops:
    """expand."""
    return [Broadcast(node.label, (node.input,), (node.name,))]


def pixel_shuffle(node: Node) -> Ops | None:
    """pixel_shuffle: the r*r channels of a block become neighbours, whose gauges become equal."""
    source, r = node.shape(node.first), int(node.args["upscale_factor"])
    if source is None or len(source) != 4:
        return None
    n, c, h, w = source
    if not isinstance(c, int):
        return None
    apart: Shape = (n, c // (r * r), r, r, h, w)
    turned = tuple(apart[i] for i in (0, 1, 4, 2, 5, 3))
    names = [node.step("split", apart), node.step("mixed", apart), node.step("turned", turned)]
    return [
        Reshape(node.label, (node.input,), (names[0],)),
        Carry(node.label, (names[0],), (names[1],), mixes=(2, 3)),
        Transpose(node.label, (names[1],), (names[2],), (0, 1, 4, 2, 5, 3)),
        Reshape(node.label, (names[2],), (node.name,)),
    ]


def pixel_unshuffle(node: Node) -> Ops | None:
    """pixel_unshuffle: every channel comes out r*r times, side by side."""
    source, r = node.shape(node.first), int(node.args["downscale_factor"])
    if source is None or len(source) != 4:
        return None
    n, c, h, w = source
    if not isinstance(h, int) or not isinstance(w, int):
        return None
    apart: Shape = (n, c, h // r, r, w // r, r)
    turned = tuple(apart[i] for i in (0, 1, 3, 5, 2, 4))
    names = [node.step("split", apart), node.step("turned", turned)]
    return [
        Reshape(node.label, (node.input,), (names[0],)),
        Transpose(node.label, (names[0],), (names[1],), (0, 1, 3, 5, 2, 4)),
        Reshape(node.label, (names[1],), (node.name,)),
    ]


def channel_shuffle(node: Node) -> Ops | None:
    """channel_shuffle: (g, c/g) becomes (c/g, g)."""
    source, groups = node.shape(node.first), int(node.args["groups"])
    if source is None or len(source) < 3 or not isinstance(source[1], int):
        return None
    apart: Shape = (source[0], groups, source[1] // groups, *source[2:])
    order = (0, 2, 1, *range(3, len(apart)))
    turned = tuple(apart[i] for i in order)
    names = [node.step("split", apart), node.step("turned", turned)]
    return [
        Reshape(node.label, (node.input,), (names[0],)),
        Transpose(node.label, (names[0],), (names[1],), order),
        Reshape(node.label, (names[1],), (node.name,)),
    ]
