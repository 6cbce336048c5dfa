"""Write a model tensor by tensor, in the wire format of protocol buffers, without a second copy of it in memory.

Fields come in the order of their numbers, as protobuf itself writes them, so a model in which nothing is pending comes
out byte for byte as `SerializeToString` gives it. Source: the encoding guide of protocol buffers (records are a varint
`field << 3 | type`, and for type 2 a varint length and so many bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from ..store.places import PACKED
from ..store.skeleton import constant_tensor, small
from .apply import Applied
from .editor import Pending

RAW_DATA, GRAPH, NODE, INITIALIZER = 9, 7, 1, 5
SMALL_CHUNK = 1 << 16
TWO_GIB = 2**31 - 1


@dataclass(frozen=True)
class _Chunk:
    """So many bytes, made when they are written."""

    size: int
    make: Callable[[], bytes | memoryview]

    def data(self) -> bytes | memoryview:
        """The bytes; ValueError where they are not as many as announced."""
        data = self.make()
        if len(data) != self.size:
            raise ValueError(f"a tensor has {len(data):,} bytes where its shape and type need {self.size:,}")
        return data


def write(applied: Applied, file: BinaryIO) -> None:
    """Write an edited model; ValueError where it is too large for one protobuf message, or a tensor is damaged."""
    model = applied.model
    if _has_unknown(model):  # fields of a newer ONNX, which only protobuf itself can carry over
        complete = applied.complete()
        for tensor in complete.graph.initializer:
            if tensor.HasField("raw_data") and tensor.data_location != TensorProto.EXTERNAL:
                _Chunk(raw_size(tensor), partial(getattr, tensor, "raw_data")).data()
        file.write(complete.SerializeToString())
        return
    graph = list(_graph(model.graph, applied.pending))
    before = [_field(model, field.number) for field, _ in model.ListFields() if field.number < GRAPH]
    after = [_field(model, field.number) for field, _ in model.ListFields() if field.number > GRAPH]
    size = sum(chunk.size for chunk in graph)
    if size > TWO_GIB:
        raise ValueError(f"{size:,} bytes, and one file can hold 2 GiB")
    file.write(b"".join(before))
    file.write(_header(GRAPH, size))
    for data in _ahead(graph):
        file.write(data)
    file.write(b"".join(after))


def _ahead(chunks: list[_Chunk]) -> Iterator[bytes | memoryview]:
    """The data of the chunks in order, each made while the one before it is written."""
    with ThreadPoolExecutor(1) as pool:
        following = _merged(chunks)
        next_data = [pool.submit(chunk.data) for chunk in islice(following, 1)]
        while next_data:
            data = next_data.pop().result()
            next_data += [pool.submit(chunk.data) for chunk in islice(following, 1)]
            yield data


def _merged(chunks: list[_Chunk]) -> Iterator[_Chunk]:
    """The same bytes in fewer chunks: runs of small ones become one."""
    run: list[bytes | memoryview] = []
    for chunk in chunks:
        if chunk.size < SMALL_CHUNK:
            run.append(chunk.data())
            continue
        yield _ready(b"".join(run))
        yield chunk
        run = []
    yield _ready(b"".join(run))


def _has_unknown(model: ModelProto) -> bool:
    """Whether a message that is taken apart here has fields that this version of onnx does not know."""
    return any(len(UnknownFieldSet(part)) > 0 for part in (model, model.graph, *model.graph.initializer))


def _field(message: Any, number: int) -> bytes:
    """One field of a message, serialised."""
    only = type(message)()
    for field, value in message.ListFields():
        if field.number == number:
            _assign(only, field.name, value)
    data: bytes = only.SerializeToString()
    return data


def _assign(message: Any, name: str, value: Any) -> None:
    if isinstance(value, str | bytes | int | float):
        setattr(message, name, value)
    elif hasattr(value, "extend"):
        getattr(message, name).extend(value)
    else:
        getattr(message, name).CopyFrom(value)


def _graph(graph: GraphProto, pending: Mapping[str, Pending]) -> Iterator[_Chunk]:
    """A graph in chunks: its nodes and tensors one by one, the rest field by field."""
    for field, value in graph.ListFields():
        if field.number == NODE:
            for node in value:
                yield from _node(node, pending)
        elif field.number == INITIALIZER:
            for tensor in value:
                yield from _record(INITIALIZER, list(_tensor(tensor, pending.get(tensor.name))))
        else:
            yield _ready(_field(graph, field.number))


def _node(node: NodeProto, pending: Mapping[str, Pending]) -> Iterator[_Chunk]:
    constant = constant_tensor(node)
    if constant is None or small(constant):
        yield from _record(NODE, [_ready(node.SerializeToString())])
    elif node.output[0] in pending:
        filled = pending[node.output[0]]

        def make() -> bytes:
            value = onnx.numpy_helper.from_array(np.asarray(filled.compute(), order="C"), node.output[0])
            data: bytes = helper.make_node("Constant", [], list(node.output), value=value).SerializeToString()
            return data

        yield from _record(NODE, [_Chunk(len(make()), make)])
    else:
        yield from _record(NODE, [_Chunk(node.ByteSize(), node.SerializeToString)])


def _tensor(tensor: TensorProto, pending: Pending | None) -> Iterator[_Chunk]:
    """A tensor with its raw data apart: those of `pending` where it is to be computed, else its own."""
    raw = tensor.HasField("raw_data") and tensor.data_location != TensorProto.EXTERNAL
    if pending is None and (small(tensor) or not raw):
        yield _ready(tensor.SerializeToString())
        return
    head, tail = TensorProto(), TensorProto()
    for field, value in tensor.ListFields():
        if not field.name.endswith("_data") and field.name not in ("external_data", "data_location"):
            _assign(head if field.number < RAW_DATA else tail, field.name, value)
    if pending is None and tensor.HasField("data_location"):
        tail.data_location = tensor.data_location
    yield _ready(head.SerializeToString())
    if pending is not None:
        size = prod(pending.shape) * pending.dtype.itemsize
        yield from _record(RAW_DATA, [_Chunk(size, lambda: _bytes(pending.compute()))])
    else:
        yield from _record(RAW_DATA, [_Chunk(raw_size(tensor), lambda: tensor.raw_data)])
    yield _ready(tail.SerializeToString())


def raw_size(tensor: TensorProto) -> int:
    """How many raw bytes a tensor has by its shape and type; types that share bytes are counted as they lie there."""
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if dtype.name in PACKED:
        return len(tensor.raw_data)
    return int(prod(tensor.dims) * dtype.itemsize)


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of an array, little-endian, in row-major order."""
    array = np.asarray(array, order="C")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.byteorder == ">" else array
    return little.reshape(-1).view(np.uint8).data


def _ready(data: bytes) -> _Chunk:
    return _Chunk(len(data), lambda: data)


def _record(number: int, parts: list[_Chunk]) -> Iterator[_Chunk]:
    """A length-delimited field."""
    yield _ready(_header(number, sum(part.size for part in parts)))
    yield from parts


def _header(number: int, size: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
