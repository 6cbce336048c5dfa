"""bnfold takes batch normalisation out of trained networks, exactly, and proves it.

>>> import bnfold
>>> result = bnfold.fold("model.onnx", out="folded.onnx")       # doctest: +SKIP
>>> print(result.plan)                                          # doctest: +SKIP

Importing bnfold is cheap: everything behind these names is imported when it is first used, and torch never for ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    BnfoldError,
    DataError,
    ModelError,
    OutputError,
    PlanError,
    TrainingError,
    UsageError,
    VerificationError,
)
from .version import __version__

if TYPE_CHECKING:
    from .api import FoldResult, bench, export, fold, inspect, restore, retrain, verify
    from .equivalence.check import Check
    from .equivalence.latency import Bench
    from .lrn.curves import plot_history
    from .lrn.retrain import RetrainResult
    from .plan import BatchNorm, Plan

__all__ = [
    "BatchNorm",
    "Bench",
    "BnfoldError",
    "Check",
    "DataError",
    "FoldResult",
    "ModelError",
    "OutputError",
    "Plan",
    "PlanError",
    "RetrainResult",
    "TrainingError",
    "UsageError",
    "VerificationError",
    "__version__",
    "bench",
    "export",
    "fold",
    "inspect",
    "plot_history",
    "restore",
    "retrain",
    "verify",
]

_HOMES = {
    "BatchNorm": "plan",
    "Bench": "equivalence.latency",
    "Check": "equivalence.check",
    "FoldResult": "api",
    "Plan": "plan",
    "RetrainResult": "lrn.retrain",
    "bench": "api",
    "export": "api",
    "fold": "api",
    "inspect": "api",
    "plot_history": "lrn.curves",
    "restore": "api",
    "retrain": "api",
    "verify": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
