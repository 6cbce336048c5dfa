"""The running statistics of the batch norms of an ONNX model anew, layer after layer, as inference needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from ..data import Pixels
from ..errors import DataError, ModelError
from .calibrate_report import Calibrated, CalibrationReport, CalibrationResult
from .moments import Moments
from .onnx_run import Looking, batches

Progress = Callable[[str], None]


def calibrate_onnx(
    model: ModelProto, name: str, data: Any, batch_size: int, samples: int | None, pixels: Pixels | None,
    progress: Progress,
) -> CalibrationResult:  # fmt: skip
    """A new model with the exact statistics of the data. Arguments and errors: see `bnfold.calibrate`."""
    new = ModelProto()
    new.CopyFrom(model)
    known = {tensor.name: tensor for tensor in new.graph.initializer}
    norms = [n for n in new.graph.node if n.op_type == "BatchNormalization" and {*n.input[3:5]} <= set(known)]
    if not norms:
        raise ModelError(f"{name}: no batch norm with constant statistics in its main graph")
    _unshared(new, norms, known)
    given = batches(model, data, batch_size, samples, pixels)
    changed = []
    for i, node in enumerate(norms):
        label = node.name or node.output[0]
        progress(f"{label}: {i + 1} of {len(norms)}")
        look, total = Looking(new, [node.input[0]]), None
        for feed in given:
            try:
                part = Moments.of_array(look(feed)[node.input[0]])
            except DataError as error:
                raise DataError(f"{label}: of what goes into it on these data, {error}") from error
            if total is None:
                total = part
            else:
                total.add(part)
        assert total is not None
        try:
            changed.append(_set(node, known, label, total))
        except DataError as error:
            raise DataError(f"{label}: {error}") from error
    return CalibrationResult(new, CalibrationReport("population", "layerwise", len(given), tuple(changed)))


def _unshared(model: ModelProto, norms: list[NodeProto], known: dict[str, Any]) -> None:
    """Statistics that several norms share become their own."""
    uses: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for node in norms:
        for i in (3, 4):
            name = node.input[i]
            if uses[name] > 1:
                uses[name] -= 1
                value = numpy_helper.to_array(known[name])
                node.input[i] = f"{name}_{node.name or node.output[0]}"
                tensor = numpy_helper.from_array(value, node.input[i])
                model.graph.initializer.append(tensor)
                known[tensor.name] = model.graph.initializer[-1]


def _set(node: NodeProto, known: dict[str, Any], label: str, total: Moments) -> Calibrated:
    """New statistics for one norm, rounded to their type; how far they moved."""
    mean, var = (known[name] for name in node.input[3:5])
    old = [numpy_helper.to_array(tensor).astype(np.float64) for tensor in (mean, var)]
    new = total.mean, total.variance()
    for tensor, value in zip((mean, var), new, strict=True):
        dtype = numpy_helper.to_array(tensor).dtype
        tensor.CopyFrom(numpy_helper.from_array(value.astype(dtype), tensor.name))
    eps = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    scale = np.maximum(old[1] + eps, 1e-30)
    ratio = (new[1] + eps) / scale
    shift = float((np.abs(new[0] - old[0]) / np.sqrt(scale)).max())
    return Calibrated(label, int(mean.dims[0]), total.count, shift, (float(ratio.min()), float(ratio.max())))
