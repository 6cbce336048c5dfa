"""From LRN to BN, and calibration, of ONNX files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from ..calibration.onnx_calibrate import calibrate_onnx
from ..calibration.onnx_run import batches
from ..calibration.report import CalibrationResult, check_options
from ..data.samples import Pixels
from ..errors import UsageError
from ..files import check_target, written
from ..lrn.onnx_swap import swap_onnx
from ..lrn.report import SwapResult
from ..onnx.files import check, load, load_whole
from ..onnx.store.external import check_target as check_data_target

Progress = Callable[[str], None]
PLACEMENTS = ("foldable", "in-place")
INITS = ("fit", "standard")


def swap_file(
    model: Path | ModelProto, out: Path | None, *, data: Any, placement: str, init: str, drop_dropout: bool,
    batch_size: int, samples: int | None, pixels: Pixels | None, seed: int, progress: Progress,
) -> SwapResult:  # fmt: skip
    """See `bnfold.swap_lrn`."""
    for name, value, known in (("placement", placement, PLACEMENTS), ("init", init, INITS)):
        if value not in known:
            raise UsageError(f"{name}={value!r}: one of {', '.join(known)} expected")
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        proto, path = _opened(model, out, Path(folder))
        result = swap_onnx(
            proto, path, data, placement, init, drop_dropout, batch_size, samples, pixels, seed, progress
        )  # fmt: skip
    _write(result.model, out)
    return result


def calibrate_file(
    model: Path | ModelProto, out: Path | None, *, data: Any, method: str, order: str, decay: float, batch_size: int,
    samples: int | None, pixels: Pixels | None, resume: Path | None, progress: Progress,
) -> CalibrationResult:  # fmt: skip
    """See `bnfold.calibrate`."""
    check_options(method, order, decay)
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        proto, path = _opened(model, out, Path(folder))
        given = batches(proto, data, batch_size, samples, pixels)
        result = calibrate_onnx(proto, path.name, given, method, order, decay, resume, progress)
    _write(result.model, out)
    return result


def _opened(model: Path | ModelProto, out: Path | None, folder: Path) -> tuple[ModelProto, Path]:
    """The model with all its weights, and a file of it."""
    if out is not None:
        check_target(out, model if isinstance(model, Path) else None)
        if out.suffix != ".onnx":
            raise UsageError(f"{out}: an .onnx file is written")
    if isinstance(model, Path):
        proto = load(model)
        check(proto, str(model), folder=model.parent)
        if out is not None:
            check_data_target(out, proto, model.parent)
        return load_whole(model), model
    path = folder / "model.onnx"
    onnx.save(model, path)
    return model, path


def _write(model: ModelProto, out: Path | None) -> None:
    check(model, "the new model")
    if out is not None:
        with written(out) as temporary:
            temporary.write_bytes(model.SerializeToString())
