"""A plain training loop from scratch, for the networks that are swapped and those that are compared."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .data import Images

BATCH = 64


def accuracy(net: nn.Module, images: Images, part: str = "test") -> float:
    """The share of images whose class is right."""
    x, y = getattr(images, part), torch.from_numpy(getattr(images, f"{part}_classes"))
    was = net.training
    net.eval()
    with torch.no_grad():
        found = [net(torch.from_numpy(x[i : i + 500])).argmax(1) for i in range(0, len(x), 500)]
    net.train(was)
    return float((torch.cat(found) == y).float().mean())


def train(net: nn.Module, images: Images, steps: int, lr: float, seed: int, flip: bool = True) -> float:
    """SGD with momentum 0.9 and a cosine; the mean loss of the last tenth of the steps, infinite where that failed."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(images.train), torch.from_numpy(images.train_classes)
    optimiser = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    net.train()
    torch.manual_seed(seed)
    losses: list[float] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        batch = x[chosen]
        if flip and torch.rand((), generator=generator) < 0.5:
            batch = batch.flip(3)
        loss = F.cross_entropy(net(batch), y[chosen])
        if not torch.isfinite(loss):
            return math.inf
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    net.eval()
    return sum(losses[-max(1, steps // 10) :]) / max(1, steps // 10)
