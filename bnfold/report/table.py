"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..core.plan import BatchNorm, Plan, change
from .plots import profile

if TYPE_CHECKING:
    from ..judge.criteria.check import Check, OutputError
    from ..judge.latency import Bench

STYLES = {"folded": "green", "reduced": "yellow", "kept": "red"}
COLUMNS = {"output": 0, "inputs": 8, "largest error": 8, "relative": 8, "own error": 7, "judged by": 6, "value": 5,
           "bound": 5, "": 4}  # fmt: skip
"""Of the verification, with the widths that hold a number: together they fit into 80 columns."""
SHOWN = 3
"""Names of layers listed before "and n more"."""


def plan_table(plan: Plan) -> RenderableType:
    """Every norm: name, where it sits, verdict, where it went or why it stayed; and a line that counts."""
    notes = [Text(f"note: {note}", "yellow") for note in plan.notes]
    gains = [*([_smaller(plan)] if plan.merged or plan.dropped else []), *(Text(line) for line in plan.gains())]
    if not plan.batch_norms and not plan.others:
        return Group(*gains, *notes) if gains or notes else Text(f"{plan.model}: no batch norms")
    table = Table(title=escape(plan.model), title_justify="left", header_style="bold", expand=False)
    table.add_column("batch norm", overflow="fold")
    table.add_column("between", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("went into / why it stayed", overflow="fold")
    for bn in plan.lines:
        name = bn.name if bn.op_type == "BatchNormalization" else f"{bn.name} ({bn.op_type})"
        between = f"{bn.input} -> {bn.output}"
        table.add_row(escape(name), escape(between), Text(bn.said, STYLES[bn.verdict]), escape(fate(bn)))
    for other in plan.others:
        between = f"{other.input} -> {other.output}"
        table.add_row(
            escape(other.name), escape(between), Text(other.op_type, "cyan"), "not a batch norm: left as it is"
        )
    stayed = [Text("no batch norm was folded or reduced", "yellow")] if plan.all_kept else []
    return Group(*stayed, table, *notes, Text(summary(plan)), *gains)


def _smaller(plan: Plan) -> RenderableType:
    """Merged layers and dropped channels: where, and what that saves."""
    table = Table(header_style="bold", expand=False)
    table.add_column("merged layers, dropped channels", overflow="fold")
    table.add_column("into", overflow="fold")
    for column in ("multiplications", "bytes"):
        table.add_column(column, justify="right", overflow="fold")
    for merge in plan.merged:
        table.add_row(
            escape(_some(merge.nodes)), escape(merge.into), change(merge.multiplications), change(merge.bytes)
        )
    for drop in plan.dropped:
        where = f"{drop.dropped} of {drop.channels} channels of {drop.tensor}"
        table.add_row(escape(where), escape(_some(drop.layers)), change(drop.multiplications), change(drop.bytes))
    return table


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def fate(bn: BatchNorm) -> str:
    """Where it went, or why it stayed."""
    parts = []
    if bn.into:
        parts.append(_some(bn.into))
    if bn.reason:
        parts.append(f"[{bn.reason.code}] {bn.reason.text}" + (f" ({bn.reason.hint})" if bn.reason.hint else ""))
    return "; ".join(parts) or "needs no change elsewhere"


def summary(plan: Plan) -> str:
    """One line that counts."""
    others = len(plan.others)
    return plan.headline() + (f"; {others} other norm{'' if others == 1 else 's'}" if others else "")


def check_table(check: Check) -> RenderableType:
    """The worst of each output over all kinds of inputs, and the verdict."""
    table = Table(
        title="verification", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, show_edge=False,
        collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for column, width in COLUMNS.items():
        left = column in ("output", "inputs", "judged by", "")
        table.add_column(column, justify="left" if left else "right", overflow="fold", min_width=width)
    for o in check.outputs:
        own = "" if o.own is None else f"{o.own:.1e}"
        table.add_row(escape(o.output), o.kind, f"{o.error:.2e}", f"{o.relative:.1e}", own, *_hardest(o), _mark(o))
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in check.shapes.items())
    verdict = "passed" if check.passed else f"FAILED: {check.message}"
    by = f"; {check.criterion}" if check.criterion else ""
    how = f"{check.runner}; {shapes}; seed {check.seed}{by}" if check.outputs else check.runner
    line = Text(f"{verdict} ({how})", "green" if check.passed else "red")
    notes = [Text(f"warning: {warning}", "yellow") for warning in check.warnings]
    where = [Text(str(check.where)), *([profile(check.where)] if check.where.profile else [])] if check.where else []
    seen = [Text(finest_line(check))] if check.passed and check.resolution else []
    return Group(*([table] if check.outputs else []), *notes, *seen, *where, line)


def finest_line(check: Check) -> str:
    """The least difference that cannot pass as rounding, of the output where that is largest."""
    name, finest = max(check.resolution.items(), key=lambda item: item[1])
    which = f" of {name}" if len(check.resolution) > 1 else ""
    return f"differences{which} below {finest:.1e} of the largest magnitude (root mean square) may pass as rounding"


def pairs_table(checks: Sequence[tuple[str, Check | str]]) -> RenderableType:
    """One line for each pair of models: its verdict, and what comes closest to its bound."""
    table = Table(title="pairs", title_justify="left", header_style="bold")
    for column in ("pair", "", "closest to its bound", "value", "bound"):
        table.add_column(column, justify="right" if column in ("value", "bound") else "left", overflow="fold")
    failed = 0
    for name, check in checks:
        if isinstance(check, str):
            table.add_row(escape(name), Text("error", "red"), escape(check))
        else:
            worst = check.worst
            said = escape(f"{worst.output} on {worst.kind} inputs") if worst and check.passed else escape(check.message)
            numbers = _hardest(worst)[1:] if worst else ("", "")
            table.add_row(
                escape(name), Text(*(("passed", "green") if check.passed else ("FAILED", "red"))), said, *numbers
            )
        failed += isinstance(check, str) or not check.passed
    line = Text(f"{len(checks)} pairs, {failed} failed" if failed else f"{len(checks)} pairs, all passed")
    return Group(table, line)


def bench_table(bench: Bench) -> RenderableType:
    """Both medians with their intervals, in milliseconds, and what they say."""
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in bench.shapes.items())
    table = Table(title="latency", title_justify="left", header_style="bold")
    for column in ("model", "median ms", "95 % from", "to"):
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for name, which in zip(bench.names, ("reference", "candidate"), strict=True):
        found = bench.of(which)
        table.add_row(escape(name), *(f"{value * 1e3:.3f}" for value in (found.median, found.low, found.high)))
    how = f"{bench.rounds} rounds in turn ({bench.runner}; {shapes})"
    return Group(table, Text(how), Text(str(bench)))


def _hardest(output: OutputError) -> tuple[str, str, str]:
    """The measure that comes closest to its bound."""
    measure = max(output.measures, key=lambda measure: measure.strain, default=None)
    return ("", "", "") if measure is None else (measure.name, f"{measure.value:.3g}", f"{measure.bound:.3g}")


def _mark(output: OutputError) -> Text:
    if output.note == "skipped":
        return Text("skipped", "yellow")
    if output.passed and output.note.startswith("within"):
        return Text("ok (rounding)", "green")
    return Text("ok", "green") if output.passed else Text("differs", "red")


class _Console(Console):
    """A closed pipe is for the command to deal with; by itself rich would exit."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(*parts: RenderableType, stderr: bool = False) -> None:
    """Print to the terminal; into a file or a pipe without colours, wide enough to keep rows whole, and lines whole."""
    console = _Console(stderr=stderr, highlight=False, soft_wrap=False)
    whole = not console.is_terminal
    if whole:
        console = _Console(stderr=stderr, highlight=False, width=160)
    for part in _single(parts):
        console.print(part, soft_wrap=whole and isinstance(part, Text))


def _single(parts: Iterable[RenderableType]) -> Iterator[RenderableType]:
    for part in parts:
        if isinstance(part, Group):
            yield from _single(part.renderables)
        else:
            yield part
