"""What an optimiser is given at each step: the learning rate, the parameters in their groups, the order of the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from .recipe import Recipe


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate of a step, counted from 0: a straight rise to `lr`, then half a cosine down to near 0.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), equation 5, without restarts.
    """
    rise = round(recipe.warmup * steps)
    if step < rise:
        return recipe.lr * (step + 1) / (rise + 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that are trained: weights with decay; vectors (biases, gamma and beta of norms) without.

    A frozen parameter stays frozen. UsageError where all of them are.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError(f"{type(module).__name__}: no parameter to train (requires_grad is False for all of them)")
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def optimiser(module: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Stochastic gradient descent with Nesterov's momentum."""
    given = [group for group in groups(module, recipe.weight_decay) if group["params"]]
    return torch.optim.SGD(given, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The numbers of all samples in the order of an epoch, int64 (count,): by seed and epoch, the same in all ranks."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator)
