"""Quantised layers: weights behind a DequantizeLinear, and integers that a scale makes floats again.

What is stored as integers keeps them: a factor for each output channel goes into the scale, its sign into the integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from ...core.absorb import Layout
from ...core.graph import Linear, Opaque, Shape
from .bindings import LinearBinding, Quantized, Reading
from .constants import attributes
from .evaluators import along
from .node import FLOATS, Node, to_floats

SHAPERS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
PRODUCTS = frozenset({"ConvInteger", "MatMulInteger"})
"""Layers whose outputs are sums of integers."""


def float_weight(node: Node, i: int) -> bool:
    """Whether input i is a constant of a floating type; large weights are not loaded to tell."""
    return node.constant(i) and node.context.constants.dtype(node.input(i)).name in FLOATS


def dequantize(node: Node) -> Reading | None:
    """DequantizeLinear of data, `(q - zero) * s`: the scale s may be another for each channel; zero takes no offset."""
    shape, scale = node.shape(node.input(0)) or (), node.shape(node.input(1)) or ()
    if node.opset < 13 or len(shape) < 2 or not float_weight(node, 1) or (node.input(2) and not node.constant(2)):
        return None
    single = prod(d for d in scale if isinstance(d, int)) == 1
    axis = 1 if single else node.attrs.get("axis", 1) % len(shape)
    size = shape[axis]
    if not isinstance(size, int) or node.attrs.get("block_size") or node.attrs.get("output_dtype"):
        return None
    if not single and scale != (size,):
        return None
    step = node.step("integers", shape)
    op = Linear(
        node.label, (step,), node.outputs[:1], axis, axis, size, size, len(shape), True, False, "out",
        sign="scales integers that the model computes, and its scale is positive",
    )  # fmt: skip
    at = Quantized(node.index, axis, size)
    layer = LinearBinding(node.index, 1, Layout("oi"), node.index, None, size, quantized=at)
    return [Opaque(node.label, node.inputs[:1], (step,), node.type), op], {1: layer}


@dataclass(frozen=True)
class Scaling:
    """`a * s` or `a * (s * t)` with integers `a` that a product gave, at input `data`, and a constant s.

    s is input `weight` of the node at `node`; `last`: whether the product's channels lie along the last axis.
    """

    data: int
    node: int
    weight: int
    last: bool


def scaling(node: Node) -> Scaling | None:
    """What a Mul is behind ConvInteger or MatMulInteger, and a Cast; None where it is something else."""
    constants = node.context.constants
    if node.type != "Mul" or len(node.inputs) != 2 or node.opset < 10:
        return None
    for data in (0, 1):
        cast = constants.producer(node.input(data))
        source = constants.producer(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        if source is None or source.op_type not in PRODUCTS:
            continue
        last = source.op_type == "MatMulInteger"
        if float_weight(node, 1 - data):
            return Scaling(data, node.index, 1 - data, last)
        inner, name = constants.producer(node.input(1 - data)), node.input(1 - data)
        place = constants.position(inner) if inner is not None and inner.op_type == "Mul" else None
        if inner is None or place is None or node.context.uses[name] != 1 or name in node.context.pinned:
            continue
        for weight in (0, 1):
            held, other = inner.input[weight], inner.input[1 - weight]
            if held in constants and other not in constants and constants.dtype(held).name in FLOATS:
                return Scaling(data, place, weight, last)
    return None


def rescaled(node: Node, output: str, takes_bias: bool) -> tuple[Linear, LinearBinding] | None:
    """`y = a * (s * t)`: s is the weight of a layer with one input for each output, `p * y = a * ((p * s) * t)`."""
    found = scaling(node)
    if found is None:
        return None
    holder = node.context.constants.graph.node[found.node]
    name, other = holder.input[found.weight], holder.input[1 - found.weight]
    shape, scale = node.shape(node.input(found.data)), node.context.constants.shape(name)
    beside = node.shape(other)
    if shape is None or beside is None or max(len(scale), len(beside)) > len(shape) or len(shape) < 2:
        return None
    rank = len(shape)
    varying = [rank - len(scale) + i for i, size in enumerate(scale) if size != 1]
    axis = varying[0] if varying else rank - 1 if found.last else 1
    size = shape[axis]
    if len(varying) > 1 or not isinstance(size, int) or prod(scale) not in (1, size):
        return None
    op = Linear(
        node.label, (node.input(found.data),), (output,), axis, axis, size, size, rank, True, takes_bias
    )  # fmt: skip
    spread = (size, *[1] * (rank - 1 - axis))
    return op, LinearBinding(
        found.node, found.weight, Layout("oi"), node.index, None, size, matrix=(size, 1), spread=spread
    )


def quantization(node: Node, i: int, axis: int, out: int) -> tuple[str, Quantized | None]:
    """Which factors weights at input i can take; `axis` of the weight array holds the output channels.

    Weights behind a DequantizeLinear take a factor for each output channel, in their scale. `axis` is -1 where the
    output channels have no axis of their own.
    """
    chain = node.context.constants.chain(node.input(i))
    if not any(inner.op_type == "DequantizeLinear" for inner in chain):
        return "both", None
    names = [inner.output[0] for inner in chain]
    for inner in chain[:-1]:
        if inner.op_type == "Transpose" and axis >= 0:
            rank = len(node.shape(inner.output[0]) or ())
            axis = list(attributes(inner).get("perm", range(rank - 1, -1, -1)))[axis]
        elif inner.op_type in SHAPERS and axis >= 0:
            axis = _before(node.shape(inner.input[0]) or (), node.shape(inner.output[0]) or (), axis)
        elif inner.op_type != "Identity" and not (inner.op_type == "Cast" and to_floats(attributes(inner)["to"])):
            return "none", None
    last, constants = chain[-1], node.context.constants
    scale = constants.shape(last.input[1])
    rank = max(1, len(node.shape(last.output[0]) or ()))
    fits = _fits(node.opset, scale, attributes(last), axis, rank)
    if constants.dtype(last.input[1]).itemsize < constants.dtype(node.input(i)).itemsize:
        return "none", None  # a Cast follows, and the new scale would be rounded more coarsely than the weights
    index, between = constants.position(last), [constants.position(inner) for inner in chain[:-1]]
    if axis < 0 or not fits or index is None or None in between:
        return "none", None
    shared = any(node.context.uses[name] != 1 for name in names)
    places = tuple(place for place in between if place is not None)
    return "out", Quantized(index, axis, out, places, shared, _free(node, last, axis))


def _fits(opset: int, scale: tuple[int, ...], attrs: Mapping[str, Any], axis: int, rank: int) -> bool:
    """Whether a scale has, or may get, an entry for each index of `axis`; blocks lie along another axis."""
    own = int(attrs.get("axis", 1)) % rank
    if attrs.get("block_size"):
        return own != axis
    return opset >= 13 if all(size == 1 for size in scale) else len(scale) == 1 and own == axis


def bias_scale(node: Node, i: int, out: int) -> Quantized | None:
    """Where the scale of a bias that is stored as integers is, at input i of a layer; None where it is not."""
    return quantization(node, i, 0, out)[1] if node.input(i) and node.shape(node.input(i)) == (out,) else None


INTEGERS = frozenset({"int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32"})
SIGNED_FLOATS = frozenset({"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn"})
"""Short floats whose negative numbers mirror the positive ones."""
LARGEST = 1 << 26
"""Integers are not read where there are more: it would take seconds."""


def _free(node: Node, dequantize: NodeProto, axis: int) -> npt.NDArray[np.bool_] | None:
    """Output channels of stored integers q that stay in their range as `2 * zero point - q`; None where not stored."""
    constants, name = node.context.constants, dequantize.input[0]
    zero = dequantize.input[2] if len(dequantize.input) > 2 else ""
    if name not in constants.tensors or (zero and zero not in constants) or constants.may_be_overridden(name):
        return None
    kind, shape = constants.dtype(name).name, constants.shape(name)
    if kind not in INTEGERS | SIGNED_FLOATS or prod(shape) > LARGEST:
        return None
    centre = np.zeros(1, np.int64) if not zero else constants.value(zero).astype(np.int64)
    if kind in SIGNED_FLOATS:
        return np.full(shape[axis], not centre.any())
    low, high = bounds(kind)
    mirrored = 2 * along(centre, shape, attributes(dequantize)) - constants.value(name).astype(np.int64)
    others = tuple(i for i in range(len(shape)) if i != axis)
    return np.asarray(((mirrored >= low) & (mirrored <= high)).all(axis=others), np.bool_)


def bounds(kind: str) -> tuple[int, int]:
    """The smallest and the largest integer of a type."""
    bits = int(kind.lstrip("uint"))
    return (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _before(source: Shape, target: Shape, axis: int) -> int:
    """The axis of `source` that a Reshape makes `axis` of `target`, entry by entry; -1 where there is none."""
    before, after = ([size for size in shape if isinstance(size, int)] for shape in (source, target))
    if len(before) < len(source) or len(after) < len(target):
        return -1
    ahead = prod(after[:axis])
    return next((i for i, size in enumerate(before) if size == after[axis] and prod(before[:i]) == ahead), -1)
