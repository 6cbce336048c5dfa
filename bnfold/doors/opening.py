"""What a user names as a model, opened: one object for each kind, with the same methods."""

from __future__ import annotations

import sys
from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core.plan import Plan
from ..judge.criteria.check import Check
from ..kinds import in_memory, kind_of
from ..options import Folding, TorchOptions

if TYPE_CHECKING:
    from ..judge.criteria.inputs import Judging


class Foldable(Protocol):
    """A model that can be folded."""

    def inspect(self) -> Plan:
        """What a fold would do."""

    def fold(
        self, out: Path | None, judging: Judging, inplace: bool = False
    ) -> tuple[Callable[[], Any], Plan, Check | None]:
        """What gives the folded model, its plan and the verdict; written to `out` when it passed."""


def open_model(model: Any, given: TorchOptions, folding: Folding) -> Foldable:
    """A model of any kind; PyTorch is imported for its own only. UsageError where it is no model, or a name to skip
    is that of no norm."""
    if not _is_torch(model):
        from .onnx import OnnxModel

        return OnnxModel(model, folding)
    from .torch_models import opened

    loaded = opened(model, given, folding)
    loaded.check_skip()
    return loaded


def is_onnx(model: Any) -> bool:
    """Whether a model is a path of an ONNX file, or one in memory."""
    return kind_of(Path(fspath(model))) == "onnx" if isinstance(model, str | PathLike) else in_memory(model)


def _is_torch(model: Any) -> bool:
    """Whether a model is a path of a PyTorch file, or an object of PyTorch."""
    if isinstance(model, str | PathLike):
        return kind_of(Path(fspath(model))) != "onnx"
    made = (base.__module__.partition(".")[0] for base in type(model).__mro__)
    return "torch" in sys.modules and "torch" in made
