"""Readers of nodes that keep channels in place: activations, bounds, pooling, sums, resizing, padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from ...core.graph import Affine, Bound, Broadcast, Carry, Clipped, Homogeneous, Opaque, Select, Shape, Sum
from .arithmetic import arithmetic
from .bindings import AffineBinding, BoundBinding, ClipBinding, Reading
from .node import FLOATS, Node, Ops, to_floats


def _relu(node: Node, data: int = 0) -> Reading:
    """A Relu, however it is written."""
    op = Homogeneous(node.label, (node.input(data),), node.outputs, np.array(0.0), _extremum_fits(node, data))
    return [op], {0: AffineBinding(node.index, data)}


def _extremum_fits(node: Node, data: int) -> bool:
    """Whether Max and Min can hold a constant per channel: they broadcast from opset 8, with short types from 13."""
    dtype = node.context.dtypes.get(node.input(data))
    wide = dtype in (TensorProto.FLOAT, TensorProto.DOUBLE) or node.opset >= 13
    return node.opset >= 8 and bool(dtype) and wide


def activation(node: Node) -> Ops | Reading | None:
    """Relu, LeakyRelu, PRelu, Abs: positively homogeneous."""
    if node.type == "Relu":
        return _relu(node)
    slope = {"LeakyRelu": float(node.attrs.get("alpha", 0.01)), "Abs": -1.0}.get(node.type)
    if slope is not None:
        return [Homogeneous(node.label, node.inputs[:1], node.outputs, np.array(slope))]
    number, rank = node.float_constant(1), node.rank()
    if number is None or rank is None:
        return None
    if node.opset < 7 and number.ndim == 1 and number.size > 1:
        number = number.reshape((-1,) + (1,) * (rank - 2))
    return [Homogeneous(node.label, node.inputs[:1], node.outputs, number)]


def clip(node: Node) -> Ops | Reading | None:
    """Clip at 0 from below and nowhere from above is a Relu."""
    bounds = []
    for i, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        if node.input(i) and not (node.constant(i) and node.value(i).size == 1):
            return None
        value = (
            float(node.value(i).astype(np.float64).item()) if node.input(i) else float(node.attrs.get(name, default))
        )
        bounds.append(value)
    largest = float(np.finfo(np.float32).max)
    low, high = -np.inf if bounds[0] <= -largest else bounds[0], np.inf if bounds[1] >= largest else bounds[1]
    if np.isnan([low, high]).any() or low == np.inf or high == -np.inf:
        return None
    if high == np.inf and low in (0, -np.inf):
        return _relu(node) if low == 0 else [Carry(node.label, node.inputs[:1], node.outputs)]
    if not _extremum_fits(node, 0):
        return None
    op = Clipped(node.label, node.inputs[:1], node.outputs, low, high)
    return [op], {0: ClipBinding(node.index, low, high)}


def extremum(node: Node) -> Ops | Reading | None:
    """Max and Min of data and constants. With the constant 0, Max of one tensor is a Relu."""
    constants = [i for i in range(len(node.inputs)) if node.constant(i)]
    if not constants:
        return [Select(node.label, node.inputs, node.outputs)]
    if len(node.inputs) != 2 or len(constants) != 1:
        return _of_several(node, constants)
    number, data = node.float_constant(constants[0]), 1 - constants[0]
    if number is None or not _fits(number.shape, node.shape(node.input(data))):
        return None
    if node.type == "Max" and number.size == 1 and not number.any():
        return _relu(node, data)
    if not np.isfinite(number).all() or not _extremum_fits(node, data):
        return None
    op = Bound(node.label, (node.input(data),), node.outputs, number.shape)
    return [op], {0: BoundBinding(node.index, data, constants[0])}


def _of_several(node: Node, constants: list[int]) -> Reading | None:
    """Max, Min or Sum of data tensors of one shape, and of constants, which move with the gauge of the data."""
    data = [i for i in range(len(node.inputs)) if i not in constants]
    numbers = [node.float_constant(i) for i in constants]
    shapes = [node.shape(node.input(i)) for i in data]
    if (
        not data
        or shapes[0] is None
        or not _extremum_fits(node, data[0])
        or any(shape != shapes[0] for shape in shapes)
    ):
        return None
    if any(n is None or not np.isfinite(n).all() or not _fits(n.shape, shapes[0]) for n in numbers):
        return None
    adds = node.type == "Sum"
    names = tuple(node.input(i) for i in data)
    steps = [node.step(f"without{i}", shapes[0]) for i in constants] + [node.outputs[0]]
    ops: Ops = [
        Sum(node.label, names, (steps[0],), (1.0,) * len(data)) if adds else Select(node.label, names, (steps[0],))
    ]
    for source, target, number in zip(steps, steps[1:], numbers, strict=False):
        assert number is not None
        ops.append(Bound(node.label, (source,), (target,), number.shape, ordered=not adds, adds=adds))
    return ops, {k: BoundBinding(node.index, data[0], i) for k, i in enumerate(constants, 1)}


def where(node: Node) -> Ops | Reading | None:
    """Where: of two tensors, or of one and a constant; a condition that is computed is no part of it, and one that is
    constant and everywhere the same leaves one of the two, broadcast to the shape of both.
    """
    constants = [i for i in (1, 2) if node.constant(i)]
    if node.constant(0) and node.shape(node.outputs[0]) is not None:
        taken = node.value(0).astype(bool)
        chosen = 1 if taken.all() else 2
        if (taken.all() or not taken.any()) and taken.size and chosen not in constants:
            return [Broadcast(node.label, (node.input(chosen),), node.outputs)]
    if not constants:
        shapes = [node.shape(name) for name in node.inputs]
        rank = max((len(s) for s in shapes[1:] if s is not None), default=0)
        if any(s is None for s in shapes) or len(shapes[0] or ()) > rank:
            return None
        return [Select(node.label, node.inputs[1:], node.outputs, ordered=False)]
    data = 3 - constants[0]
    number, shape = node.float_constant(constants[0]), node.shape(node.input(data))
    if len(constants) > 1 or number is None or not np.isfinite(number).all():
        return None
    if not _fits(number.shape, shape) or not _fits(node.shape(node.input(0)), shape):
        return None
    op = Bound(node.label, (node.input(data),), node.outputs, number.shape, ordered=False)
    return [op], {0: BoundBinding(node.index, data, constants[0])}


def _fits(shape: Shape | None, target: Shape | None) -> bool:
    """Whether a shape broadcasts to another that stays as it is."""
    if shape is None or target is None or len(shape) > len(target):
        return False
    return all(a == 1 or (a is not None and a == b) for a, b in zip(shape[::-1], target[::-1], strict=False))


def max_pool(node: Node) -> Ops | None:
    """MaxPool without its indices, GlobalMaxPool."""
    rank = node.rank()
    if rank is None or not node.only_output:
        return None
    return [Select(node.label, node.inputs[:1], node.outputs[:1], tuple(range(2, rank)))]


def average_pool(node: Node) -> Ops | None:
    """AveragePool, GlobalAveragePool. Zeros count in only when padding does."""
    rank = node.rank()
    if rank is None:
        return None
    counted = bool(node.attrs.get("count_include_pad", 0))
    padded = any(node.attrs.get("pads", [])) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    clean = not (counted and (padded or node.attrs.get("ceil_mode", 0)))
    return [Carry(node.label, node.inputs[:1], node.outputs[:1], mixes=tuple(range(2, rank)), carries_shift=clean)]


def reduce(node: Node) -> Ops | None:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin over constant axes."""
    rank, axes = node.rank(), node.ints(1, "axes")
    if rank is None or (node.input(1) and axes is None):
        return None
    if not axes:
        if node.attrs.get("noop_with_empty_axes", 0):
            return None
        axes = list(range(rank))
    where, keep = tuple(axis % rank for axis in axes), bool(node.attrs.get("keepdims", 1))
    if node.type in ("ReduceMax", "ReduceMin"):
        return [Select(node.label, node.inputs[:1], node.outputs, where, keep)]
    mean, sizes = node.type == "ReduceMean", [(node.shape(node.input(0)) or (None,) * rank)[axis] for axis in where]
    if not mean and all(isinstance(size, int) for size in sizes):  # so many times the mean
        inner = node.step("mean", node.shape(node.outputs[0]))
        count = float(np.prod([size for size in sizes if isinstance(size, int)]))
        return [Carry(node.label, node.inputs[:1], (inner,), where, keep),
                Sum(node.label, (inner,), node.outputs, (count,))]  # fmt: skip
    return [Carry(node.label, node.inputs[:1], node.outputs, where, keep, carries_shift=mean)]


def add_all(node: Node) -> Ops | Reading | None:
    """Sum, Mean of data tensors, Sum of these and constants; a Sum of one and a constant is an Add."""
    if node.type == "Sum" and len(node.inputs) == 2 and node.constant(0) != node.constant(1):
        return arithmetic(node)
    constants = [i for i in range(len(node.inputs)) if node.constant(i)]
    if constants:
        return _of_several(node, constants) if node.type == "Sum" else None
    factor = 1.0 / len(node.inputs) if node.type == "Mean" else 1.0
    return [Sum(node.label, node.inputs, node.outputs, (factor,) * len(node.inputs))]


def negate(node: Node) -> Ops | Reading:
    """Neg: a factor of -1, which a layer next to it may take."""
    if node.beside_layer():
        one = np.ones(1)
        op = Affine(node.label, node.inputs, node.outputs, "Neg", "mul", 0, -one, 0 * one, listed=False)
        return [op], {0: AffineBinding(node.index)}
    return [Sum(node.label, node.inputs, node.outputs, (-1.0,))]


def same(node: Node) -> Ops | None:
    """Identity, Dropout at inference, Cast between floating types."""
    if node.type == "Dropout":
        training = (node.constant(2) and bool(node.value(2).item())) or (node.input(2) and not node.constant(2))
        if training or not node.only_output or (node.opset < 7 and not node.attrs.get("is_test", 0)):
            return None
    if node.type == "Cast" and not to_floats(node.attrs["to"]):
        return None
    return [Carry(node.label, node.inputs[:1], node.outputs[:1])]


def cast_like(node: Node) -> Ops | None:
    """CastLike to a floating type; of its second input it reads nothing but the type."""
    target = node.context.dtypes.get(node.input(1)) or node.context.dtypes.get(node.outputs[0])
    if not target or np.dtype(helper.tensor_dtype_to_np_dtype(target)).name not in FLOATS:
        return None
    return [Carry(node.label, node.inputs[:1], node.outputs)]


def measure(node: Node) -> Ops:
    """Shape, Size: the values of the input do not matter."""
    return [Opaque(node.label, (), node.outputs, node.type)]


def resize(node: Node) -> Ops | None:
    """Resize, Upsample: weighted means along the axes that change, with weights that add up to 1."""
    source, where = node.shape(node.inputs[0]), node.attrs.get("coordinate_transformation_mode", "")
    if source is None or where in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        return None
    return [Carry(node.label, node.inputs[:1], node.outputs, mixes=_resized(node, source))]


def _resized(node: Node, source: Shape) -> tuple[int, ...]:
    """The axes that may change: all but those that are not named, are scaled by 1, or get the size that they have."""
    rank, attrs = len(source), node.attrs
    named = [axis % rank for axis in attrs.get("axes", range(rank))]
    scales, sizes = _scales(node), node.ints(3, "sizes")
    if scales is not None and len(scales) == len(named):
        return tuple(axis for axis, scale in zip(named, scales, strict=True) if scale != 1)
    target = node.shape(node.outputs[0]) or (None,) * rank
    given = dict(zip(named, sizes, strict=False)) if sizes is not None else dict(enumerate(target))
    if attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch" or len(target) != rank:
        return tuple(named)
    return tuple(axis for axis in named if not isinstance(source[axis], int) or source[axis] != given.get(axis))


def _scales(node: Node) -> list[float] | None:
    """The factors, one for each axis; None where they are computed, or sizes are given instead."""
    place = 1 if node.type == "Upsample" or node.opset < 11 else 2
    if "scales" in node.attrs:
        return list(node.attrs["scales"])
    values = node.value(place).ravel().tolist() if node.constant(place) else []
    return values or None


def grid_sample(node: Node) -> Ops | None:
    """GridSample: weighted means of pixels; zeros around the image are blended in unless pixels are copied there."""
    rank = node.rank()
    if rank is None:
        return None
    copies = node.attrs.get("padding_mode", "zeros") != "zeros"
    return [
        *_pinned(node, node.inputs[1:]),
        Carry(node.label, node.inputs[:1], node.outputs, mixes=tuple(range(2, rank)), carries_shift=copies),
    ]


def roi_align(node: Node) -> Ops | None:
    """RoiAlign with means: of pixels of a box, each a weighted mean of its neighbours, or 0 outside the image."""
    if node.attrs.get("mode", "avg") != "avg" or node.rank() is None:
        return None
    return [
        *_pinned(node, node.inputs[1:]),
        Carry(node.label, node.inputs[:1], node.outputs, mixes=(0, 2, 3), carries_shift=False),
    ]


def _pinned(node: Node, names: Sequence[str]) -> Ops:
    """What stands for inputs whose values count as they are."""
    data = tuple(name for name in names if name and name not in node.context.constants)
    return [Opaque(node.label, data, (), node.type)] if data else []


def pad(node: Node) -> Ops | Reading | None:
    """Pad over space: with zeros, with another number, or with a mode that copies values."""
    rank, pads = node.rank(), node.ints(1, "pads" if node.opset > 1 else "paddings")
    if rank is None or pads is None or (node.input(3) and not node.constant(3)):
        return None
    if node.input(3):
        axes = [int(axis) % rank for axis in node.value(3).ravel()]
        given = dict(zip([*axes, *(axis + rank for axis in axes)], pads, strict=True))
        pads = [given.get(place, 0) for place in range(2 * rank)]
    padded = tuple(axis for axis in range(rank) if pads[axis] or pads[axis + rank])
    copies, grows = node.attrs.get("mode", "constant") != "constant", any(p > 0 for p in pads)
    if copies or not grows:
        return [Carry(node.label, node.inputs[:1], node.outputs, mixes=padded)]
    if node.input(2) and not (node.constant(2) and node.value(2).size == 1):
        return None
    value = node.value(2).astype(np.float64).item() if node.input(2) else node.attrs.get("value", 0.0)
    if value == -np.inf:  # as a MaxPool pads
        return [Select(node.label, node.inputs[:1], node.outputs, padded)]
    if value == 0:
        return _zero_pad(node, padded, [(pads[i], pads[i + rank]) for i in range(rank)])
    return _number_pad(node, rank) if np.isfinite(value) and node.input(2) else None


def _number_pad(node: Node, rank: int) -> Reading | None:
    """A frame of one number, which moves with the gauge where that is one for all channels."""
    if node.float_constant(2) is None:
        return None
    inner = node.step("alike", node.shape(node.input(0)))
    ops: Ops = [Carry(node.label, node.inputs[:1], (inner,), mixes=tuple(range(rank))),
                Bound(node.label, (inner,), node.outputs, (), ordered=False)]  # fmt: skip
    return ops, {1: BoundBinding(node.index, 0, 2)}


def _zero_pad(node: Node, padded: tuple[int, ...], amounts: list[tuple[int, int]]) -> Ops:
    """Zeros around the space, and whole channels of zeros."""
    space = tuple(axis for axis in padded if axis != 1)
    clean = not any(max(amounts[axis]) > 0 for axis in space)
    zeros = (1, *amounts[1]) if 1 in padded else None
    return [Carry(node.label, node.inputs[:1], node.outputs, mixes=space, carries_shift=clean, zeros=zeros)]
