"""A model without its weights: small enough to infer shapes, check and import it however large the file is.

Large initializers become graph inputs and large Constant nodes go, their outputs become graph inputs. What is left has
every node with a meaning of its own, so that `onnx.checker`, shape inference and onnx-graphsurgeon read it as they
would the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import onnx
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

SMALL = 64
"""Tensors of up to so many elements are kept: shapes, axes, indices, scalars."""


@dataclass(frozen=True)
class Skeleton:
    """`model` without weights; `nodes[i]` is the position in the original graph of its node i."""

    model: ModelProto
    nodes: tuple[int, ...]


def skeleton(model: ModelProto) -> Skeleton:
    """The skeleton of a model, which is left alone."""
    bare = ModelProto(ir_version=model.ir_version, producer_name=model.producer_name, domain=model.domain)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    return Skeleton(bare, tuple(_strip(model.graph, bare.graph)))


def _strip(graph: GraphProto, bare: GraphProto) -> list[int]:
    """Fill `bare` with `graph` less its large tensors; the positions of the nodes kept."""
    bare.name = graph.name
    for field in ("input", "output", "value_info", "quantization_annotation"):
        getattr(bare, field).extend(getattr(graph, field))
    large = [(t.values.name, t.values.data_type, t.dims) for t in graph.sparse_initializer]
    for tensor in graph.initializer:
        if small(tensor):
            bare.initializer.append(tensor)
        else:
            large.append((tensor.name, tensor.data_type, tensor.dims))
    kept = []
    for i, node in enumerate(graph.node):
        constant = constant_tensor(node)
        if constant is not None and not small(constant):
            large.append((node.output[0], constant.data_type, constant.dims))
            continue
        kept.append(i)
        bare.node.append(node)
    inputs = {value.name for value in graph.input}
    for name, dtype, dims in large:
        if name not in inputs:
            bare.input.append(helper.make_tensor_value_info(name, dtype, list(dims)))
    return kept


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node that holds one."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR), None)


def small(tensor: TensorProto) -> bool:
    """Whether a tensor is kept in the skeleton."""
    return prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL


def nested_graphs(node: NodeProto) -> Iterable[GraphProto]:
    """The bodies of a control flow node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def infer_shapes(bare: ModelProto) -> ModelProto:
    """The skeleton with the types and shapes of its tensors, as far as they can be inferred."""
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return bare
