"""Torch modules under judgement: run as they are, on copies, and in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import VerificationError
from ...torch.write.apply import write
from ..criteria.inputs import Array, Feed
from .modulecalls import ModuleCall, ModuleRunner, from_array, to_array
from .moduleprobes import ModuleProbe
from .nudges import nudged
from .programprobes import ProgramProbe
from .subject import Engine


class ModuleSubject(ModuleCall):
    """A module under judgement. It is run in the mode that it is in, on a copy, so that it stays as it is."""

    named = False

    @property
    def training(self) -> bool:
        """Whether norms or dropout in it are in train mode."""
        kinds = nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd
        return any(isinstance(module, kinds) and module.training for module in self.module.modules())

    def engines(self) -> Sequence[Engine]:
        """torch itself."""
        return [Engine(self.label, lambda: ModuleRunner(self, False))]

    def exact(self, feed: Feed) -> dict[str, Array]:
        """A copy of the module in float64."""
        return ModuleRunner(self, True).run(feed)

    def nudged(self, engine: str) -> NudgedModule:
        """A copy with other weights."""
        return NudgedModule(self)

    def timed(self, feed: Feed, threads: int) -> tuple[str, Callable[[], object]]:
        """In torch, in eager mode."""
        runner = ModuleRunner(self, False)
        if threads:
            torch.set_num_threads(threads)
        return runner.name, runner.prepared(feed)

    def operators(self) -> dict[str, int]:
        """Modules that hold no others, by class."""
        leaves = [module for module in self.module.modules() if not list(module.children())]
        return dict(Counter(type(module).__name__ for module in leaves).most_common())

    def probe(self, engine: str) -> Any:
        """What submodules return; what nodes compute, in an exported program."""
        return ModuleProbe(self) if self.program is None else ProgramProbe(self, self.program)


class NudgedModule:
    """A copy of a module that is run with other weights."""

    def __init__(self, subject: ModuleSubject) -> None:
        """VerificationError for a module that cannot be copied: a user's stays as it is."""
        self.runner = ModuleRunner(subject, False)
        if self.runner.module is subject.module:
            raise VerificationError(f"{subject.name} cannot be copied")
        self.weights = [(tensor, to_array(tensor).copy()) for tensor in _weights(self.runner.module)]

    def run(self, feed: Feed, rng: np.random.Generator, units: float) -> dict[str, Array]:
        """Outputs by name, on these inputs, with every weight nudged."""
        for tensor, value in self.weights:
            write(tensor, from_array(nudged(value, rng, units)).to(tensor.device))
        return self.runner.run(feed)


def _weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers that a module computes with, each once; the steps of a grid of quantisation are none."""
    short, seen = (torch.float16, torch.bfloat16, torch.float32, torch.float64), set()
    for inner in module.modules():
        grid = any(word in type(inner).__name__ for word in ("FakeQuant", "Observer"))
        for tensor in () if grid else (*inner.parameters(recurse=False), *inner.buffers(recurse=False)):
            if tensor.dtype in short and tensor.layout is torch.strided and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
