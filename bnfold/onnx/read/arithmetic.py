"""Readers of norms and of Add, Sub, Mul and Div. See `read.READERS` for the table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ...core.affine import ChannelAffine
from ...core.graph import Affine, Bound, Gate, Opaque, Reason, Shape, Statistics, Sum
from .bindings import AffineBinding, BoundBinding, Reading
from .linear import bias_add, scale_of_integers
from .node import Node, Ops

Number = npt.NDArray[np.float64]


def batch_norm(node: Node) -> Reading | None:
    """BatchNormalization in inference form; anything else stays, with its reason."""
    reason = _bn_reason(node)
    rank = node.rank()
    if reason is None and rank is None:
        hint = "add its shape to value_info; a custom operator needs its schema for shape inference"
        reason = Reason("unknown-shape", f"the rank of {node.input(0)} is unknown", node.label, hint)
    elif reason is None and rank is not None and rank < 2:
        reason = Reason("no-channels", f"{node.input(0)} has rank {rank}, and channels lie along axis 1", node.label)
    gamma, beta, mean, var = (node.float_constant(i) if node.constant(i) else None for i in range(1, 5))
    if reason is None and (gamma is None or beta is None or mean is None or var is None):
        reason = Reason("not-constant", f"its {_missing(node)} not a plain constant of the model", node.label)
    if reason is not None or gamma is None or beta is None or mean is None or var is None:
        return [Opaque(node.label, _data(node), node.outputs, node.type, reason, _channels(node))], {}
    if len({vector.size for vector in (gamma, beta, mean, var)}) > 1 or not mean.size:
        why = "its four vectors are not of one length" if mean.size else "it has no channels"
        uneven = Reason("bad-statistics", why, node.label)
        return [Opaque(node.label, _data(node), node.outputs, node.type, uneven, mean.size)], {}
    has = (node.shape(node.input(0)) or (None, None))[1]
    if isinstance(has, int) and has != mean.size:
        why = f"its vectors are for {mean.size} channel{'s' * (mean.size > 1)}, and {node.input(0)} has {has}"
        other = Reason("bad-statistics", why, node.label)
        return [Opaque(node.label, _data(node), node.outputs, node.type, other, mean.size)], {}
    eps = float(node.attrs.get("epsilon", 1e-5))
    affine = ChannelAffine.from_batch_norm(mean.ravel(), var.ravel(), gamma.ravel(), beta.ravel(), eps)
    if not affine.finite:
        bad = Reason("bad-statistics", "its statistics give a factor that is not a finite number", node.label)
        return [Opaque(node.label, _data(node), node.outputs, node.type, bad, mean.size)], {}
    statistics = Statistics(mean.ravel(), var.ravel(), eps)
    op = Affine(
        node.label,
        _data(node),
        node.outputs[:1],
        node.type,
        "bn",
        1,
        affine.inv,
        affine.shift,
        statistics,
        layer=_fits_layer(node, rank),
    )
    return [op], {0: AffineBinding(node.index)}


def _fits_layer(node: Node, rank: int | None) -> bool:
    """Whether a Conv can be written for a norm: in float32, for which every runtime has one, with an axis of space."""
    dtypes = node.context.dtypes
    single = dtypes.get(node.input(0)) or dtypes.get(node.outputs[0])
    vectors = all(node.value(i).dtype == np.float32 for i in range(1, 5))
    return rank is not None and rank > 2 and single == TensorProto.FLOAT and vectors


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
    if 7 <= node.opset < 14 and any(node.outputs[1:]):
        return Reason(
            "training-mode", "it has more than one output, which before opset 14 means the statistics of each batch",
            label, "export the model in eval mode, or drop the outputs that nobody reads",
        )  # fmt: skip
    if node.attrs.get("spatial", 1) == 0 and node.rank() != 2:  # without space it is the same
        return Reason("spatial-0", "it has statistics for every pixel (spatial=0)", label)
    held = [node.input(i) for i in range(1, 5) if node.context.constants.may_be_overridden(node.input(i))]
    if held:
        return Reason(
            "overridable",
            f"{held[0]} is a graph input with a default, which a caller may override",
            label,
            "--freeze-inputs makes such inputs constant",
        )
    return None


def arithmetic(node: Node) -> Reading | None:
    """Add, Sub, Mul, Div: with a constant per channel an affine, of data a sum or a gate."""
    partner = node.context.bias_adds.get(node.index)
    if partner is not None:
        return bias_add(node, partner)
    if node.index in node.context.scales:
        return None  # it stays as it is, but for its constant
    layer = scale_of_integers(node)
    if layer is not None:
        return layer
    constant = next((i for i in (1, 0) if node.constant(i)), None)
    if constant is None:
        return _between_data(node)
    data = 1 - constant
    rank, shape = node.rank(data), node.shape(node.input(data))
    number = node.float_constant(constant)
    if number is None or not number.size or node.constant(data) or rank is None or shape is None:
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


def _constant_arithmetic(node: Node, number: Number, data: int, shape: Shape) -> Reading | None:
    varying = [axis for axis, size in enumerate(number.shape) if size > 1]
    product = node.type in ("Mul", "Div")
    if any(shape[axis] != number.shape[axis] for axis in varying) or not np.isfinite(number).all():
        return None
    whole = tuple(number.shape)
    if len(varying) > 1:  # it may be expanded to the shape of the data
        number = _shrunk(number, varying)
        varying = [axis for axis, size in enumerate(number.shape) if size > 1]
    if not number.size or (node.type == "Div" and not number.all()):
        return None
    backward = node.type == "Sub" and data == 1  # c - x
    value = -number if node.type == "Sub" and not backward else 1.0 / number if node.type == "Div" else number
    source = (node.input(data),)
    alone = node.beside_layer(data)
    if not varying and product and not (alone and value.item()):
        return [Sum(node.label, source, node.outputs[:1], (value.item(),))], {}
    if len(varying) > 1 and not product and node.opset >= 7:
        return _added_map(node, source, whole, shape, data, backward)
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
        candidate=bool(varying) or alone,
        listed=bool(varying),
    )
    dtype = node.value(1 - data).dtype.name
    return [affine], {0: AffineBinding(node.index, data, dtype)}


def _added_map(
    node: Node, source: tuple[str, ...], size: tuple[int, ...], shape: Shape, data: int, backward: bool
) -> Reading:
    """A constant along several axes, a map of positions say, which is scaled along and takes up offsets."""
    ops: Ops = []
    if backward:  # c - x = -x + c
        turned = node.step("turned", shape)
        ops, source = [Sum(node.label, source, (turned,), (-1.0,))], (turned,)
    ops.append(Bound(node.label, source, node.outputs[:1], size, ordered=False, adds=True))
    sign = -1.0 if node.type == "Sub" and not backward else 1.0
    return ops, {len(ops) - 1: BoundBinding(node.index, data, 1 - data, sign)}


def _shrunk(number: Number, axes: list[int]) -> Number:
    """A constant without those of its axes along which it does not change."""
    for axis in axes:
        first = number.take([0], axis)
        number = first if (number == first).all() else number
    return number


def _between_data(node: Node) -> Reading | None:
    inputs = node.inputs
    if node.opset < 7 and node.attrs.get("broadcast", 0):
        return None
    if node.type in ("Mul", "Div"):
        return [Gate(node.label, inputs, node.outputs[:1], node.type == "Div")], {}
    factors = (1.0, -1.0 if node.type == "Sub" else 1.0)
    return [Sum(node.label, inputs, node.outputs[:1], factors)], {}
