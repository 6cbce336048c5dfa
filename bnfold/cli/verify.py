"""bnfold verify."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .options import FILE, common, judging
from .output import errors, progress_line


@click.command()
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@click.option(
    "--limit", type=click.FloatRange(min=0), help="Largest error over the reference's largest magnitude that passes."
)
@judging
@common
def verify(
    reference: Path,
    candidate: Path,
    limit: float | None,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Tell whether CANDIDATE is the same function as REFERENCE. Exit code 1 when they differ."""
    with errors(debug), progress_line(quiet or as_json) as progress:
        from ..api import verify as run

        check = run(reference, candidate, seed=seed, shapes=shapes, limit=limit, progress=progress)
    if as_json:
        from ..report.data import to_json

        click.echo(to_json(check.to_dict()), nl=False)
    else:
        from ..report.table import check_table, show

        show(check_table(check))
    sys.exit(0 if check.passed else 1)
