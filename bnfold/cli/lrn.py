"""bnfold swap-lrn, bnfold calibrate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from ..files import together, written
from .options import FILE, common, network, pixels, samples, torch_options
from .output import check_report, errors, progress_line
from .processes import processes

DATA = "Samples to run: .npz, .npy, a folder of images, or a folder with one folder for each class."


@click.command("swap-lrn")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="Where to write the network.")
@click.option("--data", type=FILE, metavar="D", help=DATA)
@click.option(
    "--placement", type=click.Choice(("foldable", "in-place")), default="foldable", show_default=True,
    help="Before the activation, where a norm folds into the convolution, wherever that can be; or where the LRN was.",
)  # fmt: skip
@click.option(
    "--init", type=click.Choice(("fit", "standard")), default="fit", show_default=True,
    help="gamma and beta by least squares to what the LRN answers on the data; or 1 and 0.",
)  # fmt: skip
@click.option("--drop-dropout", is_flag=True, help="Take nn.Dropout out.")
@click.option("--report", "report_file", type=FILE, metavar="R.json", help="Write the report as JSON.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of the choice of values for the fit.")  # fmt: skip
@samples
@network
@common
def swap_lrn(model: Path, output: Path, report_file: Path | None, **given: Any) -> None:
    """Put a batch norm in the place of every LRN of MODEL, fitted to what the LRN answers on data.

    MODEL is a checkpoint (.pt, .pth, .safetensors) with --arch, or an ONNX file. OUT is of the same kind; from a
    checkpoint the other commands build the network again; or it is an exported program (.pt2). Folders of images become
    inputs of the size of --input, or of the ONNX file's.
    """
    from ..api import swap_lrn as run

    _run(run, model, output, report_file, given)


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="Where to write the network.")
@click.option("--data", type=FILE, required=True, metavar="D", help=DATA)
@click.option(
    "--method", type=click.Choice(("population", "moving")), default="population", show_default=True,
    help="The exact statistics of all values, or a moving average over the batches.",
)  # fmt: skip
@click.option(
    "--order", type=click.Choice(("joint", "layerwise")),
    help="One pass, norms using the statistics of each batch as in training (the default); or norm after norm, as at "
    "inference (the default for ONNX).",
)  # fmt: skip
@click.option("--decay", type=float, default=0.99, show_default=True, help="Of the moving average: 1 - momentum.")
@click.option("--resume", type=FILE, metavar="FILE", help="Keep here how far it got, and go on from there.")
@click.option("--report", "report_file", type=FILE, metavar="R.json", help="Write the report as JSON.")
@samples
@network
@common
def calibrate(model: Path, output: Path, report_file: Path | None, **given: Any) -> None:
    """Estimate the running mean and variance of every batch norm of MODEL anew, from data.

    MODEL is a checkpoint (.pt, .pth, .safetensors) with --arch, or an ONNX file; OUT is of the same kind, or an
    exported program (.pt2). Under torchrun the processes share the batches of a PyTorch network.
    """
    from ..api import calibrate as run

    with processes() as (first, _):
        if first or model.suffix != ".onnx":
            _run(partial(run, share=True), model, output, report_file, given, first)


def _run(
    run: Any, model: Path, output: Path, report_file: Path | None, given: dict[str, Any], first: bool = True
) -> None:
    """Call, write the report, print it; these two in the first process only."""
    as_json, quiet, debug = (given.pop(name) for name in ("as_json", "quiet", "debug"))
    options = torch_options(given)
    with errors(debug):
        check_report(report_file, output, model, given["data"])
        given["pixels"] = pixels(options["inputs"], given.pop("means"), given.pop("stds"))
        options = {name: options[name] for name in ("inputs", "arch", "arch_args", "trust_pickle")}
        with together(), progress_line(quiet or as_json or not first) as progress:
            result = run(model, out=output, progress=progress, **options, **given)
            from ..report.data import to_json

            text = to_json({**result.report.to_dict(), "output": str(output)})
            if report_file is not None and first:
                with written(report_file) as temporary:
                    temporary.write_text(text)
        if not first:
            return
        click.echo(text if as_json else f"{result.report}\nwrote {output}", nl=not as_json)
