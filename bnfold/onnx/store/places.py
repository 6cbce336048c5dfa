"""Where in files beside the model each tensor with external data lies, and its data from there.

Source of the layout: onnx.proto, `TensorProto.external_data`: location (relative to the model), offset, length.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

from onnx import TensorProto, helper

from ...errors import ModelError

PACKED = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}
"""Bits of an element, where several share a byte."""


@dataclass(frozen=True, order=True)
class Place:
    """`length` bytes of a file, from `offset` on."""

    path: Path
    offset: int
    length: int


def is_external(tensor: TensorProto) -> bool:
    """Whether the data of a tensor lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def byte_size(tensor: TensorProto) -> int:
    """How many bytes a tensor has by its shape and type. ModelError where the type is none."""
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelError(f"tensor {tensor.name!r} has the unknown type {tensor.data_type}") from None
    bits = PACKED.get(dtype.name, 8 * dtype.itemsize)
    return -int(-prod(tensor.dims) * bits // 8)


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
        hint = "" if path == _lexical(folder, location) else " (by a link: put the file itself there)"
        raise ModelError(f"tensor {tensor.name!r}: its data lie at {location!r}, outside the folder of the model{hint}")
    if not path.is_file():
        raise ModelError(f"tensor {tensor.name!r}: the file {location!r} with its data is missing beside the model")
    return path


def _lexical(folder: Path, location: str) -> Path:
    """Where a location leads if there are no links behind the folder."""
    return Path(os.path.normpath(folder.resolve() / location))


def filled(tensor: TensorProto, folder: Path | None) -> TensorProto:
    """A tensor with its data in it: itself, or a copy with what lies in another file, and no more of that file.

    ModelError where the data are not there, or not as many as shape and type need.
    """
    if not is_external(tensor) or folder is None:
        return tensor
    at, size = place(tensor, folder), byte_size(tensor)
    if at.length != size:
        raise ModelError(f"tensor {tensor.name!r}: {at.length:,} bytes of data, its shape and type need {size:,}")
    with at.path.open("rb") as file:
        file.seek(at.offset)
        return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=file.read(size))
