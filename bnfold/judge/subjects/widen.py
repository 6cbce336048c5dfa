"""The same numbers in float64: what a model would give if it did not round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...onnx.files import bare, load_whole
from ...onnx.read.functions import inlined
from ..criteria.inputs import Array, Feed

SHORT = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
WEIGHTS = 300_000_000
"""Files with more weights than this are not widened: it would take minutes."""


def widened(path: Path) -> ModelProto | None:
    """The model of a file in float64, external data and local functions in it; None where it is too large for that."""
    return None if too_large(path) else widen(load_whole(path))


def too_large(path: Path) -> bool:
    """Whether a file has so many weights that running it in float64 would take minutes."""
    return sum(int(np.prod(t.dims)) for t in bare(path).graph.initializer) > WEIGHTS


def parted(model: ModelProto) -> tuple[ModelProto, dict[str, Array]]:
    """The model, changed to float64 without the initializers of its main graph, and these."""
    if model.functions:
        model.CopyFrom(inlined(model))
    with np.errstate(invalid="ignore"):
        weights = {tensor.name: _wide(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    del model.graph.initializer[:]
    return widen(model), weights


def widen(model: ModelProto) -> ModelProto:
    """The model, changed to float64, with its local functions in it."""
    if model.functions:
        model.CopyFrom(inlined(model))
    _widen(model.graph)
    return model


def widened_feed(feed: Feed) -> Feed:
    """Inputs of a short type in float64."""
    return {name: _wide(value) for name, value in feed.items()}


def _wide(value: Array) -> Array:
    short = helper.np_dtype_to_tensor_dtype(value.dtype) in SHORT
    return value.astype(np.float64) if short else value


def _widen(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in SHORT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        _widen_node(node)


def _widen_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            _widen(attribute.g)
        elif attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in SHORT:
            attribute.i = TensorProto.DOUBLE


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in SHORT:
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
