"""What the commands print: results to stdout, progress and errors to stderr; and the reports that they write."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import BnfoldError, OutputError, UsageError
from ..process.ends import blameless, heed
from ..process.quiet import own_process, quiet

if TYPE_CHECKING:
    from ..core.plan import Plan
    from ..judge.criteria.check import Check
    from .config import PairSettings


def check_reports(reports: Sequence[Path | None], output: Path, model: Path) -> None:
    """Know before the work that reports can be written, none over another or over what is read or written."""
    named = [report for report in reports if report is not None]
    if len({report.resolve() for report in named}) < len(named):
        raise UsageError(f"{named[0]}: two reports in the same file")
    for report in named:
        check_report(report, output, model)


def check_report(report: Path | None, output: Path, model: Path, *inputs: Path | None) -> None:
    """Know before the work that the report can be written, and over nothing that is read."""
    if report is None:
        return
    from ..files import check_target

    if report.resolve() == output.resolve():
        raise UsageError(f"{report}: the report and the output are the same file")
    check_target(report, model)
    check_spared(report, [model, *inputs])


def check_spared(target: Path, inputs: Iterable[Path | None]) -> None:
    """UsageError where a file that the command reads would be written over."""
    for given in inputs:
        if given is not None and target.exists() and any(target.samefile(path) for path in _files(given)):
            raise UsageError(f"{target}: this command reads it; name another file to write")


def _files(given: Path) -> set[Path]:
    """A file that is there, and those with the external data of an ONNX model."""
    if given.suffix != ".onnx" or not given.is_file():
        return {given} if given.exists() else set()
    from ..onnx.files import load, may_have_sides
    from ..onnx.store.external import side_files

    try:
        return {given, *(side_files(load(given), given.parent) if may_have_sides(given) else ())}
    except BnfoldError:  # what is wrong with it is said when it is read
        return {given}


def write_report(path: Path | None, plan: Plan, check: Check | None, output: Path | None) -> None:
    """The report as JSON, where one was asked for."""
    if path is None:
        return
    from ..files import written
    from ..report.data import report, to_json

    with written(path) as temporary:
        temporary.write_text(to_json(report(plan, check, str(output) if output else None, verified=False)))


def write_page(path: Path | None, plan: Plan, check: Check | None, model: Path, output: Path) -> None:
    """The report as a page, where one was asked for."""
    if path is None:
        return
    from ..report.page import to_html

    _write(path, to_html([(f"{model.name} : {output.name}", check, plan)]))


def check_targets(targets: Sequence[Path], models: Sequence[Path]) -> None:
    """Know before the work that reports can be written, none over another or over a model."""
    from ..files import check_target

    places = [path.resolve() for path in targets]
    if len(set(places)) < len(places):
        raise UsageError(f"{targets[0]}: two reports in the same file")
    for target in targets:
        for model in models:
            check_target(target, model)
        check_spared(target, models)


def write_checks(
    results: Sequence[tuple[PairSettings, Check | str]], html: Path | None, junit: Path | None, report: Path | None,
    single: bool,
) -> None:  # fmt: skip
    """The reports of comparisons that were asked for."""
    from ..files import together

    with together():
        if report is not None:
            _write(report, _checks_json(results, single))
        if junit is not None:
            from ..report.junit import to_junit

            _write(junit, to_junit([(pair.name, check) for pair, check in results]))
        if html is not None:
            from ..report.page import to_html

            _write(html, to_html([(pair.name, check, _norms(pair, check)) for pair, check in results], done=False))


def show_checks(results: Sequence[tuple[PairSettings, Check | str]], as_json: bool, single: bool) -> None:
    """Verdicts as tables, or as JSON."""
    if as_json:
        click.echo(_checks_json(results, single), nl=False)
        return
    from ..report.table import check_table, pairs_table, show

    for pair, check in results:
        if not isinstance(check, str) and (single or not check.passed):
            show(*([] if single else [pair.name]), check_table(check))
    if not single:
        show(pairs_table([(pair.name, check) for pair, check in results]))


def _checks_json(results: Sequence[tuple[PairSettings, Check | str]], single: bool) -> str:
    from ..report.data import to_json

    plain = [
        {"name": pair.name, "passed": False, "error": check}
        if isinstance(check, str)
        else {"name": pair.name, **check.to_dict()}
        for pair, check in results
    ]
    if single:
        return to_json({name: value for name, value in plain[0].items() if name != "name"})
    return to_json({"passed": all(entry["passed"] for entry in plain), "pairs": plain})


def _write(path: Path, text: str) -> None:
    from ..files import written

    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def _norms(pair: PairSettings, check: Check | str) -> Plan | None:
    """What would become of every norm of a reference, for a report; None where that cannot be told."""
    from ..api import inspect

    if isinstance(check, str):
        return None
    names = ("inputs", "arch", "arch_args", "trust_pickle")
    try:
        return inspect(pair.arguments["reference"], **{n: pair.arguments[n] for n in names if n in pair.arguments})
    except BnfoldError:
        return None


def show_result(
    plan: Plan, check: Check | None, as_json: bool, output: Path | None = None, model: Path | None = None
) -> None:
    """The plan and the verdict as tables, or as JSON. `model`: what `output` was made of."""
    if as_json:
        from ..report.data import report, to_json

        folded = check is not None or output is not None
        click.echo(to_json(report(plan, check, str(output) if output else None, False if folded else None)), nl=False)
        return
    from ..report.table import check_table, plan_table, show

    show(plan_table(plan), *([check_table(check)] if check else []))
    if output is not None:
        copied = "" if plan.changed else ", nothing was changed"
        click.echo(wrote(output, model) + copied + ("" if check else ", NOT VERIFIED (--no-verify)"))


def wrote(output: Path, model: Path | None = None) -> str:
    """What was written, the file of external data with it, and how large it and what it was made of are."""
    written = _files(output)
    beside = sorted(str(output.with_name(path.name)) for path in written if path.name != output.name)
    text = f"wrote {' and '.join([str(output), *beside])}, {_size(written)}"
    return text if model is None else f"{text} ({model.name}: {_size(_files(model))})"


def _size(files: Iterable[Path]) -> str:
    """How many bytes files have together, in the unit that suits."""
    total = float(sum(path.stat().st_size for path in files))
    for unit in ("bytes", "kB", "MB", "GB"):
        if total < 1000 or unit == "GB":
            break
        total /= 1000
    return f"{total:.0f} {unit}" if unit == "bytes" else f"{total:.3g} {unit}"


@contextmanager
def progress_line(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on; plain lines would fill logs, so only on a terminal.

    What others print meanwhile (a network's own code, libraries) stays off stdout, and there are no warnings.
    """
    with _contained():
        if quiet or not sys.stderr.isatty():
            yield lambda stage: heed()
            return
        from rich.console import Console

        with Console(file=sys.stderr).status("starting") as status:

            def progress(stage: str) -> None:
                heed()
                status.update(stage)

            yield progress


@contextmanager
def _contained() -> Iterator[None]:
    """stdout for results only: prints inside the block go to stderr; no warnings, and no log lines of libraries."""
    with own_process(), _diverted(), redirect_stdout(sys.stderr), quiet():
        yield


@contextmanager
def _diverted() -> Iterator[None]:
    """What libraries written in C print to stdout goes to stderr too, where these are the process's own."""
    try:
        own = (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (AttributeError, OSError, ValueError):  # closed, or something of a caller's
        own = False
    if not own:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        with suppress(AttributeError, OSError, TypeError):  # what they hold back; not to be had on Windows
            ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """One clear line on stderr and the exit code of the error; a traceback with --debug only."""
    try:
        with blameless():
            yield
    except BnfoldError as error:
        if debug:
            raise
        click.echo(f"bnfold: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever reads the results has seen enough
        raise
    except OSError as error:
        if debug:
            raise
        click.echo(f"bnfold: {OutputError(error)}", err=True)
        sys.exit(OutputError.exit_code)
    except SystemExit as error:  # from code of a user's
        if debug:
            raise
        click.echo(f"bnfold: the code of the model ended the program (sys.exit({error.code!r}))", err=True)
        sys.exit(1)
    except MemoryError:
        if debug:
            raise
        click.echo("bnfold: not enough memory for this model", err=True)
        sys.exit(1)
    except click.ClickException:
        raise
    except Exception as error:  # a fault of bnfold itself: still one line
        if debug:
            raise
        said = " ".join(str(error).split())[:300]
        click.echo(f"bnfold: internal error ({type(error).__name__}: {said}); --debug shows where", err=True)
        sys.exit(1)
