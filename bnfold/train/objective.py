"""What retraining makes small: the cross entropy with labels, the distance to a teacher, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data.feed import Batch, outputs
from ..errors import UsageError
from .recipe import Recipe

TINY = 1e-12


@dataclass(frozen=True)
class Measured:
    """The loss of a batch, a scalar with its gradient; how many of its `seen` answers are right."""

    loss: torch.Tensor
    right: int
    seen: int


class Taps:
    """What modules of a network gave in its last call, by qualified name, until `close`."""

    def __init__(self, net: nn.Module, names: Sequence[str], whose: str) -> None:
        self.seen: dict[str, torch.Tensor] = {}
        self.whose = whose
        found = dict(net.named_modules())
        for name in names:
            if name not in found:
                raise UsageError(f"feature_names: {whose} has no module {name!r}; print(module) shows their names")
        self._handles = [found[name].register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, given: Any, found: Any) -> None:
            self.seen[name] = outputs(found).clone()  # an in-place activation may follow

        return hook

    def taken(self, name: str) -> torch.Tensor:
        """What a module gave, which is then forgotten. UsageError where it was not called."""
        if name not in self.seen:
            raise UsageError(f"feature_names: {name} is a module of {self.whose} that is not called")
        return self.seen.pop(name)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class Objective:
    """The loss of a recipe. `teacher`: a network in eval mode. Hooks are on both networks until `close`."""

    def __init__(self, recipe: Recipe, student: nn.Module, teacher: nn.Module | None) -> None:
        self.recipe, self.teacher = recipe, teacher
        self.own = Taps(student, recipe.feature_names, "the network")
        self.wanted = Taps(teacher, recipe.feature_names, "the teacher") if teacher is not None else None

    def close(self) -> None:
        """Take the hooks off."""
        for taps in (self.own, self.wanted):
            if taps is not None:
                taps.close()

    def __call__(self, net: nn.Module, batch: Batch) -> Measured:
        """The loss of a batch, and how often the class with the largest logit is right, or is that of the teacher."""
        logits = batch.run(net)
        loss = torch.zeros((), device=logits.device)
        target = batch.labels
        if self.recipe.labels and batch.labels is not None:
            loss = loss + F.cross_entropy(logits, batch.labels)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = batch.run(self.teacher)
            loss = loss + self._distance(logits, wanted) + self._features()
            if target is None and wanted.ndim > 1:
                target = wanted.argmax(1)
        if target is None or logits.ndim < 2 or logits.shape[1] < 2:
            return Measured(loss, 0, 0)
        return Measured(loss, int((logits.argmax(1) == target).sum()), target.numel())

    def _distance(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """The relative squared difference, or with a temperature T: T^2 KL(teacher / T || student / T) over axis 1.

        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
        """
        if logits.shape != wanted.shape:
            raise UsageError(
                f"the teacher gives {tuple(wanted.shape)}, the network {tuple(logits.shape)}; the same shape expected"
            )
        heat = self.recipe.temperature
        if heat is None:
            return _relative(logits, wanted)
        own, other = F.log_softmax(logits / heat, 1), F.log_softmax(wanted / heat, 1)
        divergence = F.kl_div(own, other, reduction="none", log_target=True).sum(1).mean()
        return divergence * heat * heat

    def _features(self) -> torch.Tensor | float:
        """The mean over tapped modules of the relative squared difference."""
        if self.wanted is None or not self.recipe.feature_names:
            return 0.0
        terms = []
        for name in self.recipe.feature_names:
            wanted, own = self.wanted.taken(name), self.own.taken(name)
            if own.shape != wanted.shape:
                raise UsageError(
                    f"feature_names: {name} gives {tuple(own.shape)}, and {tuple(wanted.shape)} in the teacher"
                )
            terms.append(_relative(own, wanted))
        return torch.stack(terms).mean()


def _relative(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean squared difference over the mean square of what is wanted, so that one rate suits all networks."""
    return F.mse_loss(own, wanted) / wanted.square().mean().clamp_min(TINY)
