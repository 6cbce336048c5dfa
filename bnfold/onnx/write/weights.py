"""New weights and biases for linear layers: what a `Rescale` asks for, in the tensors of an ONNX graph."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from ...core.absorb import moves_bias, new_bias, scale_weight, tapped
from ...core.plan import Rescale
from ...errors import PlanError
from ..read.bindings import LinearBinding, Quantized
from ..read.constants import attributes
from ..read.evaluators import along
from .editor import Editor, Pending, demand_finite, ready, rewrite, rounded, set_attribute, set_float

Array = npt.NDArray[Any]


def rescale(editor: Editor, edit: Rescale, at: LinearBinding) -> None:
    """New weight and bias for a linear op."""
    node = editor.graph.node[at.node]
    label = edit.name
    name = node.input[at.weight]
    scales_bias = edit.p_out is not None or edit.mix is not None
    grown = _grown_bias(editor, edit, at, name) if at.bias is None else None
    if at.bias_scale is not None and _only_scales(edit, at, at.bias_scale):
        bias = replace(at, weight=2 if at.bias is None else at.bias)
        _requantize(editor, replace(edit, u_in=None), bias, at.bias_scale, "bias")
    elif at.bias is not None and (moves_bias(edit) or (scales_bias and _has(editor, at))):
        _rebias(editor, edit, at, name)
    if at.quantized is not None:
        _requantize(editor, edit, at, at.quantized, "weight")
    elif edit.p_out is not None or edit.u_in is not None or edit.mix is not None:
        constants, shape = editor.constants, editor.constants.shape(name)
        new = at.spread if at.spread and prod(shape) != at.out_channels else shape
        weight = Pending(constants.dtype(name), new, lambda: _scaled(spread(constants.value(name), at), at, edit), name)
        editor.put(node, at.weight, weight, f"{label}_weight")
        if new != shape:
            editor.reshaped.update(node.output)
    if grown is not None:
        _put_behind(editor, at, ready(grown), label)


def spread(weight: Array, at: LinearBinding) -> Array:
    """A weight that is one number for all channels, as one for each."""
    return np.broadcast_to(weight.ravel(), at.out_channels).reshape(at.spread) if at.spread else weight


def _only_scales(edit: Rescale, layer: LinearBinding, at: Quantized) -> bool:
    """Whether a bias stored as integers can stay so: a factor for each channel, and no offset, which would be rounded.

    Its scale is then still that of the input times that of the weights, as runtimes ask.
    """
    if moves_bias(edit) or edit.mix is not None or layer.beta == 0.0:
        return False
    free = np.zeros(at.channels, np.bool_) if at.free is None else at.free
    return edit.p_out is None or bool(((edit.p_out > 0) | free).all())


def _requantize(editor: Editor, edit: Rescale, layer: LinearBinding, at: Quantized, part: str) -> None:
    """Other scales behind weights that stay: one for each output channel, the zero points with them.

    A negative factor negates the integers of its channel around their zero point; 0 sets them to it.
    """
    factor = np.ones(at.channels) if edit.p_out is None else edit.p_out.copy()
    if edit.u_in is not None:
        factor *= edit.u_in[0]
    if (factor == 1).all():
        return
    node = _copied(editor, layer, at) if at.shared else editor.graph.node[at.node]
    old = editor.value(node.input[1])
    blocks = old.ndim > 1 and bool(attributes(node).get("block_size"))
    wide = old.astype(np.float64) if blocks else old.astype(np.float64).ravel()
    if blocks:
        factor = factor.reshape([-1 if i == at.axis else 1 for i in range(old.ndim)])
    factor = np.where(rounded(wide * np.abs(factor), old.dtype) == 0, 0.0, factor)  # a scale of 0 is none
    if (factor <= 0).any():
        editor.put(node, 0, ready(_mirrored(editor, node, at.axis, np.sign(factor))), f"{edit.name}_{part}")
        factor = np.where(factor == 0, 1.0, np.abs(factor))
    new = rounded(wide * factor, old.dtype)
    demand_finite(new, old, edit.name)
    uniform = old.size == 1 and bool((factor == factor[0]).all())
    editor.put(node, 1, ready(new[:1].reshape(old.shape) if uniform else new), f"{edit.name}_{part}_scale")
    if uniform or old.size > 1:
        return
    if len(node.input) > 2 and node.input[2]:
        zero = editor.value(node.input[2])
        editor.put(node, 2, ready(np.broadcast_to(zero.ravel(), factor.shape).copy()), f"{edit.name}_zero_point")
    set_attribute(node, "axis", at.axis)


def _mirrored(editor: Editor, node: NodeProto, axis: int, sign: Array) -> Array:
    """`zero + sign * (q - zero)`: the integers q of a DequantizeLinear, by channels along `axis`, or block by block."""
    integers, attrs = editor.value(node.input[0]), attributes(node)
    zero: Array = np.zeros(1)
    if len(node.input) > 2 and node.input[2]:
        zero = editor.value(node.input[2]).astype(np.float64)
    zero, sign = (
        along(zero, integers.shape, attrs),
        along(sign, integers.shape, attrs | {"axis": attrs["axis"] if sign.ndim > 1 else axis}),
    )
    return (zero + sign * (integers.astype(np.float64) - zero)).astype(integers.dtype)


def _copied(editor: Editor, layer: LinearBinding, at: Quantized) -> NodeProto:
    """A copy of the nodes that make a layer's weights, for that layer alone; its DequantizeLinear."""
    copies: list[NodeProto] = []
    for place in (at.node, *reversed(at.between)):
        copy = NodeProto()
        copy.CopyFrom(editor.graph.node[place])
        if copies:
            copy.input[0] = copies[-1].output[0]
        for name in copy.input[1 if copies else 0 :]:
            editor.uses[name] += 1
        copy.output[0] = editor.free_name(f"{copy.output[0]}_copy")
        copy.name = copy.output[0]
        editor.uses[copy.output[0]] = 1
        copies.append(copy)
    node = editor.graph.node[layer.node]
    editor.release(node.input[layer.weight])
    node.input[layer.weight] = copies[-1].output[0]
    editor.inserted.setdefault(layer.node, []).extend(copies)
    return copies[0]


def _has(editor: Editor, at: LinearBinding) -> bool:
    inputs = editor.graph.node[at.bias_node].input
    return at.bias is not None and at.bias < len(inputs) and bool(inputs[at.bias])


def _grown_bias(editor: Editor, edit: Rescale, at: LinearBinding, weight_name: str) -> Array | None:
    """The bias of a layer that has no room for one, in the shape that adds it; None where it needs none."""
    if not moves_bias(edit):
        return None
    if at.growing is None:
        raise PlanError(f"{edit.name}: has no bias to put an offset into")
    new = new_bias(None, _read_weight(editor, edit, at, weight_name), at.layout, edit, at.out_channels)
    bias = rounded(new, editor.constants.dtype(weight_name))
    demand_finite(bias, new, edit.name)
    return bias.reshape(-1, *[1] * at.growing) if bias.any() else None


def _put_behind(editor: Editor, at: LinearBinding, bias: Pending, label: str) -> None:
    """Let the node of a layer become the addition of a bias, and put the layer itself in front of it."""
    node, layer = editor.graph.node[at.node], NodeProto()
    layer.CopyFrom(node)
    layer.output[0] = editor.free_name(f"{node.output[0]}_product")
    editor.inserted.setdefault(at.node, []).append(layer)
    rewrite(node, "Add", [layer.output[0], editor.new(bias, f"{label}_bias")])
    node.name = f"{node.name or layer.op_type}_bias"


def _read_weight(editor: Editor, edit: Rescale, at: LinearBinding, name: str) -> Array:
    """The weight as the layout reads it, nothing where only its place counts."""
    weight = editor.value(name) if edit.t_in is not None else np.zeros(0)
    weight = weight.reshape(at.matrix) if at.matrix and weight.size else weight
    return tapped(weight, at.layout, edit, at.alpha) if weight.size else weight


def _rebias(editor: Editor, edit: Rescale, at: LinearBinding, weight_name: str) -> None:
    if at.bias is None:
        raise PlanError(f"{edit.name}: has no bias to put an offset into")
    weight = _read_weight(editor, edit, at, weight_name)
    node = editor.graph.node[at.bias_node]
    old = editor.value(node.input[at.bias]) if _has(editor, at) else None
    if at.tail:
        new = _entries_bias(editor, edit, at, editor.constants.shape(weight_name), old)
    elif at.halves:
        new = _recurrent_bias(editor, edit, at, weight, old)
    elif old is not None and old.ndim == 2 and old.shape[0] > 1 and not at.behind:
        new = _matrix_bias(editor, edit, at, weight, old)
    else:
        new = _vector_bias(editor, edit, at, weight, old)
    dtype = editor.constants.dtype(weight_name) if old is None else old.dtype
    bias = rounded(new, dtype)
    demand_finite(bias, new, edit.name)
    if at.beta == 0.0 or (old is None and at.beta != 1.0):
        set_float(node, "beta", 1.0)
    editor.put(node, at.bias, ready(bias), f"{edit.name}_bias")


def _vector_bias(editor: Editor, edit: Rescale, at: LinearBinding, weight: Array, old: Array | None) -> Array:
    """(out,), with an axis of size 1 for each axis behind that of the channels."""
    beta = 1.0 if old is None or at.beta == 0.0 else at.beta
    start = (
        None
        if old is None or at.beta == 0.0
        else np.broadcast_to(beta * old.astype(np.float64).ravel(), at.out_channels)
    )
    total = new_bias(start, _effective(weight, at), at.layout, edit, at.out_channels) / beta
    return total.reshape(-1, *[1] * at.behind)


def _matrix_bias(editor: Editor, edit: Rescale, at: LinearBinding, weight: Array, old: Array) -> Array:
    """Gemm's C as a matrix, (rows, out): the offset joins every row."""
    moved = new_bias(None, _effective(weight, at), at.layout, edit, at.out_channels)
    if at.beta == 0.0:
        return moved
    scaled = old.astype(np.float64) * (1.0 if edit.p_out is None else edit.p_out)
    scaled = scaled if edit.mix is None else scaled * edit.mix
    return scaled + moved / at.beta


def _entries_bias(editor: Editor, edit: Rescale, at: LinearBinding, shape: tuple[int, ...], old: Array | None) -> Array:
    """(channels, *more): the offset joins every entry of its channel."""
    start = np.zeros(shape) if old is None else old.astype(np.float64)
    scale = np.ones(at.out_channels) if edit.p_out is None else edit.p_out
    moved = np.zeros(at.out_channels) if edit.q_out is None else edit.q_out
    return (scale[:, None] * start.reshape(at.out_channels, -1) + moved[:, None]).reshape(shape)


def _recurrent_bias(editor: Editor, edit: Rescale, at: LinearBinding, weight: Array, old: Array | None) -> Array:
    """(directions, 2 * halves): that of the input changes, that of the state does not."""
    whole = np.zeros((at.out_channels // at.halves, 2 * at.halves)) if old is None else old.astype(np.float64)
    mine = new_bias(whole[:, : at.halves].ravel(), weight, at.layout, edit, at.out_channels)
    return np.concatenate([mine.reshape(-1, at.halves), whole[:, at.halves :]], 1)


def _effective(weight: Array, at: LinearBinding) -> Array:
    return weight if at.alpha == 1.0 else weight.astype(np.float64) * at.alpha


# --- norms


def _scaled(weight: Array, at: LinearBinding, edit: Rescale) -> Array:
    whole = tapped(weight.reshape(at.matrix or weight.shape), at.layout, edit, at.alpha)
    scaled = rounded(scale_weight(whole, at.layout, edit).reshape(weight.shape), weight.dtype)
    demand_finite(scaled, weight, edit.name)
    return scaled
