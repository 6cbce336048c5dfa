"""What the commands print: results to stdout, progress and errors to stderr; and the reports that they write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import BnfoldError, OutputError, UsageError

if TYPE_CHECKING:
    from ..equivalence.check import Check
    from ..plan import Plan


def check_report(report: Path | None, output: Path, model: Path) -> None:
    """Know before the work that the report can be written."""
    if report is None:
        return
    from ..files import check_target

    if report.resolve() == output.resolve():
        raise UsageError(f"{report}: the report and the output are the same file")
    check_target(report, model)


def write_report(path: Path | None, plan: Plan, check: Check | None, output: Path | None) -> None:
    """The report as JSON, where one was asked for."""
    if path is None:
        return
    from ..files import written
    from ..report.data import report, to_json

    with written(path) as temporary:
        temporary.write_text(to_json(report(plan, check, str(output) if output else None, verified=False)))


def show_result(plan: Plan, check: Check | None, as_json: bool, output: Path | None = None) -> None:
    """The plan and the verdict as tables, or as JSON."""
    if as_json:
        from ..report.data import report, to_json

        folded = check is not None or output is not None
        click.echo(to_json(report(plan, check, str(output) if output else None, False if folded else None)), nl=False)
        return
    from ..report.table import check_table, plan_table, show

    show(plan_table(plan), *([check_table(check)] if check else []))
    if output is not None:
        click.echo(f"wrote {output}" + ("" if check else ", NOT VERIFIED (--no-verify)"))


@contextmanager
def progress_line(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on; plain lines would fill logs, so only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


@contextmanager
def errors(debug: bool) -> Iterator[None]:
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
