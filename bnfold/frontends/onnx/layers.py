"""Readers of the nodes that hold weights: linear layers and norms. See `read.READERS` for the table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...absorb import Layout
from ...affine import ChannelAffine
from ...graph import Affine, Gate, Linear, Opaque, Reason, Shape, Statistics, Sum
from .bindings import AffineBinding, Binding, LinearBinding
from .node import FLOATS, Node, Ops

Number = npt.NDArray[np.float64]
Bound = tuple[Ops, dict[int, Binding]]
"""Ops, and the bindings of some by their position in the list."""


def _float_weight(node: Node, i: int) -> bool:
    """Whether input i is a constant of a floating type; large weights are not loaded to tell."""
    return node.constant(i) and node.context.constants.dtype(node.input(i)).name in FLOATS


def conv(node: Node) -> Bound | None:
    """Conv: weight (out, in/groups, *kernel)."""
    if not _float_weight(node, 1) or (node.input(2) and not _float_weight(node, 2)):
        return None
    shape = node.shape(node.input(1)) or ()
    if len(shape) < 3:
        return None
    out, per_group, *kernel = shape
    groups = node.attrs.get("group", 1)
    if not isinstance(out, int) or not isinstance(per_group, int) or out % groups:
        return None
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
    )
    return [op], {0: LinearBinding(node.index, 1, Layout("oi", groups), node.index, 2, out)}


def _pads(node: Node, kernel: Sequence[object]) -> bool:
    """Whether a Conv may meet zeros of its own padding."""
    if node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return any(k != 1 for k in kernel)
    return node.attrs.get("auto_pad", "NOTSET") != "VALID" and any(p > 0 for p in node.attrs.get("pads", []))


def conv_transpose(node: Node) -> Bound | None:
    """ConvTranspose: weight (in, out/groups, *kernel).

    A constant input gives no constant output: at borders and between strides taps are missing. Not so with kernel 1.
    """
    if not _float_weight(node, 1) or (node.input(2) and not _float_weight(node, 2)):
        return None
    shape = node.shape(node.input(1)) or ()
    if len(shape) < 3:
        return None
    inputs, per_group, *kernel = shape
    groups = node.attrs.get("group", 1)
    if not isinstance(inputs, int) or not isinstance(per_group, int) or inputs % groups:
        return None
    plain = all(k == 1 for k in kernel) and all(
        v == default
        for key, default in (("strides", 1), ("pads", 0), ("output_padding", 0))
        for v in node.attrs.get(key, [])
    )
    plain = plain and "output_shape" not in node.attrs and node.attrs.get("auto_pad", "NOTSET") == "NOTSET"
    out = per_group * groups
    op = Linear(node.label, (node.input(0),), node.outputs[:1], 1, 1, inputs, out, 2 + len(kernel), plain)
    return [op], {0: LinearBinding(node.index, 1, Layout("io", groups), node.index, 2, out)}


def gemm(node: Node) -> Bound | None:
    """Gemm: `alpha * A B + beta * C`, with B constant and C constant or absent."""
    if not _float_weight(node, 1) or (node.input(2) and not _float_weight(node, 2)):
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
    op = Linear(node.label, (node.input(0),), node.outputs[:1], in_axis, 1, inputs, out, 2)
    layout = Layout("oi" if swapped else "io")
    return [op], {0: LinearBinding(node.index, 1, layout, node.index, 2, out, alpha, beta)}


def matmul(node: Node) -> Bound | None:
    """MatMul with one constant matrix; with the Add behind it that is its bias, where there is one (`bias_of`)."""
    if node.index in {partner.index for partner in node.context.bias_adds.values()}:
        return [], {}  # read together with its Add
    made = _matmul(node, node.outputs[0], takes_bias=False)
    if made is None:
        return None
    op, weight, layout = made
    return [op], {0: LinearBinding(node.index, weight, layout, node.index, None, op.out_channels)}


def bias_add(node: Node, product: Node) -> Bound | None:
    """A MatMul and the Add behind it as one linear op."""
    made = _matmul(product, node.outputs[0], takes_bias=True)
    if made is None:
        return None
    op, weight, layout = made
    position = 1 if node.input(0) == product.outputs[0] else 0
    binding = LinearBinding(
        product.index, weight, layout, node.index, position, op.out_channels, column_bias=op.out_axis != op.rank - 1
    )
    return [op], {0: binding}


def _matmul(node: Node, output: str, takes_bias: bool) -> tuple[Linear, int, Layout] | None:
    weight = 1 if _float_weight(node, 1) else 0
    data = 1 - weight
    shape, rank = node.shape(node.input(weight)) or (), node.rank(data)
    if not _float_weight(node, weight) or len(shape) != 2 or rank is None or rank < 2:
        return None
    rows, columns = shape
    if not isinstance(rows, int) or not isinstance(columns, int):
        return None
    out, inputs, axis = (columns, rows, rank - 1) if weight == 1 else (rows, columns, rank - 2)
    op = Linear(node.label, (node.input(data),), (output,), axis, axis, inputs, out, rank, True, takes_bias)
    return op, weight, Layout("io" if weight == 1 else "oi")


def bias_of(add: Node, product: Node) -> bool:
    """Whether an Add is nothing but the bias of a MatMul: a constant along the output channels, and the only reader."""
    position = 1 if add.input(0) == product.outputs[0] else 0
    made = _matmul(product, add.outputs[0], takes_bias=True)
    if made is None or not _float_weight(add, position) or add.constant(1 - position):
        return False
    op, name = made[0], product.outputs[0]
    if product.context.uses[name] != 1 or name in product.context.pinned:
        return False
    shape = add.shape(add.input(position)) or ()
    padded = (1,) * (op.rank - len(shape)) + tuple(shape)
    only_channels = all(d == 1 for axis, d in enumerate(padded) if axis != op.out_axis)
    return len(padded) == op.rank and only_channels and padded[op.out_axis] in (1, op.out_channels)


def batch_norm(node: Node) -> Bound | None:
    """BatchNormalization in inference form; anything else stays, with its reason."""
    reason = _bn_reason(node)
    rank = node.rank()
    if reason is None and (rank is None or rank < 2):
        reason = Reason(
            "unknown-shape", f"the rank of {node.input(0)} is unknown", node.label, "run shape inference first"
        )
    gamma, beta, mean, var = (node.float_constant(i) if node.constant(i) else None for i in range(1, 5))
    if reason is None and (gamma is None or beta is None or mean is None or var is None):
        reason = Reason("not-constant", f"its {_missing(node)} not a constant of the model", node.label)
    if reason is not None or gamma is None or beta is None or mean is None or var is None:
        return [Opaque(node.label, _data(node), node.outputs, node.type, reason, _channels(node))], {}
    eps = float(node.attrs.get("epsilon", 1e-5))
    affine = ChannelAffine.from_batch_norm(mean.ravel(), var.ravel(), gamma.ravel(), beta.ravel(), eps)
    if not affine.finite:
        bad = Reason("bad-statistics", "its statistics give a factor that is not a finite number", node.label)
        return [Opaque(node.label, _data(node), node.outputs, node.type, bad, mean.size)], {}
    statistics = Statistics(mean.ravel(), var.ravel(), eps)
    op = Affine(node.label, _data(node), node.outputs[:1], node.type, "bn", 1, affine.inv, affine.shift, statistics)
    return [op], {0: AffineBinding(node.index)}


def _data(node: Node) -> tuple[str, ...]:
    return node.inputs[:1]


def _channels(node: Node) -> int:
    shape = node.shape(node.input(1))
    return shape[0] if shape and isinstance(shape[0], int) else 0


def _missing(node: Node) -> str:
    names = [n for i, n in enumerate(("scale", "B", "mean", "var"), 1) if not node.constant(i)]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _bn_reason(node: Node) -> Reason | None:
    """Why a BatchNormalization is not one at inference with constant statistics."""
    label = node.label
    if len([name for name in node.inputs if name]) < 5:
        return Reason("not-constant", "it has fewer than five inputs", label)
    if (node.opset < 7 and not node.attrs.get("is_test", 0)) or node.attrs.get("training_mode", 0):
        return Reason(
            "training-mode", "it computes its statistics from each batch", label, "export the model in eval mode"
        )
    if not node.only_output:
        return Reason("training-mode", "its running statistics are outputs that others read", label)
    if node.attrs.get("spatial", 1) == 0:
        return Reason("spatial-0", "it has statistics for every pixel (spatial=0)", label)
    held = [node.input(i) for i in range(1, 5) if node.input(i) in node.context.constants.overridable]
    if held:
        return Reason(
            "overridable",
            f"{held[0]} is a graph input with a default, which a caller may override",
            label,
            "--freeze-inputs makes such inputs constant",
        )
    return None


def arithmetic(node: Node) -> Bound | None:
    """Add, Sub, Mul, Div: with a constant per channel an affine, of data a sum or a gate."""
    partner = node.context.bias_adds.get(node.index)
    if partner is not None:
        return bias_add(node, partner)
    constant = next((i for i in (1, 0) if node.constant(i)), None)
    if constant is None:
        return _between_data(node)
    data = 1 - constant
    rank, shape = node.rank(data), node.shape(node.input(data))
    number = node.float_constant(constant)
    if number is None or node.constant(data) or rank is None or shape is None:
        return None
    if constant == 0 and (node.type == "Div" or (node.type == "Sub" and node.opset < 7)):
        return None
    number = _aligned(node, number, rank)
    if number is None:
        return None
    return _constant_arithmetic(node, number, data, shape)


def _aligned(node: Node, number: Number, rank: int) -> Number | None:
    """The constant with as many axes as the data, None where it has more. Before opset 7 `axis` places it."""
    if number.ndim > rank:
        return None
    if node.opset < 7 and "axis" in node.attrs and number.ndim < rank:
        axis = int(node.attrs["axis"]) % rank
        if axis + number.ndim > rank:
            return None
        return number.reshape((1,) * axis + number.shape + (1,) * (rank - axis - number.ndim))
    return number.reshape((1,) * (rank - number.ndim) + number.shape)


def _constant_arithmetic(node: Node, number: Number, data: int, shape: Shape) -> Bound | None:
    varying = [axis for axis, size in enumerate(number.shape) if size > 1]
    product = node.type in ("Mul", "Div")
    if any(shape[axis] != number.shape[axis] for axis in varying) or not np.isfinite(number).all():
        return None
    if node.type == "Div" and not number.all():
        return None
    backward = node.type == "Sub" and data == 1  # c - x
    value = -number if node.type == "Sub" and not backward else 1.0 / number if node.type == "Div" else number
    source = (node.input(data),)
    if not varying and product:
        return [Sum(node.label, source, node.outputs[:1], (value.item(),))], {}
    if len(varying) > 1:
        both = (*source, node.step("constant", tuple(number.shape)))
        op = (
            Gate(node.label, both, node.outputs[:1])
            if product
            else Sum(node.label, both, node.outputs[:1], (-1.0 if backward else 1.0, 1.0))
        )
        return [op], {}
    one, zero = np.ones(value.size), np.zeros(value.size)
    scale, offset = (value.ravel(), zero) if product else (-one if backward else one, value.ravel())
    affine = Affine(
        node.label,
        source,
        node.outputs[:1],
        node.type,
        "mul" if product else "add",
        varying[0] if varying else 0,
        scale,
        offset,
        candidate=bool(varying),
    )
    dtype = node.value(1 - data).dtype.name
    return [affine], {0: AffineBinding(node.index, data, dtype)}


def _between_data(node: Node) -> Bound | None:
    inputs = node.inputs
    if node.opset < 7 and node.attrs.get("broadcast", 0):
        return None
    if node.type in ("Mul", "Div"):
        return [Gate(node.label, inputs, node.outputs[:1], node.type == "Div")], {}
    factors = (1.0, -1.0 if node.type == "Sub" else 1.0)
    return [Sum(node.label, inputs, node.outputs[:1], factors)], {}
