"""Retraining of modules and of their files."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from ..errors import UsageError
from ..files import check_target, written
from ..options import TorchOptions
from ..process.quiet import in_turn
from ..torch.store import load as files
from ..torch.store import save
from ..torch.store.checkpoint import Checkpoint
from ..train.ranks import first_process
from ..train.retrain import RetrainResult, retrain
from .torch_models import built, filled

WRITTEN = ("checkpoint", "safetensors")


@in_turn
def retrain_model(
    model: Any, data: Any, teacher: Any, out: Path | None, options: TorchOptions, **given: Any
) -> RetrainResult:
    """See `bnfold.retrain`. `given`: what goes to the loop as it is."""
    module, path, state = _opened(model, options)
    if out is not None:
        check_target(out, path)
        if save.format_of(out) not in WRITTEN:
            raise UsageError(f"{out}: a retrained network is written as .pt, .pth or .safetensors; fold or export that")
    master = None if teacher is None else _opened(teacher, options)[0]
    result = retrain(module, data, teacher=master, **given)
    if out is not None and first_process():
        with written(out) as temporary:
            placed = (save.placed_in(state) if state is not None else None) or {}
            save.save_checkpoint(result.model, placed, temporary, state)
    return result


def _opened(model: Any, options: TorchOptions) -> tuple[nn.Module, Path | None, Checkpoint | None]:
    """A module, or one in a file: where that is, and the checkpoint in it."""
    if isinstance(model, nn.Module):
        return model, None, None
    if not isinstance(model, str | PathLike):
        raise UsageError(f"a torch.nn.Module or the path of a checkpoint expected, {type(model).__name__} found")
    path = Path(fspath(model))
    found = files.load(path, options.trust_pickle)
    if isinstance(found, ExportedProgram):
        raise UsageError(f"{path}: an exported program cannot be retrained; the module that it was made from can")
    if isinstance(found, nn.Module):
        return found, path, None
    if options.arch is None:
        raise UsageError(
            f"{path}: a checkpoint, which holds tensors and no network; say what makes it with --arch "
            "package.module:factory or --arch path/to/net.py:Net"
        )
    return filled(built(options.arch, options.arch_args), found, str(path)), path, found
