"""A float64 evaluator for tests: onnx.reference, with convolutions and pooling done by torch in double.

The reference evaluator's own ConvTranspose (groups), MaxPool and AveragePool (asymmetric pads, batches) do not follow
the specification in every case.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bnfold.judge.subjects.reference import operators
from bnfold.onnx.read.constants import default_opset

Array = npt.NDArray[Any]


def _tensor(x: Array) -> torch.Tensor:
    """As torch has it; short types in float32, from which the result is rounded."""
    wide = np.float64 if x.dtype == np.float64 else np.float32
    return torch.from_numpy(np.array(x).astype(wide))


def _padded(x: torch.Tensor, pads: list[int] | None, value: float) -> torch.Tensor:
    """ONNX pads (all fronts, then all backs) as torch wants them."""
    if not pads:
        return x
    half = len(pads) // 2
    flat = [p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half])]
    return F.pad(x, flat, value=value)


def _same_pads(x: torch.Tensor, kernel: tuple[int, ...], strides: list[int], auto_pad: str) -> list[int]:
    fronts, backs = [], []
    for size, k, s in zip(x.shape[2:], kernel, strides, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        front = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        fronts.append(front)
        backs.append(total - front)
    return fronts + backs


class Conv(OpRun):
    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, auto_pad: str | None = None,
             dilations: Any = None, group: Any = None, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
             ) -> tuple[Array]:  # fmt: skip
        spatial = w.ndim - 2
        strides, dilations = list(strides or [1] * spatial), list(dilations or [1] * spatial)
        source = _tensor(x)
        if auto_pad and auto_pad.startswith("SAME"):
            pads = _same_pads(source, w.shape[2:], strides, auto_pad)
        function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        bias = None if b is None else _tensor(b)
        result = function(_padded(source, pads, 0.0), _tensor(w), bias, strides, 0, dilations, group or 1)
        return (result.numpy().astype(x.dtype),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, auto_pad: Any = None, dilations: Any = None,
             group: Any = None, kernel_shape: Any = None, output_padding: Any = None, output_shape: Any = None,
             pads: Any = None, strides: Any = None) -> tuple[Array]:  # fmt: skip
        spatial = w.ndim - 2
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        bias = None if b is None else _tensor(b)
        steps, spread = list(strides or [1] * spatial), list(dilations or [1] * spatial)
        more = [max(0, m) for m in output_padding or [0] * spatial]
        # torch wants less padding than stride or dilation: zeros at the back of the whole give the same
        whole = function(_tensor(x), _tensor(w), None, steps, 0, 0, group or 1, spread)
        whole = _padded(whole, [0] * spatial + more, 0.0)
        cut = list(pads or [0] * 2 * spatial)
        if output_shape:
            cut = _cuts(whole.shape[2:], output_shape, auto_pad)
        for axis in range(spatial):
            size = whole.shape[2 + axis] - cut[axis] - cut[spatial + axis]
            whole = whole.narrow(2 + axis, cut[axis], size)
        if bias is not None:
            whole = whole + bias.reshape(-1, *[1] * spatial)
        return (whole.numpy().astype(x.dtype),)


def _cuts(whole: Any, asked: Any, auto_pad: str | None) -> list[int]:
    """What a ConvTranspose cuts off for the output shape that it is asked for, all fronts, then all backs."""
    total = [have - want for have, want in zip(whole, asked, strict=True)]
    fronts = [n // 2 if auto_pad == "SAME_UPPER" else n - n // 2 for n in total]
    return fronts + [n - front for n, front in zip(total, fronts, strict=True)]


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x: Array, auto_pad: Any = None, ceil_mode: Any = None, dilations: Any = None,
             kernel_shape: Any = None, pads: Any = None, storage_order: Any = None, strides: Any = None,
             ) -> tuple[Array]:  # fmt: skip
        source = _padded(_tensor(x), pads, -np.inf)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
        steps, spread = list(strides or [1] * (x.ndim - 2)), list(dilations or [1] * (x.ndim - 2))
        return (pool(source, list(kernel_shape), steps, 0, spread).numpy().astype(x.dtype),)


class AveragePool(OpRun):
    op_domain = ""

    def _run(self, x: Array, auto_pad: Any = None, ceil_mode: Any = None, count_include_pad: Any = None,
             dilations: Any = None, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
             ) -> tuple[Array]:  # fmt: skip
        source = _tensor(x)
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
        steps = list(strides or [1] * (x.ndim - 2))
        mean = pool(_padded(source, pads, 0.0), list(kernel_shape), steps)
        if not count_include_pad:
            mean = mean / pool(_padded(torch.ones_like(source), pads, 0.0), list(kernel_shape), steps)
        return (mean.numpy().astype(x.dtype),)


class Pad(OpRun):
    """With negative amounts too, which cut off; those of a constant only."""

    op_domain = ""

    def _run(self, x: Array, pads: Any = None, value: Array | None = None, axes: Array | None = None,
             mode: str | None = None, paddings: Any = None) -> tuple[Array]:  # fmt: skip
        names = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes]
        amounts = np.zeros((x.ndim, 2), np.int64)
        amounts[names] = np.asarray(paddings if pads is None else pads).reshape(2, -1).T
        more = [(max(0, a), max(0, b)) for a, b in amounts]
        if mode in (None, "constant"):
            whole = np.pad(x, more, constant_values=x.dtype.type(0 if value is None else np.asarray(value).item()))
        else:
            whole = np.pad(x, more, mode=mode)  # type: ignore[call-overload]
        inner = tuple(slice(max(0, -a), size - max(0, -b)) for (a, b), size in zip(amounts, whole.shape, strict=True))
        return (np.asarray(whole[inner]),)


def evaluate(model: onnx.ModelProto, **inputs: Array) -> list[Array]:
    """The outputs of a model in the precision that it is written in."""
    if model.functions:  # the evaluator would take its own operators in functions
        model = onnx.inliner.inline_local_functions(model)
    own = [Conv, ConvTranspose, MaxPool, AveragePool, Pad, *operators(default_opset(model))]
    evaluator = ReferenceEvaluator(model, new_ops=own)
    return [np.asarray(value) for value in evaluator.run(None, inputs)]
