"""Small networks with local response normalisation, in every style that people write it, and data that it bends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


def strong(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode with random weights, and responses so large that every LRN bends them."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for inner in module.modules():
            if isinstance(inner, nn.modules.conv._ConvNd | nn.Linear):
                fan = inner.weight[0].numel()
                inner.weight.copy_(torch.randn(inner.weight.shape, generator=g) * (2.5 / fan**0.5))
                if inner.bias is not None:
                    inner.bias.copy_(torch.randn(inner.bias.shape, generator=g) * 0.4)
    return module.eval()


def images(count: int = 64, channels: int = 3, size: int = 10, seed: int = 1) -> torch.Tensor:
    """(count, channels, size, size), smooth, with a mean off zero."""
    g = torch.Generator().manual_seed(seed)
    return F.avg_pool2d(torch.randn(count, channels, size + 2, size + 2, generator=g), 3, 1) * 3 + 0.3


def chain(classes: int = 5) -> nn.Sequential:
    """AlexNet's order: conv, ReLU, LRN, pool."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(inplace=True), nn.LocalResponseNorm(5, 0.5, 0.75, 2.0), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(inplace=True), nn.LocalResponseNorm(3, 0.8, 0.6, 1.0), nn.Dropout(0.5),
        nn.Conv2d(16, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Inception(nn.Module):
    """GoogLeNet's beginning and one block: branches that read the same LRN, and an LRN behind a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.pool1, self.lrn1 = nn.MaxPool2d(3, 2, 1), nn.LocalResponseNorm(5, 0.5)
        self.branch1, self.branch2 = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.conv2, self.lrn2 = nn.Conv2d(12, 10, 3, padding=1), nn.LocalResponseNorm(5, 0.5)
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lrn1(self.pool1(self.act1(self.conv1(x))))
        x = torch.cat([F.relu(self.branch1(x)), F.relu(self.branch2(x))], 1)
        x = self.lrn2(F.relu(self.conv2(x)))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class Residual(nn.Module):
    """A block whose sum is normalised, and one whose branch is; the ReLU before the first LRN is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lrn1 = nn.Conv2d(3, 8, 3, padding=1), nn.LocalResponseNorm(5, 0.5)
        self.conv2, self.lrn2 = nn.Conv2d(8, 8, 3, padding=1), nn.LocalResponseNorm(3, 0.5)
        self.conv3, self.lrn3 = nn.Conv2d(8, 8, 3, padding=1), nn.LocalResponseNorm(3, 0.5)
        self.head = nn.Linear(8, 4)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.relu(self.conv1(x))
        x = first + self.lrn1(first)
        x = self.lrn2(x + self.conv2(x))
        x = x + self.lrn3(self.relu(self.conv3(x)))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class Functional(nn.Module):
    """LRN as a call in the forward, and one written out there; dropout that follows the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.spare = nn.Linear(3, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.local_response_norm(F.relu(self.conv1(x)), 5, alpha=0.5, k=2.0)
        x = F.relu(self.conv2(x))
        energy = F.avg_pool3d(F.pad((x * x).unsqueeze(1), (0, 0, 0, 0, 1, 1)), (3, 1, 1), stride=1).squeeze(1)
        x = x / (1 + 0.5 * energy) ** 0.75
        x = F.dropout(x, 0.25, self.training)
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class Stubborn(nn.Module):
    """LRN as a call in code that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x))
        if float(x.max()) > 0:
            x = F.local_response_norm(x, 3, alpha=0.25)
        return x


class Written(nn.Module):
    """A module that is one function of a tensor."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class PoolLrn(nn.Module):
    """LRN through an average pool over (N, 1, C, H, W), as the first PyTorch ports of AlexNet had it."""

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.alpha, self.beta, self.k = alpha, beta, k
        self.average = nn.AvgPool3d((size, 1, 1), stride=1, padding=(size // 2, 0, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        div = self.average(x.pow(2).unsqueeze(1)).squeeze(1)
        out: torch.Tensor = x.div(div.mul(self.alpha).add(self.k).pow(self.beta))
        return out


class ConvLrn(nn.Module):
    """LRN through a convolution whose weights are a band of ones."""

    def __init__(self, channels: int, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.alpha, self.beta, self.k, self.size = alpha, beta, k, size
        near = torch.arange(channels)
        band = ((near[:, None] - near).abs() <= size // 2).float()
        self.register_buffer("band", band[:, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy = F.conv2d(x * x, self.get_buffer("band"))
        return x * torch.pow(self.k + self.alpha / self.size * energy, -self.beta)


def sliced(size: int, alpha: float, beta: float, k: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """LRN as a sum over shifted slices of the channels, as in Theano's Pylearn2."""

    def function(x: torch.Tensor) -> torch.Tensor:
        half, channels = size // 2, x.shape[1]
        square = x.new_zeros(x.shape[0], channels + 2 * half, *x.shape[2:])
        square[:, half : half + channels] = x**2
        scale = torch.full_like(x, k)
        for i in range(size):
            scale = scale + alpha / size * square[:, i : i + channels]
        return x / scale**beta

    return function
