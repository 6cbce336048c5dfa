"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    `out` is a symbolic link, the file that it leads to is replaced.
    """
    target = Path(os.path.realpath(out))
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    try:
        yield folder / target.name
        made = sorted(folder.iterdir(), key=lambda path: path.name == target.name)
        for path in made:
            path.chmod(_mode(target.parent / path.name, folder))
            _sync(path)
        for path in made:  # one right after the other: whoever stops the process finds all of them or none
            os.replace(path, target.parent / path.name)
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _mode(out: Path, folder: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file gets, as one in `folder` shows."""
    if out.exists():
        return out.stat().st_mode & 0o777
    fresh = folder / ".mode"
    fresh.touch()
    mode = fresh.stat().st_mode & 0o777
    fresh.unlink()
    return mode


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
