"""Train a small DenseNet on the 8x8 digits of scikit-learn and export it to ONNX."""

from __future__ import annotations

import torch
from common import Settings, digits_split, make
from torch import Tensor, nn

BLOCKS = (4, 4, 4)  # layers of each dense block, at 8x8, 4x4 and 2x2
GROWTH = 12
STEM = 24
SETTINGS = Settings(epochs=40, batch=50, peak_rate=0.005, shift=0.5)


def conv(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    """Return a convolution without bias that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)


class Layer(nn.Module):
    """Dense layer: (n, c, h, w) -> (n, c + GROWTH, h, w), the input followed by the new features."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        width = 4 * GROWTH
        self.bn1 = nn.BatchNorm2d(inputs)  # reads the concatenation of all features so far
        self.conv1 = conv(inputs, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, GROWTH, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Append GROWTH channels computed from all channels."""
        narrow = self.conv1(self.bn1(features).relu())
        return torch.cat([features, self.conv2(self.bn2(narrow).relu())], dim=1)


class Transition(nn.Module):
    """Halve channels and resolution between dense blocks: (n, c, h, w) -> (n, c / 2, h / 2, w / 2)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = conv(inputs, inputs // 2, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, features: Tensor) -> Tensor:
        """Apply BN, ReLU, 1x1 convolution and mean pooling."""
        pooled: Tensor = self.pool(self.conv(self.bn(features).relu()))
        return pooled


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions between, final BN, ReLU, global mean, linear: (n, 1, 8, 8) -> (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [conv(1, STEM, 3)]
        channels = STEM
        for block, layers in enumerate(BLOCKS):
            if block > 0:
                parts.append(Transition(channels))
                channels //= 2
            parts.extend(Layer(channels + index * GROWTH) for index in range(layers))
            channels += layers * GROWTH
        self.features = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n, 10) of images (n, 1, 8, 8)."""
        logits: Tensor = self.fc(self.bn(self.features(image)).relu().mean((2, 3)))
        return logits


if __name__ == "__main__":
    make(DenseNet, digits_split(), SETTINGS, "densenet_digits.onnx", __doc__)
