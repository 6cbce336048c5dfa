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
    from .api import (
        FoldResult,
        bench,
        calibrate,
        export,
        find_lrn,
        fold,
        inspect,
        restore,
        retrain,
        swap_lrn,
        verify,
    )
    from .calibration.report import CalibrationResult
    from .core.plan import BatchNorm, Plan
    from .judge.criteria.check import Check
    from .judge.latency import Bench
    from .lrn.find import Site as LrnSite
    from .lrn.layer import MovingAverageBatchNorm
    from .lrn.report import SwapResult
    from .train.curves import plot_history
    from .train.retrain import RetrainResult

__all__ = [
    "BatchNorm",
    "Bench",
    "BnfoldError",
    "CalibrationResult",
    "Check",
    "DataError",
    "FoldResult",
    "LrnSite",
    "ModelError",
    "MovingAverageBatchNorm",
    "OutputError",
    "Plan",
    "PlanError",
    "RetrainResult",
    "SwapResult",
    "TrainingError",
    "UsageError",
    "VerificationError",
    "__version__",
    "bench",
    "calibrate",
    "export",
    "find_lrn",
    "fold",
    "inspect",
    "plot_history",
    "restore",
    "retrain",
    "swap_lrn",
    "verify",
]

_HOMES = {
    "BatchNorm": "core.plan",
    "Bench": "judge.latency",
    "CalibrationResult": "calibration.report",
    "Check": "judge.criteria.check",
    "FoldResult": "api",
    "LrnSite": "lrn.find:Site",
    "MovingAverageBatchNorm": "lrn.layer",
    "Plan": "core.plan",
    "RetrainResult": "train.retrain",
    "SwapResult": "lrn.report",
    "bench": "api",
    "calibrate": "api",
    "export": "api",
    "find_lrn": "api",
    "fold": "api",
    "inspect": "api",
    "plot_history": "train.curves",
    "restore": "api",
    "retrain": "api",
    "swap_lrn": "api",
    "verify": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    from importlib import import_module

    place, _, inner = _HOMES[name].partition(":")
    return getattr(import_module(f".{place}", __name__), inner or name)


def __dir__() -> list[str]:
    return sorted(__all__)
