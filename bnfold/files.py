"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .errors import OutputError, UsageError


def check_target(out: Path, model: Path | None) -> None:
    """Whether `out` can be written: UsageError where the call is wrong, OutputError where the folder is."""
    if model is not None and out.exists() and model.exists() and out.samefile(model):
        raise UsageError(f"{out}: the output is the model itself; name another file")
    if model is not None and out.exists() and any(out.samefile(shard) for shard in _shards(model)):
        raise UsageError(f"{out}: holds weights of the model and would be replaced; name another file")
    if out.is_dir():
        raise UsageError(f"{out}: a folder, a file name expected")
    if out.exists() and not out.is_file():
        raise UsageError(f"{out}: not a regular file, so it is not replaced; name another file")
    if not out.parent.exists():
        raise UsageError(f"{out}: the folder {out.parent} does not exist; make it first")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: {out.parent} is not a folder")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: the folder {out.parent} is not writable")


def _shards(model: Path) -> list[Path]:
    """The files beside an index of shards that it names; none where it cannot be read, or is something else."""
    if not model.name.endswith(".index.json"):
        return []
    try:
        names = set(map(str, json.loads(model.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    return [shard for shard in (model.parent / name for name in names) if os.path.exists(shard)]


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """A new file that takes the place of `out` when the block ends well, and goes when it does not.

    It lies in a temporary folder beside `out`; other files in that folder (external data) move along, before it. Where
    `out` is a symbolic link, the file that it leads to is replaced. Inside `together` all wait for the end of that.
    """
    target = Path(os.path.realpath(out))
    waiting = _waiting.get()
    with ExitStack() if waiting is None else nullcontext(waiting.stack) as stack, _writing(out):
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder / target.name
        moves = [Move(path, target.parent / path.name, out) for path in _last(folder, target.name)]
        for move in moves:
            move.path.chmod(_mode(move.place, folder))
            _sync(move.path)
        if waiting is None:
            _place(moves)
        else:
            waiting.moves += moves


class Move(NamedTuple):
    """A file that is whole, and the place that it takes. `out`: what it is part of, as the caller says it."""

    path: Path
    place: Path
    out: Path


@dataclass
class _Waiting:
    """Files that are not in their places yet, and what takes their folders away."""

    stack: ExitStack
    moves: list[Move] = field(default_factory=list)


_waiting: ContextVar[_Waiting | None] = ContextVar("waiting", default=None)


@contextmanager
def together() -> Iterator[None]:
    """What `written` gives inside the block takes its places when the block ends well, one right after the other."""
    with ExitStack() as stack:
        waiting = _Waiting(stack)
        token = _waiting.set(waiting)
        try:
            yield
        finally:
            _waiting.reset(token)
        _place(waiting.moves)


@contextmanager
def at_once() -> Iterator[None]:
    """What `written` gives inside the block does not wait: checkpoints of a run that goes on."""
    token = _waiting.set(None)
    try:
        yield
    finally:
        _waiting.reset(token)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """OutputError for what the system has against a file."""
    try:
        yield
    except BrokenPipeError:  # of something that prints
        raise
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error


def _last(folder: Path, name: str) -> list[Path]:
    """The files in a folder, that of this name last."""
    return sorted(folder.iterdir(), key=lambda path: path.name == name)


def _place(moves: Sequence[Move]) -> None:
    """Move files to their places. An interruption waits for the last: a model needs its external data."""
    try:
        _move(moves)
    except KeyboardInterrupt:
        _move([move for move in moves if move.path.exists()])
        raise
    finally:
        for parent in {move.place.parent for move in moves}:
            _sync_folder(parent)


def _move(moves: Sequence[Move]) -> None:
    for move in moves:
        with _writing(move.out):
            os.replace(move.path, move.place)


def _mode(out: Path, folder: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file gets, as one in `folder` shows."""
    if out.exists():
        return out.stat().st_mode & 0o777
    probe = folder.with_suffix(".mode")
    os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666))
    try:
        return probe.stat().st_mode & 0o777
    finally:
        probe.unlink()


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk, so that a crash leaves the old file or the new one."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The same for a folder's list of names, where the system can do that: Windows and some network drives cannot."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
