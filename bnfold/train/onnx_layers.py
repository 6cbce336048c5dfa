"""ONNX operators with weights as torch modules that hold them, the same numbers under the names of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnx import NodeProto
from torch import nn
from torch.nn import functional as F

Attributes = Mapping[str, Any]
Constants = Mapping[str, torch.Tensor]
CONVS: dict[int, Callable[..., torch.Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def around(pads: list[int]) -> list[int]:
    """ONNX's pads (all begins, then all ends) as those of torch (the last axis first, begin and end)."""
    half = len(pads) // 2
    return [value for i in reversed(range(half)) for value in (pads[i], pads[half + i])]


class Conv(nn.Module):
    """Conv with `W` (out, in / groups, *kernel) and perhaps `b`, padded before, so that any padding is right."""

    def __init__(self, node: NodeProto, a: Attributes, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise NotImplementedError(f"auto_pad {a['auto_pad']}")
        rank = weight.dim() - 2
        self.weight, self.bias = weight, bias
        self.pads = around(a.get("pads") or [0] * 2 * rank)
        self.strides, self.dilations = a.get("strides") or [1] * rank, a.get("dilations") or [1] * rank
        self.groups, self.run = a.get("group", 1), CONVS[weight.dim()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, *space) -> (N, out, *space)."""
        padded = F.pad(x, self.pads) if any(self.pads) else x
        return self.run(padded, self.weight, self.bias, self.strides, 0, self.dilations, self.groups)


class Gemm(nn.Module):
    """`alpha * x W + beta * b` with a constant W, perhaps transposed."""

    def __init__(self, node: NodeProto, a: Attributes, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        if a.get("transA", 0):
            raise NotImplementedError("transA")
        self.weight, self.bias, self.turned = weight, bias, bool(a.get("transB", 0))
        self.alpha, self.beta = a.get("alpha", 1.0), a.get("beta", 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in) -> (N, out)."""
        y: torch.Tensor = self.alpha * (x @ (self.weight.t() if self.turned else self.weight))
        return y if self.bias is None else y + self.beta * self.bias


class MatMul(nn.Module):
    """`x W` with a constant W."""

    def __init__(self, node: NodeProto, a: Attributes, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        return x @ self.weight


class Norm(nn.Module):
    """BatchNormalization, in training with the statistics of the batch; momentum as ONNX has it, 1 - that of torch."""

    def __init__(self, a: Attributes, vectors: list[torch.Tensor]) -> None:
        super().__init__()
        channels = len(vectors[0])
        norm = nn.BatchNorm2d(channels, a.get("epsilon", 1e-5), 1 - a.get("momentum", 0.9))
        with torch.no_grad():
            for target, value in zip(
                (norm.weight, norm.bias, norm.running_mean, norm.running_var), vectors, strict=True
            ):
                assert target is not None
                target.copy_(value)
        self.norm = norm.to(vectors[0].dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, *space), or (N, C)."""
        shape = x.shape
        flat: torch.Tensor = self.norm(x.reshape(*shape[:2], -1, 1))
        return flat.reshape(shape)
