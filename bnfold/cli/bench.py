"""bnfold bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, common, judging, network
from .output import errors, progress_line


@click.command()
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@click.option("--device", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True,
              help="Where both models run.")  # fmt: skip
@click.option("--tf32", is_flag=True, help="Let CUDA round products of float32 to 10 bits of mantissa.")
@click.option("--no-optimise", is_flag=True, help="Leave the graphs as they are; onnxruntime optimises them otherwise.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the CPU; as many as there are cores otherwise.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True,
              help="How long to measure.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=6), help="How often to run both, in place of --seconds.")
@judging
@click.option("--candidate-arch", metavar="MODULE:NAME", help="As --arch, where the candidate needs another.")
@click.option("--candidate-arch-args", metavar="JSON", help="Arguments for --candidate-arch.")
@network
@common
def bench(
    reference: Path, candidate: Path, no_optimise: bool, as_json: bool, quiet: bool, debug: bool, **given: Any
) -> None:
    """Measure the latency of two models side by side: runs in turn, medians, 95 % confidence."""
    with errors(debug), progress_line(quiet or as_json) as progress:
        from ..api import bench as run

        given["inputs"] = given["inputs"] or None
        result = run(reference, candidate, optimise=not no_optimise, progress=progress, **given)
    if as_json:
        from ..report.data import to_json

        click.echo(to_json(result.to_dict()), nl=False)
    else:
        from ..report.table import bench_table, show

        show(bench_table(result))
