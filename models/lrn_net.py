"""A small network with local response normalisation (LRN) behind its first two convolutions and their ReLUs."""

from __future__ import annotations

from torch import Tensor, nn

ALPHA = 2.0


class LrnNet(nn.Module):
    """Two convolutions with ReLU and LRN, a third, and two linear layers: (n, 1, 28, 28) -> (n, classes).

    The first pools before it normalises, as cuda-convnet did, the second after, as AlexNet does. Their alpha of 1e-4 is
    for pixels up to 255; here they go up to 1, and ALPHA is such that LRN still matters.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5, alpha=ALPHA, beta=0.75, k=1.0)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.relu2 = nn.ReLU()
        self.norm2 = nn.LocalResponseNorm(5, alpha=ALPHA, beta=0.75, k=1.0)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fc1 = nn.Linear(2 * width * 9, 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, 1, 28, 28) with grey levels in [0, 1]."""
        x = self.norm1(self.pool1(self.relu1(self.conv1(image))))
        x = self.pool2(self.norm2(self.relu2(self.conv2(x))))
        x = self.pool3(self.relu3(self.conv3(x)))
        logits: Tensor = self.fc2(self.fc1(x.flatten(1)).relu())
        return logits
