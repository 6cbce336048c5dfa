"""Files of PyTorch: exported programs, TorchScript archives, checkpoints, whole pickled modules.

Reading a pickle runs whatever code it names. So pickles are read with torch's own list of harmless types, and what does
not fit that is refused unless the caller trusts the file.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ...errors import ModelError, UsageError
from ...kinds import kind_of
from .capture import one_line
from .harmless import harmless

NESTED = ("state_dict", "model_state_dict", "model", "net", "weights", "ema", "params")
"""Keys under which training scripts keep the state of the network."""
WRAPPER = "module."
"""What DataParallel puts before every name."""


@dataclass
class Checkpoint:
    """The tensors of a network by qualified name, and where they lay in the file.

    `content`: all that was in the file. `key`: where in it the tensors are, "" where they are all of it.
    """

    tensors: dict[str, torch.Tensor]
    content: Any
    key: str = ""
    prefix: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


Loaded = ExportedProgram | nn.Module | Checkpoint


def load(path: Path, trust_pickle: bool = False) -> Loaded:
    """What a file holds. ModelError where it is damaged, or can only be read by running code that it names."""
    readers: dict[str, Callable[[], Loaded]] = {
        "program": lambda: _program(path, trust_pickle),
        "script": lambda: _script(path),
        "safetensors": lambda: _safetensors(path),
        "checkpoint": lambda: _pickle(path, trust_pickle),
    }
    reader = readers.get(kind_of(path))
    if reader is None:
        raise ModelError(f"{path}: no file of PyTorch (.pt2, TorchScript, .pt, .pth, .safetensors), or a damaged one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reader()


def _program(path: Path, trust_pickle: bool) -> ExportedProgram:
    with harmless(trust_pickle) as seen:
        try:
            program = torch.export.load(path)
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
    return Checkpoint(tensors, None, metadata=metadata)


def _pickle(path: Path, trust_pickle: bool) -> Loaded:
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors ({_what(error)}), and reading that runs code from the file; if you trust "
            "its source, --trust-pickle reads it; safer: save module.state_dict() and name the class with --arch"
        ) from error
    except Exception as error:
        raise ModelError(f"{path}: not a file of torch.save, or a damaged one ({one_line(error)})") from error
    if isinstance(content, nn.Module | ExportedProgram):
        return content
    return checkpoint(content, str(path))


def _what(error: BaseException) -> str:
    """The class or function that a pickle names, by torch's message."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else "objects of classes"


def checkpoint(content: Any, where: str) -> Checkpoint:
    """The tensors in what torch.load gave: a state_dict, or one under a key that training scripts use."""
    for key in ("", *NESTED):
        found = content if not key else content.get(key) if isinstance(content, Mapping) else None
        if isinstance(found, nn.Module):
            found = found.state_dict()
        if isinstance(found, Mapping) and found and all(isinstance(v, torch.Tensor) for v in found.values()):
            names = [str(name) for name in found]
            prefix = WRAPPER if all(name.startswith(WRAPPER) for name in names) else ""
            return Checkpoint({str(n)[len(prefix):]: t for n, t in found.items()}, content, key, prefix)  # fmt: skip
    raise ModelError(f"{where}: no state_dict found in it, nor under the keys {', '.join(NESTED)}")


def fill(module: nn.Module, state: Checkpoint, where: str) -> None:
    """Load a checkpoint into a module. ModelError where names or shapes do not fit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
    import importlib.util
    import sys

    try:
        if place.endswith(".py"):
            path = Path(place)
            spec = importlib.util.spec_from_file_location(f"bnfold_arch_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            source = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = source
            sys.path.insert(0, str(path.resolve().parent))
            spec.loader.exec_module(source)
        else:
            source = importlib.import_module(place)
    except Exception as error:
        raise UsageError(f"--arch {arch}: {place} cannot be imported: {one_line(error)}") from error
    found: Any = source
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise UsageError(f"--arch {arch}: {place} has no {name}")
    return found
