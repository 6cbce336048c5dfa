"""Readers of nodes that hold weights: convolutions, products, recurrent layers. See `read.READERS` for the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from ...core.absorb import Layout
from ...core.graph import Homogeneous, Linear, Opaque, Sum
from .bindings import LinearBinding, Reading
from .node import Node, Ops
from .quantized import bias_scale, float_weight, quantization, rescaled


def conv(node: Node) -> Reading | None:
    """Conv: weight (out, in/groups, *kernel)."""
    if not float_weight(node, 1) or (node.input(2) and not float_weight(node, 2)):
        return None
    shape = node.shape(node.input(1)) or ()
    if len(shape) < 3:
        return None
    out, per_group, *kernel = shape
    groups = node.attrs.get("group", 1)
    if not isinstance(out, int) or not isinstance(per_group, int) or groups < 1 or out % groups:
        return None
    scales, quantized = quantization(node, 1, 0, out)
    op = Linear(
        node.label,
        (node.input(0),),
        node.outputs[:1],
        1,
        1,
        per_group * groups,
        out,
        2 + len(kernel),
        not _pads(node, kernel),
        scales=scales,
        free=quantized.free if quantized else None,
        taps=scales == "both" and per_group * groups == out and _centred(node, kernel),
        conv=True,
    )
    stored = bias_scale(node, 2, out)
    binding = LinearBinding(
        node.index, 1, Layout("oi", groups), node.index, 2, out, quantized=quantized, bias_scale=stored
    )
    return [op], {0: binding}


def _pads(node: Node, kernel: Sequence[object]) -> bool:
    """Whether a Conv may meet zeros of its own padding."""
    if node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return any(k != 1 for k in kernel)
    return node.attrs.get("auto_pad", "NOTSET") != "VALID" and any(p > 0 for p in node.attrs.get("pads", []))


def _centred(node: Node, kernel: Sequence[object]) -> bool:
    """Whether the centre tap of a Conv reads, for each output pixel, the same input pixel."""
    sizes = [k for k in kernel if isinstance(k, int) and k % 2]
    if len(sizes) < len(kernel) or any(s != 1 for s in node.attrs.get("strides", [])):
        return False
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return True
    dilations = node.attrs.get("dilations", [1] * len(sizes))
    needed = [(k - 1) // 2 * d for k, d in zip(sizes, dilations, strict=True)]
    pads = node.attrs.get("pads", [0] * 2 * len(sizes)) if auto == "NOTSET" else [0] * 2 * len(sizes)
    return list(pads) == needed * 2


def conv_transpose(node: Node) -> Reading | None:
    """ConvTranspose: weight (in, out/groups, *kernel).

    A constant input gives no constant output: at borders and between strides taps are missing. Not so with kernel 1.
    """
    if not float_weight(node, 1) or (node.input(2) and not float_weight(node, 2)):
        return None
    shape = node.shape(node.input(1)) or ()
    if len(shape) < 3:
        return None
    inputs, per_group, *kernel = shape
    groups = node.attrs.get("group", 1)
    if not isinstance(inputs, int) or not isinstance(per_group, int) or groups < 1 or inputs % groups:
        return None
    plain = all(k == 1 for k in kernel) and all(
        v == default
        for key, default in (("strides", 1), ("pads", 0), ("output_padding", 0))
        for v in node.attrs.get(key, [])
    )
    plain = plain and "output_shape" not in node.attrs and node.attrs.get("auto_pad", "NOTSET") == "NOTSET"
    out = per_group * groups
    scales, quantized = quantization(node, 1, 1 if groups == 1 else -1, out)
    op = Linear(
        node.label, (node.input(0),), node.outputs[:1], 1, 1, inputs, out, 2 + len(kernel), plain, scales=scales,
        free=quantized.free if quantized else None,
    )  # fmt: skip
    stored = bias_scale(node, 2, out)
    binding = LinearBinding(
        node.index, 1, Layout("io", groups), node.index, 2, out, quantized=quantized, bias_scale=stored
    )
    return [op], {0: binding}


def gemm(node: Node) -> Reading | None:
    """Gemm: `alpha * A B + beta * C`, with B constant and C constant or absent."""
    if not float_weight(node, 1) or (node.input(2) and not float_weight(node, 2)):
        return None
    shape = node.shape(node.input(1)) or ()
    if len(shape) != 2 or not isinstance(shape[0], int) or not isinstance(shape[1], int):
        return None
    if node.opset < 7 and node.input(2) and not node.attrs.get("broadcast", 0):
        return None
    swapped = bool(node.attrs.get("transB", 0))
    out, inputs = (shape[0], shape[1]) if swapped else (shape[1], shape[0])
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    in_axis = 0 if node.attrs.get("transA", 0) else 1
    scales, quantized = quantization(node, 1, 0 if swapped else 1, out)
    taps = scales == "both" and inputs == out and in_axis == 1
    op = Linear(
        node.label, (node.input(0),), node.outputs[:1], in_axis, 1, inputs, out, 2, scales=scales, taps=taps,
        free=quantized.free if quantized else None, biased=bool(node.input(2)),
    )  # fmt: skip
    layout = Layout("oi" if swapped else "io")
    stored = bias_scale(node, 2, out)
    at = LinearBinding(node.index, 1, layout, node.index, 2, out, alpha, beta, quantized=quantized, bias_scale=stored)
    return [op], {0: at}


def matmul(node: Node) -> Reading | None:
    """MatMul or Einsum with a constant matrix; with the Add behind it that is its bias, if there is one."""
    if node.index in {partner.index for partner in node.context.bias_adds.values()}:
        return [], {}  # read together with its Add
    made = _product(node, node.outputs[0], takes_bias=False)
    if made is None:
        return None
    op, binding = made
    return [op], {0: binding}


def scale_of_integers(node: Node) -> Reading | None:
    """A Mul that makes floats of the integers that a product gave; with the Add behind it that is its bias."""
    made = rescaled(node, node.outputs[0], takes_bias=False)
    if made is None:
        return None
    if node.index in {partner.index for partner in node.context.bias_adds.values()}:
        return [], {}  # read together with its Add
    return None if made[1].node == node.index else ([made[0]], {0: made[1]})


def bias_add(node: Node, product: Node) -> Reading | None:
    """A MatMul and the Add behind it as one linear op."""
    made = _product(product, node.outputs[0], takes_bias=True)
    if made is None:
        return None
    op, binding = made
    position = 1 if node.input(0) == product.outputs[0] else 0
    behind = op.rank - 1 - op.out_axis
    return [op], {0: replace(binding, bias_node=node.index, bias=position, behind=behind)}


def _product(node: Node, output: str, takes_bias: bool) -> tuple[Linear, LinearBinding] | None:
    """A MatMul or Einsum with a constant matrix, or a scale of integers, and no room for a bias in itself."""
    if node.type == "Mul":
        return rescaled(node, output, takes_bias)
    weight = 1 if float_weight(node, 1) else 0
    data = 1 - weight
    shape, rank = node.shape(node.input(weight)) or (), node.rank(data)
    if not float_weight(node, weight) or len(node.inputs) != 2 or rank is None or rank < 2 or len(shape) < 2:
        return None
    rows, columns = shape[-2:]
    if not isinstance(rows, int) or not isinstance(columns, int) or any(size != 1 for size in shape[:-2]):
        return None
    if len(shape) > rank or (len(shape) > 2 and node.type == "Einsum"):
        return None
    axes = _einsum(node, weight, rank) if node.type == "Einsum" else (rank - 2 + weight, rank - 2 + weight, weight)
    if axes is None:
        return None
    in_axis, out_axis, side = axes
    out, inputs = (rows, columns) if side == 0 else (columns, rows)
    scales, quantized = quantization(node, weight, len(shape) - 2 + side, out)
    op = Linear(
        node.label,
        (node.input(data),),
        (output,),
        in_axis,
        out_axis,
        inputs,
        out,
        rank,
        True,
        takes_bias,
        scales,
        taps=scales == "both" and inputs == out and node.type == "MatMul",
        free=quantized.free if quantized else None,
    )
    layout = Layout("oi" if side == 0 else "io")
    matrix = (rows, columns) if len(shape) > 2 else None
    return op, LinearBinding(node.index, weight, layout, node.index, None, out, matrix=matrix, quantized=quantized)


def _einsum(node: Node, weight: int, rank: int) -> tuple[int, int, int] | None:
    """The channel axes of data and output, and the side of the matrix that holds the outputs."""
    terms, arrow, out = node.attrs.get("equation", "").replace(" ", "").partition("->")
    parts = terms.split(",")
    if not arrow or len(parts) != 2 or "." in terms + out or any(len(set(p)) < len(p) for p in (*parts, out)):
        return None
    matrix, data = parts[weight], parts[1 - weight]
    inner, outer = set(matrix) & set(data), set(matrix) - set(data)
    if len(matrix) != 2 or len(inner) != 1 or len(outer) != 1 or len(data) != rank:
        return None
    if set(out) != (set(data) - inner) | outer:
        return None
    o = outer.pop()
    return data.index(inner.pop()), out.index(o), matrix.index(o)


def fused(node: Node) -> Reading | None:
    """A layer of onnxruntime's with what it does behind: FusedConv, FusedGemm, `act(layer(x) + z)`."""
    made = gemm(node) if node.type.endswith("Gemm") else conv(node)
    z = "" if node.type.endswith("Gemm") else node.input(3)
    if made is None or node.constant(3):
        return None
    ops, bindings = made
    shape = node.shape(node.outputs[0])
    step = node.step("layer", shape)
    layer = ops[0]
    assert isinstance(layer, Linear)
    found: Ops = [replace(layer, outputs=(step,), taps=False)]
    if z:
        found.append(Sum(node.label, (step, z), (step := node.step("sum", shape),), (1.0, 1.0)))
    act = node.attrs.get("activation", "")
    slope = {"Relu": 0.0, "LeakyRelu": _slope(node), "": 1.0}.get(act.decode() if isinstance(act, bytes) else act)
    if slope is None:
        return [*found, Opaque(node.label, (step,), node.outputs, node.type)], bindings
    return [*found, Homogeneous(node.label, (step,), node.outputs[:1], np.array(slope))], bindings


def _slope(node: Node) -> float:
    given = node.attrs.get("activation_params") or [node.attrs.get("activation_alpha", 0.01)]
    return float(given[0])


def nhwc_conv(node: Node) -> Reading | None:
    """A Conv of onnxruntime's whose data have the channels last; the weight is that of Conv."""
    made = conv(node)
    if made is None:
        return None
    ops, bindings = made
    layer = ops[0]
    assert isinstance(layer, Linear)
    last = layer.rank - 1
    return [replace(layer, in_axis=last, out_axis=last, taps=False)], bindings


def fused_matmul(node: Node) -> Reading | None:
    """A MatMul of onnxruntime's, `alpha * A B`, B a constant matrix, as it is or transposed."""
    rank, shape = node.rank(), node.shape(node.input(1)) or ()
    turned = any(node.attrs.get(name, 0) for name in ("transA", "transBatchA", "transBatchB"))
    if turned or rank is None or rank < 2 or len(shape) != 2 or not float_weight(node, 1):
        return None
    rows, columns = shape
    if not isinstance(rows, int) or not isinstance(columns, int):
        return None
    across = bool(node.attrs.get("transB", 0))
    out, inputs = (rows, columns) if across else (columns, rows)
    scales, quantized = quantization(node, 1, 0 if across else 1, out)
    op = Linear(
        node.label, (node.input(0),), node.outputs[:1], rank - 1, rank - 1, inputs, out, rank, True, False, scales,
        free=quantized.free if quantized else None,
    )  # fmt: skip
    layout, alpha = Layout("oi" if across else "io"), float(node.attrs.get("alpha", 1.0))
    return [op], {0: LinearBinding(node.index, 1, layout, node.index, None, out, alpha, quantized=quantized)}


def recurrent(node: Node) -> Reading | None:
    """LSTM, GRU, RNN: the weights of the input take what comes in; what goes out stays as it is."""
    shape = node.shape(node.input(1)) or ()
    if not float_weight(node, 1) or (node.input(3) and not float_weight(node, 3)) or node.rank() != 3:
        return None
    if len(shape) != 3 or not all(isinstance(size, int) for size in shape):
        return None
    directions, rows, inputs = (int(size) for size in shape if isinstance(size, int))
    scales, _ = quantization(node, 1, -1, rows)
    step = node.step("gates", (None, None, directions * rows))
    into = Linear(node.label, node.inputs[:1], (step,), 2, 2, inputs, directions * rows, 3, scales=scales)
    rest = tuple(name for name in node.inputs[4:] if name and name not in node.context.constants)
    binding = LinearBinding(
        node.index, 1, Layout("oi"), node.index, 3, directions * rows, matrix=(directions * rows, inputs), halves=rows
    )
    return [into, Opaque(node.label, (step, *rest), node.outputs, node.type)], {0: binding}


def normalization(node: Node) -> Reading | None:
    """LayerNormalization and its kin: its last step, a constant scale and offset, takes up what comes behind it."""
    shape, rank = node.shape(node.input(1)) or (), node.rank()
    bias = None if "RMS" in node.type or "Simplified" in node.type else 2
    if rank is None or not float_weight(node, 1) or (bias and node.input(bias) and not float_weight(node, bias)):
        return None
    by_channel = node.type in ("InstanceNormalization", "GroupNormalization")
    axis = 1 if by_channel else rank - len(shape)
    sizes = [size for size in shape if isinstance(size, int)]
    if not sizes or len(sizes) < len(shape) or (by_channel and len(shape) > 1) or not 0 <= axis < rank:
        return None
    size, data = sizes[0], node.shape(node.input(0)) or ()
    if 1 in sizes or data[axis] != size or (bias and node.input(bias) and node.shape(node.input(bias)) != shape):
        return None
    if node.shape(node.outputs[0]) is None:  # onnx does not infer all of them
        node.context.shapes[node.outputs[0]] = data
    step = node.step("normalised", data)
    last = Linear(node.label, (step,), node.outputs[:1], axis, axis, size, size, rank, True, bias is not None)
    binding = LinearBinding(
        node.index, 1, Layout("oi"), node.index, bias, size, matrix=(size, prod(sizes[1:])), tail=len(sizes) > 1
    )
    return [Opaque(node.label, node.inputs[:1], (step, *node.outputs[1:]), node.type), last], {1: binding}


def bias_of(add: Node, product: Node) -> bool:
    """Whether an Add is nothing but a product's bias: a constant along the output channels, and the only reader."""
    position = 1 if add.input(0) == product.outputs[0] else 0
    made = _product(product, add.outputs[0], takes_bias=True)
    if made is None or not float_weight(add, position) or add.constant(1 - position):
        return False
    op, name = made[0], product.outputs[0]
    if product.context.uses[name] != 1 or name in product.context.pinned:
        return False
    shape = add.shape(add.input(position)) or ()
    padded = (1,) * (op.rank - len(shape)) + tuple(shape)
    only_channels = all(d == 1 for axis, d in enumerate(padded) if axis != op.out_axis)
    return len(padded) == op.rank and only_channels and padded[op.out_axis] in (1, op.out_channels)
