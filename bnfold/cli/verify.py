"""bnfold verify."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ..errors import BnfoldError, UsageError
from ..limits import MULTIPLE
from .options import FILE, common, comparing_on, judging, means_given, network
from .output import check_spared, check_targets, errors, progress_line, show_checks, write_checks

if TYPE_CHECKING:
    from ..judge.criteria.check import Check
    from .config import PairSettings

OPTIONS = {"mean": "means", "std": "stds"}
"""What the arguments of the API are called among the options."""
F = TypeVar("F", bound=Callable[..., Any])


def comparing(command: F) -> F:
    """What counts as the same, and where."""
    for option in (
        click.option("--agreement", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0,
                     show_default=True, help="Share of the samples for which --top-k must hold."),
        click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="The same K best entries per sample."),
        click.option("--cosine", type=click.FloatRange(-1, 1), help="Least cosine similarity of each sample."),
        click.option("--rtol", type=click.FloatRange(min=0), help="Differences up to ATOL + RTOL * |reference| pass."),
        click.option("--atol", type=click.FloatRange(min=0), help="See --rtol."),
        click.option("--limit", type=click.FloatRange(min=0),
                     help="Largest error over the reference's largest magnitude that passes."),
        click.option("--multiple", type=click.FloatRange(min=1), default=MULTIPLE, show_default=True,
                     help="Error against float64 that passes, as a multiple of the reference's own."),
        click.option("--optimise", is_flag=True, help="Let onnxruntime change the graphs, as when serving."),
        click.option("--tf32", is_flag=True, help="Let CUDA round products of float32 to 10 bits of mantissa."),
        click.option("--device", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True,
                     help="Where both models run. Nothing falls back to the CPU in silence."),
    ):  # fmt: skip
        command = option(command)
    return command


def reporting(command: F) -> F:
    """Reports that a comparison may write."""
    for option in (
        click.option("--html", type=FILE, metavar="R.html", help="Write a page that needs nothing else to be seen."),
        click.option("--junit", type=FILE, metavar="R.xml", help="Write JUnit XML, which CI systems show."),
        click.option("--report", type=FILE, metavar="R.json", help="Write the verdict as JSON."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("reference", type=FILE, required=False)
@click.argument("candidate", type=FILE, required=False)
@click.option("--config", type=FILE, metavar="FILE.toml",
              help="Compare the pairs that bnfold.toml, or [tool.bnfold] of pyproject.toml, lists.")  # fmt: skip
@comparing
@comparing_on
@judging
@click.option("--candidate-arch", metavar="MODULE:NAME", help="As --arch, where the candidate needs another.")
@click.option("--candidate-arch-args", metavar="JSON", help="Arguments for --candidate-arch.")
@network
@reporting
@common
def verify(
    reference: Path | None,
    candidate: Path | None,
    config: Path | None,
    html: Path | None,
    junit: Path | None,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Tell whether CANDIDATE is the same function as REFERENCE. Exit code 1 when they differ.

    Both are ONNX files, exported programs (.pt2), TorchScript archives, or checkpoints with --arch, in any combination.
    Without fixed bounds (--limit, --atol, --rtol, --cosine, --top-k) the candidate may be --multiple times as far from
    a float64 run of the reference as the reference itself. With --config, options given here hold for every pair.
    """
    with errors(debug), progress_line(quiet or as_json) as progress:
        pairs = _pairs(reference, candidate, config, given)
        models = [Path(pair.arguments[key]) for pair in pairs for key in ("reference", "candidate")]
        targets = [path for path in (html, junit, report) if path is not None]
        check_targets(targets, models)
        for target in targets:
            check_spared(target, [config, *(_read_by(pair) for pair in pairs)])
        results = [(pair, _compared(pair, progress, alone=config is None)) for pair in pairs]
        write_checks(results, html, junit, report, single=config is None)
    show_checks(results, as_json, single=config is None)
    sys.exit(0 if all(not isinstance(check, str) and check.passed for _, check in results) else 1)


def _pairs(
    reference: Path | None, candidate: Path | None, config: Path | None, given: dict[str, Any]
) -> list[PairSettings]:
    """What is to be compared: the pair of the command line, or those of a file, with what was said beside it."""
    from ..doors.verify import check_settings
    from .config import PairSettings, read_config

    if config is None:
        if reference is None or candidate is None:
            raise click.UsageError("REFERENCE and CANDIDATE are needed, or --config FILE")
        name = f"{reference.name} : {candidate.name}"
        return [PairSettings(name, {"reference": reference, "candidate": candidate, **_chosen(given)})]
    if reference is not None:
        raise UsageError("--config names the models; REFERENCE and CANDIDATE cannot be given beside it")
    context = click.get_current_context()
    said = {
        name: value
        for name, value in _chosen(given).items()
        if context.get_parameter_source(OPTIONS.get(name, name)) is not ParameterSource.DEFAULT
    }
    pairs = [PairSettings(pair.name, {**pair.arguments, **said}) for pair in read_config(config)]
    for pair in pairs:
        try:
            check_settings(pair.arguments)
        except UsageError as error:
            raise UsageError(f"{config}: {pair.name}: {error}") from None
    return pairs


def _read_by(pair: PairSettings) -> Path | None:
    """The file of data that a pair is compared on."""
    data = pair.arguments.get("data")
    return Path(data) if isinstance(data, str | Path) else None


def _compared(pair: PairSettings, progress: Callable[[str], None], alone: bool) -> Check | str:
    """The verdict on a pair; among several, the error that was in the way instead."""
    from ..api import verify as run

    try:
        return run(progress=lambda stage: progress(f"{pair.name}: {stage}"), **pair.arguments)
    except BnfoldError as error:
        if alone:
            raise
        return str(error)


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Without a device, a module runs where it is; no inputs are None."""
    chosen = {**given, "inputs": given["inputs"] or None}
    chosen |= means_given(chosen)
    if chosen["device"] == "cpu" and not chosen["tf32"] and not chosen["optimise"]:
        chosen["device"] = ""
    return chosen
