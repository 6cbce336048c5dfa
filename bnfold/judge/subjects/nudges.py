"""A model whose numbers are moved by units in the last place, up or down by chance: what a fold may do to it.

A fold writes other weights, each rounded once, so a model may answer as its original does whose weights are rounded
otherwise. Inputs alone say less: a unit in the last place of 0 is nothing, and a QuantizeLinear swallows any.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ...errors import ModelError
from ...onnx.files import load_whole
from ..criteria.criterion import LIMITS
from ..criteria.device import Device
from ..criteria.inputs import Array, Feed
from .runners import OrtRunner, ReferenceRunner, Runner, all_nodes

GRIDS = frozenset({
    "Cast", "Clip", "If", "Loop", "NonMaxSuppression", "OneHot", "Pad", "QuantizeLinear", "RandomNormal",
    "RandomUniform", "Range", "Resize", "Scan", "Upsample",
})  # fmt: skip
"""Operators whose constants are sizes, bounds or the steps of a grid, which no fold rounds."""
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
LARGE = 1 << 30
"""Models from this size on keep their weights: a copy of all would be made."""


class Nudged(Protocol):
    """A model that is run with other weights."""

    def run(self, feed: Feed, rng: np.random.Generator, units: float) -> dict[str, Array]:
        """Outputs by name, on these inputs, with every weight nudged."""


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


class NudgedFile:
    """An ONNX file that is run with other weights: each is an input of a copy."""

    def __init__(self, path: Path, device: Device, engine: str) -> None:
        """`engine`: the name of the runner that the copy is run in. ModelError where the file is too large for one."""
        model = load_whole(path)
        if model.ByteSize() >= LARGE:
            raise ModelError(f"{path.name}: too large for a copy of its weights")
        _lifted(model)
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in weights(model)}
        given = {value.name for value in model.graph.input}
        model.graph.input.extend(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in self.weights.items()
            if name not in given
        )
        model.ir_version = max(model.ir_version, 4)  # before, initializers are constants, inputs or not
        if engine == ReferenceRunner.name:
            self.runner: Runner = ReferenceRunner(model)
            return
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            copy = Path(folder) / "nudged.onnx"
            onnx.save(model, copy)
            self.runner = OrtRunner(copy, device)

    def run(self, feed: Feed, rng: np.random.Generator, units: float) -> dict[str, Array]:
        """Outputs by name, on these inputs, with every weight nudged."""
        return self.runner.run({**feed, **{name: nudged(value, rng, units) for name, value in self.weights.items()}})


def _lifted(model: ModelProto) -> None:
    """Constants of the main graph become initializers."""
    kept = []
    for node in model.graph.node:
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is None:
            kept.append(node)
        else:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def weights(model: ModelProto) -> Iterator[TensorProto]:
    """The floating initializers of the main graph that it computes with."""
    readers: dict[str, set[str]] = defaultdict(set)
    for node in all_nodes(model):
        for name in node.input:
            readers[name].add(node.op_type)
    yield from (t for t in model.graph.initializer if t.data_type in FLOATS and not readers[t.name] & GRIDS)
