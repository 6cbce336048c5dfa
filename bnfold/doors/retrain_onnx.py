"""Retraining of ONNX files, by way of torch and back."""

from __future__ import annotations

import tempfile
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from ..calibration.onnx_run import batches
from ..data.samples import Pixels
from ..errors import UsageError
from ..files import check_target, written
from ..kinds import kind_of
from ..lrn.onnx_find import find
from ..lrn.onnx_merge import merged
from ..onnx.files import check, load, load_whole
from ..onnx.store.external import check_target as check_data_target
from ..process.quiet import in_turn
from ..train.onnx_torch import OnnxNetwork, network, written_back
from ..train.ranks import first_process
from ..train.retrain import RetrainResult, retrain


@in_turn
def retrain_onnx(
    model: Any, data: Any, teacher: Any, out: Path | None, *, pixels: Pixels | None = None, inplace: bool = False,
    **given: Any,
) -> RetrainResult:  # fmt: skip
    """See `bnfold.retrain`. The teacher is an ONNX model too, or a module."""
    if inplace:
        raise UsageError("inplace is for PyTorch modules")
    path = Path(fspath(model)) if isinstance(model, str | PathLike) else None
    if out is not None:
        check_target(out, path)
        if out.suffix != ".onnx":
            raise UsageError(f"{out}: an .onnx file is written")
        for read in (model, teacher):
            if _is_onnx(read) and not isinstance(read, ModelProto):
                file = Path(fspath(read))
                check_data_target(out, load(file), file.parent)
    proto, student = _module(model, data, pixels)
    taught = _module(teacher, data, pixels)[1] if _is_onnx(teacher) else teacher
    result = retrain(student, data, teacher=taught, pixels=pixels, **given)
    assert isinstance(result.model, OnnxNetwork)
    new = written_back(proto, result.model)
    check(new, "the new model")
    if out is not None and first_process():
        with written(out) as temporary:
            temporary.write_bytes(new.SerializeToString())
    return RetrainResult(new, result.history)


def _is_onnx(model: Any) -> bool:
    if isinstance(model, str | PathLike):
        return kind_of(Path(fspath(model))) == "onnx"
    return isinstance(model, ModelProto)


def _module(model: Any, data: Any, pixels: Pixels | None) -> tuple[ModelProto, OnnxNetwork]:
    """An ONNX model and its module, which gives what onnxruntime gives on the first samples."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        if isinstance(model, ModelProto):
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
        else:
            path = Path(fspath(model))
            check(load(path), str(path), folder=path.parent)
        proto = load_whole(path)
        rows = next(iter(batches(proto, data, 2, None, pixels)))
        feed = {name: np.asarray(value, order="C") for name, value in rows.items()}
        return proto, network(merged(proto, find(proto, lambda: feed)), path, feed)
