"""More makers for random graphs; `random_graphs.FIRST` counts those before, so that old seeds keep their graphs."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.random_graphs import RandomGraph, four, image, maker


@maker(1.2)
def clip(g: RandomGraph) -> None:
    """Relu6, HardTanh, a Clip with one bound."""
    entry = g.pick()
    if entry is None:
        return
    low, high = [(0.0, 6.0), (-1.0, 1.0), (0.0, 1.5), (-0.5, None), (None, 0.7)][int(g.rng.integers(0, 5))]
    bounds = ["" if v is None else g.constant(v) for v in (low, high)]
    g.node("Clip", [entry[0], *(bounds if bounds[1] else bounds[:1])], [entry[1]])


@maker(1.2)
def bound(g: RandomGraph) -> None:
    """Max, Min or Where with a constant."""
    entry = g.pick()
    if entry is None:
        return
    x, shape = entry
    c = shape[1]
    kinds: list[tuple[int, ...]] = [(c,) + (1,) * (len(shape) - 2), (), (1,), (1, c) + (1,) * (len(shape) - 2)]
    constant = g.constant(g.rng.normal(0.2, 0.8, kinds[int(g.rng.integers(0, 4))]))
    op = str(g.rng.choice(["Max", "Min", "Where"]))
    inputs = [x, constant] if g.rng.random() < 0.5 else [constant, x]
    if op == "Where":
        flag = g.rng.random((1,) * (len(shape) - 1) + (shape[-1],)) < 0.5
        mask = g.constant(flag, np.bool_) if g.rng.random() < 0.5 else _mask(g, x, shape)
        inputs = [mask, *inputs]
    g.node(op, inputs, [shape])


def _mask(g: RandomGraph, x: str, shape: tuple[int, ...]) -> str:
    (mask,) = g.node("Greater", [x, g.constant(0.1)], [shape])
    g.pool.pop()
    return mask


@maker(0.6)
def where_of_two(g: RandomGraph) -> None:
    entry = g.pick()
    other = g.pick(lambda shape: entry is not None and shape == entry[1])
    if entry and other:
        g.node("Where", [_mask(g, entry[0], entry[1]), entry[0], other[0]], [entry[1]])


@maker(1)
def constant_first(g: RandomGraph) -> None:
    """`c - x`, with c along the channels, one number, or along several axes."""
    entry = g.pick()
    if entry is None:
        return
    x, shape = entry
    c = shape[1]
    kinds: list[tuple[int, ...]] = [(c,) + (1,) * (len(shape) - 2)] * 3 + [(1,), (c, *shape[2:])]
    g.node("Sub", [g.constant(g.rng.normal(0.5, 1.0, kinds[int(g.rng.integers(0, 5))])), x], [shape])


@maker(1.5)
def identity_branch(g: RandomGraph) -> None:
    """conv(x) + bn(x), with more branches now and then: RepVGG, MobileOne, FastViT."""
    entry = g.pick(image)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    shape = (n, c, h, w)
    groups = int(g.rng.choice([1, c]))
    parts = []
    for k in (3, 1) if g.rng.random() < 0.4 else (3,):
        weight = g.constant(g.rng.standard_normal((c, c // groups, k, k)) / np.sqrt(c // groups * k))
        bias = [g.constant(g.vector(c))] if g.rng.random() < 0.5 else []
        attrs: dict[str, Any] = {"group": groups, "pads": [k // 2] * 4}
        (y,) = g.node("Conv", [x, weight, *bias], [shape], **attrs)
        parts.append(_bn(g, y, shape) if g.rng.random() < 0.6 else y)
    parts.append(_bn(g, x, shape))
    (y,) = g.node("Add", [parts[0], parts[-1]], [shape])
    if len(parts) == 3:
        (y,) = g.node("Add", [y, parts[1]], [shape])
    if g.rng.random() < 0.4:
        (y,) = g.node("Mul", [y, g.constant(g.vector(c).reshape(c, 1, 1))], [shape])
        g.node("Add", [x, y], [shape])


def _bn(g: RandomGraph, x: str, shape: tuple[int, ...]) -> str:
    c = shape[1]
    values = [g.gamma(c), g.vector(c), g.vector(c), np.exp(g.rng.uniform(-1.2, 1.0, c))]
    return g.node("BatchNormalization", [x, *map(g.constant, values)], [shape], epsilon=1e-3)[0]


@maker(0.6)
def resize(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: four(shape) and shape[2] <= 6)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    mode = str(g.rng.choice(["nearest", "linear"]))
    scales = g.constant([1, 1, 2, 2], np.float32)
    g.node("Resize", [x, "", scales], [(n, c, 2 * h, 2 * w)], mode=mode, coordinate_transformation_mode="asymmetric")


@maker(0.5)
def space_to_depth(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: four(shape) and shape[2] % 2 == 0 and shape[3] % 2 == 0 and shape[1] <= 4)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    g.node("SpaceToDepth", [x], [(n, 4 * c, h // 2, w // 2)], blocksize=2)


@maker(1)
def tokens(g: RandomGraph) -> None:
    """(n, c, h, w) -> (n, h*w, c) -> MatMul or Einsum, with or without a bias -> back."""
    entry = g.pick(four)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    out = int(g.rng.integers(1, 5))
    (y,) = g.node("Reshape", [x, g.constant([0, c, h * w], np.int64)], [(n, c, h * w)])
    weight = g.rng.standard_normal((c, out)) / np.sqrt(c)
    kind = int(g.rng.integers(0, 3))
    inner = (n, out, h * w)
    if kind == 0:
        (y,) = g.node("Transpose", [y], [(n, h * w, c)], perm=[0, 2, 1])
        (y,) = g.node("MatMul", [y, g.constant(weight)], [(n, h * w, out)])
        if g.rng.random() < 0.7:
            (y,) = g.node("Add", [y, g.constant(g.vector(out))], [(n, h * w, out)])
        (y,) = g.node("Transpose", [y], [inner], perm=[0, 2, 1])
    elif kind == 1:
        (y,) = g.node("MatMul", [g.constant(weight.T), y], [inner])
    else:
        (y,) = g.node("Einsum", [y, g.constant(weight)], [inner], equation="bit,io->bot")
    g.pool = [entry for entry in g.pool if len(entry[1]) != 3]
    g.node("Reshape", [y, g.constant([0, out, h, w], np.int64)], [(n, out, h, w)])


@maker(0.5)
def sequence(g: RandomGraph) -> None:
    """Rows as a sequence through LSTM, GRU or RNN."""
    entry = g.pick(lambda shape: len(shape) == 2 and shape[1] <= 8)
    if entry is None:
        return
    x, (n, c) = entry
    kind, hidden = str(g.rng.choice(["LSTM", "GRU", "RNN"])), 2
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * hidden
    (y,) = g.node("Unsqueeze", [x, g.constant([1], np.int64)], [(n, 1, c)])
    g.pool.pop()
    weights = [g.constant(g.rng.standard_normal((1, gates, k)) / 2) for k in (c, hidden)]
    bias = [g.constant(g.rng.normal(size=(1, 2 * gates)))] if g.rng.random() < 0.6 else []
    (y,) = g.node(kind, [y, *weights, *bias], [(n, 1, 1, hidden)], hidden_size=hidden)
    g.pool.pop()
    g.node("Squeeze", [y, g.constant([1, 2], np.int64)], [(n, hidden)])


@maker(0.6)
def line(g: RandomGraph) -> None:
    """A Conv1d with a norm, on the pixels in a row."""
    entry = g.pick(four)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    size, out = h * w, int(g.rng.integers(1, 5))
    (y,) = g.node("Reshape", [x, g.constant([n, c, size], np.int64)], [(n, c, size)])
    (y,) = g.node("Conv", [y, g.constant(g.rng.standard_normal((out, c, 3)) / 2)], [(n, out, size)], pads=[1, 1])
    y = _bn(g, y, (n, out, size))
    g.pool = [entry for entry in g.pool if len(entry[1]) != 3]
    g.node("Reshape", [y, g.constant([n, out, h, w], np.int64)], [(n, out, h, w)])


@maker(0.6)
def volume(g: RandomGraph) -> None:
    """A Conv3d with a norm, the channels as depth."""
    entry = g.pick(lambda shape: four(shape) and shape[2] >= 2 and shape[3] >= 2 and shape[1] <= 4)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    (y,) = g.node("Unsqueeze", [x, g.constant([1], np.int64)], [(n, 1, c, h, w)])
    (y,) = g.node("Conv", [y, g.constant(g.rng.standard_normal((2, 1, 1, 2, 2)))], [(n, 2, c, h - 1, w - 1)])
    y = _bn(g, y, (n, 2, c, h - 1, w - 1))
    g.pool = [entry for entry in g.pool if len(entry[1]) != 5]
    g.node("Reshape", [y, g.constant([n, 2 * c, h - 1, w - 1], np.int64)], [(n, 2 * c, h - 1, w - 1)])


@maker(0.5)
def expand(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: four(shape) and shape[2] == shape[3] == 1)
    if entry:
        x, (n, c, _, _) = entry
        g.node("Expand", [x, g.constant([n, c, 4, 4], np.int64)], [(n, c, 4, 4)])


@maker(0.4)
def one_channel(g: RandomGraph) -> None:
    """Gather by a scalar index, and the axis back."""
    entry = g.pick(four)
    if entry:
        x, (n, c, h, w) = entry
        (y,) = g.node("Gather", [x, g.constant(int(g.rng.integers(0, c)), np.int64)], [(n, h, w)], axis=1)
        g.pool.pop()
        g.node("Unsqueeze", [y, g.constant([1], np.int64)], [(n, 1, h, w)])


@maker(0.6)
def frozen_tensorflow(g: RandomGraph) -> None:
    """x * inv + (offset - mean * inv), with inv = gamma * Reciprocal(Sqrt(var + eps)) computed in the graph."""
    entry = g.pick()
    if entry is None:
        return
    x, shape = entry
    c = shape[1]
    place = (c,) + (1,) * (len(shape) - 2)
    mean, offset, gamma = (g.constant(v.reshape(place)) for v in (g.vector(c), g.vector(c), g.gamma(c)))
    var = g.constant(np.exp(g.rng.uniform(-1.2, 1.0, place)), share=False)
    (y,) = g.node("Add", [var, g.constant(1e-3)], [place])
    if g.rng.random() < 0.5:
        (y,) = g.node("Pow", [y, g.constant(-0.5)], [place])
    else:
        (y,) = g.node("Sqrt", [y], [place])
        (y,) = g.node("Reciprocal", [y], [place])
    (inv,) = g.node("Mul", [y, gamma], [place])
    (y,) = g.node("Mul", [mean, inv], [place])
    (shift,) = g.node("Sub", [offset, y], [place])
    g.pool = [entry for entry in g.pool if entry[1] != place]
    (y,) = g.node("Mul", [x, inv] if g.rng.random() < 0.5 else [inv, x], [shape])
    g.node("Add", [shift, y] if g.rng.random() < 0.5 else [y, shift], [shape])


@maker(1.2)
def odd_geometry(g: RandomGraph) -> None:
    """Convs with dilations, kernels of two sizes, unlike pads; transposed ones with strides and output padding."""
    entry = g.pick(lambda shape: four(shape) and min(shape[2:]) >= 3 and max(shape[2:]) <= 12)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    out = int(g.rng.integers(1, 5))
    bias = [g.constant(g.vector(out))] if g.rng.random() < 0.5 else []
    if g.rng.random() < 0.3:
        weight = g.constant(g.rng.standard_normal((c, out, 3, 2)) / 2)
        attrs: dict[str, Any] = {"strides": [2, 1], "pads": [1, 0, 1, 0], "output_padding": [1, 0]}
        g.node("ConvTranspose", [x, weight, *bias], [(n, out, 2 * h, w + 1)], kernel_shape=[3, 2], **attrs)
        return
    kernel = (int(g.rng.choice([1, 2, 3])), int(g.rng.choice([1, 2, 3])))
    dilations = [
        int(g.rng.integers(1, 3)) if k > 1 and size >= 5 else 1 for k, size in zip(kernel, (h, w), strict=True)
    ]
    pads = [int(p) for p in g.rng.integers(0, 2, 4)] if g.rng.random() < 0.5 else [0] * 4
    weight = g.constant(g.rng.standard_normal((out, c, *kernel)) / np.sqrt(c * 2))
    size = tuple(
        s + pads[i] + pads[i + 2] - d * (k - 1)
        for i, (s, k, d) in enumerate(zip((h, w), kernel, dilations, strict=True))
    )
    attrs = {"kernel_shape": list(kernel), "dilations": dilations, "pads": pads}
    g.node("Conv", [x, weight, *bias], [(n, out, *size)], **attrs)
