"""From LRN to BN, and calibration, of PyTorch networks given as modules or as checkpoints with what makes them."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import nn

from ..calibration.calibrate import calibrate
from ..calibration.report import CalibrationResult
from ..data.batches import feed
from ..errors import UsageError
from ..files import check_target, written
from ..lrn.find import Site, arguments, find_lrn
from ..lrn.report import SwapResult
from ..lrn.swap import swap_lrn
from ..options import TorchOptions
from ..process.quiet import in_turn
from ..torch.store import load as files
from ..torch.store import save
from ..torch.store.checkpoint import Checkpoint
from ..torch.trace.specs import dtype_of, examples, named
from ..torch.write.fold import evaluated
from ..train.ranks import first_process
from .torch_models import built, filled


@in_turn
def find_sites(model: Any, options: TorchOptions) -> list[Site]:
    """See `bnfold.find_lrn`."""
    module, _ = _opened(model, options)
    return find_lrn(module, *_arguments(module, options))


@in_turn
def swap_model(model: Any, options: TorchOptions, out: Path | None, *, data: Any, **given: Any) -> SwapResult:
    """See `bnfold.swap_lrn`."""
    form = _form(out, model)
    module, state = _opened(model, options)
    inputs, kwargs = _arguments(module, options)
    if inputs is None and not kwargs:
        if data is None:
            raise UsageError(f"{type(module).__name__}: example inputs are needed, as in swap_lrn(module, x), or data")
        inputs, kwargs = next(feed(module, data, None, {}, 2, 2, given["pixels"]).batches())
    result = swap_lrn(module, () if inputs is None else inputs, data=data, kwargs=kwargs, **given)
    if out is not None:
        if result.report.graphs and form != "program":
            raise UsageError(
                f"{out}: the forward of {' and '.join(p or 'the network' for p in result.report.graphs)} holds an LRN "
                "and became a graph, which a checkpoint cannot hold; write a .pt2 file, or use nn.LocalResponseNorm"
            )
        before = {} if state is None else save.placed_in(state) or {}
        args = () if inputs is None else arguments(inputs)
        _write(result.model, {**before, **result.placed}, form, out, state, args, kwargs)
    return result


@in_turn
def calibrate_model(
    model: Any, options: TorchOptions, out: Path | None, *, data: Any, **given: Any
) -> CalibrationResult:
    """See `bnfold.calibrate`."""
    form = _form(out, model)
    module, state = _opened(model, options)
    inputs, kwargs = _arguments(module, options)
    result = calibrate(module, data, inputs, kwargs=kwargs, **given)
    if out is not None and first_process():
        args = () if inputs is None else arguments(inputs)
        if form == "program" and not args and not kwargs:
            args, kwargs = next(feed(module, data, None, {}, 2, 2, given["pixels"]).batches())
        _write(result.model, {} if state is None else save.placed_in(state) or {}, form, out, state, args, kwargs)
    return result


def _arguments(module: nn.Module, options: TorchOptions) -> tuple[Any, dict[str, Any]]:
    """Arguments by place, None where there are none, and by name."""
    dtype = dtype_of(module)
    return examples(options.inputs, dtype), {**named(options.inputs, dtype), **(options.kwargs or {})}


def _form(out: Path | None, model: Any) -> str:
    """What `out` is to hold; UsageError where it cannot be written as that."""
    if out is None:
        return ""
    check_target(out, Path(fspath(model)) if isinstance(model, str | PathLike) else None)
    form = save.format_of(out)
    if form not in ("checkpoint", "safetensors", "program"):
        raise UsageError(f"{out}: a checkpoint (.pt, .pth, .safetensors) or an exported program (.pt2) is written")
    return form


def _opened(model: Any, options: TorchOptions) -> tuple[nn.Module, Checkpoint | None]:
    """The network; in eval mode, and with its checkpoint, where it comes from a file."""
    if isinstance(model, nn.Module):
        return model, None
    if not isinstance(model, str | PathLike):
        raise UsageError(f"a torch.nn.Module or the path of a checkpoint expected, {type(model).__name__} found")
    path = Path(fspath(model))
    loaded = files.load(path, options.trust_pickle)
    if isinstance(loaded, Checkpoint):
        if options.arch is None:
            raise UsageError(
                f"{path}: a checkpoint, which holds tensors and no network; say what makes it with --arch "
                "package.module:factory or --arch path/to/net.py:Net"
            )
        return evaluated(filled(built(options.arch, options.arch_args), loaded, str(path))), loaded
    if not isinstance(loaded, nn.Module) or type(loaded).__name__ == "RecursiveScriptModule":
        raise UsageError(f"{path}: its modules cannot be exchanged; a checkpoint with --arch expected")
    return evaluated(loaded), None


def _write(
    module: nn.Module, placed: dict[str, str], form: str, out: Path, state: Checkpoint | None, args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:  # fmt: skip
    with written(out) as temporary:
        if form == "program":
            save.save_program(evaluated(module), args, kwargs, temporary)
        else:
            save.save_checkpoint(module, placed, temporary, state)
