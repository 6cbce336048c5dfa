"""An ONNX graph as a program of linear layers and sums, for `core.merging`. Weights are read when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from ...core.graph import Reason, Shape
from ...core.merging.algebra import Array, Lazy, Linear, average, diagonal
from ...core.merging.geometry import Axis, Geometry
from ...core.merging.program import IDENTITY, Join, Layer, Program, Step, Stop, Sum
from ...core.merging.reasons import POOLING, QUANTIZED, UNKNOWN
from ...errors import BnfoldError
from ..read.constants import FLOATING, attributes
from ..read.node import FLOATS
from ..read.scope import Scope


@dataclass(frozen=True, eq=False)
class View:
    """One node while it is read."""

    node: NodeProto
    index: int
    label: str
    attrs: Mapping[str, Any]
    scope: Scope

    def constant(self, i: int) -> str:
        """The name of input i where it is a constant of a floating type, else ""."""
        name = self.node.input[i] if i < len(self.node.input) else ""
        constants = self.scope.constants
        return name if name in constants and constants.dtype(name).name in FLOATS else ""

    def has(self, i: int) -> bool:
        """Whether input i is there."""
        return i < len(self.node.input) and bool(self.node.input[i])

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor as far as it is known."""
        return self.scope.constants.shape(name) if name in self.scope.constants else self.scope.shapes.get(name)

    def numbers(self, name: str) -> Array:
        """A constant in float64."""
        return np.asarray(self.scope.constants.value(name), np.float64)

    def layer(self, layer: Lazy, data: int = 0, weight: str = "") -> Layer:
        """This node as a layer that has the constant `weight`."""
        node, shared = self.node, self.scope.uses[weight] > 1
        source, here = (node.input[data],), self.index
        return Layer(self.label, node.output[0], source, (here,), layer, node.op_type, lead=here, shared=shared)

    def stop(self, reason: Reason) -> Stop:
        """This node as a layer that stays."""
        return Stop(self.label, self.node.output[0], (self.node.input[0],), (self.index,), reason)


Reader = Callable[[View], "Step | None"]


def quantized(view: View, name: str) -> bool:
    """Whether weights come from whole numbers, by whatever ops."""
    waiting, seen = [name], {name}
    while waiting:
        node = view.scope.constants.producer(waiting.pop())
        if node is not None and node.op_type == "DequantizeLinear":
            return True
        new = set(node.input if node is not None else ()) - seen
        seen |= new
        waiting += new
    return False


def known(value: Linear) -> Lazy:
    """A layer whose numbers are there."""
    return Lazy(value.geometry, lambda: value)


def axes(view: View, kernel: tuple[int, ...]) -> tuple[Axis, ...] | None:
    """The spatial axes of a convolution or a pooling; None where their padding is not known."""
    attrs, n = view.attrs, len(kernel)
    strides, steps = attrs.get("strides") or [1] * n, attrs.get("dilations") or [1] * n
    pads = attrs.get("pads") or [0] * 2 * n
    auto = _text(attrs.get("auto_pad", "NOTSET"))
    shape = view.shape(view.node.input[0])
    sizes = (
        [None] * n if shape is None or len(shape) != n + 2 else [d if isinstance(d, int) else None for d in shape[2:]]
    )
    if len(strides) != n or len(steps) != n or len(pads) != 2 * n or any(p < 0 for p in pads):
        return None
    return tuple(
        _axis(k, s, d if k > 1 else 1, (pads[i], pads[i + n]), auto, size)
        for i, (k, s, d, size) in enumerate(zip(kernel, strides, steps, sizes, strict=True))
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _axis(taps: int, stride: int, step: int, pads: tuple[int, int], auto: str, size: int | None) -> Axis:
    reach = step * (taps - 1)
    if auto == "VALID":
        pads = 0, 0
    elif auto.startswith("SAME"):
        if size is None and stride > 1:
            return Axis(0, step, taps, stride, 0, None, auto)
        whole = reach if size is None else max(0, (-(-size // stride) - 1) * stride + reach + 1 - size)
        less, more = whole // 2, whole - whole // 2
        pads = (less, more) if auto == "SAME_UPPER" else (more, less)
    return Axis(-pads[0], step, taps, stride, sum(pads) - reach, size)


def conv(view: View) -> Step | None:
    """Conv: the weight is (out, in/groups, *kernel)."""
    weight, bias = view.constant(1), view.constant(2)
    if not weight or (view.has(2) and not bias):
        return None
    if quantized(view, weight):
        return view.stop(QUANTIZED)
    out, per_group, *kernel = view.scope.constants.shape(weight)
    groups = int(view.attrs.get("group", 1))
    places = axes(view, tuple(kernel))
    if places is None or groups < 1 or out % groups or not kernel:
        return None
    if any(axis.auto for axis in places) and not all(axis.auto for axis in places):
        return view.stop(UNKNOWN)
    geometry = Geometry("conv", per_group * groups, out, groups, places, 1, _biased(view, bias))

    def load() -> Linear:
        kernel = view.numbers(weight).reshape(geometry.shape)  # (out, in/g, *k) -> (g, out/g, in/g, *k)
        return Linear(geometry, kernel, _bias(view, bias, out))

    return view.layer(Lazy(geometry, load), weight=weight)


def conv_transpose(view: View) -> Step | None:
    """ConvTranspose: the weight is (in, out/groups, *kernel)."""
    weight, bias = view.constant(1), view.constant(2)
    if not weight or (view.has(2) and not bias):
        return None
    if quantized(view, weight):
        return view.stop(QUANTIZED)
    into, per_group, *kernel = view.scope.constants.shape(weight)
    groups = int(view.attrs.get("group", 1))
    if _text(view.attrs.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID") or view.attrs.get("output_shape"):
        return view.stop(UNKNOWN)
    places, extra = axes(view, tuple(kernel)), view.attrs.get("output_padding") or [0] * len(kernel)
    if places is None or groups < 1 or into % groups or len(extra) != len(kernel) or not kernel:
        return None
    across = tuple(_across(axis, more) for axis, more in zip(places, extra, strict=True))
    geometry = Geometry("transpose", into, per_group * groups, groups, across, 1, _biased(view, bias))

    def load() -> Linear:
        stored = view.numbers(weight).reshape(groups, into // groups, per_group, *kernel)
        return Linear(geometry, np.swapaxes(stored, 1, 2), _bias(view, bias, geometry.outputs))

    return view.layer(Lazy(geometry, load), weight=weight)


def _across(axis: Axis, more: int) -> Axis:
    return Axis(axis.first, axis.step, axis.taps, axis.stride, more - axis.room, axis.size)


def _biased(view: View, name: str) -> bool:
    return bool(name) and bool(view.numbers(name).any())


def _bias(view: View, name: str, count: int) -> Array:
    return np.broadcast_to(view.numbers(name).ravel(), count) if name else np.zeros(count)


def gemm(view: View) -> Step | None:
    """Gemm: `alpha * x W + beta * C`."""
    weight, bias = view.constant(1), view.constant(2)
    if not weight or (view.has(2) and not bias) or view.attrs.get("transA", 0):
        return None
    if quantized(view, weight):
        return view.stop(QUANTIZED)
    across = bool(view.attrs.get("transB", 0))
    rows, columns = view.scope.constants.shape(weight)
    into, out = (columns, rows) if across else (rows, columns)
    alpha, beta = float(view.attrs.get("alpha", 1.0)), float(view.attrs.get("beta", 1.0))
    bias = bias if beta else ""
    if bias and (view.scope.constants.opset < 7 or not _row(view.scope.constants.shape(bias), out)):
        return None
    geometry = Geometry("dense", into, out, 1, (), 1, _biased(view, bias))

    def load() -> Linear:
        kernel = view.numbers(weight) if across else view.numbers(weight).T
        return Linear(geometry, alpha * kernel[None], beta * _bias(view, bias, out))

    return view.layer(Lazy(geometry, load), weight=weight)


def _row(shape: tuple[int, ...], out: int) -> bool:
    """Whether a constant is one row of `out` numbers, or one number."""
    return all(size == 1 for size in shape[:-1]) and len(shape) <= 2 and (shape[-1:] or (1,))[0] in (1, out)


def matmul(view: View) -> Step | None:
    """MatMul by a constant matrix from the right."""
    weight, shape = view.constant(1), view.shape(view.node.input[0])
    if not weight or shape is None or len(shape) < 2:
        return None
    if quantized(view, weight):
        return view.stop(QUANTIZED)
    sizes = view.scope.constants.shape(weight)
    if len(sizes) != 2:
        return None
    geometry = Geometry("dense", sizes[0], sizes[1], 1, (), len(shape) - 1)
    made = Lazy(geometry, lambda: Linear(geometry, view.numbers(weight).T[None], np.zeros(sizes[1])))
    return view.layer(made, weight=weight)


def pool(view: View) -> Step | None:
    """AveragePool, where it counts what it pads, or pads nothing."""
    shape = view.shape(view.node.input[0])
    kernel = tuple(view.attrs.get("kernel_shape") or ())
    if shape is None or len(shape) != len(kernel) + 2 or not isinstance(shape[1], int):
        return None
    places = axes(view, kernel)
    if places is None:
        return None
    if any(axis.auto for axis in places):
        return view.stop(UNKNOWN)
    pads = any(axis.first < 0 or axis.room + axis.last > 0 for axis in places)
    if pads and not view.attrs.get("count_include_pad", 0):
        return view.stop(POOLING)
    if view.attrs.get("ceil_mode", 0) and not all(_even(axis) for axis in places):
        return view.stop(POOLING)
    made = average(shape[1], places)
    return view.layer(Lazy(made.geometry, lambda: average(made.geometry.inputs, places)))


def _even(axis: Axis) -> bool:
    """Whether rounding up gives no more outputs than rounding down."""
    return axis.stride == 1 or (axis.size is not None and (axis.size - 1 + axis.room) % axis.stride == 0)


def along(view: View, constant: str, data: str) -> tuple[Array, int] | None:
    """The numbers of a constant that runs along one axis of the data, and that axis; None where it does not."""
    size, shape = view.scope.constants.shape(constant), view.shape(data)
    if all(d == 1 for d in size) and (not size or (shape is not None and len(size) <= len(shape))):
        return view.numbers(constant).reshape(1), 1
    if shape is None or len(size) > len(shape) or 0 in size:
        return None
    padded = (1,) * (len(shape) - len(size)) + size
    wide = [i for i, d in enumerate(padded) if d != 1]
    if len(wide) != 1 or wide[0] == 0 or shape[wide[0]] != padded[wide[0]]:
        return None
    return view.numbers(constant).ravel(), wide[0]


def arithmetic(view: View) -> Step | None:
    """Add, Sub, Mul, Div: of two tensors, or with a constant along an axis."""
    node, kind = view.node, view.node.op_type
    held = [i for i in (0, 1) if node.input[i] in view.scope.constants]
    if not held:
        signs = (1.0, 1.0 if kind == "Add" else -1.0)
        return (
            Sum(view.label, node.output[0], tuple(node.input), (view.index,), signs) if kind in ("Add", "Sub") else None
        )
    i = held[0]
    if len(held) > 1 or view.scope.constants.opset < 7 or not view.constant(i) or (kind == "Div" and i == 0):
        return None
    found = along(view, node.input[i], node.input[1 - i])
    if found is None:
        return None
    value, axis = found
    one, zero = np.ones(1), np.zeros(1)
    if kind in ("Mul", "Div"):
        if kind == "Div" and not value.all():
            return None
        made = diagonal(value if kind == "Mul" else 1 / value, zero, axis)
    elif kind == "Add":
        made = diagonal(one, value, axis)
    else:
        made = diagonal(one, -value, axis) if i == 1 else diagonal(-one, value, axis)
    return view.layer(known(made), 1 - i) if np.isfinite([made.kernel, made.bias]).all() else None


def batch_norm(view: View) -> Step | None:
    """A norm with constant statistics that folding has left: an affine map for each channel."""
    node, attrs, opset = view.node, view.attrs, view.scope.constants.opset
    used = [name for name in node.output[1:] if name]
    if opset < 9 or used or attrs.get("training_mode", 0) or not all(view.constant(i) for i in range(1, 5)):
        return None
    gamma, beta, mean, var = (view.numbers(node.input[i]) for i in range(1, 5))
    with np.errstate(all="ignore"):
        inv = gamma / np.sqrt(var + attrs.get("epsilon", 1e-5))
        made = diagonal(inv, beta - mean * inv)
    return view.layer(known(made)) if np.isfinite([made.kernel, made.bias]).all() else None


def same(view: View) -> Step | None:
    """Identity, and Dropout at inference."""
    if view.node.op_type == "Dropout":
        mask, training = [name for name in view.node.output[1:] if name], view.has(2)
        if mask or training or view.scope.constants.opset < 7:
            return None
    step = view.layer(IDENTITY)
    return replace(step, op="Identity")


def add_all(view: View) -> Step | None:
    """Sum."""
    names = tuple(view.node.input)
    return Sum(view.label, view.node.output[0], names, (view.index,), (1.0,) * len(names)) if len(names) > 1 else None


def concat(view: View) -> Step | None:
    """Concat along an axis."""
    names, axis = tuple(view.node.input), view.attrs.get("axis")
    shape = view.shape(view.node.output[0])
    if axis is None or (axis < 0 and shape is None) or any(name in view.scope.constants for name in names):
        return None
    place = int(axis) % len(shape) if shape else int(axis)
    return Join(view.label, view.node.output[0], names, (view.index,), place)


READERS: dict[str, Reader] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "AveragePool": pool,
    "Add": arithmetic,
    "Sub": arithmetic,
    "Mul": arithmetic,
    "Div": arithmetic,
    "BatchNormalization": batch_norm,
    "Identity": same,
    "Dropout": same,
    "Sum": add_all,
    "Concat": concat,
}
NORMS = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization", "Sum"})
"""What may have a constant as its first input."""


def program(scope: Scope, kept: Container[str]) -> Program:
    """The layers and sums of a graph."""
    names = {i: node.name or f"{node.op_type}_{i}" for i, node in enumerate(scope.graph.node)}
    made = Program({}, scope.uses.copy(), dict(scope.pinned), scope.shapes, names, _itemsize(scope))
    for i, node in enumerate(scope.graph.node):
        try:
            step = _read(View(node, i, names[i], attributes(node), scope), kept)
        except Exception as error:  # a fault of ours costs the node, and not the file
            if isinstance(error, BnfoldError | MemoryError) and not getattr(error, "local", False):
                raise
            step = None
        if step is not None:
            made.steps[step.target] = step
    _pair_biases(made)
    for name in {name for step in made.sums() for name in step.sources if name in scope.constants}:
        reader = next(step for step in made.sums() if name in step.sources)
        shift = _shift(View(scope.graph.node[reader.nodes[-1]], reader.nodes[-1], "", {}, scope), name, reader)
        if shift is not None:
            made.shifts[name] = shift
    return made


def _itemsize(scope: Scope) -> int:
    """Bytes of an element of most weights."""
    counts: Counter[int] = Counter()
    for tensor in scope.graph.initializer:
        if tensor.data_type in FLOATING:
            counts[tensor.data_type] += prod(tensor.dims)
    return int(helper.tensor_dtype_to_np_dtype(counts.most_common(1)[0][0]).itemsize) if counts else 4


def _read(view: View, kept: Container[str]) -> Step | None:
    node, constants = view.node, view.scope.constants
    if node.domain not in ("", "ai.onnx") or node.op_type not in READERS or not node.output:
        return None
    if node.output[0] in constants or view.label in kept or node.output[0] in kept:
        return None
    if node.op_type not in NORMS and node.input[0] in constants:
        return None
    return READERS[node.op_type](view)


def _shift(view: View, name: str, reader: Step) -> Lazy | None:
    found = along(view, name, reader.target)
    return None if found is None else known(diagonal(np.ones(1), *found))


def _pair_biases(made: Program) -> None:
    """A MatMul and the constant that is added to it are one layer."""
    for step in list(made.layers()):
        below = made.steps.get(step.source)
        if (
            step.op not in ("Add", "Sub")
            or not isinstance(below, Layer)
            or below.op != "MatMul"
            or not made.free(step.source)
        ):
            continue
        layer = step.layer.behind(below.layer)
        if isinstance(layer, Lazy) and (step.layer.load().kernel == 1).all():
            del made.steps[below.target]
            nodes = (*below.nodes, *step.nodes)
            made.steps[step.target] = replace(below, target=step.target, nodes=nodes, layer=layer)
