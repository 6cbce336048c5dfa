"""bnfold retrain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..files import together, written
from .options import FILE, common, network, pixels, scaling, torch_options
from .output import check_report, check_spared, errors, progress_line
from .processes import processes

SETTINGS = (
    "epochs", "lr", "batch_size", "momentum", "weight_decay", "warmup", "seed", "patience", "labels", "distil",
    "feature_names", "temperature", "clip",
)  # fmt: skip


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="Where to write the checkpoint.")
@click.option(
    "--data",
    type=FILE,
    required=True,
    metavar="D",
    help="Samples to train on: .npz, .npy, a folder of images, or a folder with one folder for each class.",
)
@click.option("--validation", type=FILE, metavar="D", help="Samples to measure on, which are not trained on.")
@click.option(
    "--labels", is_flag=True, default=None, help="Learn the classes in the data; the default without --teacher."
)
@click.option(
    "--teacher",
    type=FILE,
    metavar="FILE",
    help="Learn from the network as it was: a checkpoint that --arch fits too. Needs no classes.",
)
@click.option(
    "--temperature",
    type=float,
    help="Compare classes at this temperature (KL divergence), not outputs (relative squared difference).",
)
@click.option(
    "--feature",
    "feature_names",
    multiple=True,
    metavar="NAME",
    help="Compare what this module gives as well. Repeatable.",
)
@click.option("--epochs", type=int, default=2, show_default=True, help="Passes over the data.")
@click.option("--lr", type=float, default=0.05, show_default=True, help="The highest learning rate.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Samples in a step.")
@click.option("--momentum", type=float, default=0.9, show_default=True, help="Nesterov's momentum.")
@click.option(
    "--weight-decay", type=float, default=1e-4, show_default=True, help="For weights; biases and norms have none."
)
@click.option(
    "--warmup", type=float, default=0.05, show_default=True, help="Part of the steps in which the rate rises."
)
@click.option("--clip", type=float, default=1.0, show_default=True, help="Gradients longer than this are shortened.")
@click.option(
    "--patience", type=int, metavar="N", help="Stop after N epochs without a lower validation loss, and take the best."
)
@click.option(
    "--checkpoint", type=FILE, metavar="DIR", help="Save the run here after every epoch, and go on from there."
)
@click.option("--checkpoint-steps", type=int, metavar="N", help="Save it after every N steps as well.")
@click.option("--no-resume", is_flag=True, help="Start anew, whatever is in --checkpoint.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order, dropout and the like.")
@click.option("--curves", type=FILE, metavar="R.png", help="Draw loss and accuracy by epoch.")
@click.option("--report", "report_file", type=FILE, metavar="R.json", help="Write what every epoch gave as JSON.")
@click.option("--html", type=FILE, metavar="R.html", help="Write that and the curves as a page.")
@scaling
@network
@common
def retrain(
    model: Path,
    output: Path,
    report_file: Path | None,
    curves: Path | None,
    html: Path | None,
    means: tuple[float, ...],
    stds: tuple[float, ...],
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Train MODEL, a checkpoint with --arch or an ONNX file, a little: with labels, or from the network as it was.

    Folders of images become inputs of the size that --input says; arrays are taken as they are. Under torchrun the
    processes train together, each on its part of every batch.
    """
    options = torch_options(given)
    given["labels"] = given["labels"] or None
    given["resume"] = not given.pop("no_resume")
    given["distil"] = "features" if given["feature_names"] else "outputs"
    with errors(debug):
        check_report(report_file, output, model)
        check_report(html, output, model)
        for target in (output, report_file, html, curves):
            if target is not None:
                check_spared(target, [given.get(name) for name in ("data", "validation", "teacher")])
        if html is not None and report_file is not None and html.resolve() == report_file.resolve():
            raise UsageError(f"{html}: the report and the page are the same file")
        _check_curves(curves, output, model)
        images = pixels(options.pop("inputs"), means, stds)
        quiet = quiet or as_json
        with processes(given["device"]) as (first, own), together(), progress_line(quiet or not first) as progress:
            from ..api import retrain as run
            from ..report.data import to_json
            from ..report.training import training_report

            given["device"] = own
            result = run(model, out=output, pixels=images, progress=progress, **options, **given)
            settings = {name: given[name] for name in SETTINGS}
            data = training_report(str(model), str(output), settings, result.history)
            if first:
                _write(report_file, curves, to_json(data), result)
                _write_page(html, str(model), str(output), settings, result)
        if not first:
            return
        _show(to_json(data) if as_json else None, result, output)


def _check_curves(curves: Path | None, output: Path, model: Path) -> None:
    if curves is None:
        return
    from ..train.curves import check_picture

    if curves.resolve() == output.resolve():
        raise UsageError(f"{curves}: the curves and the output are the same file")
    check_picture(curves, model)


def _write(report_file: Path | None, curves: Path | None, text: str, result: Any) -> None:
    from ..train.curves import plot_history

    if report_file is not None:
        with written(report_file) as temporary:
            temporary.write_text(text)
    if curves is not None:
        plot_history(result.history, curves)


def _write_page(path: Path | None, model: str, output: str, settings: dict[str, Any], result: Any) -> None:
    if path is None:
        return
    from ..report.trainingpage import training_html

    with written(path) as temporary:
        temporary.write_text(training_html(model, output, settings, result.history), encoding="utf-8")


def _show(text: str | None, result: Any, output: Path) -> None:
    if text is not None:
        click.echo(text, nl=False)
        return
    from ..report.table import show
    from ..report.training import history_lines, history_table

    show(history_table(result.history))
    for line in history_lines(result.history):
        click.echo(line)
    click.echo(f"wrote {output}")
