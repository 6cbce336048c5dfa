"""LRN to batch norm: placed, calibrated, and fitted to the old network, so that retraining starts well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..calibration.passes import check_statistics
from ..data.batches import Feed, feed
from ..data.samples import Pixels
from ..errors import ModelError, UsageError
from ..torch.trace.capture import one_line
from ..torch.write.fold import copied
from .affine_fit import Fit, fit, quality
from .find import Site, Survey, arguments, survey
from .gather import Gathered, gather, output_error
from .lift import exchanged
from .placement import NORMS, Place, decide, place
from .report import SwapReport, SwapResult, SwapSite

Progress = Callable[[str], None]
PLACEMENTS = ("foldable", "in-place")
INITS = ("fit", "standard")


@dataclass
class _Job:
    """What all steps of a swap need."""

    found: Survey
    student: nn.Module
    feed: Feed | None
    init: str
    progress: Progress
    sites: list[SwapSite] = field(default_factory=list)
    placed: dict[str, str] = field(default_factory=dict)
    norms: list[tuple[Place, nn.Module]] = field(default_factory=list)


def swap_lrn(
    module: nn.Module,
    example_inputs: Any,
    *,
    data: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    placement: str = "foldable",
    init: str = "fit",
    drop_dropout: bool = False,
    batch_size: int = 64,
    samples: int | None = None,
    pixels: Pixels | None = None,
    seed: int = 0,
    inplace: bool = False,
    progress: Progress = lambda stage: None,
) -> SwapResult:
    """Put a batch norm in the place of every LRN of a network, in a copy of it.

    `example_inputs`, `kwargs`: arguments with which it can be run. `data`: see `bnfold.data.open_data`; also tensors.
    `placement`: "foldable" makes `conv -> ReLU -> LRN` a `conv -> BN -> ReLU`, in which the norm folds into the
    convolution, wherever the network allows that; "in-place" puts it where the LRN was. `init`: "fit" chooses gamma and
    beta so that each norm answers on the data as the old LRN did, by least squares, one LRN after another, each on what
    the norms before it give; "standard" takes 1 and 0. The running statistics are those of the data (population, with
    m/(m-1)); without data, which "standard" allows, 0 and 1. `drop_dropout`: nn.Dropout becomes Identity. `samples`:
    how many to use. `pixels`: what images become. `seed`: of the choice of values for the fit. `inplace`: change the
    module itself, at the end.

    LRN calls in the code of a forward make that module a torch.fx graph, under the same names. Raises UsageError for
    arguments that do not fit, DataError for data that do not, ModelError where there is no LRN or its code cannot be
    followed.
    """
    _check(placement, init, data)
    args = arguments(example_inputs)
    found = survey(module, args, dict(kwargs or {}))
    chosen = _exchangeable(module, found)
    if inplace and found.lifted.graphs:
        raise UsageError("inplace=True: LRN calls in the code of a forward need a new module; take the copy")
    given = None if data is None else feed(module, data, args, dict(kwargs or {}), batch_size, samples, pixels)
    job = _Job(found, copied(found.lifted.module), given, init, progress)
    for site in chosen:
        progress(f"exchanging {site.name}")
        _exchange(job, decide(found, site, placement == "foldable"), seed)
    dropouts = _drop(job.student, job.placed) if drop_dropout else ()
    _runs(job.student, args, dict(kwargs or {}))
    error = None if given is None else output_error(found.lifted.module, job.student, given)
    report = SwapReport(
        tuple(job.sites), tuple(site for site in found.sites if site not in chosen), dropouts,
        dict(found.lifted.graphs), 0 if given is None else len(given), error,
    )  # fmt: skip
    result = _transplanted(module, job) if inplace else _in_modes(module, job.student)
    return SwapResult(result, report, job.placed)


def _check(placement: str, init: str, data: Any) -> None:
    for name, value, known in (("placement", placement, PLACEMENTS), ("init", init, INITS)):
        if value not in known:
            raise UsageError(f"{name}={value!r}: one of {', '.join(known)} expected")
    if data is None and init == "fit":
        raise UsageError("init='fit' needs data, on which the norms are fitted; give data, or take init='standard'")


def _exchangeable(module: nn.Module, found: Survey) -> list[Site]:
    """The LRNs that a norm takes the place of. ModelError where there is none, or some cannot be reached."""
    hidden = next((site for site in found.sites if site.note), None)
    if hidden is not None:
        raise ModelError(
            f"{hidden.name}: {hidden.note}, so that nothing can take its place; make it an nn.LocalResponseNorm in "
            "__init__, or the forward traceable"
        )
    chosen = [site for site in found.sites if site.kind != "within-channel" and site.calls]
    if not chosen:
        other = f"; {found.sites[0].name} normalises within channels" if found.sites else ""
        raise ModelError(f"{type(module).__name__}: no LRN over channels in it{other}")
    return chosen


def _exchange(job: _Job, where: Place, seed: int) -> None:
    """Place one norm, give it its statistics, gamma and beta, and report."""
    site = where.site
    shapes = job.found.record.shapes
    widths = sorted({int(shapes[chain.event.outputs[0]][1]) for chain in site.chains})
    if len(widths) > 1:
        raise ModelError(
            f"{site.name}: one LRN module serves tensors of {' and '.join(map(str, widths))} channels, and a norm has "
            "a gamma for each; use a module for each place"
        )
    like = next((t for t in job.student.parameters() if t.is_floating_point()), torch.zeros(1))
    norm = NORMS[where.dims](site.channels).to(like.device, like.dtype).eval()
    teacher = job.found.lifted.module.get_submodule(site.name)
    changed = place(job.student, where, norm)
    job.norms.append((where, norm))
    job.placed |= changed
    kinds = {path: kind for path, kind in changed.items() if path != site.name}
    warnings: list[str] = []
    fitted = None
    count = 0
    if job.feed is not None:
        found = gather(job.found.lifted.module, teacher, job.student, norm, where, job.feed, seed)
        count = found.moments.count
        fitted = _filled(norm, where, found, job.init)
        warnings = fitted.warnings(count)
    else:
        warnings = ["no data: mean 0 and variance 1, so that the network is of no use before it is retrained"]
    job.sites.append(
        SwapSite(
            site.name, site.kind, where.placement, kinds, site.channels, count, None if fitted is None else fitted.r2,
            None if fitted is None else fitted.worst, where.reason, tuple(warnings),
        )
    )  # fmt: skip


def _filled(norm: nn.modules.batchnorm._BatchNorm, where: Place, found: Gathered, init: str) -> Fit:
    """Statistics, gamma and beta; the quality of the answer with them."""
    mean, var = found.moments.mean, found.moments.variance()
    centre, root = mean.numpy(), (var + norm.eps).sqrt().numpy()
    xhat, targets = (found.inputs.numpy() - centre) / root, found.targets.numpy()
    weak = where.site.k**-where.site.beta if where.site.k > 0 else 1.0
    check_statistics(where.site.name, norm, (mean, var))
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        if init == "standard":
            gamma, beta = (value.double().cpu().numpy() for value in (norm.weight, norm.bias))
            return quality(xhat, targets, gamma, beta, where.slope)
        made = fit(xhat, targets, (root * weak, centre * weak), where.slope)
        norm.weight.copy_(torch.from_numpy(made.gamma))
        norm.bias.copy_(torch.from_numpy(made.beta))
    return made


def _drop(student: nn.Module, placed: dict[str, str]) -> tuple[str, ...]:
    """Dropout modules become Identity; their paths."""
    names = []
    for path, inner in list(student.named_modules()):
        if path and isinstance(inner, nn.modules.dropout._DropoutNd):
            exchanged(student, inner, nn.Identity())
            placed[path] = "Identity"
            names.append(path)
    return tuple(names)


def _runs(student: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """The code of a network may reach into modules that are no longer what they were."""
    try:
        with torch.no_grad():
            student(*args, **kwargs)
    except Exception as error:
        raise ModelError(f"the exchanged network does not run: {one_line(error)}; try placement='in-place'") from error


def _in_modes(module: nn.Module, student: nn.Module) -> nn.Module:
    """Every module in the mode of the one that it was, new ones in that of the module around them."""
    modes = {path: inner.training for path, inner in module.named_modules()}
    for path, inner in student.named_modules():
        at = path
        while at not in modes:
            at = at.rpartition(".")[0]
        modes[path] = inner.training = modes[at]
    return student


def _transplanted(module: nn.Module, job: _Job) -> nn.Module:
    """The same changes in the module itself."""
    for where, norm in job.norms:
        place(module, where, norm.train(module.get_submodule(where.site.name).training))
    for path, kind in job.placed.items():
        if kind == "Identity" and isinstance(module.get_submodule(path), nn.modules.dropout._DropoutNd):
            exchanged(module, module.get_submodule(path), nn.Identity())
    return module
