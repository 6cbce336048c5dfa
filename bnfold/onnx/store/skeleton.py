"""A model without its weights: small enough to infer shapes, check and import it however large the file is.

Large initializers become graph inputs, those of bodies inputs of the graph around them, and large Constant nodes go,
their outputs become graph inputs. What is left has every node with a meaning of its own, so that `onnx.checker`, shape
inference and onnx-graphsurgeon read it as they would the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .places import byte_size, filled, is_external

SMALL = 64
"""Tensors of up to so many elements are kept: shapes, axes, indices, scalars."""


@dataclass(frozen=True)
class Skeleton:
    """`model` without weights; `nodes[i]` is the position in the original graph of its node i."""

    model: ModelProto
    nodes: tuple[int, ...]


def skeleton(model: ModelProto, folder: Path | None = None) -> Skeleton:
    """The skeleton of a model, which is left alone. `folder`: where its external data lie.

    Each domain of its operators has a version: some exporters leave out those of their own.
    """
    bare = ModelProto(ir_version=model.ir_version, producer_name=model.producer_name, domain=model.domain)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    for function in bare.functions:
        _blank(function.node)
    lacking = _domains(model.graph) - {opset.domain for opset in model.opset_import} - {"", "ai.onnx"}
    bare.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(lacking))
    return Skeleton(bare, tuple(_strip(model.graph, bare.graph, folder)))


def _domains(graph: GraphProto) -> set[str]:
    """The domains of all nodes, those in bodies too."""
    inner = (_domains(body) for node in graph.node for body in nested_graphs(node))
    return {node.domain for node in graph.node}.union(*inner)


def _strip(graph: GraphProto, bare: GraphProto, folder: Path | None) -> list[int]:
    """Fill `bare` with `graph` less its large tensors; the positions of the nodes kept."""
    bare.name = graph.name
    for field in ("input", "output", "value_info", "quantization_annotation"):
        getattr(bare, field).extend(getattr(graph, field))
    large = [(t.values.name, t.values.data_type, t.dims) for t in graph.sparse_initializer]
    for tensor in graph.initializer:
        kept = _kept(tensor, folder)
        if kept is not None:
            bare.initializer.append(kept)
        else:
            large.append((tensor.name, tensor.data_type, tensor.dims))
    positions = []
    for i, node in enumerate(graph.node):
        constant = constant_tensor(node)
        if constant is not None and not small(constant):
            large.append((node.output[0], constant.data_type, constant.dims))
            continue
        positions.append(i)
        bare.node.append(node)
    defined = _definitions(graph)
    hoisted: dict[str, tuple[int, tuple[int, ...]]] = {}
    for node in bare.node:
        for body in nested_graphs(node):
            _hollow(body, folder, defined, hoisted)
    _blank(bare.node)
    large += [(name, *kind) for name, kind in hoisted.items()]
    inputs = {value.name for value in graph.input}
    for name, dtype, dims in large:
        if name not in inputs:  # a tensor of a body may have the name of one around it
            inputs.add(name)
            bare.input.append(helper.make_tensor_value_info(name, dtype, list(dims)))
    return positions


def _kept(tensor: TensorProto, folder: Path | None) -> TensorProto | None:
    """A tensor that stays in the skeleton, with its data in it; None for a large one."""
    if small(tensor):
        return tensor
    if prod(tensor.dims) > SMALL or folder is None:
        return None
    try:
        return numpy_helper.from_array(numpy_helper.to_array(filled(tensor, folder)), tensor.name)
    except Exception:  # data that cannot be read are found by those who look for them
        return None


Kind = tuple[int, tuple[int, ...]]
"""Element type and shape."""


def _definitions(graph: GraphProto) -> dict[str, set[Kind | None]]:
    """What each name stands for in a graph and in all bodies in it: tensors of some kinds, None for anything else."""
    found: dict[str, set[Kind | None]] = {}
    for tensor in graph.initializer:
        found.setdefault(tensor.name, set()).add((tensor.data_type, tuple(tensor.dims)))
    for sparse in graph.sparse_initializer:
        found.setdefault(sparse.values.name, set()).add((sparse.values.data_type, tuple(sparse.dims)))
    for name in (*(value.name for value in graph.input), *(out for node in graph.node for out in node.output)):
        found.setdefault(name, set()).add(None)
    for node in graph.node:
        for body in nested_graphs(node):
            for name, kinds in _definitions(body).items():
                found.setdefault(name, set()).update(kinds)
    return found


def _hollow(
    body: GraphProto, folder: Path | None, defined: dict[str, set[Kind | None]], hoisted: dict[str, Kind]
) -> None:
    """Take the large tensors out of a body and the bodies in it, and note them in `hoisted`.

    Where a name has another meaning in another body, the tensor stays, with zeros for data that lie in another file.
    """
    for i in reversed(range(len(body.initializer))):
        tensor = body.initializer[i]
        kind = tensor.data_type, tuple(tensor.dims)
        kept = _kept(tensor, folder)
        if kept is not None:
            tensor.CopyFrom(kept)
        elif defined[tensor.name] == {kind}:
            hoisted[tensor.name] = kind
            del body.initializer[i]
        elif tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(_zeros(tensor))
    for i in reversed(range(len(body.sparse_initializer))):
        sparse = body.sparse_initializer[i]
        kind = sparse.values.data_type, tuple(sparse.dims)
        if defined[sparse.values.name] == {kind}:
            hoisted[sparse.values.name] = kind
            del body.sparse_initializer[i]
    for node in body.node:
        for inner in nested_graphs(node):
            _hollow(inner, folder, defined, hoisted)


def _zeros(tensor: TensorProto) -> TensorProto:
    """A tensor of the same name, type and shape."""
    raw = bytes(byte_size(tensor))
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)


def _blank(nodes: Iterable[NodeProto]) -> None:
    """Put zeros in the place of attributes whose data lie in another file."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t") and is_external(attribute.t):
                attribute.t.CopyFrom(_zeros(attribute.t))
        for body in nested_graphs(node):
            _blank(body.node)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node that holds one."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR), None)


def small(tensor: TensorProto) -> bool:
    """Whether a tensor is kept in the skeleton."""
    return prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL


def sparse_names(graph: GraphProto) -> set[str]:
    """The names of a graph's sparse initializers."""
    return {sparse.values.name for sparse in graph.sparse_initializer}


def nested_graphs(node: NodeProto) -> Iterable[GraphProto]:
    """The bodies of a control flow node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def misfit(bare: ModelProto) -> str:
    """Why the shapes and types of a model do not fit together, in the words of onnx; "" where they do."""
    try:
        onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return " ".join(str(error).split())[:300]
    return ""
