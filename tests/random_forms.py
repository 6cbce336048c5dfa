"""Makers of rarer forms: attributes, ranks, axes and operators that `random_graphs` and `random_ops` never vary."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.random_graphs import RandomGraph, four, image, maker

Shape = tuple[int, ...]


def _pick(g: RandomGraph, *options: Any) -> Any:
    return options[int(g.rng.integers(0, len(options)))]


@maker(1.2)
def grouped_geometry(g: RandomGraph) -> None:
    """Convs with groups, strides, dilations and unlike pads at once."""
    entry = g.pick(lambda shape: four(shape) and min(shape[2:]) >= 5 and max(shape[2:]) <= 12)
    if entry is None:
        return
    x, (n, c, *sizes) = entry
    groups = _pick(g, *[d for d in (1, 2, c) if c % d == 0])
    out = groups * int(g.rng.integers(1, 4))
    kernel, strides, dilations = ([int(v) for v in g.rng.integers(1, 3, 2)] for _ in range(3))
    pads = [int(p) for p in g.rng.integers(0, 3, 4)]
    weight = g.constant(g.rng.standard_normal((out, c // groups, *kernel)) / np.sqrt(c))
    bias = [g.constant(g.vector(out))] if g.rng.random() < 0.5 else []
    size = [
        (s + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i, s in enumerate(sizes)
    ]
    attrs: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations, "pads": pads}
    g.node("Conv", [x, weight, *bias], [(n, out, *size)], **attrs)


@maker(1.0)
def transposed_geometry(g: RandomGraph) -> None:
    """Transposed convs with groups, strides, dilations, unlike pads, or the output shape."""
    entry = g.pick(lambda shape: four(shape) and min(shape[2:]) >= 3 and max(shape[2:]) <= 8)
    if entry is None:
        return
    x, (n, c, *sizes) = entry
    groups, per = _pick(g, *[d for d in (1, 2, c) if c % d == 0]), int(g.rng.integers(1, 3))
    kernel = [1, 1] if g.rng.random() < 0.25 else [int(v) for v in g.rng.integers(2, 4, 2)]
    strides, dilations = ([int(v) for v in g.rng.integers(1, 3, 2)] for _ in range(2))
    whole = [(s - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 for i, s in enumerate(sizes)]
    attrs: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations, "kernel_shape": kernel}
    if kernel == [1, 1]:
        size = whole
    elif g.rng.random() < 0.3:
        size = [w - int(g.rng.integers(0, 2)) for w in whole]
        attrs |= {"output_shape": size}
    else:
        pads = [int(p) for p in g.rng.integers(0, 2, 4)]
        size = [w - pads[i] - pads[i + 2] for i, w in enumerate(whole)]
        attrs |= {"pads": pads}
    weight = g.constant(g.rng.standard_normal((c, per, *kernel)) / np.sqrt(c))
    bias = [g.constant(g.vector(per * groups))] if g.rng.random() < 0.5 else []
    g.node("ConvTranspose", [x, weight, *bias], [(n, per * groups, *size)], **attrs)


@maker(0.8)
def gemm_forms(g: RandomGraph) -> None:
    """Gemm with A transposed, alpha and beta of both signs, C of every shape or none."""
    entry = g.pick(lambda shape: len(shape) == 2 and shape[1] <= 12)
    if entry is None:
        return
    x, (n, k) = entry
    out, swapped = int(g.rng.integers(1, 5)), bool(g.rng.integers(0, 2))
    turned = g.rng.random() < 0.4
    if turned:
        (x,) = g.node("Transpose", [x], [(k, n)], perm=[1, 0])
        g.pool.pop()
    weight = g.constant(g.rng.standard_normal((out, k) if swapped else (k, out)) / np.sqrt(k))
    shape = _pick(g, None, (), (1,), (out,), (1, out), (n, out), (n, 1), (1, 1))
    bias = [] if shape is None else [g.constant(g.rng.standard_normal(shape))]
    attrs: dict[str, Any] = {"transA": int(turned), "transB": int(swapped)}
    attrs |= {"alpha": _pick(g, 1.0, 0.5, -2.0), "beta": _pick(g, 1.0, 2.0, -0.5, 0.0)}
    g.node("Gemm", [x, weight, *bias], [(n, out)], **attrs)


@maker(0.8)
def product_forms(g: RandomGraph) -> None:
    """MatMul on the last axis, the weight on either side, with leading axes or one matrix for each channel."""
    entry = g.pick(image)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    left, out = g.rng.random() < 0.5, int(g.rng.integers(1, 5))
    lead = _pick(g, (), (1,), (1, 1), (c,))
    size, shape = (h, (n, c, out, w)) if left else (w, (n, c, h, out))
    weight = g.constant(g.rng.standard_normal((*lead, out, size) if left else (*lead, size, out)) / np.sqrt(size))
    (y,) = g.node("MatMul", [weight, x] if left else [x, weight], [shape])
    if g.rng.random() < 0.7:
        bias = g.constant(g.rng.standard_normal(_pick(g, (out, 1) if left else (out,), (1,), (c, 1, 1), shape[1:])))
        g.node("Add", [y, bias] if g.rng.random() < 0.5 else [bias, y], [shape])


@maker(0.5)
def einsum_forms(g: RandomGraph) -> None:
    """Einsum over any axis, the matrix in either place, the new axis anywhere, with a bias along it."""
    entry = g.pick(four)
    if entry is None:
        return
    x, shape = entry
    axis, out = int(g.rng.integers(1, 4)), int(g.rng.integers(1, 4))
    letters = "abcd"
    weight = g.constant(g.rng.standard_normal((shape[axis], out)) / np.sqrt(shape[axis]))
    matrix = f"{letters[axis]}o"
    rest = [letter for letter in letters if letter != letters[axis]]
    place = int(g.rng.integers(1, 4))
    target = "".join([*rest[:place], "o", *rest[place:]])
    sizes = dict(zip(letters, shape, strict=True)) | {"o": out}
    first = g.rng.random() < 0.5
    equation = f"{matrix},{letters}->{target}" if first else f"{letters}, {matrix} -> {target}"
    made = tuple(sizes[letter] for letter in target)
    (y,) = g.node("Einsum", [weight, x] if first else [x, weight], [made], equation=equation)
    if g.rng.random() < 0.6:
        g.node("Add", [y, g.constant(g.vector(out).reshape(-1, *[1] * (3 - place)))], [made])


@maker(0.8)
def pad_forms(g: RandomGraph) -> None:
    """Pads of channels and space, negative amounts, values that are not 0."""
    entry = g.pick(lambda shape: image(shape) and min(shape[1:]) >= 2 and shape[1] <= 6)
    if entry is None:
        return
    x, shape = entry
    mode = _pick(g, "constant", "constant", "reflect", "edge")
    pads = np.zeros((2, 4), np.int64)
    pads[:, 2:] = g.rng.integers(-1 if mode == "constant" and min(shape[2:]) >= 4 else 0, 2, (2, 2))
    if g.rng.random() < 0.3:
        pads[:, 1] = g.rng.integers(0, 2, 2)
    value = [g.constant(_pick(g, 0.0, 0.0, 1.5, -0.3))] if mode == "constant" and g.rng.random() < 0.6 else []
    size = tuple(int(v) for v in np.array(shape) + pads.sum(0))
    g.node("Pad", [x, g.constant(pads.ravel(), np.int64), *value], [size], mode=mode)


@maker(0.6)
def resize_forms(g: RandomGraph) -> None:
    """Linear over every transformation, the frame of tf_crop_and_resize among them.

    Not cubic: the reference evaluator has those weights in float32, and they add up to 1 in float32 only.
    """
    entry = g.pick(lambda shape: image(shape) and max(shape[2:]) <= 6)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    where = _pick(g, "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_crop_and_resize")
    attrs: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": where}
    roi = ""
    if where == "tf_crop_and_resize":
        attrs["extrapolation_value"] = _pick(g, 0.0, 1.5)
        roi = g.constant([0, 0, -0.2, 0, 1, 1, 1, 1.2], np.float64)
    scales = g.constant([1, 1, 2, 1], np.float32)
    g.node("Resize", [x, roi, scales], [(n, c, 2 * h, w)], **attrs)


@maker(0.8)
def pool_forms(g: RandomGraph) -> None:
    """Pools with strides, unlike kernels and pads, dilated ones."""
    entry = g.pick(lambda shape: four(shape) and min(shape[2:]) >= 3)
    if entry is None:
        return
    x, (n, c, *sizes) = entry
    op = _pick(g, "MaxPool", "AveragePool")
    kernel, strides = ([int(v) for v in g.rng.integers(1, 4, 2)] for _ in range(2))
    pads = [int(g.rng.integers(0, k)) for k in (*kernel, *kernel)]
    spread = [2 if op == "MaxPool" and k == 2 and g.rng.random() < 0.5 else 1 for k in kernel]
    size = [
        (s + pads[i] + pads[i + 2] - spread[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i, s in enumerate(sizes)
    ]
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    attrs |= {"dilations": spread} if op == "MaxPool" else {"count_include_pad": int(g.rng.integers(0, 2))}
    g.node(op, [x], [(n, c, *size)], **attrs)


@maker(1.0)
def reduce_forms(g: RandomGraph) -> None:
    """Over any axes, the channels too, by negative names, with and without their places kept."""
    entry = g.pick(four)
    if entry is None:
        return
    x, shape = entry
    axes = _pick(g, [1], [-1], [2], [-2, -1], [1, 2], [3])
    op, keep = (
        _pick(g, "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1"),
        g.rng.random() < 0.7,
    )
    gone = {axis % 4 for axis in axes}
    kept: Shape = tuple(1 if axis in gone else size for axis, size in enumerate(shape))
    result = kept if keep else tuple(size for axis, size in enumerate(shape) if axis not in gone)
    given: dict[str, Any] = {} if op == "ReduceSum" else {"axes": axes}
    inputs = [x, g.constant(axes, np.int64)] if op == "ReduceSum" else [x]
    (y,) = g.node(op, inputs, [result], keepdims=int(keep), **given)
    if not keep:
        g.pool.pop()
        g.node("Unsqueeze", [y, g.constant(sorted(gone), np.int64)], [kept])


@maker(1.2)
def pins(g: RandomGraph) -> None:
    """Operators that no gauge passes, over the channels and elsewhere."""
    entry = g.pick(four)
    if entry is None:
        return
    x, shape = entry
    c = shape[1]
    op = _pick(g, "Softmax", "Elu", "Selu", "InstanceNormalization", "CumSum", "Tile", "GatherElements", "Erf", "Pow")
    if op == "Softmax":
        g.node(op, [x], [shape], axis=_pick(g, 1, -1))
    elif op == "InstanceNormalization":
        g.node(op, [x, g.constant(g.vector(c)), g.constant(g.vector(c))], [shape])
    elif op == "CumSum":
        g.node(op, [x, g.constant(_pick(g, 1, -1), np.int64)], [shape])
    elif op == "Tile":
        if max(shape[1:]) <= 8:
            repeats = _pick(g, [1, 2, 1, 1], [1, 1, 2, 1], [1, 2, 1, 3], [2, 1, 1, 1])
            size = tuple(n * r for n, r in zip(shape, repeats, strict=True))
            (y,) = g.node(op, [x, g.constant(repeats, np.int64)], [size])
            if repeats[0] > 1:  # back to the batch of the others
                g.pool.pop()
                bounds = ([0], [shape[0]], [0])
                g.node("Slice", [y, *(g.constant(v, np.int64) for v in bounds)], [shape])
    elif op == "GatherElements":
        g.node(op, [x, g.constant(g.rng.integers(0, c, shape), np.int64)], [shape], axis=1)
    elif op == "Pow":
        (y,) = g.node("Tanh", [x], [shape])
        g.node(op, [y, g.constant(2.0)], [shape])
    else:
        g.node(op, [x], [shape])


@maker(1.0)
def index_forms(g: RandomGraph) -> None:
    """Slices in both directions, equal Splits, Gathers of negative and repeated indices, Concat in space."""
    entry = g.pick(lambda shape: image(shape) and shape[1] >= 2)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    kind = int(g.rng.integers(0, 4))
    if kind == 0:
        bounds = ([-1, 0], [-c - 1, w - 1], [-3, 3], [-1, 1])
        g.node("Slice", [x, *(g.constant(v, np.int64) for v in bounds)], [(n, c, h, w - 1)])
    elif kind == 1 and c % 2 == 0:
        g.node("Split", [x, g.constant([c // 2, c // 2], np.int64)], [(n, c // 2, h, w)] * 2, axis=-3)
    elif kind == 2:
        index = g.rng.integers(-c, c, int(g.rng.integers(1, 6)))
        g.node("Gather", [x, g.constant(index, np.int64)], [(n, len(index), h, w)], axis=-3)
    elif h <= 6:
        other = g.pick(lambda shape: shape == (n, c, h, w))
        if other:
            g.node("Concat", [x, other[0]], [(n, c, 2 * h, w)], axis=-2)


@maker(0.8)
def slopes(g: RandomGraph) -> None:
    """PRelu with a slope for all, for each column, for each value; LeakyRelu that turns back."""
    entry = g.pick(four)
    if entry is None:
        return
    x, shape = entry
    if g.rng.random() < 0.3:
        g.node("LeakyRelu", [x], [shape], alpha=_pick(g, -0.3, 0.0, 1.5))
        return
    size: Shape = _pick(g, (), (1,), (shape[3],), shape[1:], (1, shape[1], 1, 1), (1, 1, 1, 1))
    g.node("PRelu", [x, g.constant(g.rng.uniform(-0.4, 0.9, size))], [shape])


@maker(0.6)
def several(g: RandomGraph) -> None:
    """Max, Min, Sum and Mean of three, with a constant among them; of one."""
    entry = g.pick()
    other = g.pick(lambda shape: entry is not None and shape == entry[1])
    if entry is None or other is None:
        return
    x, shape = entry
    constant = g.constant(g.rng.normal(0.1, 0.7, _pick(g, (1,), (shape[1],) + (1,) * (len(shape) - 2), shape[-1:])))
    op = _pick(g, "Max", "Min", "Sum", "Mean")
    inputs = _pick(g, [x, other[0], constant], [x, constant, x], [x, other[0], x], [x])
    g.node(op, inputs[::-1] if op in ("Max", "Min") else inputs, [shape])


@maker(0.3)
def nothing(g: RandomGraph) -> None:
    """A slice of no channels goes through a few operators and joins again."""
    entry = g.pick(four)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    (y,) = g.node("Slice", [x, *(g.constant([v], np.int64) for v in (c, c, 1))], [(n, 0, h, w)])
    (y,) = g.node("Relu", [y], [(n, 0, h, w)])
    (y,) = g.node("Mul", [y, g.constant(np.zeros((0, 1, 1)))], [(n, 0, h, w)])
    g.pool = [entry for entry in g.pool if 0 not in entry[1]]
    g.node("Concat", [x, y], [(n, c, h, w)], axis=1)
