"""A model whose numbers are moved by units in the last place, up or down by chance: what a fold may do to it.

A fold writes other weights, each rounded once, so a model may answer as its original does whose weights are rounded
otherwise. Inputs alone say less: a unit in the last place of 0 is nothing, and a QuantizeLinear swallows any.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from ..frontends.onnx.files import load_whole
from ..frontends.onnx.skeleton import nested_graphs
from .criterion import LIMITS
from .device import Device
from .inputs import Array
from .runners import OrtRunner, ReferenceRunner, Runner, all_nodes

GRIDS = frozenset({
    "Cast", "Clip", "If", "Loop", "NonMaxSuppression", "OneHot", "Pad", "QuantizeLinear", "RandomNormal",
    "RandomUniform", "Range", "Resize", "Scan", "Upsample",
})  # fmt: skip
"""Operators whose constants are sizes, bounds or the steps of a grid, which no fold rounds."""
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
LARGE = 1 << 31
"""Files from this size on keep their weights: a copy of all would be made."""


def nudged(value: Array, rng: np.random.Generator, units: float) -> Array:
    """Floats moved by so many units in the last place, each up or down, with `-units` the other way; 0 stays 0."""
    if value.dtype.name not in LIMITS:
        return value
    signs = np.where(rng.random(value.shape) < 0.5, units, -units)
    if value.dtype.name == "bfloat16":  # of no kind that numpy knows
        return np.asarray((value.astype(np.float64) * (1 + signs * 2.0**-8)).astype(value.dtype))
    with np.errstate(invalid="ignore", over="ignore"):
        moved = value + (signs * np.spacing(np.abs(value))).astype(value.dtype)
    fine = np.isfinite(moved) & (value != 0)
    return np.asarray(np.where(fine, moved, value), value.dtype)


def nudged_file(path: Path, device: Device, engine: str, rng: np.random.Generator, units: float) -> Runner | None:
    """A runner of the file with all its weights nudged, of the kind of `engine`; None where the file is too large."""
    if path.stat().st_size >= LARGE:
        return None
    model = load_whole(path)
    if model.ByteSize() >= LARGE:
        return None
    for tensor in weights(model):
        tensor.CopyFrom(numpy_helper.from_array(nudged(numpy_helper.to_array(tensor), rng, units), tensor.name))
    if engine == ReferenceRunner.name:
        return ReferenceRunner(model)
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        copy = Path(folder) / "nudged.onnx"
        onnx.save(model, copy)
        return OrtRunner(copy, device)


def weights(model: ModelProto) -> Iterator[TensorProto]:
    """The floating constants that a model computes with, those in bodies and local functions among them."""
    readers: dict[str, set[str]] = defaultdict(set)
    found = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in all_nodes(model):
        for name in node.input:
            readers[name].add(node.op_type)
        found += [(tensor.name, tensor) for body in nested_graphs(node) for tensor in body.initializer]
        found += [(node.output[0], a.t) for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
    yield from (tensor for name, tensor in found if tensor.data_type in FLOATS and not readers[name] & GRIDS)
