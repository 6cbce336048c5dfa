"""Every operator that the reader knows, against what it computes: `op(p*v + q) = p_out*op(v) + q_out`.

For each line of the table a model of one node is read, random gauges are drawn that its rules allow, and the edits that
carry them out are applied to the model. Run in float64 on moved inputs, it must give the moved outputs. Gauges vary
element by element, along axis 1 or the last alone, and along axis 1 where all other sizes are dynamic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold.core.gauge.branch import Cut
from bnfold.core.gauge.equations import AffinePort, Bend, Equations, Ids
from bnfold.core.gauge.planner import _planned
from bnfold.core.gauge.rules import _outputs, pinned
from bnfold.core.gauge.solve import Outcome, Solution
from bnfold.core.graph import Graph
from bnfold.core.plan import Plan
from bnfold.onnx.read.constants import default_opset
from bnfold.onnx.read.read import READERS
from bnfold.onnx.write.apply import apply
from bnfold.options import Folding

from .evaluate import evaluate

LOADED = import_module("bnfold.doors.onnx")
Array = npt.NDArray[Any]
RNG = np.random.default_rng(11)
X = (2, 4, 3, 5)
"""Data of (N, C, H, W), no two sizes alike."""
OPAQUE = ("Elu", "Selu", "ThresholdedRelu", "HardSigmoid", "Celu", "Softplus", "Tanh", "Sigmoid", "Softsign", "Exp",
          "HardSwish", "Erf", "Sqrt", "Softmax", "LogSoftmax", "Hardmax", "Floor", "Sign", "Reciprocal")  # fmt: skip
"""Operators that carry nothing, some of them much like those that do."""
POSITIVE = ("Sqrt", "ReduceLogSum")
"""Operators that take no negative numbers."""


def R(*shape: int) -> Array:
    """A constant: numbers of both signs, none near 0."""
    return np.asarray(RNG.uniform(0.4, 1.6, shape) * RNG.choice([-1.0, 1.0], shape))


def A(*values: int) -> Array:
    """A list of whole numbers."""
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """`inputs`: shapes of data, constants, None for one that is absent; `flags`: which data are booleans.

    `carries`: what can come in along axis 1, a scale "p" and a shift "q"; "" where everything is pinned.
    """

    op: str
    carries: str
    inputs: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    flags: tuple[int, ...] = ()
    by: str = ""
    """What evaluates it: "reference", "runtime" (in float32), or both, which must agree."""

    def __str__(self) -> str:
        shown = [_said(given) for given in self.inputs]
        return " ".join([self.op, str(self.opset), *shown, *(f"{k}={v}" for k, v in self.attrs.items())])


def _said(given: Any) -> str:
    """A shape, the numbers of a short constant, or the shape of a long one in brackets."""
    if given is None or isinstance(given, tuple):
        return "-" if given is None else f"({'x'.join(map(str, given))})"
    array = np.asarray(given)
    return (
        f"[{' '.join(map(str, array.ravel()))}]" if array.dtype.kind == "i" else f"[{'x'.join(map(str, array.shape))}]"
    )


def case(op: str, carries: str, *inputs: Any, **more: Any) -> Case:
    own = {name: more.pop(name) for name in ("opset", "outputs", "flags", "by") if name in more}
    return Case(op, carries, inputs, more, **own)


def _layers() -> Iterator[Case]:
    attrs: dict[str, Any]
    w = R(6, 4, 3, 3)
    for attrs in ({}, {"strides": [2, 1]}, {"dilations": [1, 2]}, {"auto_pad": "VALID"}):
        yield case("Conv", "pq", (2, 4, 5, 6), w, **attrs)
    for attrs in ({"pads": [1] * 4}, {"pads": [0, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}):
        yield case("Conv", "p", X, w, R(6), **attrs)
    yield case("Conv", "pq", X, R(6, 4, 1, 1), R(6), auto_pad="SAME_UPPER", strides=[2, 2])
    yield case("Conv", "pq", X, R(8, 2, 2, 2), R(8), group=2)
    yield case("Conv", "pq", X, R(4, 1, 2, 2), group=4, opset=1)
    yield case("Conv", "pq", (2, 4, 6), R(3, 4, 2))
    yield case("Conv", "pq", (1, 2, 3, 4, 3), R(3, 2, 2, 2, 2), R(3))
    yield case("ConvTranspose", "pq", X, R(4, 3, 1, 1), R(3))
    for attrs in ({"pads": [1, 0, 0, 1]}, {"strides": [2, 3]}, {"output_padding": [1, 1], "strides": [2, 2]},
                  {"auto_pad": "SAME_UPPER", "strides": [2, 2], "output_shape": [6, 10]},
                  {"dilations": [2, 1]}, {}):  # fmt: skip
        yield case("ConvTranspose", "p", X, R(4, 3, 2, 2), R(3), **attrs)
    yield case("ConvTranspose", "p", X, R(4, 3, 2, 2), group=2)
    yield case("ConvTranspose", "p", (2, 4, 6), R(4, 1, 3), group=4, opset=1)
    m = (3, 4)
    for opset in (7, 9, 11, 13):
        yield case("Gemm", "pq", m, R(4, 5), R(5), opset=opset)
    for attrs in (
        {"alpha": 0.5},
        {"beta": -0.3},
        {"alpha": -2.0, "beta": 3.0},
        {"beta": 0.0},
        {"alpha": 0.5, "beta": 0.0},
    ):
        yield case("Gemm", "pq", m, R(4, 5), R(5), **attrs)
        yield case("Gemm", "pq", m, R(4, 5), **attrs)
    yield case("Gemm", "pq", m, R(5, 4), R(1, 5), transB=1, alpha=0.7)
    yield case("Gemm", "pq", m, R(4, 5), R(3, 5), beta=0.6)
    yield case("Gemm", "pq", m, R(4, 5), R(3, 1), beta=0.6)
    yield case("Gemm", "pq", m, R(4, 5), R(1), alpha=0.3)
    yield case("Gemm", "pq", m, R(4, 5), R())
    yield case("Gemm", "pq", (4, 3), R(4, 5), R(5), transA=1)
    yield case("Gemm", "pq", (4, 3), R(5, 4), R(5), transA=1, transB=1, alpha=-0.5, beta=2.0)
    yield case("Gemm", "pq", m, R(4, 5), R(5), broadcast=1, opset=6, by="reference")
    yield case("Gemm", "", m, R(4, 5), R(3, 5), opset=6, by="reference")
    yield case("Gemm", "", R(3, 4), (4, 5), R(5))
    yield case("MatMul", "p", m, R(4, 5))
    yield case("MatMul", "p", (2, 3, 4), R(4, 5))
    yield case("MatMul", "p", (2, 3, 4), R(1, 4, 5))
    yield case("MatMul", "", (2, 3, 4), R(2, 4, 5))
    yield case("MatMul", "p", R(5, 3), (3, 4))
    yield case("MatMul", "p", R(5, 3), (2, 3, 4))
    yield case("MatMul", "", (4,), R(4, 5))
    yield case("MatMul", "", (3, 4), R(4))
    yield case("MatMul", "", (3, 4), (4, 5))
    for equation in ("ab,bc->ac", "ab,bc->ca", "ij, jk -> ik"):
        yield case("Einsum", "p", m, R(4, 5), equation=equation)
    yield case("Einsum", "p", R(4, 5), m, equation="bc,ab->ac")
    yield case("Einsum", "p", (2, 4, 3), R(5, 4), equation="nct,oc->not")
    yield case("Einsum", "", m, R(4, 5), equation="ab,bc->a")
    yield case("Einsum", "", (4, 4), R(4, 5), equation="aa,ac->ac")
    for op, gates, form in (("LSTM", 4, {}), ("GRU", 3, {}), ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {})):
        yield case(op, "pq", (5, 2, 4), R(1, gates * 3, 4), R(1, gates * 3, 3), R(1, gates * 6), hidden_size=3, **form)
        yield case(op, "pq", (5, 2, 4), R(1, gates * 3, 4), R(1, gates * 3, 3), hidden_size=3, **form)
    yield case("LSTM", "pq", (5, 2, 4), R(2, 12, 4), R(2, 12, 3), R(2, 24), hidden_size=3, direction="bidirectional")


def _arithmetic() -> Iterator[Case]:
    norm = (R(4), R(4), R(4), np.abs(R(4)))
    for opset in (7, 9, 14, 15):
        yield case("BatchNormalization", "pq", X, *norm, epsilon=0.1, opset=opset)
    yield case("BatchNormalization", "pq", (3, 4), *norm)
    yield case("BatchNormalization", "pq", (3, 4), *norm, spatial=0, opset=7)
    yield case("BatchNormalization", "pq", X, *norm, is_test=1, opset=6, by="reference")
    yield case("BatchNormalization", "pq", (3, 4, 2), *norm, momentum=0.5)
    yield from _normalizations()
    for op in ("Add", "Sub", "Mul", "Div"):
        linear = op in ("Mul", "Div")
        for c in (R(4, 1, 1), R(1, 4, 1, 1), np.broadcast_to(R(4, 1, 1), X).copy()):
            yield case(op, "pq", X, c)
        yield case(op, "pq", X, R(5))
        yield case(op, "p" if linear else "pq", X, R(4, 1, 5))
        yield case(op, "p" if linear else "pq", X, R(1, 4, 3, 5))
        yield case(op, "p" if linear else "pq", X, R(3, 5))
        yield case(op, "p" if linear else "pq", X, np.broadcast_to(R(2, 1, 3, 1), X).copy())
        yield case(op, "" if op == "Div" else "p" if linear else "pq", R(4, 3, 1), X)
        yield case(op, "pq", X, R())
        yield case(op, "pq", X, R(1))
        yield case(op, "pq", (4,), R(4))
        yield case(op, "pq", (), R())
        yield case(op, "", (1,), R(3))
        yield case(op, "", (), R(3))
        yield case(op, "" if op == "Div" else "pq", R(4, 1, 1), X)
        yield case(op, "" if op == "Div" else "pq", R(), X)
        yield case(op, "" if op == "Div" else "pq", R(), ())
        yield case(op, "p" if linear else "pq", X, X)
        yield case(op, "p" if linear else "pq", X, (4, 1, 1))
        yield case(op, "p" if linear else "pq", X, ())
        yield case(op, "p" if linear else "pq", (), ())
        for attrs in ({"axis": 1}, {"axis": -3}):
            yield case(op, "pq", X, R(4), opset=6, broadcast=1, by="reference", **attrs)
        yield case(op, "p" if linear else "q", X, R(4, 3), opset=6, broadcast=1, axis=1, by="reference")
        yield case(op, "pq", X, R(5), opset=6, broadcast=1, by="reference")
    yield case("Mul", "pq", X, np.zeros(()))
    yield case("Mul", "pq", X, R(4, 1, 1) * np.array([1, 0, 1, -1.0])[:, None, None])
    yield case("Div", "", X, np.array([1.0, 0.0, 2.0, 3.0, 4.0]))
    for op in ("Pow", "Mod"):
        yield case(op, "", X, np.full((), 2.0), **({"fmod": 1} if op == "Mod" else {}))
    yield case("Sum", "pq", X, X, X)
    yield case("Sum", "pq", X, (4, 1, 1), opset=8)
    yield case("Sum", "pq", X)
    yield case("Sum", "pq", X, R(4, 1, 1))
    yield case("Sum", "pq", R(), (), R())
    yield case("Sum", "pq", X, R(4, 1, 1), X, R())
    yield case("Sum", "", X, R(4, 3, 5), (4, 3, 5))
    yield case("Mean", "pq", X, X)
    yield case("Mean", "pq", X, X, (5,), opset=8)
    yield case("Mean", "", X, R(4, 1, 1))
    yield case("Neg", "pq", X)
    yield case("Neg", "pq", ())


def _normalizations() -> Iterator[Case]:
    """What goes in is pinned; what comes out is free, in the scale and the bias."""
    for axis in (-1, 1, 2):
        yield case("LayerNormalization", "", X, R(*X[axis:]), R(*X[axis:]), axis=axis, epsilon=0.01)
    yield case("LayerNormalization", "", X, R(5))
    yield case("LayerNormalization", "", X, R(5), R(5), outputs=3)
    yield case("LayerNormalization", "", X, (5,), R(5))
    yield case("LayerNormalization", "", X, R(3, 1), axis=2, by="reference")
    yield case("RMSNormalization", "", X, R(5), opset=23, by="reference")
    yield case("RMSNormalization", "", X, R(3, 5), axis=-2, opset=23, by="reference")
    for x in (X, (2, 4, 6)):
        yield case("InstanceNormalization", "", x, R(4), R(4), epsilon=0.1)
        yield case("GroupNormalization", "", x, R(4), R(4), num_groups=2, opset=21, by="reference")
    yield case("InstanceNormalization", "", X, (4,), R(4))


def _pointwise() -> Iterator[Case]:
    attrs: dict[str, Any]
    for x in (X, (4,), ()):
        yield case("Relu", "pq", x)
        yield case("LeakyRelu", "p", x, alpha=0.3)
        yield case("Abs", "p", x)
        yield case("Identity", "pq", x)
        yield case("Clip", "pq", x, np.full((), -0.5), np.full((), 0.7))
        yield case("Max", "pq", x, R())
        yield case("Min", "pq", R(), x)
        yield case("PRelu", "p", x, R())
    yield case("LeakyRelu", "p", X)
    yield case("LeakyRelu", "p", X, alpha=-0.6, opset=6)
    for op in OPAQUE:
        yield case(op, "", X, by="reference")
    for c in (R(4, 1, 1), R(1, 4, 1, 1), R(1), R(5), R(*X), R(3, 1), R(1, 1, 1, 1)):
        yield case("PRelu", "p", X, c)
    yield case("PRelu", "p", X, R(4), opset=6, by="reference")
    yield case("PRelu", "p", X, R(1), opset=6, by="reference")
    yield case("PRelu", "", X, (4, 1, 1))
    low, high = np.full((), -0.5), np.full((), 0.7)
    yield case("Clip", "pq", X, low)
    yield case("Clip", "pq", X, None, high)
    yield case("Clip", "pq", X, np.zeros(()))
    yield case("Clip", "pq", X, np.zeros(()), np.full((), 6.0))
    yield case("Clip", "pq", X, high, low, opset=13)
    yield case("Clip", "pq", X)
    yield case("Clip", "", X, ())
    for attrs in ({}, {"min": 0.0}, {"min": -0.5}, {"max": 0.7}, {"min": 0.0, "max": 6.0}, {"min": -1.0, "max": 0.0}):
        yield case("Clip", "pq", X, opset=10, **attrs)
    for op in ("Max", "Min"):
        for c in (R(4, 1, 1), R(1, 4, 1, 1), R(5), np.zeros(())):
            yield case(op, "pq", X, c)
        yield case(op, "pq", X, R(4, 3, 1))
        yield case(op, "", X, R(2, *X))
        yield case(op, "pq", X, X)
        yield case(op, "pq", X, X, X, opset=8)
        yield case(op, "pq", X, (4, 1, 1), ())
        yield case(op, "pq", X)
        yield case(op, "pq", X, R(), X, R(4, 1, 1))
    flags = RNG.random(X) < 0.5
    yield case("Where", "pq", flags, X, X)
    yield case("Where", "pq", X, X, X, flags=(0,))
    yield case("Where", "pq", (3, 5), X, R(4, 1, 1), flags=(0,))
    yield case("Where", "pq", X, R(), X, flags=(0,))
    yield case("Where", "", X, (4, 1, 1), (), flags=(0,))
    yield case("Where", "", X, (4, 1, 1), R(), flags=(0,))
    yield case("Where", "", (), R(), R(), flags=(0,))
    yield case("Where", "pq", (), (), R(), flags=(0,))
    for attrs in (
        {},
        {"strides": [2, 2]},
        {"pads": [1, 0, 0, 1]},
        {"ceil_mode": 1, "strides": [2, 2]},
        {"dilations": [1, 2]},
    ):
        yield case("MaxPool", "pq", X, kernel_shape=[2, 2], by="runtime" if "ceil_mode" in attrs else "", **attrs)
    yield case("MaxPool", "pq", X, kernel_shape=[3, 3], auto_pad="SAME_UPPER", by="runtime")
    yield case("MaxPool", "pq", (2, 4, 6), kernel_shape=[2], opset=1)
    yield case("GlobalMaxPool", "pq", X)
    yield case("GlobalMaxPool", "pq", (2, 4, 6), opset=1, by="runtime")
    pool = partial(case, "AveragePool", by="runtime")
    k: dict[str, Any] = {"kernel_shape": [2, 2]}
    for attrs in (
        {},
        {"strides": [2, 1]},
        {"pads": [1, 0, 0, 1]},
        {"count_include_pad": 1},
        {"ceil_mode": 1, "strides": [2, 2]},
    ):
        yield pool("pq", X, **k, **attrs)
    yield pool("p", X, **k, pads=[1, 0, 0, 1], count_include_pad=1)
    yield pool("p", X, **k, ceil_mode=1, strides=[2, 2], count_include_pad=1)
    yield pool("p", X, kernel_shape=[3, 3], auto_pad="SAME_UPPER", count_include_pad=1)
    yield pool("pq", X, kernel_shape=[3, 3], auto_pad="SAME_LOWER")
    yield pool("pq", X, **k, auto_pad="VALID", count_include_pad=1, opset=7)
    yield pool("pq", X, **k, dilations=[1, 2], opset=19)
    yield case("GlobalAveragePool", "pq", X)
    yield case("LpPool", "", X, kernel_shape=[2, 2], p=2)
    yield case("GlobalLpPool", "", X, by="runtime")
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
        for axes in ([2, 3], [-1], [1], [0, -2], None):
            for keep in (0, 1):
                if op == "ReduceSum":
                    yield case(op, "pq", X, *([] if axes is None else [A(*axes)]), keepdims=keep)
                else:
                    yield case(op, "pq", X, keepdims=keep, **({} if axes is None else {"axes": axes}))
                    yield case(op, "pq", X, *([] if axes is None else [A(*axes)]), keepdims=keep, opset=18)
        yield case(op, "", X, noop_with_empty_axes=1, opset=18)
        yield case(op, "pq", X, A(), opset=18, keepdims=0)
        yield case(op, "pq", X, A(2), noop_with_empty_axes=1, opset=18)
        yield case(op, "pq", (4,), keepdims=0, opset=18)
        yield case(op, "pq", (), keepdims=0, opset=18)
        yield case(op, "pq", X, opset=11, axes=[-1, -2])
    for op in ("ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ArgMax"):
        yield case(op, "", X, by="reference", keepdims=1)
    yield case("Dropout", "pq", X)
    yield case("Dropout", "pq", X, np.float64(0.4), np.array(False))
    yield case("Dropout", "pq", X, opset=7, ratio=0.4)
    yield case("Dropout", "pq", X, opset=6, is_test=1, by="runtime")
    yield case("Cast", "pq", X, to=TensorProto.DOUBLE)
    yield case("Cast", "", X, to=TensorProto.INT32)
    yield case("Cast", "", X, to=TensorProto.BOOL)
    yield case("CastLike", "pq", X, R(), opset=15)
    yield case("CastLike", "", X, A(1), opset=15)
    yield case("Shape", "pq", X)
    yield case("Shape", "pq", X, start=1, opset=15)
    yield case("Size", "pq", X)


def _resizing() -> Iterator[Case]:
    scales, two = np.array([1, 1, 2, 1.5], np.float32), np.array([1, 1, 2, 2], np.float32)
    none = np.zeros(0, np.float32)
    grid = np.random.default_rng(5).uniform(-1.4, 1.4, (2, 3, 4, 2))  # outside the image too
    for mode in ("border", "reflection"):
        for given in (grid, grid.shape):
            yield case("GridSample", "pq", X, given, padding_mode=mode, opset=16, by="runtime")
    yield case("GridSample", "p", X, grid, padding_mode="zeros", mode="bilinear", opset=16, by="runtime")
    yield case("GridSample", "pq", X, grid, padding_mode="border", mode="nearest", align_corners=1, opset=16,
               by="runtime")  # fmt: skip
    yield case("GridSample", "p", X, grid, mode="cubic", opset=20, by="runtime")
    boxes = np.array([[0.2, 0.1, 4.0, 3.0], [-2.0, 1.0, 9.0, 6.0], [1.0, 1.0, 2.0, 2.0]])
    which = np.array([0, 1, 1])
    yield case("RoiAlign", "p", X, boxes, which, output_height=2, output_width=3, opset=16, by="runtime")
    yield case("RoiAlign", "", X, boxes, which, mode="max", output_height=2, output_width=2, opset=16, by="runtime")
    resize = partial(case, "Resize", by="runtime")
    for mode in ("nearest", "linear", "cubic"):
        for where in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
            yield resize("pq", X, None, scales, mode=mode, coordinate_transformation_mode=where)
        yield resize("pq", X, None, None, A(2, 4, 6, 5), mode=mode)
        yield resize("pq", X, None, np.array([1, 1, 0.7, 0.6], np.float32), mode=mode)
    yield resize("pq", X, None, scales, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5)
    yield resize("pq", X, None, scales, mode="nearest", nearest_mode="ceil")
    yield resize("pq", X, None, np.array([1, 1, 0.7, 0.6], np.float32), mode="linear", antialias=1, opset=18)
    yield resize("pq", X, None, np.array([2, 2], np.float32), axes=[2, 3], opset=18)
    yield resize("pq", X, None, None, A(6, 9), axes=[-2, -1], opset=18, keep_aspect_ratio_policy="not_larger")
    yield resize("pq", X, None, scales, mode="linear", coordinate_transformation_mode="half_pixel_symmetric", opset=19)
    yield resize("", X, np.array([0, 0, 0.1, 0, 1, 1, 0.9, 2], np.float32), scales, mode="linear",
               coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0)  # fmt: skip
    yield resize("pq", X, none, two, opset=11)
    yield resize("pq", X, two, opset=10)
    yield resize("pq", X, two, opset=10, mode="linear")
    yield resize("pq", X, None, np.array([1, 2, 1, 1], np.float32))
    yield case("Upsample", "pq", X, two, opset=9, by="runtime")
    yield case("Upsample", "pq", X, two, opset=9, mode="linear", by="runtime")
    yield case("Upsample", "pq", X, scales=[1.0, 1.0, 2.0, 3.0], opset=7, by="runtime")
    for mode in ("reflect", "edge", "wrap"):
        yield case("Pad", "pq", X, A(0, 0, 1, 2, 0, 0, 0, 1), mode=mode, opset=19)
    yield case("Pad", "pq", X, A(0, 1, 0, 0, 0, 1, 0, 0), mode="edge", opset=13)
    yield case("Pad", "pq", X, mode="reflect", pads=[0, 0, 1, 1, 0, 0, 0, 1], opset=2)
    for value in (None, np.zeros(())):
        yield case("Pad", "p", X, A(0, 0, 1, 2, 0, 0, 0, 1), *([] if value is None else [value]))
    yield case("Pad", "pq", X, A(0, 0, 0, 0, 0, 0, 0, 0))
    yield case("Pad", "pq", X, A(0, 0, -1, -2, 0, 0, 0, 0))
    yield case("Pad", "p", X, A(0, 0, -1, 2, 0, 0, 1, -1))
    yield case("Pad", "pq", X, A(0, 2, 0, 0, 0, 1, 0, 0))
    yield case("Pad", "pq", X, A(0, -1, 0, 0, 0, 1, 0, 0))
    yield case("Pad", "p", X, A(1, 0, 0, 0, 0, 0, 0, 0))
    yield case("Pad", "pq", X, A(0, 0, 1, 1, 0, 0, 1, 1), np.full((), 0.7))
    yield case("Pad", "pq", X, A(0, 0, 1, 1, 0, 0, 1, 1), np.full((), -np.inf))
    yield case("Pad", "p", X, A(1, 2, 1, 0), None, A(2, 3), opset=18)
    yield case("Pad", "p", X, A(1, 2, 1, 0), None, A(-1, -2), opset=18)
    yield case("Pad", "", X, A(0, 0, 1, 1, 0, 0, 1, 1), (), opset=13)
    yield case("Pad", "p", X, pads=[0, 0, 1, 0, 0, 0, 0, 1], opset=2)
    yield case("Pad", "", X, pads=[0, 0, 1, 0, 0, 0, 0, 1], value=0.5, opset=2)
    yield case("Pad", "p", X, paddings=[0, 0, 1, 0, 0, 0, 0, 1], opset=1, by="reference")


def _movement() -> Iterator[Case]:
    for target in (
        A(2, 4, 15),
        A(0, 0, -1),
        A(2, 60),
        A(-1),
        A(8, 3, 5),
        A(2, 2, 2, 3, 5),
        A(2, -1, 1, 5),
        A(2, 4, 3, 5),
    ):
        yield case("Reshape", "pq", X, target)
    yield case("Reshape", "pq", X, A(2, 2, 2, 3, 5), allowzero=1)
    yield case("Reshape", "pq", X, shape=[2, 12, 5], opset=4, by="runtime")
    yield case("Reshape", "pq", (), A(1, 1))
    yield case("Reshape", "pq", (1, 1), A())
    for axis in (0, 1, 2, 3, 4, -1):
        yield case("Flatten", "pq", X, axis=axis, opset=13)
    yield case("Flatten", "pq", X, opset=9)
    one = (2, 1, 4, 1)
    yield case("Squeeze", "pq", one)
    yield case("Squeeze", "pq", one, A(-1))
    yield case("Squeeze", "pq", one, A(1, 3))
    yield case("Squeeze", "pq", one, axes=[1], opset=11)
    yield case("Squeeze", "pq", (1,), A(0))
    yield case("Unsqueeze", "pq", X, A(1, -1))
    yield case("Unsqueeze", "pq", X, axes=[0], opset=11)
    yield case("Unsqueeze", "pq", (), A(0))
    for perm in ([0, 2, 3, 1], [3, 1, 2, 0]):
        yield case("Transpose", "pq", X, perm=perm)
    yield case("Transpose", "pq", X)
    yield case("Transpose", "pq", ())
    for axis in (0, 1, -1, 2):
        yield case("Concat", "pq", X, X, axis=axis)
    yield case("Concat", "pq", X, (2, 3, 3, 5), axis=1)
    yield case("Concat", "pq", X, R(2, 1, 3, 5), X, axis=1)
    yield case("Concat", "pq", X, X, opset=1, by="runtime")
    yield case("Split", "pq", X, A(1, 3), axis=1, outputs=2)
    yield case("Split", "pq", X, axis=1, outputs=2, opset=13)
    yield case("Split", "pq", X, axis=-1, outputs=2, num_outputs=2, opset=18)
    yield case("Split", "pq", X, axis=1, outputs=3, num_outputs=3, opset=18, by="reference")
    yield case("Split", "pq", X, axis=1, split=[3, 1], outputs=2, opset=11)
    yield case("Split", "pq", X, outputs=2, opset=11)
    yield case("Slice", "pq", X, A(1), A(3), A(1))
    yield case("Slice", "pq", X, A(-1, 0), A(-9, 2), A(1, 2), A(-1, 1))
    yield case("Slice", "pq", X, A(3), A(0), A(-3), A(-2))
    yield case("Slice", "pq", X, A(-9), A(2**31), A(1), A(2))
    yield case("Slice", "pq", X, A(9), A(-(2**31)), A(1), A(-1))
    yield case("Slice", "pq", X, A(2), A(-5), A(1), A(-1))
    yield case("Slice", "pq", X, A(-9), A(-(2**31)), A(1), A(-1), by="runtime")
    yield case("Slice", "pq", X, A(9), A(-9), A(1), A(-2), by="runtime")
    yield case("Slice", "pq", X, A(0, 1), A(2, 3))
    yield case("Slice", "pq", X, starts=[1], ends=[-1], axes=[1], opset=9)
    yield case("Slice", "pq", X, starts=[0, 1], ends=[2, 9], opset=1)
    for indices in (A(3, 0, 0), A(-1, 1), np.array(-2), np.array([2], np.int32)):
        for axis in (1, -3, 0):
            if axis or not (indices > 1).any():
                yield case("Gather", "pq", X, np.maximum(indices, -2), axis=axis)
    yield case("Gather", "pq", X, A(1, 0))
    yield case("Gather", "pq", (4,), np.array(1))
    yield case("Gather", "", X, A(0, 1, 1, 0).reshape(2, 2), axis=1)
    yield case("Expand", "pq", (4, 1, 1), A(2, 4, 3, 5))
    yield case("Expand", "pq", (2, 4, 1, 1), A(1, 4, 3, 1))
    yield case("Expand", "pq", (), A(2, 3))
    yield case("Expand", "pq", (1,), A(3, 4))
    yield case("Tile", "pq", X, A(1, 2, 1, 1))
    yield case("Tile", "pq", X, A(2, 1, 3, 2))
    yield case("Tile", "pq", X, A(1, 1, 1, 1))
    yield case("Tile", "pq", (4,), A(3))
    big = (2, 8, 2, 3)
    for mode in ({}, {"mode": "DCR"}, {"mode": "CRD"}):
        yield case("DepthToSpace", "pq", big, blocksize=2, **mode)
    yield case("DepthToSpace", "pq", big, blocksize=2, opset=1)
    yield case("SpaceToDepth", "pq", (2, 3, 4, 6), blocksize=2)


CASES = [*_layers(), *_arithmetic(), *_pointwise(), *_resizing(), *_movement()]


ELSEWHERE = {"DequantizeLinear", *(name for name in READERS if name.startswith("com.microsoft."))}
"""Operators whose laws are in tests/test_quantized_kinds.py and tests/test_runtime_ops.py."""


def test_the_table_has_every_operator_that_is_read() -> None:
    assert {c.op for c in CASES} | ELSEWHERE >= set(READERS)


# --- models


def _model(c: Case, static: bool = True) -> ModelProto:
    """One node; with `static` false no size but that of axis 1 is known."""
    names, inputs, tensors = [], [], []
    for i, given in enumerate(c.inputs):
        names.append("" if given is None else f"i{i}")
        if isinstance(given, tuple):
            dims = [d if static or k == 1 else f"d{i}_{k}" for k, d in enumerate(given)]
            kind = TensorProto.BOOL if i in c.flags else TensorProto.DOUBLE
            inputs.append(helper.make_tensor_value_info(names[-1], kind, dims))
        elif given is not None:
            tensors.append(numpy_helper.from_array(np.asarray(given), names[-1]))
    outputs = [f"o{i}" for i in range(c.outputs)]
    node = helper.make_node(c.op, names, outputs, c.op, **c.attrs)
    ends = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    graph = helper.make_graph([node], "g", inputs, ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", c.opset)], ir_version=8)
    known = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.output}
    del model.graph.output[:]
    model.graph.output.extend(known[name] for name in outputs)
    return model


def _run(model: ModelProto, feed: dict[str, Array], by: str) -> list[Array]:
    """In float64 by the reference evaluator, or in float32 by onnxruntime, which begins at opset 7."""
    if by != "runtime":
        return evaluate(model, **feed)
    modern = default_opset(model) >= 7
    copy = (
        onnx.version_converter.convert_version(model, 7)
        if not modern
        else ModelProto.FromString(model.SerializeToString())
    )
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, ["CPUExecutionProvider"])
    given = {name: v.astype(np.float32) if v.dtype == np.float64 else v for name, v in feed.items()}
    return [np.asarray(v) for v in session.run(None, given)]


# --- gauges


def _seeds(c: Case, eqs: Equations, variant: int | None) -> dict[str, Ids | None]:
    """Free gauges of the inputs: of each element, or along one axis; flags have none."""
    found: dict[str, Ids | None] = {}
    for i, given in enumerate(c.inputs):
        if not isinstance(given, tuple):
            continue
        if i in c.flags:
            found[f"i{i}"] = pinned(len(given))
        else:
            shape = given if variant is None else [d if k == variant else 1 for k, d in enumerate(given)]
            found[f"i{i}"] = eqs.fresh(shape)
    return found


def _solution(
    graph: Graph, eqs: Equations, gauges: dict[str, Ids | None], form: str, rng: np.random.Generator
) -> Solution:
    """A random solution. `form`: "gone" where constants are removed and Relus bend, "stays" where they are not."""
    bent = [b for b in eqs.bends if form == "gone"]
    fallen = {id(demand) for bend in bent for demand in bend.holds}
    gone = [port for port in eqs.affines if form == "gone" and port.op.candidate]
    p = _scales(eqs, gone, fallen, rng)
    q = _shifts(eqs, gone, bent, fallen, p, rng)
    outcomes = [Outcome(port, "gone" if port in gone else "stays") for port in eqs.affines]
    with np.errstate(divide="ignore", invalid="ignore"):
        u, t = np.where(p != 0, 1 / p, 0.0), np.where(p != 0, -q / p, 0.0)
    return Solution(eqs, gauges, outcomes, p, q, u, t, np.zeros(eqs.count, bool), bent, np.arange(eqs.count))


def _scales(eqs: Equations, gone: list[AffinePort], fallen: set[int], rng: np.random.Generator) -> Array:
    """Walk through equal and proportional scales from a random one, or from one that is pinned."""
    links: list[list[tuple[int, float]]] = [[] for _ in range(eqs.count)]

    def link(a: Ids, b: Ids, factor: Array | float) -> None:  # p_a = factor * p_b
        for i, j, f in zip(a.tolist(), b.tolist(), np.broadcast_to(factor, a.shape).tolist(), strict=True):
            if f:
                links[j].append((i, f))
                links[i].append((j, 1 / f))

    for a, b, _ in eqs.ties:
        link(a, b, 1.0)
    for port in gone:
        link(port.x, port.y, port.scale)
    for port in eqs.affines:
        if port not in gone and (port.op.reversed or (port.op.kind == "mul" and not port.op.listed)):
            link(port.x, port.y, 1.0)
    fixed = {0, *(int(i) for d in eqs.pins if id(d) not in fallen for i in d.ids)}
    positive = {int(i) for d in eqs.positive for i in d.ids}
    p = np.full(eqs.count, np.nan)
    for start in [*sorted(fixed), *(int(i) for i in rng.permutation(eqs.count))]:
        if not np.isnan(p[start]):
            continue
        p[start] = 1.0 if start in fixed else rng.uniform(0.5, 2.0) * rng.choice([-1.0, 1.0])
        group = [start]
        for i in group:
            for j, factor in links[i]:
                if np.isnan(p[j]):
                    p[j] = factor * p[i]
                    group.append(j)
        if any(p[i] < 0 for i in group if i in positive):
            p[group] *= -1
    for port in gone:
        p[port.x[port.scale == 0]] = 0.0
    assert all(p[i] == 1 for i in fixed)
    assert all(p[i] > 0 for i in positive)
    return p


def _shifts(
    eqs: Equations, gone: list[AffinePort], bent: list[Bend], fallen: set[int], p: Array, rng: np.random.Generator
) -> Array:
    """Random numbers; each equation gives one of them as the sum of others, solved by substitution."""
    solved: dict[int, tuple[dict[int, float], float]] = {}

    def demand(terms: list[tuple[Ids, Any]], value: Any = 0.0) -> None:
        size = terms[0][0].size
        for k in range(size):
            row: dict[int, float] = {}
            right = float(np.broadcast_to(value, size)[k])
            queue = [(int(ids.flat[k]), float(factor)) for ids, factor in terms]
            while queue:
                i, factor = queue.pop()
                if i in solved:
                    queue += [(j, factor * f) for j, f in solved[i][0].items()]
                    right -= factor * solved[i][1]
                else:
                    row[i] = row.get(i, 0.0) + factor
            row = {i: factor for i, factor in row.items() if abs(factor) > 1e-12}
            assert row or abs(right) < 1e-9
            if row:
                i = max(row, key=lambda i: abs(row[i]))
                pivot = row.pop(i)
                solved[i] = {j: -factor / pivot for j, factor in row.items()}, right / pivot

    demand([(np.zeros(1, np.int64), 1.0)])
    for left, parts in eqs.sums:
        demand([(left, -1.0), *parts])
    for a, b, _ in eqs.equal:
        demand([(a, 1.0), (b, -1.0)])
    for d in eqs.still:
        if id(d) not in fallen:
            demand([(d.ids, 1.0)])
    for bend in bent:
        demand([(bend.x, 1.0), (bend.y, -1.0)])
    for port in eqs.affines:
        if port in gone:
            demand([(port.x, 1.0), (port.y, -1.0)], p[port.y] * port.offset)
        elif port.op.kind == "mul" and not port.op.listed:
            demand([(port.y, 1.0), (port.x, -float(port.scale[0]))])
        elif port.op.kind == "mul":
            demand([(port.x, 1.0)])
            demand([(port.y, 1.0)])
    q: Array = rng.normal(0.0, 1.0, eqs.count)
    for i in reversed(list(solved)):
        q[i] = solved[i][1] + sum(factor * q[j] for j, factor in solved[i][0].items())
    for d in eqs.still:
        if id(d) not in fallen:
            q[d.ids] = 0.0
    return q


def _moved(value: Array, ids: Ids | None, s: Solution) -> Array:
    return value if ids is None or value.dtype.kind != "f" else np.asarray(s.p[ids] * value + s.q[ids])


def _variants(c: Case, static: bool) -> list[int | None]:
    """Axes of the gauge, that of channels and the last; None: each element has its own."""
    rank = max((len(i) for i in c.inputs if isinstance(i, tuple)), default=0)
    return [None, *sorted({min(1, rank - 1), rank - 1} - {-1})] if static else [1] * (rank > 1)


def _feed(c: Case) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    feed = {f"i{i}": np.asarray(rng.normal(0.3, 1.2, x)) for i, x in enumerate(c.inputs) if isinstance(x, tuple)}
    return {
        name: np.asarray(v > 0.3) if int(name[1:]) in c.flags else np.abs(v) if c.op in POSITIVE else v
        for name, v in feed.items()
    }


def _carried(c: Case, model: ModelProto, expected: list[Array], variant: int | None, form: str) -> str | None:
    """Check one way of moving the inputs; what could be moved of them, None where the form makes no difference."""
    loaded = LOADED._load(model, Folding(frozen=False))
    graph, eqs = loaded.source.graph, Equations()
    gauges = _seeds(c, eqs, variant)
    given = dict(gauges)
    for op in graph.ops:
        for name, ids in zip(op.outputs, _outputs(op, graph, gauges, eqs), strict=True):
            assert ids is None or graph.rank(name) in (None, ids.ndim), f"{op} gives {ids.ndim} axes"
            gauges[name] = ids
    assert not graph.faults, graph.faults
    if form == "gone" and not (eqs.affines or eqs.bends):
        return None
    solution = _solution(graph, eqs, gauges, form, np.random.default_rng(5))
    plan: Plan = _planned(graph, solution, Cut(graph, {}, []))
    changed = apply(loaded.model, loaded.source, plan).complete()
    moved = {name: _moved(value, given[name], solution) for name, value in _feed(c).items()}
    close = 2e-4 if c.by == "runtime" else 1e-9
    for name, before, after in zip(
        (o.name for o in model.graph.output), expected, _run(changed, moved, c.by), strict=True
    ):
        want = _moved(before, gauges.get(name), solution)
        assert after.shape == want.shape
        np.testing.assert_allclose(after, want, rtol=close, atol=close, err_msg=f"{name}, {form}, axis {variant}")
    free = [ids for ids in given.values() if ids is not None and ids.any()]
    scales = any((solution.p[ids] != 1).any() for ids in free)
    shifts = any((np.abs(solution.q[ids]) > 1e-9).any() for ids in free)
    return "p" * scales + "q" * shifts


@pytest.mark.parametrize("c", CASES, ids=str)
def test_the_law_holds(c: Case) -> None:
    """What is carried is what the table says; where both evaluate the operator, they agree on it."""
    carried: set[str] = set()
    for static in (True, False):
        model = _model(c, static)
        try:
            expected = _run(model, _feed(c), c.by)
        except NotImplementedError as error:
            if not onnx.__version__.startswith("1.22."):
                raise
            pytest.skip(f"this onnx cannot evaluate it: {error}")
        if static and not c.by:
            for ours, theirs in zip(expected, _run(model, _feed(c), "runtime"), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        for variant in _variants(c, static):
            for form in ("stays", "gone"):
                carried.update(_carried(c, model, expected, variant, form) or "")
    assert "".join(sorted(carried)) == c.carries
