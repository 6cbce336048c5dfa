"""Readers of ops that keep channels in place: activations, pooling, means, padding, resizing."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import fx

from ...core.graph import Broadcast, Carry, Clipped, Gate, Homogeneous, Opaque, Select, Sum
from .bindings import ActivationBinding
from .node import Node, Ops, Reading
from .norms import first_output

DROPOUTS = ("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def relu(node: Node) -> Reading:
    """relu; where a module of ours can take its place it may become a maximum with a constant per channel."""
    path = node.whole if node.context.exchangeable(node.whole) else ""
    takes = bool(path) or node.context.program
    op = Homogeneous(node.label, (node.input,), (node.name,), np.array(0.0), takes)
    return [op], {0: ActivationBinding(path, node.name)}


def leaky_relu(node: Node) -> Ops:
    """leaky_relu."""
    return [Homogeneous(node.label, (node.input,), (node.name,), np.array(float(node.args["negative_slope"])))]


def absolute(node: Node) -> Ops:
    """abs: a leaky_relu of slope -1."""
    return [Homogeneous(node.label, (node.input,), (node.name,), np.array(-1.0))]


def prelu(node: Node) -> Ops | None:
    """prelu, with one slope or one for each channel of axis 1."""
    slope, rank = node.number(node.args["weight"]), node.rank
    if slope is None or rank is None:
        return None
    if slope.size == 1:
        slope = slope.reshape(())
    elif slope.ndim == 1:
        slope = slope.reshape((-1,) + (1,) * (rank - 2))
    return [Homogeneous(node.label, (node.input,), (node.name,), slope)]


def clamp(node: Node) -> Reading | Ops | None:
    """clamp, hardtanh, relu6, clamp_min: between 0 and nothing a relu."""
    low, high = (node.args.get(a, node.args.get(b)) for a, b in (("min", "min_val"), ("max", "max_val")))
    if node.type == "relu6":  # its bounds are no arguments
        low, high = 0, 6
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        return None
    bounds = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
    if bounds == (0.0, np.inf):
        return relu(node)
    if bounds == (-np.inf, np.inf):
        return same(node)
    if not node.context.program and not node.context.exchangeable(node.whole):
        return None
    op = Clipped(node.label, (node.input,), (node.name,), *bounds)
    return [op], {0: ActivationBinding("" if node.context.program else node.whole, node.name, *bounds)}


def greatest(node: Node) -> Ops | None:
    """max, min: of two tensors, or over an axis without the places in use, or over all."""
    if "other" in node.args:
        return extremum(node)
    axes, indices = _axes(node), "dim" in node.args and any(user.args[1] != 0 for user in node.fx.users)
    if axes is None or indices:
        return None
    keep = bool(node.args.get("keepdim"))
    return [Select(node.label, (node.input,), (first_output(node.fx),), axes, keep)]


def extremum(node: Node) -> Ops | None:
    """maximum, minimum of two tensors."""
    first, second = node.args["self"], node.args["other"]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if node.constant(first) or node.constant(second):
        return None
    return [Select(node.label, (first.name, second.name), (node.name,))]


def where(node: Node) -> Ops | None:
    """where of two tensors; a condition that is constant and everywhere the same leaves one of them."""
    given = (node.args.get("self"), node.args.get("other"))
    taken = node.settled(node.args["condition"])
    chosen = None if taken is None else given[0 if taken else 1]
    if isinstance(chosen, fx.Node) and not node.constant(chosen):
        return [Broadcast(node.label, (chosen.name,), (node.name,))]
    values = [value for value in given if isinstance(value, fx.Node) and not node.constant(value)]
    if len(values) < 2:
        return None
    shapes = [node.shape(value) for value in (node.args["condition"], *values)]
    if any(shape is None for shape in shapes) or len(shapes[0] or ()) > max(len(s or ()) for s in shapes[1:]):
        return None
    return [Select(node.label, tuple(value.name for value in values), (node.name,), ordered=False)]


def masked_fill(node: Node) -> Ops | None:
    """masked_fill with 0: a gate; with a constant mask that is nowhere set: the input."""
    if node.settled(node.args["mask"]) is False:
        return [Broadcast(node.label, (node.input,), (node.name,))]
    if node.args.get("value") != 0 or not isinstance(node.args["mask"], fx.Node):
        return None
    return [Gate(node.label, (node.input, node.step("mask", node.shape(node.args["mask"]))), (node.name,))]


def _space(node: Node, count: int | None = None) -> tuple[int, ...]:
    """The last axes of the input: those after the channels, or so many."""
    rank = node.rank or 0
    return tuple(range(rank - count if count else min(2, rank), rank))


def _dims(node: Node) -> int:
    """Over how many axes an op pools, from its name: max_pool2d."""
    return int(next(c for c in node.type if c.isdigit()))


def max_pool(node: Node) -> Ops | None:
    """max_pool1d, 2d, 3d and their adaptive kin, without indices in use."""
    if isinstance(node.fx.meta.get("val"), tuple | list) and any(user.args[1] != 0 for user in node.fx.users):
        return None
    return [Select(node.label, (node.input,), (first_output(node.fx),), _space(node, _dims(node)))]


def average_pool(node: Node) -> Ops:
    """avg_pool1d, 2d, 3d: zeros count in where padding is counted in."""
    padding = node.args.get("padding") or [0]
    padded = any(padding if isinstance(padding, list | tuple) else [padding])
    clean = not (padded and node.args.get("count_include_pad", True)) and not node.args.get("divisor_override")
    return [Carry(node.label, (node.input,), (node.name,), mixes=_space(node, _dims(node)), carries_shift=clean)]


def adaptive_pool(node: Node) -> Ops:
    """adaptive_avg_pool1d, 2d, 3d: means of whole regions."""
    return [Carry(node.label, (node.input,), (node.name,), mixes=_space(node, _dims(node)))]


def _axes(node: Node) -> tuple[int, ...] | None:
    rank, axes = node.rank, node.args.get("dim")
    if not rank:
        return None
    axes = [axes] if isinstance(axes, int) else axes
    return tuple(axis % rank for axis in axes) if axes else tuple(range(rank))


def reduce(node: Node) -> Ops | None:
    """mean, sum, amax, amin over axes."""
    where_, keep = _axes(node), bool(node.args.get("keepdim", False))
    if where_ is None:
        return None
    if node.type in ("amax", "amin"):
        return [Select(node.label, (node.input,), (node.name,), where_, keep)]
    return [Carry(node.label, (node.input,), (node.name,), where_, keep, carries_shift=node.type == "mean")]


def negate(node: Node) -> Ops:
    """neg: a factor of -1."""
    return [Sum(node.label, (node.input,), (node.name,), (-1.0,))]


def same(node: Node) -> Ops | None:
    """clone, contiguous, detach, dropout at inference, a cast between floating types."""
    value = node.fx.meta.get("val")
    if node.type in DROPOUTS and node.args.get("train") is not False:
        return None
    value = value[0] if isinstance(value, tuple | list) else value
    source = node.first.meta.get("val") if isinstance(node.first, fx.Node) else None
    if not all(isinstance(t, torch.Tensor) and t.is_floating_point() for t in (value, source)):
        return None
    return [Carry(node.label, (node.input,), (first_output(node.fx),))]


def resize(node: Node) -> Ops:
    """upsample_nearest, bilinear, bicubic: every output is a weighted mean of inputs, the weights adding up to 1."""
    return [Carry(node.label, (node.input,), (node.name,), mixes=_space(node, _dims(node)))]


def pad(node: Node) -> Ops | None:
    """pad with zeros, or with a mode that copies values; the list begins with the last axis."""
    rank, pads = node.rank, list(node.args["pad"])
    if rank is None or any(isinstance(p, fx.Node) for p in pads):
        return None
    padded = tuple(rank - 1 - i // 2 for i, p in enumerate(pads) if p)
    mode = node.args.get("mode", "constant") if node.type != "constant_pad_nd" else "constant"
    value = node.args.get("value") or 0
    axes = tuple(dict.fromkeys(padded))
    fixed = node.context.program or node.inside("torch.nn.modules.padding") or 1 in axes

    def growing(amount: int) -> bool:
        return amount > 0 or (amount == 0 and not fixed)  # code may compute a 0 from the sizes of its input

    grows = any(growing(p) for p in pads)
    if mode != "constant" or not grows:
        return [Carry(node.label, (node.input,), (node.name,), mixes=axes)]
    if value == -math.inf:  # as a max pooling pads
        return [Select(node.label, (node.input,), (node.name,), axes)]
    if value != 0:
        return None
    amounts = {rank - 1 - i: (pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)}
    space = tuple(axis for axis in axes if axis != 1)
    clean = not any(growing(p) for axis in amounts if axis != 1 for p in amounts[axis])
    zeros = (1, *amounts[1]) if 1 in axes else None
    return [Carry(node.label, (node.input,), (node.name,), mixes=space, carries_shift=clean, zeros=zeros)]


def copying_pad(node: Node) -> Ops:
    """reflection_pad1d, replication_pad2d and so on."""
    return [Carry(node.label, (node.input,), (node.name,), mixes=_space(node, _dims(node)))]


def measure(node: Node) -> Ops:
    """Sizes and the like: the values of the input do not matter."""
    return [Opaque(node.label, (), (node.name,), node.type)]
