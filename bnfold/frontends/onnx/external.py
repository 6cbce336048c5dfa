"""External data: weights in files beside the model. They are copied as files; only tensors that an edit names are read.

Source of the layout: onnx.proto, `TensorProto.external_data`: location (relative to the model), offset, length.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from os import SEEK_CUR
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from ...errors import ModelError
from .apply import Applied
from .skeleton import nested_graphs

CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
ALIGNMENT = 4096
"""Offsets of copied files are multiples of this, so that tensors that were aligned for memory mapping stay so."""


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """Every tensor of a model, in whatever body or attribute, whose data lie in another file."""
    nodes = [node for function in model.functions for node in function.node]
    tensors = [*_tensors(model.graph), *(t for node in nodes for t in _node_tensors(node))]
    return [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for body in nested_graphs(node):
        yield from _tensors(body)


def entries(tensor: TensorProto) -> dict[str, str]:
    """Where the data of a tensor lie. ModelError where that is no text, or offset and length are no numbers."""
    found = {entry.key: entry.value for entry in tensor.external_data}
    if any(isinstance(part, bytes) for item in found.items() for part in item):
        raise ModelError(f"tensor {tensor.name!r}: where its data lie is not UTF-8; is the file damaged?")
    for key in ("offset", "length"):
        if key in found and not found[key].isdecimal():
            raise ModelError(f"tensor {tensor.name!r}: {key} {found[key]!r} of its data is not a number")
    return found


def side_file(tensor: TensorProto, folder: Path) -> Path:
    """The file that holds a tensor. ModelError where it is not there, or not in the folder of the model."""
    location = entries(tensor).get("location", "")
    try:
        path = (folder / location).resolve()
    except (ValueError, OSError):  # a zero byte in the name, a circle of links
        raise ModelError(f"tensor {tensor.name!r}: {location!r} is no place for its data") from None
    if not location or not path.is_relative_to(folder.resolve()):
        raise ModelError(f"tensor {tensor.name!r}: its data lie at {location!r}, outside the folder of the model")
    if not path.is_file():
        raise ModelError(f"tensor {tensor.name!r}: the file {location!r} with its data is missing beside the model")
    place = entries(tensor)
    end = int(place.get("offset", 0)) + int(place.get("length", 0) or size(tensor))
    if end > path.stat().st_size:
        raise ModelError(f"tensor {tensor.name!r}: {location!r} ends before its data do; is the file truncated?")
    return path


def size(tensor: TensorProto) -> int:
    """How many bytes a tensor has by its shape and type."""
    return int(np.ceil(prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize))


def check(model: ModelProto, folder: Path | None) -> None:
    """Whether all external data are where they should be; ModelError where not."""
    for tensor in external_tensors(model):
        if folder is None:
            raise ModelError(f"tensor {tensor.name!r} has external data; give the path of the file, not a ModelProto")
        side_file(tensor, folder)


def carry_over(applied: Applied, folder: Path | None, out: Path) -> None:
    """Copy the side files of a model into one beside `out`, with the new values of edited tensors in their places."""
    tensors = external_tensors(applied.model)
    if not tensors or folder is None:
        return
    files = {side_file(tensor, folder) for tensor in tensors}
    target = out.with_name(f"{out.name}.data")
    bases = _copy(sorted(files), target)
    with target.open("r+b") as data:
        for tensor in tensors:
            if tensor.name in applied.pending:
                value = applied.pending.pop(tensor.name).compute()
                place = entries(tensor)
                data.seek(bases[side_file(tensor, folder)] + int(place.get("offset", 0)))
                data.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    for tensor in tensors:
        _move(tensor, target.name, bases[side_file(tensor, folder)])


def _copy(files: list[Path], target: Path) -> dict[Path, int]:
    """All files behind one another; where each begins."""
    bases: dict[Path, int] = {}
    with target.open("wb") as out:
        for path in files:
            out.write(bytes(-out.tell() % ALIGNMENT))
            bases[path] = out.tell()
            with path.open("rb") as source:
                while chunk := source.read(CHUNK):
                    if chunk == ZEROS[: len(chunk)]:
                        out.seek(len(chunk), SEEK_CUR)  # a hole, where the file system has such
                    else:
                        out.write(chunk)
            out.truncate(out.tell())
    return bases


def _move(tensor: TensorProto, location: str, base: int) -> None:
    place = {**entries(tensor), "location": location}
    if base:
        place["offset"] = str(base + int(place.get("offset", 0)))
    place.pop("checksum", None)  # of the file as it was
    del tensor.external_data[:]
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
