"""Convolutions and pooling for onnx's reference evaluator, fast enough for whole networks.

Its own operators loop over pixels in Python. Here the loop runs over the taps of the kernel, and each tap is one
product of matrices, in the type of the inputs: float64 where the model was widened. Tests compare with onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = Any
Pairs = list[tuple[int, int]]


def padding(sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
            pads: Sequence[int] | None, auto: str | None) -> Pairs:  # fmt: skip
    """What is added before and after each axis of space."""
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (ceil(size / s) - 1) * s + (k - 1) * d + 1 - size)
            for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        small = [(total // 2, total - total // 2) for total in totals]
        return small if auto == "SAME_UPPER" else [(b, a) for a, b in small]
    if not pads or auto == "VALID":
        return [(0, 0)] * len(sizes)
    return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))


def taps(kernel: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The positions of a kernel."""
    return product(*(range(k) for k in kernel))


def slices(
    tap: Sequence[int], out: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[slice, ...]:
    """The pixels that a tap reads, one for each pixel of the output."""
    return tuple(
        slice(t * d, t * d + (o - 1) * s + 1, s) for t, o, s, d in zip(tap, out, strides, dilations, strict=True)
    )


def sizes_out(sizes: Sequence[int], pads: Pairs, kernel: Sequence[int], strides: Sequence[int],
              dilations: Sequence[int], up: bool = False) -> list[int]:  # fmt: skip
    """How many positions a kernel has along each axis; `up`: the last may hang over the border."""
    found = []
    for size, (a, b), k, s, d in zip(sizes, pads, kernel, strides, dilations, strict=True):
        room = size + a + b - (k - 1) * d - 1
        count = (ceil(room / s) if up else room // s) + 1
        if up and (count - 1) * s >= size + a:  # a window may not begin in the padding behind
            count -= 1
        found.append(count)
    return found


class Conv(OpRun):
    """Conv of any rank, with groups, strides and dilations: one product of matrices for each block of pixels."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, auto_pad: str | None = None, dilations: Any = None,
             group: int | None = None, kernel_shape: Any = None, pads: Any = None,
             strides: Any = None) -> tuple[Array]:  # fmt: skip
        rank, g = x.ndim - 2, group or 1
        strides, dilations, kernel = strides or [1] * rank, dilations or [1] * rank, w.shape[2:]
        around = padding(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
        out = sizes_out(x.shape[2:], around, kernel, strides, dilations)
        wide: Any = np.pad(x, [(0, 0), (0, 0), *around]) if np.any(around) else x
        y: Any = np.empty((len(x), w.shape[0], *out), np.result_type(x, w))
        if w.shape[:2] == (g, 1):
            y[...] = 0
            _by_taps(wide, w, y, strides, dilations)
        else:
            for samples, rows in _pieces(x.shape[1] * int(np.prod(kernel)) * y.itemsize, len(x), out):
                seen = _patches(wide[samples], kernel, strides, dilations, out, rows)
                _multiply(w, seen, g, y[samples, :, rows])
        return ((y if b is None else y + b.reshape(-1, *[1] * rank)).astype(x.dtype, copy=False),)


def _by_taps(x: Array, w: Array, y: Array, strides: Sequence[int], dilations: Sequence[int]) -> None:
    """Add what each tap of a depthwise kernel gives, one filter for each channel."""
    for tap in taps(w.shape[2:]):
        place = slices(tap, y.shape[2:], strides, dilations)
        y += w[(slice(None), 0, *tap)].reshape(-1, *[1] * (y.ndim - 2)) * x[(slice(None), slice(None), *place)]


BLOCK = 1 << 22
"""Bytes of the patches that are multiplied at once: 4 MiB, which stays in the cache."""


def _pieces(size: int, count: int, out: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Samples and rows of an output whose patches fit into a block; `size`: bytes for each pixel.

    Several samples with all of their rows, or some rows of one: as many as there is room for.
    """
    row = max(1, size * int(np.prod(out[1:])))
    samples, rows = max(1, BLOCK // (row * max(1, out[0]))), max(1, BLOCK // row)
    for first in range(0, count, samples):
        for top in range(0, out[0], rows if samples == 1 else max(1, out[0])):
            yield slice(first, first + samples), slice(top, top + (rows if samples == 1 else out[0]))


def _patches(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], out: Sequence[int],
             rows: slice) -> Array:  # fmt: skip
    """A view of what a kernel reads at some rows of the output: (samples, channels, *kernel, *out)."""
    steps = x.strides[2:]
    count = [min(rows.stop, out[0]) - rows.start, *out[1:]]
    start = x[:, :, rows.start * strides[0] :]
    shape = (*x.shape[:2], *kernel, *count)
    apart = (*(d * step for d, step in zip(dilations, steps, strict=True)),
             *(s * step for s, step in zip(strides, steps, strict=True)))  # fmt: skip
    return np.lib.stride_tricks.as_strided(start, shape, (*x.strides[:2], *apart), writeable=False)


def _multiply(w: Array, seen: Array, groups: int, y: Array) -> None:
    """What filters give on patches, into `y`: (samples, out, *positions)."""
    n, c, rank = len(seen), seen.shape[1], w.ndim - 2
    # (n, g, c/g, *kernel, *place) -> (g, c/g, *kernel, n, *place) -> (g, c/g * taps, n * place)
    place = seen.shape[2 + rank :]
    seen = seen.reshape(n, groups, c // groups, *seen.shape[2:])
    columns = np.moveaxis(seen, 0, 2 + rank).reshape(groups, -1, n * int(np.prod(place)))
    filters = w.reshape(groups, w.shape[0] // groups, -1)
    if n == 1 and y.flags.c_contiguous:
        np.matmul(filters, columns, out=y.reshape(groups, w.shape[0] // groups, -1))
    else:
        y[...] = np.moveaxis((filters @ columns).reshape(w.shape[0], n, *place), 1, 0)


class ConvTranspose(OpRun):
    """ConvTranspose of any rank: what a tap gives is added where it belongs."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, auto_pad: str | None = None, dilations: Any = None,
             group: int | None = None, kernel_shape: Any = None, output_padding: Any = None, output_shape: Any = None,
             pads: Any = None, strides: Any = None) -> tuple[Array]:  # fmt: skip
        if output_shape or auto_pad not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("ConvTranspose with output_shape or auto_pad")
        rank, g = x.ndim - 2, group or 1
        strides, dilations, kernel = strides or [1] * rank, dilations or [1] * rank, w.shape[2:]
        extra, around = output_padding or [0] * rank, padding(x.shape[2:], kernel, strides, dilations, pads, None)
        n, c, *sizes = x.shape
        whole = [(i - 1) * s + (k - 1) * d + 1 + e
                 for i, s, k, d, e in zip(sizes, strides, kernel, dilations, extra, strict=True)]  # fmt: skip
        y: Any = np.zeros((n, w.shape[1] * g, *whole), np.result_type(x, w))
        flat = x.reshape(n, g, c // g, -1)
        for tap in taps(kernel):
            # (g, c, o) -> (g, o, c) @ (n, g, c, pixels) -> (n, g, o, pixels)
            matrix = w[(slice(None), slice(None), *tap)].reshape(g, c // g, -1).transpose(0, 2, 1)
            place = (slice(None), slice(None), *slices(tap, sizes, strides, dilations))
            y[place] += (matrix @ flat).reshape(n, -1, *sizes)
        inner = tuple(slice(a, size - z) for (a, z), size in zip(around, whole, strict=True))
        y = y[(slice(None), slice(None), *inner)]
        return ((y if b is None else y + b.reshape(-1, *[1] * rank)).astype(x.dtype),)


class MaxPool(OpRun):
    """MaxPool without indices."""

    op_domain = ""

    def _run(self, x: Array, auto_pad: str | None = None, ceil_mode: int | None = None, dilations: Any = None,
             kernel_shape: Any = None, pads: Any = None, storage_order: int | None = None,
             strides: Any = None) -> tuple[Array]:  # fmt: skip
        if len([name for name in self.onnx_node.output if name]) > 1:
            raise NotImplementedError("MaxPool with indices")
        rank = x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        around = padding(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
        out = sizes_out(x.shape[2:], around, kernel_shape, strides, dilations, bool(ceil_mode))
        # room for windows that hang over the border
        more = [(a, b + k * d + s) for (a, b), k, d, s in zip(around, kernel_shape, dilations, strides, strict=True)]
        low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        wide: Any = np.pad(x, [(0, 0), (0, 0), *more], constant_values=low)
        y: Any = None
        for tap in taps(kernel_shape):
            part = wide[(slice(None), slice(None), *slices(tap, out, strides, dilations))]
            y = part.copy() if y is None else np.maximum(y, part)
        return (y,)


class AveragePool(OpRun):
    """AveragePool; zeros of the padding are counted where the node says so."""

    op_domain = ""

    def _run(self, x: Array, auto_pad: str | None = None, ceil_mode: int | None = None,
             count_include_pad: int | None = None, dilations: Any = None, kernel_shape: Any = None, pads: Any = None,
             strides: Any = None) -> tuple[Array]:  # fmt: skip
        if ceil_mode:
            raise NotImplementedError("AveragePool with ceil_mode")
        rank = x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        around = padding(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
        out = sizes_out(x.shape[2:], around, kernel_shape, strides, dilations)
        wide: Any = np.pad(x, [(0, 0), (0, 0), *around])
        counted: Any = np.pad(np.ones(x.shape[2:]), around, constant_values=float(bool(count_include_pad)))
        total, count = np.zeros((*x.shape[:2], *out), x.dtype), np.zeros(out)
        for tap in taps(kernel_shape):
            place = slices(tap, out, strides, dilations)
            total += wide[(slice(None), slice(None), *place)]
            count += counted[place]
        return ((total / count).astype(x.dtype),)


WINDOWS: list[Any] = [Conv, ConvTranspose, MaxPool, AveragePool]
