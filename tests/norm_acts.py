"""Norms and activations in one class, as model libraries write them, and networks in which they take every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Make = Callable[[], nn.Module]


class Subclass(nn.BatchNorm2d):
    """Its forward is that of the norm, branches and all, then `drop` and `act`."""

    def __init__(self, width: int, act: Make) -> None:
        super().__init__(width, eps=1e-3)
        self.drop: nn.Module = nn.Identity()
        self.act = act()

    def normed(self, x: Tensor) -> Tensor:
        batch = self.training or (self.running_mean is None and self.running_var is None)
        kept = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if kept else (None, None)
        return F.batch_norm(x, mean, var, self.weight, self.bias, batch, self.momentum or 0.0, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"4 axes expected, got {x.ndim}")  # type: ignore[no-untyped-call]
        return self.act(self.drop(self.normed(x)))  # type: ignore[no-any-return]


class Dropped(Subclass):
    """With a dropout that leaves an op in the trace, and an activation that holds another module."""

    def __init__(self, width: int, act: Make) -> None:
        super().__init__(width, act)
        self.drop, self.act = nn.Dropout(0.3), nn.Sequential(act(), nn.Identity())


class Again(Subclass):
    """The activation is called twice, and a child has the name that ours gives the norm."""

    def __init__(self, width: int, act: Make) -> None:
        super().__init__(width, act)
        self.norm = nn.LeakyReLU(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.norm(self.normed(x))))  # type: ignore[no-any-return]


class Gained(Subclass):
    """The norm, and more arithmetic behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().normed(x) * 0.7 + 0.2)  # type: ignore[no-any-return]


class OwnEps(Subclass):
    """The norm has another eps than it says, and a factor of `1 + weight`."""

    def normed(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias, False, 0.0, 0.3)


class Frozen(nn.Module):
    """Buffers and arithmetic."""

    def __init__(self, width: int, act: Make) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(width))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        held: Any = self
        scale = held.weight * (held.running_var + 1e-5).rsqrt()
        y = x * scale.reshape(1, -1, 1, 1) + (held.bias - held.running_mean * scale).reshape(1, -1, 1, 1)
        return self.act(y)  # type: ignore[no-any-return]


class Children(nn.Module):
    """A module that has them as children."""

    def __init__(self, width: int, act: Make) -> None:
        super().__init__()
        self.bn, self.drop, self.act = nn.BatchNorm2d(width), nn.Identity(), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.bn(x)))  # type: ignore[no-any-return]


class Chain(nn.Sequential):
    """A Sequential of a class of its own."""

    def __init__(self, width: int, act: Make) -> None:
        super().__init__(nn.BatchNorm2d(width), act())


class ActFirst(Subclass):
    """The activation runs before the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(self.act(x))


class Functional(Subclass):
    """The activation is a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.normed(x))


class Clamped(Subclass):
    """It is a method of the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(x).clamp(-0.5, 1.5)


class InCode(Subclass):
    """A function that writes into what the norm gave."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.normed(x), inplace=True)


class Gate(Subclass):
    """The activation sees what the norm was given, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.normed(x)) * torch.sigmoid(x)  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """An activation in code, and more behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * 1.7


class Then(nn.Module):
    """An activation in code, and a module behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.more(-F.relu(x))  # type: ignore[no-any-return]


class Shared:
    """One activation for all norms that are made."""

    def __init__(self, act: Make) -> None:
        self.act: nn.Module | None = None
        self.make = act

    def __call__(self) -> nn.Module:
        self.act = self.act or self.make()
        return self.act


Kind = Callable[[int, Make], nn.Module]
PLAIN: list[Kind] = [Subclass, Dropped, Again, Gained, OwnEps, Frozen, Children, Chain]
"""Classes that do nothing in their own code but to normalise, and call modules."""
CODE: list[Kind] = [Functional, Clamped, InCode, Gate]
"""Those that do more: their norms stay as they are."""


def acts(inplace: bool) -> dict[str, Make]:
    """Activations by name."""
    return {
        "relu": lambda: nn.ReLU(inplace),
        "relu6": lambda: nn.ReLU6(inplace),
        "hardtanh": lambda: nn.Hardtanh(-0.4, 0.9, inplace),
        "leaky": lambda: nn.LeakyReLU(0.1, inplace),
        "prelu": lambda: nn.PReLU(8, 0.3),
        "silu": lambda: nn.SiLU(inplace),
        "none": nn.Identity,
        "scaled": Scaled,
        "then": Then,
    }


class Places(nn.Module):
    """Norms of one class in places where each form of what is left of a norm comes up."""

    def __init__(self, made: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(3, 8, 1) for _ in range(6))
        self.norms = nn.ModuleList(made(8) for _ in range(8))
        self.points = nn.ModuleList(nn.Conv2d(8, 8, 1, bias=i % 2 == 0) for i in range(5))
        self.padded = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        a, b, c, d, e, f = (stem(x) for stem in self.stems)
        n, points = self.norms, self.points
        dense = points[0](n[0](a)) + points[1](n[1](a))  # two offsets for one tensor
        border = self.padded[0](n[2](b)) + self.padded[1](n[3](b))  # with zeros beside it
        stream = c + points[2](n[4](c))
        last = points[3](n[5](stream))
        fixed = torch.tanh(n[6](torch.tanh(d)))  # a scale that nothing takes, and no offset (`without_offset`)
        twice = points[4](n[7](e) + n[7](f))
        return [dense, border, last, fixed, twice]


def without_offset(net: Places) -> None:
    """Let the norm between two tanh be a factor."""
    with torch.no_grad():
        for inner in net.norms[6].modules():
            for name in ("running_mean", "bias"):
                value = getattr(inner, name, None)
                if isinstance(value, Tensor):
                    value.zero_()
