"""The side file of a written model: those of the original, copied as files, with new values for tensors that changed.

Only tensors that an edit names are read, one at a time.
"""

from __future__ import annotations

from os import SEEK_CUR, SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import TensorProto

from ..store.external import external_tensors, side_name
from ..store.places import Place, entries, is_external, place
from .apply import Applied
from .editor import Pending

CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
ALIGNMENT = 4096
"""Offsets of copied files are multiples of this, so that tensors that were aligned for memory mapping stay so."""


def carry_over(applied: Applied, folder: Path | None, out: Path) -> None:
    """Copy the side files of a model into one beside `out`, with the new values of edited tensors in their places.

    An edited tensor that shares bytes with another gets a place of its own, at the end, and so do large new ones.
    """
    tensors = external_tensors(applied.model)
    new = [t for t in applied.model.graph.initializer if t.name in applied.pending and not _has_data(t)]
    new = new if applied.aside else []
    if not (tensors or new) or folder is None:
        return
    own = sum(map(is_external, applied.model.graph.initializer))  # only these can be pending, and they come first
    places = [place(tensor, folder) for tensor in tensors]
    shared = overlapping(places)
    target = out.with_name(side_name(out))
    bases = _copy(sorted({at.path for at in places}), target)
    with target.open("r+b") as data:
        for i, (tensor, at) in enumerate(zip(tensors, places, strict=True)):
            offset = bases[at.path] + at.offset
            pending = applied.pending.pop(tensor.name, None) if i < own else None
            if pending is not None:
                offset = _write(data, pending, None if i in shared else offset)
            _move(tensor, target.name, offset, at.length)
        for tensor in new:
            offset = _write(data, applied.pending.pop(tensor.name), None)
            tensor.data_location = TensorProto.EXTERNAL
            _move(tensor, target.name, offset, data.tell() - offset)


def _has_data(tensor: TensorProto) -> bool:
    """Whether there is anything in a tensor but its name, type and shape."""
    return any(field.name.endswith("_data") for field, _ in tensor.ListFields())


def overlapping(places: list[Place]) -> set[int]:
    """The positions of those that share a byte with another."""
    found: set[int] = set()
    furthest = -1
    for i in sorted((i for i, at in enumerate(places) if at.length), key=places.__getitem__):
        at, last = places[i], places[furthest]
        begins_anew = furthest < 0 or at.path != last.path or at.offset >= last.offset + last.length
        if not begins_anew:
            found |= {i, furthest}
        if begins_anew or at.offset + at.length > last.offset + last.length:
            furthest = i
    return found


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


def _write(data: BinaryIO, pending: Pending, offset: int | None) -> int:
    """Compute a tensor and write it at `offset`, or behind everything else; where that is."""
    value = np.asarray(pending.compute(), order="C")
    if offset is None:
        end = data.seek(0, SEEK_END)
        data.write(bytes(-end % ALIGNMENT))
    else:
        data.seek(offset)
    start = data.tell()
    data.write(value.reshape(-1).view(np.uint8).data)
    return start


def _move(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor have its data there. `length` is always said: without it readers go on to the end of the file."""
    kept = entries(tensor)
    kept.pop("checksum", None)  # of the file as it was
    kept |= {"location": location, "length": str(length)} | ({"offset": str(offset)} if offset else {})
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
