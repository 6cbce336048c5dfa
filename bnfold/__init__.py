"""bnfold takes batch normalisation out of trained networks, exactly, and proves it.

>>> import bnfold
>>> result = bnfold.fold("model.onnx", out="folded.onnx")       # doctest: +SKIP
>>> print(result.plan)                                          # doctest: +SKIP

Importing bnfold is cheap: everything behind these names is imported when it is first used, and torch never for ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import BnfoldError, DataError, ModelError, OutputError, PlanError, UsageError, VerificationError
from .version import __version__

if TYPE_CHECKING:
    from .api import FoldResult, calibrate, export, find_lrn, fold, inspect, restore, swap_lrn, verify
    from .equivalence.check import Check
    from .lrn.calibrate import CalibrationResult
    from .lrn.find import Site as LrnSite
    from .lrn.layer import MovingAverageBatchNorm
    from .lrn.swap import SwapResult
    from .plan import BatchNorm, Plan

__all__ = [
    "BatchNorm",
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
    "SwapResult",
    "UsageError",
    "VerificationError",
    "__version__",
    "calibrate",
    "export",
    "find_lrn",
    "fold",
    "inspect",
    "restore",
    "swap_lrn",
    "verify",
]

_HOMES = {
    "BatchNorm": "plan",
    "CalibrationResult": "lrn.calibrate",
    "Check": "equivalence.check",
    "FoldResult": "api",
    "LrnSite": "lrn.find:Site",
    "MovingAverageBatchNorm": "lrn.layer",
    "Plan": "plan",
    "SwapResult": "lrn.swap",
    "calibrate": "api",
    "export": "api",
    "find_lrn": "api",
    "fold": "api",
    "inspect": "api",
    "restore": "api",
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
