"""The side door: parse, one public call, print, exit.

Exit codes: 0 done; 1 the models differ, or the model is not usable; 2 wrong usage.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from .errors import BnfoldError, OutputError, UsageError, VerificationError
from .limits import LEFTOVERS, PRECISION_LIMIT

if TYPE_CHECKING:
    from .equivalence.check import Check
    from .plan import Plan

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="bnfold")
def main() -> None:
    """Take batch normalisation out of trained networks, exactly, and prove it.

    Results go to stdout, progress and warnings to stderr. Exit codes: 0 done; 1 the models differ, or the model is not
    usable; 2 wrong usage.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that temporary files go
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names in a model may hold letters that the terminal does not know
            stream.reconfigure(errors="backslashreplace")


def _reading(command: F) -> F:
    """Options of every command that reads a model for folding."""
    for option in (
        click.option("--skip", multiple=True, metavar="NAME", help="Leave this norm alone; * and ? match. Repeatable."),
        click.option("--precision-limit", type=click.FloatRange(min=1), default=PRECISION_LIMIT, show_default=True,
                     help="How much precision other readers of a tensor may lose to a fold."),
        click.option("--freeze-inputs", is_flag=True, help="Treat graph inputs that have a default as constants."),
        click.option("--only-exact-removal", "leftovers", flag_value="none",
                     help="The same as --leftovers none: norms go without a trace or stay as they are."),
        click.option("--leftovers", type=click.Choice(LEFTOVERS), default=LEFTOVERS[0], show_default=True,
                     help="Forms in which norms that cannot go are left: those that measure no slower than the norm; "
                          "all (a single Add, Max or Clip too); none."),
    ):  # fmt: skip
        command = option(command)
    return command


def _judging(command: F) -> F:
    """Options of every command that compares models."""
    for option in (
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Seed of the random inputs."),
        click.option("--shape", "shapes", multiple=True, metavar="[NAME=]1x3x224x224", callback=_parse_shapes,
                     help="Shape of an input, for dynamic sizes. Repeatable."),
    ):  # fmt: skip
        command = option(command)
    return command


def _common(command: F) -> F:
    """Options of every command."""
    for option in (
        click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong."),
        click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else."),
    ):
        command = option(command)
    return command


def _parse_shapes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """NAME=1x3x224x224, or 1x3x224x224 for a model with one input (its name is then "")."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        parts = sizes.split("x")
        if not all(part.isdecimal() and int(part) for part in parts):
            raise click.BadParameter(f"{value!r}: sizes such as 1x3x224x224 expected")
        shapes[name] = tuple(map(int, parts))
    return shapes


@main.command()
@click.argument("model", type=FILE)
@_reading
@_common
def inspect(
    model: Path,
    skip: tuple[str, ...],
    freeze_inputs: bool,
    precision_limit: float,
    leftovers: str,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """List every batch norm and LRN of MODEL, and what would become of it. Nothing is written."""
    with _errors(debug), _progress(quiet or as_json) as progress:
        from .api import inspect as run

        progress("reading and planning")
        plan = run(model, skip=skip, freeze_inputs=freeze_inputs, precision_limit=precision_limit, leftovers=leftovers)
    _show(plan, None, as_json)


@main.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="Where to write the folded model.")
@click.option(
    "--report", "report_file", type=FILE, metavar="R.json", help="Write the report as JSON, also when the check fails."
)
@click.option("--no-verify", is_flag=True, help="Write without running the models; the report says so.")
@_judging
@_reading
@_common
def fold(
    model: Path,
    output: Path,
    report_file: Path | None,
    no_verify: bool,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    skip: tuple[str, ...],
    freeze_inputs: bool,
    precision_limit: float,
    leftovers: str,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Fold the batch norms of MODEL, verify the result, and write it to OUT when it passed."""
    with _errors(debug):
        _check_report(report_file, output, model)
        try:
            with _progress(quiet or as_json) as progress:
                from .api import fold as run

                result = run(
                    model,
                    out=output,
                    verify=not no_verify,
                    seed=seed,
                    shapes=shapes,
                    skip=skip,
                    freeze_inputs=freeze_inputs,
                    precision_limit=precision_limit,
                    leftovers=leftovers,
                    progress=progress,
                )
        except VerificationError as error:
            if error.plan is not None:
                _write_report(report_file, error.plan, error.check, None)
                _show(error.plan, error.check, as_json)
            raise
        _write_report(report_file, result.plan, result.check, output)
        _show(result.plan, result.check, as_json, output)


@main.command()
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@click.option(
    "--limit", type=click.FloatRange(min=0), help="Largest error over the reference's largest magnitude that passes."
)
@_judging
@_common
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
    with _errors(debug), _progress(quiet or as_json) as progress:
        from .api import verify as run

        check = run(reference, candidate, seed=seed, shapes=shapes, limit=limit, progress=progress)
    if as_json:
        from .report.data import to_json

        click.echo(to_json(check.to_dict()), nl=False)
    else:
        from .report.table import check_table, show

        show(check_table(check))
    sys.exit(0 if check.passed else 1)


def _check_report(report: Path | None, output: Path, model: Path) -> None:
    """Know before the work that the report can be written."""
    if report is None:
        return
    from .frontends.onnx.files import check_target

    if report.resolve() == output.resolve():
        raise UsageError(f"{report}: the report and the output are the same file")
    check_target(report, model)


def _write_report(path: Path | None, plan: Plan, check: Check | None, output: Path | None) -> None:
    if path is None:
        return
    from .frontends.onnx.files import written
    from .report.data import report, to_json

    with written(path) as temporary:
        temporary.write_text(to_json(report(plan, check, str(output) if output else None, verified=False)))


def _show(plan: Plan, check: Check | None, as_json: bool, output: Path | None = None) -> None:
    if as_json:
        from .report.data import report, to_json

        folded = check is not None or output is not None
        click.echo(to_json(report(plan, check, str(output) if output else None, False if folded else None)), nl=False)
        return
    from .report.table import check_table, plan_table, show

    show(plan_table(plan), *([check_table(check)] if check else []))
    if output is not None:
        click.echo(f"wrote {output}" + ("" if check else ", NOT VERIFIED (--no-verify)"))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on; plain lines would fill logs, so only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One clear line on stderr and the exit code of the error; a traceback with --debug only."""
    try:
        yield
    except BnfoldError as error:
        if debug:
            raise
        click.echo(f"bnfold: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug or isinstance(error, BrokenPipeError):
            raise
        click.echo(f"bnfold: {OutputError(error)}", err=True)
        sys.exit(OutputError.exit_code)
    except MemoryError:
        if debug:
            raise
        click.echo("bnfold: not enough memory for this model", err=True)
        sys.exit(1)
    except Exception as error:  # a fault of bnfold itself: still one line
        if debug:
            raise
        said = " ".join(str(error).split())[:300]
        click.echo(f"bnfold: internal error ({type(error).__name__}: {said}); --debug shows where", err=True)
        sys.exit(1)
