"""A network in the manner of cuda-convnet and AlexNet, with LRN, BN or nothing behind its first two convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

LRN: dict[str, Any] = {"size": 5, "alpha": 1.0, "beta": 0.75, "k": 1.0}
"""AlexNet's window and power; its alpha of 1e-4 was for pixels up to 255, here they have a deviation of 1."""


class ConvNet(nn.Module):
    """Three 5x5 convolutions of 32, 32 and 64 channels, ReLU, pooling, one linear layer: (n, c, s, s) -> (n, classes).

    `norm`: "lrn" behind the ReLU, "bn" before it, or "none". `dropout`: before the linear layer. `scale`: of the
    initial weights of the convolutions, over that of He et al. (2015).
    """

    def __init__(self, channels: int = 3, size: int = 32, norm: str = "lrn", dropout: float = 0.0,
                 scale: float = 1.0, classes: int = 10) -> None:  # fmt: skip
        super().__init__()
        widths = (channels, 32, 32, 64)
        stages: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(before, after, 5, padding=2)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            with torch.no_grad():
                conv.weight.mul_(scale)
            stages.append(conv)
            if norm == "bn" and i < 2:
                stages.append(nn.BatchNorm2d(after))
            stages.append(nn.ReLU())
            if norm == "lrn" and i < 2:
                stages.append(nn.LocalResponseNorm(**LRN))
            stages.append(nn.MaxPool2d(3, 2, padding=1) if i == 0 else nn.AvgPool2d(3, 2, padding=1))
            size = (size + 1) // 2
        self.features = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(64 * size * size, classes)

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.last(self.dropout(self.features(image).flatten(1)))
        return logits
