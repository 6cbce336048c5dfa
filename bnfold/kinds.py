"""What kind of model a file holds, by its content, without reading more than its head and its list of names."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from .errors import ModelError, UsageError

TORCH = ("program", "script", "checkpoint", "safetensors", "index")
SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".safetensors", ".torchscript")
"""How files of PyTorch are called."""
POINTER = b"version https://git-lfs.github.com/spec/"
LFS = "a Git LFS pointer, not the model that it stands for; git lfs pull fetches that"


def kind_of(path: Path) -> str:
    """One of `TORCH`, or "onnx" for everything else. ModelError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(len(POINTER))
        if head == POINTER:
            raise ModelError(f"{path}: {LFS}")
        if head[:4] == b"PK\x03\x04":
            return _archive(path)
        size = path.stat().st_size
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path}: a folder, a model file expected") from None
    except zipfile.BadZipFile:
        raise ModelError(f"{path}: a file of PyTorch that is damaged or truncated (no list of its parts)") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not head:
        raise ModelError(f"{path}: not an ONNX model nor a file of PyTorch, but an empty or damaged one")
    if path.name.endswith(".index.json"):
        return "index"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "safetensors"
    return "checkpoint" if head[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".ckpt") else "onnx"


def check_suffix(out: Path) -> None:
    """UsageError where an ONNX model would be written under a name that is for files of PyTorch."""
    if out.suffix.lower() in SUFFIXES:
        raise UsageError(f"{out}: {out.suffix} is for files of PyTorch, and an ONNX model is written; name it .onnx")


def _archive(path: Path) -> str:
    """The kind of a zip archive of torch, in which all names begin with one folder."""
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] or name for name in archive.namelist()]
    if any(name.startswith("models/") or name == "serialized_exported_program.json" for name in names):
        return "program"
    if any(name.startswith("code/") for name in names) or "constants.pkl" in names:
        return "script"
    return "checkpoint"


def in_memory(model: Any) -> bool:
    """Whether an object is an onnx.ModelProto, told without importing onnx."""
    return type(model).__name__ == "ModelProto"
