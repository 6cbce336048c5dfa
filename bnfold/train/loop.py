"""The training loop: steps, epochs, validation, and checkpoints between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.feed import Feed
from ..errors import TrainingError
from . import checkpoints
from .checkpoints import Position
from .history import Epoch
from .objective import Objective
from .ranks import Norm, Ranks
from .recipe import Recipe
from .schedule import optimiser, order, rate

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Saving:
    """Where checkpoints go, None for nowhere; after every epoch, and after every so many steps."""

    folder: Path | None = None
    steps: int | None = None
    identity: dict[str, Any] | None = None


class Loop:
    """A run in progress. `net` is trained; `wrapped` is the same network, as the processes share it."""

    def __init__(
        self, recipe: Recipe, net: nn.Module, wrapped: nn.Module, objective: Objective, train: Feed,
        validation: Feed | None, ranks: Ranks, saving: Saving, progress: Progress,
    ) -> None:  # fmt: skip
        self.recipe, self.net, self.wrapped, self.objective = recipe, net, wrapped, objective
        self.train, self.validation, self.ranks = train, validation, ranks
        self.saving = saving
        self.progress = progress if ranks.first else lambda stage: None
        self.optimiser = optimiser(net, recipe)
        self.size = min(recipe.batch_size, len(train) // ranks.count)
        self.steps = len(train) // (self.size * ranks.count)
        self.at = Position()

    def run(self) -> None:
        """Every epoch that is left. TrainingError where the numbers get out of hand."""
        with torch.enable_grad():
            if not self.at.history.epochs:
                self._begin()
            while not self.at.done:
                self._epoch()
        if self.at.kept is not None:
            self.net.load_state_dict(self.at.kept)

    def go_on(self, content: dict[str, Any]) -> None:
        """Take the place of a run that was stopped, from its checkpoint."""
        self.net.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.at = Position.from_dict(content["position"])
        checkpoints.set_random_state(content["random"][self.ranks.rank], self.train.device)
        self.at.history.resumed = self._number

    def _begin(self) -> None:
        """Measure the network as it is, and make the first order."""
        loss, accuracy = self._validate()
        self.at.history.epochs.append(Epoch(0, None, None, 0.0, loss, accuracy))
        self._judge(0, loss)
        self.at.order = order(len(self.train), self.recipe.seed, 0)

    def _epoch(self) -> None:
        """The steps of an epoch that are left, and what follows them."""
        started = time.perf_counter()
        self.wrapped.train()
        mine = self.ranks.part(self.at.order)
        while self.at.step < self.steps:
            self._step(mine[self.at.step * self.size : (self.at.step + 1) * self.size])
            self.at.step += 1
            if self.saving.steps and self.at.step % self.saving.steps == 0 and self.at.step < self.steps:
                self._save()
        self._close(started)

    def _step(self, rows: torch.Tensor) -> None:
        at, number = self.at, self._number
        for group in self.optimiser.param_groups:
            group["lr"] = rate(number, self.recipe.epochs * self.steps, self.recipe)
        measured = self.objective(self.wrapped, self.train.batch(rows))
        loss, right, seen = self.ranks.total([float(measured.loss.detach()), measured.right, measured.seen])
        loss /= self.ranks.count
        if not math.isfinite(loss):
            raise TrainingError(self._diverged(f"the loss is {loss}", number))
        self.optimiser.zero_grad()
        measured.loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.optimiser.step()
        at.loss, at.right, at.seen = at.loss + loss, at.right + right, at.seen + seen
        self.progress(f"epoch {at.epoch + 1}/{self.recipe.epochs}, step {at.step + 1}/{self.steps}, loss {loss:.4g}")

    def _close(self, started: float) -> None:
        """After the last step of an epoch: measure, decide whether to go on, save."""
        at = self.at
        self.ranks.average_statistics(self.net)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self._changing()):
            raise TrainingError(self._diverged("the weights hold NaN or infinities", self._number))
        loss, accuracy = self._validate()
        at.epoch += 1
        trained = at.right / at.seen if at.seen else None
        lr = float(self.optimiser.param_groups[0]["lr"])
        seconds = round(time.perf_counter() - started, 3)
        at.history.epochs.append(Epoch(at.epoch, at.loss / self.steps, trained, lr, loss, accuracy, seconds))
        self._judge(at.epoch, loss)
        at.history.stopped = self._tired() and at.epoch < self.recipe.epochs
        at.done = at.epoch == self.recipe.epochs or at.history.stopped
        at.step, at.loss, at.right, at.seen = 0, 0.0, 0.0, 0.0
        at.order = order(len(self.train), self.recipe.seed, at.epoch)
        self._save()

    def _changing(self) -> Iterator[torch.Tensor]:
        """What training changes: other tensors of a network, masks for example, may hold infinities."""
        yield from (parameter for parameter in self.net.parameters() if parameter.requires_grad)
        for norm in self.net.modules():
            if isinstance(norm, Norm):
                yield from norm.buffers(recurse=False)

    def _judge(self, epoch: int, loss: float | None) -> None:
        """Keep the weights of the best epoch so far, where the recipe wants that."""
        if self.recipe.patience is None or loss is None:
            return
        self.at.waited += 1
        if loss < self.at.best:
            state = self.net.state_dict()
            self.at.kept = {name: tensor.cpu().clone() for name, tensor in state.items()}
            self.at.best, self.at.waited, self.at.history.best = loss, 0, epoch

    def _tired(self) -> bool:
        return self.recipe.patience is not None and self.at.waited >= self.recipe.patience

    def _validate(self) -> tuple[float | None, float | None]:
        """Loss and accuracy on the validation data, the same in all processes; None without them."""
        if self.validation is None:
            return None, None
        self.progress("validating")
        self.net.eval()
        sums = [0.0, 0.0, 0.0]
        with torch.no_grad():
            for rows in torch.split(self.ranks.part(torch.arange(len(self.validation))), self.size):
                if len(rows):
                    found = self.objective(self.net, self.validation.batch(rows))
                    more = (float(found.loss) * len(rows), found.right, found.seen)
                    sums = [a + b for a, b in zip(sums, more, strict=True)]
        loss, right, seen = self.ranks.total(sums)
        if not math.isfinite(loss):
            raise TrainingError(self._diverged(f"the validation loss is {loss}", self._number))
        return loss / len(self.validation), right / seen if seen else None

    def _save(self) -> None:
        """Write a checkpoint: the first process does, with the random states of all."""
        if self.saving.folder is None:
            return
        self.ranks.average_statistics(self.net)
        states = self.ranks.gathered(checkpoints.random_state(self.train.device))
        if self.ranks.first:
            content = {
                "identity": self.saving.identity,
                "network": self.net.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "position": self.at.to_dict(),
                "random": states,
            }
            checkpoints.save(self.saving.folder, content)

    @property
    def _number(self) -> int:
        """How many steps were made."""
        return self.at.epoch * self.steps + self.at.step

    def _diverged(self, what: str, number: int) -> str:
        """What to say of numbers that are no numbers, at a step counted from 0."""
        where = f"epoch {self.at.epoch + 1}, step {self.at.step + 1}: {what}"
        if number == 0:
            return (
                f"{where} before anything was trained, so the network or the teacher gives NaN or infinities on these "
                "data; are the inputs scaled as in training, and the statistics filled (bnfold calibrate)?"
            )
        kept = f"; the last good checkpoint stays in {self.saving.folder}" if self.saving.folder else ""
        lr = self.recipe.lr
        return f"{where}; the learning rate {lr:g} is too high: try {lr / 10:g} (--lr), or a longer warmup{kept}"
