"""Files of PyTorch: exported programs, TorchScript archives, checkpoints, whole pickled modules.

Reading a pickle runs whatever code it names. So pickles are read with torch's own list of harmless types, and what does
not fit that is refused unless the caller trusts the file.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ...errors import ModelError, UsageError
from ...kinds import kind_of
from ...process.private import copied_function, copied_module
from ...process.quiet import TURN, quiet
from ..trace.capture import one_line
from .checkpoint import Checkpoint, holds_tensors
from .harmless import Watch, loader

Loaded = ExportedProgram | nn.Module | Checkpoint


def load(path: Path, trust_pickle: bool = False) -> Loaded:
    """What a file holds. ModelError where it is damaged, or can only be read by running code that it names."""
    readers: dict[str, Callable[[], Loaded]] = {
        "program": lambda: _program(path, trust_pickle),
        "script": lambda: _script(path),
        "safetensors": lambda: _safetensors(path),
        "checkpoint": lambda: _pickle(path, trust_pickle),
        "index": lambda: _sharded(path, trust_pickle),
    }
    reader = readers.get(kind_of(path))
    if reader is None:
        raise ModelError(f"{path}: no file of PyTorch (.pt2, TorchScript, .pt, .pth, .safetensors), or a damaged one")
    with TURN, quiet():
        return reader()


def _program(path: Path, trust_pickle: bool) -> ExportedProgram:
    seen = Watch()
    try:
        program: ExportedProgram = loader(seen, trust_pickle)(path)
    except Exception as error:
        if seen.refusal is None:
            said = one_line(seen.cause or error)
            raise ModelError(f"{path}: not an exported program that this torch can read ({said})") from error
    if seen.refusal is not None:
        hint = "--trust-pickle loads it all the same, if you trust its source"
        raise ModelError(f"{path}: {seen.refusal}; {hint}") from seen.refusal
    return program


def _script(path: Path) -> nn.Module:
    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return module
    except Exception as error:
        raise ModelError(f"{path}: not a TorchScript archive that this torch can read ({one_line(error)})") from error


def _safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file, or a damaged one ({one_line(error)})") from error
    return Checkpoint(tensors, metadata)


def _sharded(path: Path, trust_pickle: bool) -> Checkpoint:
    """The shards that an index names, as one; they lie beside it."""
    try:
        shards = dict.fromkeys(map(str, json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path}: not an index of shards, with a weight_map ({one_line(error)})") from error
    parts = []
    for name in shards:
        if Path(name).name != name:
            raise ModelError(f"{path}: the shard {name!r} is no file beside it")
        part = load(path.parent / name, trust_pickle)
        if not isinstance(part, Checkpoint):
            raise ModelError(f"{path.parent / name}: a shard with tensors expected")
        parts.append(part)
    if not parts:
        raise ModelError(f"{path}: names no shards")
    return Checkpoint({name: t for part in parts for name, t in part.content.items()}, parts[0].metadata)


def _pickle(path: Path, trust_pickle: bool) -> Loaded:
    try:
        content = _reader()(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors ({_what(error)}), and reading that runs code from the file; if you trust "
            "its source, --trust-pickle reads it; safer: save module.state_dict() and name the class with --arch"
        ) from error
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path}: holds an object of a class that cannot be found here ({one_line(error)}); install the package "
            "that defines it, or put the folder with its source on the path (PYTHONPATH=FOLDER), in the version that "
            "wrote the file; safer: save module.state_dict() where it runs, and name the class with --arch"
        ) from error
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(f"{path}: not a file of torch.save, or a damaged one ({said})") from error
    if isinstance(content, nn.Module | ExportedProgram):
        return content
    return checkpoint(content, str(path))


def _reader() -> Callable[..., Any]:
    """torch.load, which knows more harmless types than torch does; nobody else's torch.load knows them."""
    unpickler: Any = copied_module("torch._weights_only_unpickler", {})
    unpickler._add_safe_globals([*torch.serialization.get_safe_globals(), *_plain()])
    legacy = copied_function(torch.serialization._legacy_load, _weights_only_unpickler=unpickler)  # refuses .tar files
    return copied_function(torch.serialization.load, _weights_only_unpickler=unpickler, _legacy_load=legacy)


def _plain() -> list[Any]:
    """Harmless types that training scripts keep beside tensors: scalars and arrays of numpy, parsed arguments."""
    from argparse import Namespace

    import numpy as np
    from numpy._core import multiarray

    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    old = [(getattr(multiarray, name), f"numpy.core.multiarray.{name}") for name in ("scalar", "_reconstruct")]
    return [Namespace, np.ndarray, np.dtype, multiarray.scalar, multiarray._reconstruct, *old, *kinds]


def _what(error: BaseException) -> str:
    """The class or function that a pickle names, by torch's message."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else "objects of classes"


def checkpoint(content: Any, where: str) -> Checkpoint:
    """What torch.load gave, where there are tensors by names in it."""
    if not holds_tensors(content):
        raise ModelError(f"{where}: no state_dict found in it: {type(content).__name__} without tensors by names")
    return Checkpoint(content)


def fill(module: nn.Module, state: Checkpoint, where: str) -> None:
    """Load a checkpoint, which was fitted to it, into a module. ModelError where names or shapes do not fit."""
    try:
        with quiet():
            module.load_state_dict(state.tensors)
    except RuntimeError as error:
        raise ModelError(f"{where}: does not fit {type(module).__name__}: {one_line(error)}") from error


def build(arch: str, arguments: str | None) -> nn.Module:
    """The module that `package.module:factory` or `path/to/net.py:Net` makes; `arguments`: JSON, a list or an object.

    A class of transformers gets a config made from the object. UsageError where there is no such factory.
    """
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise UsageError(f"--arch {arch}: package.module:factory or path/to/net.py:Net expected")
    try:
        given = json.loads(arguments) if arguments else {}
    except ValueError as error:
        raise UsageError(f"--arch-args: not JSON ({error})") from error
    if not isinstance(given, list | dict):
        raise UsageError("--arch-args: a JSON list or object expected")
    factory = _factory(place, name, arch)
    if isinstance(factory, nn.Module) and not given:
        return factory
    try:
        if isinstance(given, dict) and getattr(factory, "config_class", None) is not None:
            made = factory(factory.config_class(**given))
        else:
            made = factory(*given) if isinstance(given, list) else factory(**given)
    except Exception as error:
        raise UsageError(f"--arch {arch}: {name} cannot be made: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"--arch {arch}: {name} gives {type(made).__name__}, a torch.nn.Module expected")
    return made


def _factory(place: str, name: str, arch: str) -> Any:
    import importlib

    try:
        source = _source(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise UsageError(f"--arch {arch}: {place} cannot be imported: {one_line(error)}") from error
    found: Any = source
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise UsageError(f"--arch {arch}: {place} has no {name}")
    return found


def _source(path: Path) -> Any:
    """A file of Python as a module, which finds what lies beside it; part of a package where it lies in one."""
    import importlib.util
    import sys

    folder, package = path.resolve().parent, ""
    _find_in(folder, 0)
    while (folder / "__init__.py").exists() and folder.name.isidentifier():
        folder, package = folder.parent, f"{folder.name}.{package}"
    if package:
        _find_in(folder, 1)
        importlib.import_module(package.rstrip("."))
    spec = importlib.util.spec_from_file_location(f"{package}bnfold_arch_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = source
    spec.loader.exec_module(source)
    return source


def _find_in(folder: Path, place: int) -> None:
    """Look for modules in a folder, also later: code may import more when it runs."""
    import sys

    if sys.path[place : place + 1] != [str(folder)]:
        sys.path.insert(place, str(folder))
