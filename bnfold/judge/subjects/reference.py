"""Operators that onnx's reference evaluator gets wrong or lacks, as the specification has them.

BatchNormalization of opsets 7 to 13 is evaluated there as in training, whatever the file says, and that of opset 6 with
the wrong arguments; DequantizeLinear is missing before opset 19.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper
from onnx.reference.op_run import OpRun

Array = Any  # numpy arrays of any type, among them those that numpy itself does not know


class BatchNormalization(OpRun):
    """`(x - mean) / sqrt(var + epsilon) * scale + bias` in every opset; in training with the batch's mean and var."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float | None = None,
             momentum: float | None = None, training_mode: int | None = None, is_test: int | None = None,
             spatial: int | None = None, consumed_inputs: Any = None) -> tuple[Array, ...]:  # fmt: skip
        running: list[Array] = [mean, var]
        opset, outputs = self.run_params["opsets"][""], [name for name in self.onnx_node.output if name]
        if training_mode or (opset < 7 and not is_test) or (7 <= opset < 14 and len(outputs) > 1):
            axes = tuple(axis for axis in range(x.ndim) if axis != 1)
            keep = 0.9 if momentum is None else momentum
            mean, var = x.mean(axes, dtype=np.float64), x.var(axes, dtype=np.float64)
            running = [
                np.asarray(a * keep + b * (1 - keep), a.dtype) for a, b in zip(running, (mean, var), strict=True)
            ]
        shape = list(x.shape[1:]) if spatial == 0 else [-1] + [1] * (x.ndim - 2)
        wide: Any = np.float64 if x.dtype == np.float64 else np.float32
        parts: list[Any] = [np.asarray(value).astype(wide).reshape(shape) for value in (scale, bias, mean, var)]
        s, b, m, v = parts
        eps = np.asarray(1e-5 if epsilon is None else epsilon, wide)
        y = x.astype(wide, copy=False) - m
        y *= s / np.sqrt(v + eps)
        y += b
        return (y.astype(x.dtype, copy=False), *running, mean, var)[: len(self.onnx_node.output)]


class DequantizeLinear(OpRun):
    """`(x - zero point) * scale`, one scale for all or one for each entry of `axis`."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, axis: int | None = None,
             block_size: int | None = None, output_dtype: int | None = None) -> tuple[Array]:  # fmt: skip
        if block_size:
            raise NotImplementedError("scales for blocks of weights")
        shape = [1] * x.ndim
        if scale.size > 1:
            shape[1 if axis is None else axis] = scale.size
        wide = np.float32 if scale.dtype != np.float64 else np.float64
        offset = 0 if zero is None else zero.astype(wide).reshape(shape if zero.size > 1 else ())
        value = (x.astype(wide) - offset) * scale.astype(wide).reshape(shape if scale.size > 1 else ())
        dtype = helper.tensor_dtype_to_np_dtype(output_dtype) if output_dtype else scale.dtype
        return (value.astype(dtype),)


class _Legacy(OpRun):
    """Arithmetic before opset 7, where `axis` says which axis of the first input the second begins at."""

    op_domain = ""

    def _run(self, a: Array, b: Array, axis: int | None = None, broadcast: int | None = None,
             consumed_inputs: Any = None) -> tuple[Array]:  # fmt: skip
        if broadcast and axis is not None and b.ndim < a.ndim:
            b = b.reshape(b.shape + (1,) * (a.ndim - axis % a.ndim - b.ndim))
        return (np.asarray(self.function(a, b)).astype(a.dtype),)

    @staticmethod
    def function(a: Array, b: Array) -> Array:
        """What it computes."""
        raise NotImplementedError


def _legacy(name: str, function: Any) -> Any:
    return type(name, (_Legacy,), {"function": staticmethod(function)})


def operators(opset: int) -> list[Any]:
    """Those that take the place of the evaluator's own in a model of this opset: a list of the caller's own, since the
    evaluator adds to what it is given.
    """
    return [*OPERATORS, *(LEGACY if opset < 7 else ())]


def _quotient(a: Array, b: Array) -> Array:
    return np.trunc(a / b) if a.dtype.kind in "iu" else a / b


class Relu(OpRun):
    """`max(x, 0)`, in one pass."""

    op_domain = ""

    def _run(self, x: Array, consumed_inputs: Any = None) -> tuple[Array]:
        return (np.maximum(x, 0).astype(x.dtype, copy=False),)


class LRN(OpRun):
    """`x / (bias + alpha / size * sum of x^2)^beta` over neighbouring channels; the evaluator's own mixes up axes."""

    op_domain = ""

    def _run(self, x: Array, alpha: float | None = None, beta: float | None = None, bias: float | None = None,
             size: int | None = None) -> tuple[Array]:  # fmt: skip
        count = int(size or 1)
        before = (count - 1) // 2
        wide: Any = np.float64 if x.dtype == np.float64 else np.float32
        edges = [(before, count - 1 - before) if axis == 1 else (0, 0) for axis in range(x.ndim)]
        square = np.pad(x.astype(wide) ** 2, edges)
        total = sum(square[:, i : i + x.shape[1]] for i in range(count))
        given = [default if v is None else v for v, default in ((alpha, 1e-4), (beta, 0.75), (bias, 1.0))]
        scale = given[2] + given[0] / count * total
        return ((x.astype(wide) / scale ** given[1]).astype(x.dtype),)


LEGACY = [_legacy(n, f) for n, f in (("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", _quotient))]
OPERATORS: list[Any] = [BatchNormalization, DequantizeLinear, LRN, Relu]
