"""bnfold verify."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..limits import MULTIPLE
from .options import FILE, common, judging, loading, torch_options
from .output import errors, progress_line

F = TypeVar("F", bound=Callable[..., Any])


def comparing(command: F) -> F:
    """What counts as the same, and on which inputs."""
    for option in (
        click.option("--std", callback=lambda c, p, v: _numbers(v), default="1", metavar="0.2,0.2,0.2",
                     help="Deviation of each channel, for images: pixel / 255 less the mean is divided by it."),
        click.option("--mean", callback=lambda c, p, v: _numbers(v), default="0", metavar="0.5,0.5,0.5",
                     help="Mean of each channel, for images."),
        click.option("--kind", "kinds", multiple=True, metavar="KIND",
                     help="Kind of random inputs: normal, uniform, image, large, constant, tiny, zeros. Repeatable."),
        click.option("--samples", type=click.IntRange(min=1),
                     help="Samples of each kind of random inputs, or of the data at most (then 64 by default)."),
        click.option("--data", type=FILE, metavar="PATH",
                     help="Inputs from a file (.npz by input names, .npy) or a folder of images, not random ones."),
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


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: a number, or one for each channel, as 0.485,0.456,0.406") from None


@click.command()
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@comparing
@judging
@click.option("--candidate-arch", metavar="MODULE:NAME", help="As --arch, where the candidate needs another.")
@click.option("--candidate-arch-args", metavar="JSON", help="Arguments for --candidate-arch.")
@loading
@common
def verify(
    reference: Path,
    candidate: Path,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Tell whether CANDIDATE is the same function as REFERENCE. Exit code 1 when they differ.

    Both are ONNX files, exported programs (.pt2), TorchScript archives, or checkpoints with --arch, in any combination.
    Without fixed bounds (--limit, --atol, --rtol, --cosine, --top-k) the candidate may be --multiple times as far from
    a float64 run of the reference as the reference itself.
    """
    with errors(debug), progress_line(quiet or as_json) as progress:
        from ..api import verify as run

        check = run(reference, candidate, progress=progress, **torch_options(given), **_chosen(given))
    if as_json:
        from ..report.data import to_json

        click.echo(to_json(check.to_dict()), nl=False)
    else:
        from ..report.table import check_table, show

        show(check_table(check))
    sys.exit(0 if check.passed else 1)


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Without a device, a module runs where it is."""
    chosen = dict(given)
    if chosen["device"] == "cpu" and not chosen["tf32"] and not chosen["optimise"]:
        chosen["device"] = ""
    return chosen
