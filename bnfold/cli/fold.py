"""bnfold inspect, bnfold fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import VerificationError
from ..files import together
from .options import FILE, common, comparing_on, judging, means_given, pytorch, reading, torch_options
from .output import check_reports, errors, progress_line, show_result, write_page, write_report


@click.command()
@click.argument("model", type=FILE)
@reading
@pytorch
@common
def inspect(model: Path, as_json: bool, quiet: bool, debug: bool, **given: Any) -> None:
    """List every batch norm and LRN of MODEL, and what would become of it. Nothing is written."""
    with errors(debug), progress_line(quiet or as_json) as progress:
        from ..api import inspect as run

        progress("reading and planning")
        plan = run(model, **torch_options(given), **given)
    show_result(plan, None, as_json)


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="Where to write the folded model.")
@click.option(
    "--report", "report_file", type=FILE, metavar="R.json", help="Write the report as JSON, also when the check fails."
)
@click.option("--html", type=FILE, metavar="R.html", help="Write the report as a page, also when the check fails.")
@click.option("--no-verify", is_flag=True, help="Write without running the models; the report says so.")
@comparing_on
@judging
@reading
@pytorch
@common
def fold(
    model: Path,
    output: Path,
    report_file: Path | None,
    html: Path | None,
    no_verify: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Fold the batch norms of MODEL, verify the result, and write it to OUT when it passed.

    MODEL is an ONNX file, an exported program (.pt2), a TorchScript archive, or a checkpoint (.pt, .pth, .safetensors)
    with --arch. OUT is of the same kind, or, by its suffix, another of PyTorch's; `bnfold export` writes ONNX.
    """
    with errors(debug):
        check_reports((report_file, html), output, model)
        try:
            with together(), progress_line(quiet or as_json) as progress:
                from ..api import fold as run

                result = run(
                    model, out=output, verify=not no_verify, progress=progress, **torch_options(given),
                    **means_given(given), **given,
                )  # fmt: skip
                write_report(report_file, result.plan, result.check, output)
                write_page(html, result.plan, result.check, model, output)
        except VerificationError as error:
            if error.plan is not None:
                with together():
                    write_report(report_file, error.plan, error.check, None)
                    write_page(html, error.plan, error.check, model, output)
                show_result(error.plan, error.check, as_json)
            raise
        plan, check = result.plan, result.check
        del result  # and with it the model, before the files are looked at
        show_result(plan, check, as_json, output, model)
