"""The running statistics of the batch norms of an ONNX model anew, from data: see `calibrate` for the methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ..errors import ModelError
from .onnx_passes import OnnxJob, Progress, joint, layerwise
from .onnx_run import Batches
from .report import Calibrated, CalibrationReport, CalibrationResult
from .state import SAMPLED, State, fingerprint


def calibrate_onnx(
    model: ModelProto, name: str, data: Batches, method: str, order: str, decay: float, resume: Path | None,
    progress: Progress,
) -> CalibrationResult:  # fmt: skip
    """A new model with new statistics. `name`: for messages. Arguments and errors: see `bnfold.calibrate`."""
    new = ModelProto()
    new.CopyFrom(model)
    norms = _norms(new)
    if not norms:
        raise ModelError(f"{name}: no batch norm with constant statistics in its main graph")
    signature = {
        "method": method, "order": order, "decay": decay, "batch size": data.size, "samples": len(data),
        "norms": list(norms), "weights": fingerprint(_weights(new, norms)),
        "data": fingerprint(data.samples.rows(np.unique(np.linspace(0, len(data) - 1, SAMPLED).astype(int))).values()),
    }  # fmt: skip
    state = State(signature) if resume is None else State.load(resume, signature)
    job = OnnxJob(new, norms, data, state, resume, decay, progress)
    before = {name: job.statistics(name) for name in norms}
    counts = layerwise(job) if order == "layerwise" else joint(job, method == "moving")
    for label in norms:
        job.set(label, state.done[label])
    if resume is not None:
        resume.unlink(missing_ok=True)
    changed = tuple(
        Calibrated.of(label, before[label], job.statistics(label), _epsilon(node), counts[label])
        for label, node in norms.items()
    )
    return CalibrationResult(new, CalibrationReport(method, order, len(data), changed))


def _norms(model: ModelProto) -> dict[str, NodeProto]:
    """Norms that compute with constant statistics, by name; statistics that several share become their own."""
    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            known[node.output[0]] = node.attribute[0].t
    taken: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            taken[name] = taken.get(name, 0) + 1
    own = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.output}
    found: dict[str, NodeProto] = {}
    for node in graph.node:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        if any(a.name == "training_mode" and a.i for a in node.attribute) or not {*node.input[3:5]} <= set(known):
            continue
        label = node.name if node.name and node.name not in found else node.output[0]
        found[label] = node
        for i, part in ((3, "mean"), (4, "var")):
            name = node.input[i]
            if name in own and taken[name] == 1:
                continue
            taken[name] -= 1
            node.input[i] = f"{name}/{node.output[0]}/{part}"
            tensor = numpy_helper.from_array(numpy_helper.to_array(known[name]), node.input[i])
            graph.initializer.append(tensor)
            own.add(tensor.name)
            if model.ir_version < 4:  # where initializers are inputs too
                graph.input.append(_input(tensor))
    return found


def _epsilon(node: NodeProto) -> float:
    return next((float(a.f) for a in node.attribute if a.name == "epsilon"), 1e-5)


def _input(tensor: TensorProto) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _weights(model: ModelProto, norms: dict[str, NodeProto]) -> list[Any]:
    """What a calibration does not change."""
    changed = {name for node in norms.values() for name in node.input[3:5]}
    arrays = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name not in changed)
    return [array for array in arrays if array.dtype.kind == "f"]
