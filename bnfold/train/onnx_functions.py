"""ONNX operators without weights as functions of tensors, for training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from .onnx_layers import around

Attributes = Mapping[str, Any]
Function = Callable[[Attributes, list[Any], bool], Any]
MAXES = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
MEANS = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}


def _pool(a: Attributes, x: torch.Tensor) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and pads. `auto_pad` is not known."""
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NotImplementedError(f"auto_pad {a['auto_pad']}")
    kernel = list(a["kernel_shape"])
    return kernel, list(a.get("strides") or [1] * len(kernel)), list(a.get("pads") or [0] * 2 * len(kernel))


def _max_pool(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    x = inputs[0]
    kernel, strides, pads = _pool(a, x)
    padded = F.pad(x, around(pads), value=float("-inf")) if any(pads) else x
    found: torch.Tensor = MAXES[x.dim()](
        padded, kernel, strides, 0, a.get("dilations") or 1, bool(a.get("ceil_mode", 0))
    )  # fmt: skip
    return found


def _average_pool(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    x = inputs[0]
    kernel, strides, pads = _pool(a, x)
    if a.get("ceil_mode", 0):
        raise NotImplementedError("AveragePool with ceil_mode")
    pool = MEANS[x.dim()]
    padded = F.pad(x, around(pads)) if any(pads) else x
    mean: torch.Tensor = pool(padded, kernel, strides)
    if not any(pads) or a.get("count_include_pad", 0):
        return mean
    return mean / pool(F.pad(torch.ones_like(x[:1, :1]), around(pads)), kernel, strides)


def _lrn(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    """`before`, which ONNX does not know: channels below its own in the window."""
    x, size = inputs[0], int(a["size"])
    before = int(a.get("before", (size - 1) // 2))
    flat = F.pad(x.square().reshape(x.shape[0], 1, x.shape[1], -1), (0, 0, before, size - 1 - before))
    mean = F.avg_pool2d(flat, (size, 1), stride=1).reshape(x.shape)
    found: torch.Tensor = x / (a.get("bias", 1.0) + a.get("alpha", 1e-4) * mean) ** a.get("beta", 0.75)
    return found


def _clip(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    low = a.get("min", inputs[1] if len(inputs) > 1 else None)
    high = a.get("max", inputs[2] if len(inputs) > 2 else None)
    found: torch.Tensor = torch.clamp(inputs[0], low, high)
    return found


def _softmax(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    """Before opset 13 over all axes from one on."""
    x: torch.Tensor = inputs[0]
    if a["opset"] >= 13:
        return torch.softmax(x, a.get("axis", -1))
    return torch.softmax(x.flatten(a.get("axis", 1)), -1).reshape(x.shape)


def _dropout(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    share = a.get("ratio", float(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else 0.5)
    return F.dropout(inputs[0], share, training)


def _reshape(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    x: torch.Tensor = inputs[0]
    given = [int(size) for size in (a.get("shape") or inputs[1].tolist())]
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(given)]
    if -1 not in sizes and math.prod(sizes) != x.numel():  # of a file whose batch is fixed
        sizes[0] = -1
    return x.reshape(sizes)


def _flatten(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    x: torch.Tensor = inputs[0]
    axis = a.get("axis", 1) % max(1, x.dim())
    return x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)


def _axes(a: Attributes, inputs: list[Any]) -> list[int]:
    return list(a["axes"]) if "axes" in a else [int(i) for i in inputs[1].tolist()] if len(inputs) > 1 else []


def _squeeze(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    axes = _axes(a, inputs)
    found: torch.Tensor = inputs[0].squeeze(tuple(axes)) if axes else inputs[0].squeeze()
    return found


def _unsqueeze(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    x: torch.Tensor = inputs[0]
    rank = x.dim() + len(_axes(a, inputs))
    for axis in sorted(i % rank for i in _axes(a, inputs)):
        x = x.unsqueeze(axis)
    return x


def _reduce_mean(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    axes = _axes(a, inputs) or list(range(inputs[0].dim()))
    found: torch.Tensor = inputs[0].mean(axes, keepdim=bool(a.get("keepdims", 1)))
    return found


def _pad(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    if a.get("mode", "constant") != "constant" or len(inputs) > 3:
        raise NotImplementedError(f"Pad of mode {a.get('mode', 'constant')}")
    pads = list(a["pads"]) if "pads" in a else inputs[1].tolist()
    value = a.get("value", float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0)
    return F.pad(inputs[0], around(pads), value=value)


def _gather(a: Attributes, inputs: list[Any], training: bool) -> torch.Tensor:
    x, index = inputs[0], inputs[1]
    axis = a.get("axis", 0) % x.dim()
    found: torch.Tensor = torch.index_select(x, axis, index.reshape(-1) % x.shape[axis])
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


FUNCTIONS: dict[str, Function] = {
    "Relu": lambda a, i, t: torch.relu(i[0]),
    "LeakyRelu": lambda a, i, t: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Sigmoid": lambda a, i, t: torch.sigmoid(i[0]),
    "Tanh": lambda a, i, t: torch.tanh(i[0]),
    "Softmax": _softmax,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda a, i, t: i[0].mean(tuple(range(2, i[0].dim())), keepdim=True),
    "GlobalMaxPool": lambda a, i, t: i[0].amax(tuple(range(2, i[0].dim())), keepdim=True),
    "LRN": _lrn,
    "Add": lambda a, i, t: i[0] + i[1],
    "Sub": lambda a, i, t: i[0] - i[1],
    "Mul": lambda a, i, t: i[0] * i[1],
    "Div": lambda a, i, t: i[0] / i[1] if i[0].is_floating_point() else i[0] // i[1],
    "Pow": lambda a, i, t: i[0] ** i[1],
    "Sqrt": lambda a, i, t: i[0].sqrt(),
    "Sum": lambda a, i, t: sum(i[1:], i[0]),
    "Concat": lambda a, i, t: torch.cat(i, a["axis"]),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": lambda a, i, t: i[0].permute(*(a.get("perm") or reversed(range(i[0].dim())))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "ReduceMean": _reduce_mean,
    "Dropout": _dropout,
    "Identity": lambda a, i, t: i[0],
    "Clip": _clip,
    "Pad": _pad,
    "Shape": lambda a, i, t: torch.tensor(i[0].shape)[a.get("start", 0) : a.get("end")],
    "Gather": _gather,
}
"""What an operator computes from its attributes and inputs; the last argument tells training from inference."""
