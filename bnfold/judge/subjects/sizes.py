"""How large the inputs of an ONNX model must be where only its layers say so: files of unknown sizes are common."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, NodeProto

from ...onnx.read.constants import attributes
from ...onnx.store.skeleton import constant_tensor

SAME = frozenset({"Identity", "Cast", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Neg", "Dropout", "BatchNormalization"})
"""Operators behind which a tensor has the sizes that it had before."""


def demanded(model: ModelProto) -> dict[str, dict[int, int]]:
    """For each input of the graph the sizes of axes that a layer with stored weights asks for.

    Layers right behind an input count, and those behind operators that only move its axes.
    """
    weights, known = _weights(model), ranks(model)
    origin = {value.name: (value.name, list(range(known.get(value.name, 0)))) for value in model.graph.input}
    """Of each tensor: the input that it was made from, and that input's axis for each of its own."""
    found: dict[str, dict[int, int]] = {}
    for node in model.graph.node:
        source = origin.get(node.input[0]) if node.input else None
        if source is None:
            continue
        name, axes = source
        asked = _asked(node, [weights.get(i) for i in node.input], len(axes))
        if asked is not None and asked[1] > 0:
            found.setdefault(name, {}).setdefault(axes[asked[0]], asked[1])
        if node.op_type in SAME:
            origin[node.output[0]] = source
        elif node.op_type == "Transpose":
            perm = list(attributes(node).get("perm", range(len(axes) - 1, -1, -1)))
            if sorted(perm) == list(range(len(axes))):
                origin[node.output[0]] = name, [axes[i] for i in perm]
    return found


def ranks(model: ModelProto) -> dict[str, int]:
    """How many axes each input of the graph has: as it says, or as the layer asks that reads it; not all are known."""
    weights = _weights(model)
    found = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.type.tensor_type.HasField("shape")
    }
    origin = {value.name: value.name for value in model.graph.input if value.name not in found}
    for node in model.graph.node:
        if not node.input or node.input[0] not in origin:
            continue
        name, layer = origin[node.input[0]], weights.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and layer:
            found.setdefault(name, len(layer))
        elif node.op_type == "Transpose" and "perm" in attributes(node):
            found.setdefault(name, len(attributes(node)["perm"]))
        elif node.op_type in SAME:
            origin[node.output[0]] = name
    return found


def _weights(model: ModelProto) -> dict[str, list[int]]:
    """The sizes of the tensors that a graph stores."""
    found = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    held = [(node, constant_tensor(node)) for node in model.graph.node]
    return {**found, **{node.output[0]: list(tensor.dims) for node, tensor in held if tensor is not None}}


def _asked(node: NodeProto, shapes: Sequence[list[int] | None], rank: int) -> tuple[int, int] | None:
    """The axis of a node's first input that its weights give a size, and that size."""
    shape = shapes[1] if len(shapes) > 1 else None
    if not shape or rank < 2:
        return None
    attrs = attributes(node)
    if node.op_type == "Conv" and len(shape) > 1:
        return 1, shape[1] * attrs.get("group", 1)
    if node.op_type in ("ConvTranspose", "BatchNormalization"):
        return 1, shape[0]
    if node.op_type == "Gemm" and len(shape) == 2:
        return 0 if attrs.get("transA", 0) else 1, shape[1 if attrs.get("transB", 0) else 0]
    if node.op_type == "MatMul" and len(shape) > 1:
        return rank - 1, shape[-2]
    return None
