"""ONNX files: read with the weights they hold, checked without copying them, written whole or not at all."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx.checker
from google.protobuf.message import DecodeError, EncodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from ..errors import ModelError
from ..kinds import LFS, POINTER
from .store.external import external_tensors
from .store.places import filled
from .store.skeleton import Skeleton, nested_graphs, skeleton, small
from .write.apply import Applied
from .write.sidefile import carry_over
from .write.stream import write

NUMBERS = tuple(
    field for field in TensorProto.DESCRIPTOR.fields_by_name if field.endswith("_data") and field != "external_data"
)
"""Where a tensor may hold its numbers."""
UNSORTED = re.compile(r"input '(?P<tensor>[^']*)' of node: (name: (?P<node>.*?) )?OpType: (?P<type>\S+) is not output")
"""How the checker complains of a tensor that nothing before its reader gives."""
PACKED_ELSEWHERE = frozenset(
    getattr(TensorProto, name)
    for name in ("STRING", "INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(TensorProto, name)
)
"""Element types whose raw data are not one whole number of bytes for each element."""


def load(path: Path) -> ModelProto:
    """The model in a file, external data left where they are. ModelError where it is no ONNX model."""
    try:
        with path.open("rb") as file, _mapped(file) as data:
            size = len(data)
            if data[: len(POINTER)] == POINTER:
                raise ModelError(f"{path}: {LFS}")
            model: ModelProto = ModelProto.FromString(data)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path}: a folder, a model file expected") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX model, or a truncated one ({size:,} bytes)") from None
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{path}: not an ONNX model (it has no graph)")
    return model


def bare(path: Path) -> ModelProto:
    """A file's model without its weights, read once for as long as the file stays as it is; not to be changed."""
    with suppress(OSError):  # `load` says what is wrong
        state = path.stat()
        return _bare(path, (state.st_ino, state.st_size, state.st_mtime_ns))
    return load(path)


@lru_cache(maxsize=2)
def _bare(path: Path, state: tuple[int, ...]) -> ModelProto:
    model = load(path)
    for tensor in (
        *model.graph.initializer,
        *(a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute),
    ):
        for field in NUMBERS:
            tensor.ClearField(field)
    return model


def may_have_sides(path: Path) -> bool:
    """Whether a file may name files of external data: whatever does says "location" somewhere. Nothing is parsed."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return data.find(b"location") >= 0
        except (ValueError, OSError):  # an empty file, a pipe
            return True


def load_whole(path: Path) -> ModelProto:
    """The model in a file, all its external data in it. ModelError where that cannot be read."""
    model = load(path)
    for tensor in external_tensors(model):
        tensor.raw_data = filled(tensor, path.parent).raw_data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[memoryview | bytes]:
    """The content of a file without a copy in memory; read where it cannot be mapped (empty files, pipes)."""
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (ValueError, OSError):
        yield file.read()
        return
    with mapped, memoryview(mapped) as view:
        yield view


def check(
    model: ModelProto, where: str, lengths: bool = True, pending: Container[str] = (), folder: Path | None = None
) -> Skeleton:
    """The skeleton of a model that onnx.checker accepts; ModelError with the checker's words otherwise.

    `lengths`: count the bytes of large tensors now, which reads them all; a write counts them anyway. `pending`: names
    of tensors that have no data yet. `folder`: where external data lie.
    """
    try:
        _check_names(model)
        _check_unique(model)
        bare = skeleton(model, folder)
        with _shaped(bare.model):
            onnx.checker.check_model(bare.model)
        for tensor in model.graph.initializer:
            if any(dim < 0 for dim in tensor.dims):
                raise onnx.checker.ValidationError(
                    f"tensor {tensor.name!r} has the impossible shape {list(tensor.dims)}"
                )
            if tensor.name not in pending and (lengths or small(tensor) or not tensor.HasField("raw_data")):
                _check_length(tensor)
    except onnx.checker.ValidationError as error:
        said = _missing(model, str(error)) or f"onnx.checker rejects the model: {_one_line(error)}"
        raise ModelError(f"{where}: {said}") from error
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{where}: damaged, or written by a faulty tool: a name in it is not UTF-8 ({error})"
        ) from error
    return bare


@contextmanager
def _shaped(model: ModelProto) -> Iterator[None]:
    """The inputs and outputs of a model with a shape each, for the checker: without one they are of any rank.

    The checker asks for the field; the specification and the runtimes do not, and exporters leave it out.
    """
    types = [value.type.tensor_type for value in (*model.graph.input, *model.graph.output)
             if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")]  # fmt: skip
    for kind in types:
        kind.shape.SetInParent()
    try:
        yield
    finally:
        for kind in types:
            kind.ClearField("shape")


def _check_names(model: ModelProto) -> None:
    """UnicodeDecodeError where a name is not text: protobuf gives it as bytes then."""
    for graph in _graphs(model.graph):
        _decode(graph.node)
        _decode_all(value.name for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info))
    for function in model.functions:
        _decode(function.node)
        _decode_all((function.name, function.domain, *function.input, *function.output))


def _check_unique(model: ModelProto) -> None:
    """ValidationError where two stored tensors of a graph have one name: which of them is meant, nobody says."""
    for graph in _graphs(model.graph):
        names = Counter(tensor.name for tensor in graph.initializer)
        names.update(sparse.values.name for sparse in graph.sparse_initializer)
        for name, count in names.items():
            if count > 1:
                raise onnx.checker.ValidationError(
                    f"{count} initializers are called {name!r}, and which of them is meant cannot be told"
                )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for body in nested_graphs(node):
            yield from _graphs(body)


def _decode(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        _decode_all((node.name, node.op_type, node.domain, *node.input, *node.output))
        _decode_all(attribute.name for attribute in node.attribute)


def _decode_all(names: Iterable[str | bytes]) -> None:
    for name in names:
        if isinstance(name, bytes):
            name.decode()


def _check_length(tensor: TensorProto) -> None:
    """Whether the raw bytes of a tensor are as many as its shape asks for."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type in PACKED_ELSEWHERE:
        return
    if not tensor.HasField("raw_data"):
        onnx.checker.check_tensor(tensor)
        return
    try:
        itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        raise onnx.checker.ValidationError(f"tensor {tensor.name!r} has the unknown type {tensor.data_type}") from None
    expected = prod(tensor.dims) * itemsize
    if len(tensor.raw_data) != expected:
        raise onnx.checker.ValidationError(
            f"tensor {tensor.name!r} has {len(tensor.raw_data):,} bytes, "
            f"its shape {list(tensor.dims)} needs {expected:,}"
        )


def _missing(model: ModelProto, said: str) -> str:
    """What the checker means by an order that is wrong where the tensor that a node reads is nowhere in the file."""
    found = UNSORTED.search(" ".join(said.split()))
    if found is None or any(found["tensor"] in _given(graph) for graph in _graphs(model.graph)):
        return ""
    return (
        f"node {found['node'] or found['type']!r} ({found['type']}) reads {found['tensor']!r}, and no initializer, "
        "input or node of the file gives that; was the file cut, or a weight dropped?"
    )


def _given(graph: GraphProto) -> set[str]:
    values = (*graph.initializer, *graph.input)
    return {value.name for value in values} | {out for node in graph.node for out in node.output}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def dump(applied: Applied, path: Path, folder: Path | None = None) -> None:
    """Write an edited model into a file, its external data (which lie in `folder`) into another beside it.

    ModelError where that cannot be done; OSError as the system has it.
    """
    carry_over(applied, folder, path)
    try:
        with path.open("wb", buffering=1 << 20) as file:
            write(applied, file)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"the model cannot be written: {error}") from error
