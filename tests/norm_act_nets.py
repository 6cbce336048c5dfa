"""Networks that activate before they convolve, of blocks as model libraries write them: norm and activation in one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.norm_acts import Subclass


def norm_act(width: int, act: bool = True) -> nn.Module:
    """A norm with an in-place activation inside, or with nothing behind it."""
    return Subclass(width, (lambda: nn.ReLU(inplace=True)) if act else nn.Identity)


class DenseLayer(nn.Module):
    """Takes all earlier tensors as a list."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm_act(width), nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = norm_act(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, found: list[Tensor]) -> Tensor:
        x = self.conv1(self.norm1(torch.cat(found, 1)))
        return self.conv2(self.norm2(x))  # type: ignore[no-any-return]


class DenseBlock(nn.ModuleDict):
    """Its output is its input and that of all its layers."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__({f"layer{i}": DenseLayer(width + i * growth, growth) for i in range(layers)})

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for _, layer in self.items():
            found.append(layer(found))
        return torch.cat(found, 1)


class DenseNet(nn.Module):
    """Blocks with transitions that halve the width and the size. `layers`: of each block."""

    def __init__(self, width: int, growth: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), norm_act(width), nn.MaxPool2d(2))
        blocks: list[nn.Module] = []
        for i, count in enumerate(layers):
            blocks.append(DenseBlock(width, growth, count))
            width += count * growth
            if i + 1 < len(layers):
                half = nn.Conv2d(width, width // 2, 1, bias=False)
                blocks.append(nn.Sequential(norm_act(width), half, nn.AvgPool2d(2)))
                width //= 2
        self.blocks, self.last, self.head = nn.Sequential(*blocks), norm_act(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


class NormActConv(nn.Module):
    """The norm and the activation in front of the convolution."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.bn = norm_act(width)
        self.conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.bn(x))  # type: ignore[no-any-return]


class DualPath(nn.Module):
    """A residual path and a dense one; the first block of a stage projects its input for both."""

    def __init__(self, width: int, inner: int, residual: int, growth: int, first: bool, stride: int = 1) -> None:
        super().__init__()
        self.residual = residual
        self.project = NormActConv(width, residual + 2 * growth, 1, stride) if first else None
        self.a = NormActConv(width, inner, 1)
        self.b = NormActConv(inner, inner, 3, stride, groups=4)
        self.c = NormActConv(inner, residual + growth, 1)

    def forward(self, given: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = torch.cat(given, 1) if isinstance(given, tuple) else given
        if self.project is not None:
            short = self.project(x)
            left, right = short[:, : self.residual], short[:, self.residual :]
        else:
            assert isinstance(given, tuple)
            left, right = given
        y = self.c(self.b(self.a(x)))
        return left + y[:, : self.residual], torch.cat([right, y[:, self.residual :]], 1)


class DPN(nn.Module):
    """`blocks`: of each stage, each twice as wide as that before it."""

    def __init__(self, width: int, growth: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), norm_act(width), nn.MaxPool2d(2))
        made: list[nn.Module] = []
        taken, residual = width, 2 * width
        for stage, count in enumerate(blocks):
            for i in range(count):
                stride = 2 if i == 0 and stage else 1
                made.append(DualPath(taken, residual // 2, residual, growth, i == 0, stride))
                taken = residual + (i + 3) * growth
            residual *= 2
        self.blocks, self.last = nn.ModuleList(made), norm_act(taken)
        self.head = nn.Conv2d(taken, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(torch.cat(tuple(x), 1)).mean((2, 3), keepdim=True)).flatten(1)  # type: ignore[no-any-return]


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act = nn.Conv2d(width, width // 4, 1), nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()  # type: ignore[no-any-return]


class PreBottleneck(nn.Module):
    """The residual block of the pre-activated RegNet: what is added to is normalised where the width changes, too."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm_act(width), nn.Conv2d(width, out, 1, bias=False)
        self.norm2, self.conv2 = norm_act(out), nn.Conv2d(out, out, 3, stride, 1, groups=out // 8, bias=False)
        self.se = Gate(out)
        self.norm3, self.conv3 = norm_act(out), nn.Conv2d(out, out, 1, bias=False)
        down = [nn.AvgPool2d(2)] if stride > 1 else []
        changes = stride > 1 or width != out
        self.downsample = nn.Sequential(*down, nn.Conv2d(width, out, 1, bias=False)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        short = x if self.downsample is None else self.downsample(x)
        x = self.se(self.conv2(self.norm2(self.conv1(x))))
        return self.conv3(self.norm3(x)) + short  # type: ignore[no-any-return]


class RegNetV(nn.Module):
    """`blocks`: of each stage, each twice as wide as that before it."""

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        made: list[nn.Module] = []
        taken = width
        for count in blocks:
            width *= 2
            for i in range(count):
                made.append(PreBottleneck(taken, width, 2 if i == 0 else 1))
                taken = width
        self.blocks, self.last, self.head = nn.Sequential(*made), norm_act(taken), nn.Linear(taken, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]
