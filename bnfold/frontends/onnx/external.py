"""External data: weights in files beside the model, and where in them each tensor lies.

Source of the layout: onnx.proto, `TensorProto.external_data`: location (relative to the model), offset, length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from ...errors import ModelError
from .skeleton import byte_size, nested_graphs


@dataclass(frozen=True, order=True)
class Place:
    """`length` bytes of a file, from `offset` on."""

    path: Path
    offset: int
    length: int


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """Every tensor of a model, in whatever body or attribute, whose data lie in another file.

    The initializers of the graph come first.
    """
    training = [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    graphs = chain.from_iterable(_tensors(graph) for graph in (model.graph, *training))
    nodes = chain.from_iterable(_node_tensors(node) for function in model.functions for node in function.node)
    return [tensor for tensor in chain(graphs, nodes) if is_external(tensor)]


def is_external(tensor: TensorProto) -> bool:
    """Whether the data of a tensor lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


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


def entries(tensor: TensorProto) -> dict[str, str]:
    """Where the data of a tensor lie. ModelError where that is no text, or offset and length are no numbers."""
    found = {entry.key: entry.value for entry in tensor.external_data}
    if any(isinstance(part, bytes) for item in found.items() for part in item):
        raise ModelError(f"tensor {tensor.name!r}: where its data lie is not UTF-8; is the file damaged?")
    for key in ("offset", "length"):
        if key in found and not found[key].isdecimal():
            raise ModelError(f"tensor {tensor.name!r}: {key} {found[key]!r} of its data is not a number")
    return found


def place(tensor: TensorProto, folder: Path) -> Place:
    """Where the data of a tensor lie. ModelError where they are not there, or not in the folder of the model."""
    found = entries(tensor)
    path = _side_file(tensor, found.get("location", ""), folder)
    at = Place(path, int(found.get("offset", 0)), int(found.get("length", 0)) or byte_size(tensor))
    if at.offset + at.length > path.stat().st_size:
        raise ModelError(
            f"tensor {tensor.name!r}: {found['location']!r} ends before its data do; is the file truncated?"
        )
    return at


def _side_file(tensor: TensorProto, location: str, folder: Path) -> Path:
    try:
        path = (folder / location).resolve()
    except (ValueError, OSError):  # a zero byte in the name, a circle of links
        raise ModelError(f"tensor {tensor.name!r}: {location!r} is no place for its data") from None
    if not location or not path.is_relative_to(folder.resolve()):
        raise ModelError(f"tensor {tensor.name!r}: its data lie at {location!r}, outside the folder of the model")
    if not path.is_file():
        raise ModelError(f"tensor {tensor.name!r}: the file {location!r} with its data is missing beside the model")
    return path


def check(model: ModelProto, folder: Path | None) -> None:
    """Whether all external data are where they should be; ModelError where not."""
    for tensor in external_tensors(model):
        if folder is None:
            raise ModelError(f"tensor {tensor.name!r} has external data; give the path of the file, not a ModelProto")
        place(tensor, folder)
