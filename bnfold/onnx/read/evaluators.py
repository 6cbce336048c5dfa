"""What nodes compute from constants, as numpy has it. See `EVALUATORS` for the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Inputs = Sequence[Any]


def _constant(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    for key, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if key in attrs:
            return np.array(attrs[key], dtype)
    raise ValueError("no numeric value")


def _constant_of_shape(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    value = numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, np.float32)
    return np.full(tuple(inputs[0]), value.item() if value.dtype.kind in "fiub" else value.reshape(()), value.dtype)


def _cast(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    return np.asarray(inputs[0]).astype(helper.tensor_dtype_to_np_dtype(attrs["to"]))


def _axes(inputs: Inputs, attrs: Attributes) -> tuple[int, ...] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(int(a) for a in inputs[1])
    return tuple(attrs["axes"]) if "axes" in attrs else None


def _reshape(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    data = np.asarray(inputs[0])
    target = [int(d) for d in (inputs[1] if len(inputs) > 1 else attrs["shape"])]
    if not attrs.get("allowzero", 0):
        target = [data.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return data.reshape(target)


def _flat(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    return prod(shape[:axis]), prod(shape[axis:])


def _slice(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    data = np.asarray(inputs[0])
    starts, ends = (inputs[1], inputs[2]) if len(inputs) > 2 else (attrs["starts"], attrs["ends"])
    axes = inputs[3] if len(inputs) > 3 and inputs[3] is not None else attrs.get("axes", range(len(starts)))
    steps = inputs[4] if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[int(axis)] = axis_slice(int(start), int(end), int(step), data.shape[int(axis)])
    return data[tuple(cut)]


def axis_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX Slice on one axis as a Python slice: a start before the front is the front, also of a way back."""
    return slice(max(start, -size), end, step)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Inputs, Attributes, int], Array]:
    def evaluate(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
        a, b = inputs
        if opset < 7 and "axis" in attrs and np.ndim(b) < np.ndim(a):
            b = np.reshape(b, np.shape(b) + (1,) * (np.ndim(a) - attrs["axis"] - np.ndim(b)))
        return np.asarray(function(a, b)).astype(np.asarray(a).dtype)

    return evaluate


def _unary(function: Callable[[Any], Any]) -> Callable[[Inputs, Attributes, int], Array]:
    return lambda inputs, attrs, opset: np.asarray(function(inputs[0])).astype(np.asarray(inputs[0]).dtype)


def _divide(a: Array, b: Array) -> Array:
    """Division as ONNX has it: integers towards zero."""
    if np.asarray(a).dtype.kind in "iu":
        down, rest = np.divmod(a, b)
        return np.asarray(down + ((rest != 0) & ((a < 0) != (b < 0))))
    return np.asarray(np.divide(a, b))


def along(value: Any, shape: Sequence[int], attrs: Attributes) -> Array:
    """A scale or zero point of DequantizeLinear as it broadcasts to data: one, one for each channel, or in blocks."""
    value, axis, block = np.asarray(value), attrs.get("axis", 1), attrs.get("block_size", 0)
    if block and value.ndim == len(shape):
        return np.repeat(value, block, axis).take(range(shape[axis]), axis)
    where = [1] * len(shape)
    if value.size > 1:
        where[axis] = value.size
    spread: Array = value.reshape(where)
    return spread


def _dequantize(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    """`(x - zero point) * scale`, in the type of the scale unless another is asked for."""
    x, scale = np.asarray(inputs[0]), np.asarray(inputs[1])
    zero = np.asarray(inputs[2] if len(inputs) > 2 and inputs[2] is not None else 0)
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    value = (x.astype(wide) - along(zero, x.shape, attrs).astype(wide)) * along(scale, x.shape, attrs).astype(wide)
    to = attrs.get("output_dtype", 0)
    return np.asarray(value.reshape(x.shape)).astype(helper.tensor_dtype_to_np_dtype(to) if to else scale.dtype)


def _quantize(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    """`x / scale + zero point`, rounded to even and held in the range of the zero point's type."""
    x, scale = np.asarray(inputs[0]), np.asarray(inputs[1])
    zero = np.asarray(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else np.zeros((), np.uint8)
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[attrs.get("axis", 1)] = scale.size
    offset = zero.astype(np.float32).reshape(shape if zero.size > 1 else [1] * x.ndim)
    value = x.astype(np.float32) / scale.astype(np.float32).reshape(shape)
    if "float" in zero.dtype.name:
        limit = float(ml_dtypes.finfo(zero.dtype).max)  # type: ignore[no-untyped-call]
        return np.asarray(np.clip(value + offset, -limit, limit).astype(zero.dtype))
    info = ml_dtypes.iinfo(zero.dtype)  # type: ignore[no-untyped-call]
    return np.asarray(np.clip(np.rint(value) + offset, info.min, info.max).astype(zero.dtype))


def _reduction(function: Callable[..., Any]) -> Callable[[Inputs, Attributes, int], Array]:
    """Over the given axes, or all; floats in float64, rounded once."""

    def evaluate(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
        data, axes = np.asarray(inputs[0]), _axes(inputs, attrs)
        if not axes and attrs.get("noop_with_empty_axes", 0):
            return data
        wide = data if data.dtype.kind in "iu" else data.astype(np.float64)
        return np.asarray(function(wide, axis=axes or None, keepdims=bool(attrs.get("keepdims", 1)))).astype(data.dtype)

    return evaluate


def _squares(x: Array, **how: Any) -> Array:
    return np.asarray(np.sum(x * x, **how))


def _clip(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    data = np.asarray(inputs[0])
    bounds = [(inputs[i] if i < len(inputs) else None) if opset >= 11 else attrs.get(key)
              for i, key in ((1, "min"), (2, "max"))]  # fmt: skip
    low, high = (None if bound is None else np.asarray(bound, data.dtype) for bound in bounds)
    data = data if low is None else np.maximum(data, low)
    return np.asarray(data if high is None else np.minimum(data, high))


def _split(inputs: Inputs, attrs: Attributes, opset: int) -> list[Array]:
    """All parts; `outputs` among the attributes: how many they are."""
    data, axis, count = np.asarray(inputs[0]), attrs.get("axis", 0), attrs["outputs"]
    sizes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else attrs.get("split")
    if sizes is None:
        part = -(-data.shape[axis] // count)
        sizes = [part] * (count - 1)
    return np.split(data, np.cumsum(sizes)[: count - 1], axis)


EVALUATORS: dict[str, Callable[[Inputs, Attributes, int], Array | list[Array]]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "Identity": lambda i, a, o: np.asarray(i[0]),
    "Expand": lambda i, a, o: np.broadcast_to(i[0], np.broadcast_shapes(np.shape(i[0]), tuple(int(d) for d in i[1]))),
    "Transpose": lambda i, a, o: np.transpose(i[0], a.get("perm")),
    "Reshape": _reshape,
    "Flatten": lambda i, a, o: np.reshape(i[0], _flat(np.shape(i[0]), a.get("axis", 1))),
    "Unsqueeze": lambda i, a, o: np.expand_dims(i[0], _axes(i, a) or ()),
    "Squeeze": lambda i, a, o: np.squeeze(i[0], _axes(i, a)),
    "Concat": lambda i, a, o: np.concatenate(list(i), a.get("axis", 1)),
    "Gather": lambda i, a, o: np.take(i[0], np.asarray(i[1]), a.get("axis", 0)),
    "Slice": _slice,
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Pow": _binary(np.power),
    "Max": lambda i, a, o: np.asarray(reduce(np.maximum, i)),
    "Min": lambda i, a, o: np.asarray(reduce(np.minimum, i)),
    "Sum": lambda i, a, o: np.asarray(reduce(np.add, i)),
    "Tile": lambda i, a, o: np.tile(i[0], tuple(int(n) for n in i[1])),
    "Abs": _unary(np.abs),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Neg": _unary(np.negative),
    "Sign": _unary(np.sign),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Clip": _clip,
    "Split": _split,
    "MatMul": lambda i, a, o: np.asarray(np.matmul(i[0], i[1])),
    "Range": lambda i, a, o: np.arange(*(np.asarray(x).item() for x in i)).astype(np.asarray(i[0]).dtype),
    "Where": lambda i, a, o: np.asarray(np.where(*map(np.asarray, i[:3]))),
    "Equal": lambda i, a, o: np.equal(*i),
    "Greater": lambda i, a, o: np.greater(*i),
    "Less": lambda i, a, o: np.less(*i),
    "Not": lambda i, a, o: np.logical_not(i[0]),
    "And": lambda i, a, o: np.logical_and(*i),
    "Or": lambda i, a, o: np.logical_or(*i),
    "ReduceMean": _reduction(np.mean),
    "ReduceSum": _reduction(np.sum),
    "ReduceProd": _reduction(np.prod),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "ReduceSumSquare": _reduction(_squares),
    "ReduceL2": _reduction(lambda x, **how: np.sqrt(_squares(x, **how))),
    "ReduceL1": _reduction(lambda x, **how: np.sum(np.abs(x), **how)),
}

NUMBERS = frozenset({"value", "value_float", "value_floats", "value_int", "value_ints"})
CASTS = frozenset(
    getattr(TensorProto, name)
    for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "BOOL", "INT8", "INT16", "INT32", "INT64",
                 "UINT8", "UINT16", "UINT32", "UINT64")
)  # fmt: skip
"""Types that numpy casts to as ONNX does."""
SUPPORTED: dict[str, Callable[[Attributes, int], bool]] = {
    "Constant": lambda a, o: bool(NUMBERS & set(a)),  # not sparse, no strings
    "ConstantOfShape": lambda a, o: "value" not in a or a["value"].data_location != TensorProto.EXTERNAL,
    "Cast": lambda a, o: a.get("to") in CASTS,
    "QuantizeLinear": lambda a, o: not (a.get("block_size") or a.get("output_dtype")) and a.get("saturate", 1) == 1,
    "Tile": lambda a, o: o >= 6,
    **{op: lambda a, o: not a.get("noop_with_empty_axes") for op in ("ReduceSumSquare", "ReduceL1", "ReduceL2")},
    **{op: lambda a, o: o >= 7 for op in ("Equal", "Greater", "Less", "And", "Or")},  # before, `axis` placed the second
}
"""Which forms of an operator `EVALUATORS` has; all of those that are not named here."""


def evaluable(op_type: str, attrs: Attributes, opset: int) -> bool:
    """Whether it is known here what such a node computes from constants."""
    return op_type in EVALUATORS and (op_type not in SUPPORTED or SUPPORTED[op_type](attrs, opset))
