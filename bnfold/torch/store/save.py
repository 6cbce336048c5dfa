"""Write folded modules and programs: checkpoints, exported programs, TorchScript."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from ...errors import ModelError, UsageError
from ...layers import ChannelAffine, ChannelClamp, ChannelClampInPlace, Copy, Nothing, Zeros
from ...process.quiet import in_turn, quiet
from ..trace.capture import one_line, without_autocast
from .checkpoint import KEY, Checkpoint
from .script import compare, traced

FORMATS = {".pt2": "program", ".safetensors": "safetensors", ".pt": "checkpoint", ".pth": "checkpoint",
           ".ckpt": "checkpoint", ".bin": "checkpoint", ".tar": "checkpoint", ".ts": "script",
           ".torchscript": "script", ".onnx": "onnx"}  # fmt: skip
NORMS: dict[str, type[nn.Module]] = {
    "BatchNorm1d": nn.BatchNorm1d, "BatchNorm2d": nn.BatchNorm2d, "BatchNorm3d": nn.BatchNorm3d,
}  # fmt: skip
PLACED = {"Identity": nn.Identity, "Copy": Copy, "Nothing": Nothing, "Zeros": Zeros}


def format_of(out: Path) -> str:
    """What a file of this name is to hold. UsageError where the suffix says nothing."""
    try:
        return FORMATS[out.suffix.lower()]
    except KeyError:
        raise UsageError(f"{out}: the suffix says what to write; one of {', '.join(FORMATS)} expected") from None


def changes(before: nn.Module, after: nn.Module) -> dict[str, str]:
    """Which modules of a network others took the place of, by path: the class of the new one."""
    old, new = dict(before.named_modules()), dict(after.named_modules())
    found = {path: type(new[path]).__name__ for path in old if path in new and not _alike(old[path], new[path])}
    found |= {
        path: "outplace"
        for path in old
        if path in new and getattr(old[path], "inplace", False) is True and getattr(new[path], "inplace", None) is False
    }
    return {path: kind for path, kind in found.items() if not any(path.startswith(f"{other}.") for other in found)}


def _alike(old: nn.Module, new: nn.Module) -> bool:
    """Whether two modules are of one class; graphs of torch.fx have a class of their own each, copies too."""
    return type(new) is type(old) or (isinstance(old, fx.GraphModule) and isinstance(new, fx.GraphModule))


def save_checkpoint(module: nn.Module, placed: Mapping[str, str], out: Path, source: Checkpoint | None) -> None:
    """The state_dict of a folded module, in the layout that the original's file had.

    `placed`: what `changes` gave; it is kept in the file, so that `restore` can build the folded network again.
    """
    state = module.state_dict()
    if format_of(out) == "safetensors":
        _save_safetensors(state, placed, out, source)
        return
    named: OrderedDict[str, Any] = OrderedDict(state) if source is None else source.renamed(state)
    named._metadata = {**getattr(state, "_metadata", {}), KEY: dict(placed)}  # type: ignore[attr-defined]
    torch.save(named if source is None else source.with_inner(named), out)


def _save_safetensors(
    state: Mapping[str, torch.Tensor], placed: Mapping[str, str], out: Path, source: Checkpoint | None
) -> None:
    from safetensors.torch import save_file

    kept = source.metadata if source is not None else {}
    seen: set[int] = set()
    tensors = {}
    for name, tensor in (state if source is None else source.renamed(state)).items():
        if not isinstance(tensor, torch.Tensor):
            continue
        value = tensor.detach().contiguous()
        tensors[name] = value.clone() if value.untyped_storage().data_ptr() in seen else value
        seen.add(value.untyped_storage().data_ptr())
    save_file(tensors, out, metadata={"format": "pt", **kept, KEY: json.dumps(dict(placed))})


@in_turn
def restore(module: nn.Module, state: Checkpoint, where: str) -> nn.Module:
    """Give a freshly made network the folded form that a checkpoint has, and its tensors; the module itself."""
    state.fit(module)
    placed = placed_in(state)
    if placed is None:
        raise ModelError(f"{where}: not a checkpoint that bnfold folded (nothing in it says what was taken out)")
    try:
        tensors = _typed(state.tensors, module)
        for path, kind in placed.items():
            _place(module, path, kind, tensors)
        _add_biases(module, tensors)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{where}: does not fit {type(module).__name__}: what was folded is not in it ({one_line(error)})"
        ) from error
    from .load import fill

    fill(module, state, where)
    return module


def _typed(tensors: Mapping[str, torch.Tensor], module: nn.Module) -> Mapping[str, torch.Tensor]:
    """Tensors in the type that a network has, where it has one for all."""
    held = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    dtype = held.pop() if len(held) == 1 else None
    return {
        name: t.to(dtype) if dtype and isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for name, t in tensors.items()
    }


def placed_in(state: Checkpoint) -> dict[str, str] | None:
    """Which modules others took the place of, as a checkpoint of bnfold says; None where it says nothing."""
    found = (getattr(state.inner, "_metadata", {}) or {}).get(KEY)
    if KEY in state.metadata:
        try:
            found = json.loads(state.metadata[KEY])
        except ValueError:
            found = state.metadata[KEY]
    named = isinstance(found, dict) and all(isinstance(text, str) for pair in found.items() for text in pair)
    if found is not None and not named:
        raise ModelError(f"what the checkpoint says was folded is not readable: {str(found)[:60]!r}")
    placed: dict[str, str] | None = found
    return placed


def _place(module: nn.Module, path: str, kind: str, tensors: Mapping[str, torch.Tensor]) -> None:
    old = module.get_submodule(path)
    if kind == "outplace":
        old.inplace = False  # type: ignore[assignment]
        return
    own = {name[len(path) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{path}.")}
    made = _made(kind, own, old)
    parent = module.get_submodule(path.rpartition(".")[0])
    setattr(parent, path.rpartition(".")[2], made.train(old.training))


def _made(kind: str, own: Mapping[str, torch.Tensor], old: nn.Module) -> nn.Module:
    if kind in PLACED:
        return PLACED[kind]()
    if kind == "ChannelAffine":
        return ChannelAffine(own.get("scale"), own.get("offset"))
    if kind in ("ChannelClamp", "ChannelClampInPlace"):
        return (ChannelClamp if kind == "ChannelClamp" else ChannelClampInPlace)(own["low"], own.get("high"))
    if any(part in NORMS for part in kind.split("+")):
        return _with_norm(kind, own, old)
    parts = OrderedDict[str, nn.Module]()
    if "norm.scale" in own or "norm.offset" in own:
        parts["norm"] = ChannelAffine(own.get("norm.scale"), own.get("norm.offset"))
    parts.update(old.named_children())
    return nn.Sequential(parts)


def _with_norm(kind: str, own: Mapping[str, torch.Tensor], old: nn.Module) -> nn.Module:
    """A batch norm in the place of a module, or beside it; an Identity where it has been folded since."""
    start = "norm." if "+" in kind else ""
    mean = own.get(f"{start}running_mean")
    name = next(part for part in kind.split("+") if part in NORMS)
    norm = nn.Identity() if mean is None else NORMS[name](len(mean))
    parts = [("norm", norm) if part in NORMS else (part, old) for part in kind.split("+")]
    return nn.Sequential(OrderedDict(parts)) if len(parts) > 1 else norm


def _add_biases(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "bias":
            owner = module.get_submodule(path)
            if owner._parameters.get("bias", 0) is None:
                owner.register_parameter("bias", nn.Parameter(torch.zeros_like(tensor)))


@in_turn
def save_program(model: nn.Module | ExportedProgram, args: Sequence[Any], kwargs: Mapping[str, Any], out: Path) -> None:
    """An exported program."""
    with quiet(), torch.no_grad(), without_autocast():
        try:
            program = model if isinstance(model, ExportedProgram) else torch.export.export(
                model, tuple(args), dict(kwargs), strict=False)  # fmt: skip
        except Exception as error:
            raise ModelError(
                f"torch.export cannot trace {type(model).__name__}, so it cannot be written as {out.name}: "
                f"{one_line(error)}; a .pt or .safetensors file holds its tensors"
            ) from error
        torch.export.save(program, out)


@in_turn
def save_script(module: nn.Module, args: Sequence[Any], out: Path) -> None:
    """A traced TorchScript archive. ModelError where a trace would lose what the module's code does for other sizes."""
    with quiet(), torch.no_grad(), without_autocast():
        made = traced(module, args)
        compare(module, made, args)
        torch.jit.save(made, str(out))
