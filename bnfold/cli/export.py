"""bnfold export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import VerificationError
from ..files import together
from ..limits import LEFTOVERS
from .options import FILE, common, comparing_on, means_given, pytorch, smaller, torch_options
from .output import check_report, errors, progress_line, show_result, write_report


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT.onnx", help="Where to write the ONNX file.")
@click.option("--keep-bn", is_flag=True, help="Fold nothing: every batch norm becomes a node.")
@click.option("--opset", type=click.IntRange(min=18), help="The ONNX operator set; torch's default otherwise.")
@click.option(
    "--dynamic",
    multiple=True,
    metavar="batch",
    help="Make axis 0 of every input dynamic under this name; NAME:AXIS=LABEL for one axis. Repeatable.",
)
@click.option("--external-data", is_flag=True, help="Put the weights into OUT.onnx.data; large models always do.")
@click.option("--report", "report_file", type=FILE, metavar="R.json", help="Write the report as JSON.")
@click.option("--no-verify", is_flag=True, help="Write without running the models; the report says so.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random inputs.")
@click.option("--skip", multiple=True, metavar="NAME", help="Leave this norm alone; * and ? match. Repeatable.")
@click.option("--leftovers", type=click.Choice(LEFTOVERS), default=LEFTOVERS[0], show_default=True,
              help="Forms in which norms that cannot go are left; see bnfold fold.")  # fmt: skip
@smaller
@comparing_on
@pytorch
@common
def export(
    model: Path,
    output: Path,
    report_file: Path | None,
    no_verify: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Write MODEL, a file of PyTorch, as ONNX: folded, and verified against the PyTorch model in onnxruntime."""
    with errors(debug):
        check_report(report_file, output, model)
        try:
            with together(), progress_line(quiet or as_json) as progress:
                from ..api import export as run

                result = run(
                    model, out=output, verify=not no_verify, progress=progress, **torch_options(given),
                    **means_given(given), **given,
                )  # fmt: skip
                write_report(report_file, result.plan, result.check, output)
        except VerificationError as error:
            if error.plan is not None:
                write_report(report_file, error.plan, error.check, None)
                show_result(error.plan, error.check, as_json)
            raise
        show_result(result.plan, result.check, as_json, output, model)
