"""External data: which tensors of a model have their data in files beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from ...errors import ModelError, UsageError
from .places import is_external, place
from .skeleton import nested_graphs


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """Every tensor of a model, in whatever body or attribute, whose data lie in another file.

    The initializers of the graph come first.
    """
    training = [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    graphs = chain.from_iterable(_tensors(graph) for graph in (model.graph, *training))
    nodes = chain.from_iterable(_node_tensors(node) for function in model.functions for node in function.node)
    return [tensor for tensor in chain(graphs, nodes) if is_external(tensor)]


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _parts(graph.sparse_initializer)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _parts([attribute.sparse_tensor])
        yield from _parts(attribute.sparse_tensors)
    for body in nested_graphs(node):
        yield from _tensors(body)


def _parts(tensors: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for sparse in tensors:
        yield from (sparse.values, sparse.indices)


def check(model: ModelProto, folder: Path | None) -> None:
    """Whether all external data are where they should be; ModelError where not."""
    for tensor in external_tensors(model):
        if folder is None:
            raise ModelError(f"tensor {tensor.name!r} has external data; give the path of the file, not a ModelProto")
        place(tensor, folder)


def check_target(out: Path, model: ModelProto, folder: Path | None) -> None:
    """Whether a file can be written without harm to the data of a model; UsageError where it would replace them."""
    target = Path(os.path.realpath(out))
    written = {target, target.with_name(side_name(target))}
    for path in side_files(model, folder) if folder is not None else ():
        if any(new.exists() and new.samefile(path) for new in written):
            raise UsageError(f"{out}: {path.name} holds weights of the model and would be replaced; name another file")


def side_files(model: ModelProto, folder: Path) -> set[Path]:
    """The files that hold external data of a model."""
    return {place(tensor, folder).path for tensor in external_tensors(model)}


def side_name(out: Path) -> str:
    """The name of the file for the external data of a model that is written to `out`."""
    return f"{out.name}.data"
