"""The report as one HTML file that needs nothing else: no scripts, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from ..core.graph import Reason
from ..core.plan import ChannelDrop, LayerMerge, Plan, change
from ..judge.criteria.check import HISTOGRAM, Check, OutputError, Where
from ..version import __version__
from .table import fate, finest_line, summary

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #2a8a3e; --bad: #c8323c; --own: #8a8f98; --new: #3b7dd8; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-size: .92em; } .wide { overflow-x: auto; }
th, td { padding: .25em .7em; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } td:first-child { min-width: 9em; } figure { max-width: 290px; overflow-wrap: anywhere; }
th, td.n, td.ok, td.differs, td.folded, td.reduced, td.kept, td.passed, td.failed, td.error { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.badge.passed, .badge.failed, .badge.error { color: #fff; }
.badge { border-radius: 4px; padding: .1em .6em; font-size: .8em; }
.passed, .ok, .folded { color: var(--good); } .failed, .error, .differs, .kept { color: var(--bad); }
.reduced { color: #b07a10; } .badge { color: #fff; background: var(--bad); } .badge.passed { background: var(--good); }
.badge.not-verified { background: #8a6d10; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5em; } figure { margin: 0; } figcaption { font-size: .85em; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; } code { overflow-wrap: anywhere; }
"""


Entry = tuple[str, "Check | str | None", "Plan | None"]


def to_html(entries: Sequence[Entry], done: bool = True) -> str:
    """A page with a part for each pair of models, by name.

    Each has the verdict, or the text that says why there is none (None where none was asked for), every output with a
    histogram of its errors, where the models part, and what became of every norm where the plan is given. `done`: the
    candidate was made by that plan; otherwise it says what a fold of the reference would do.
    """
    states = [_state(check) for _, check, _ in entries]
    failed = sum(state in ("error", "failed") for state in states)
    title = f"bnfold verify: {'failed' if failed else 'passed' if 'passed' in states else states[0]}"
    parts = [_pair(*entry, done) for entry in entries]
    if len(entries) > 1:
        parts.insert(0, _contents(entries, failed))
    return whole(title, parts)


def whole(title: str, parts: Sequence[str]) -> str:
    """The page around some parts."""
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<p><small>made by bnfold {__version__}</small></p>\n</body></html>\n"
    )


def _state(check: Check | str | None) -> str:
    if not isinstance(check, Check):
        return "not verified" if check is None else "error"
    return "passed" if check.passed else "failed"


def _contents(entries: Sequence[Entry], failed: int) -> str:
    rows = [(name, (_state(check), _state(check))) for name, check, _ in entries]
    return f"<h1>{len(entries)} pairs, {failed} failed</h1>" + table_html(("pair", ""), rows)


def _pair(name: str, check: Check | str | None, plan: Plan | None, done: bool) -> str:
    state = _state(check)
    top = f"<h1>{escape(name)} <span class='badge {state.replace(' ', '-')}'>{state}</span></h1>"
    if not isinstance(check, Check):
        said = "the models were not run (--no-verify)" if check is None else check
        return f"{top}<p>{escape(said)}</p>" + (_norms(plan, done) if plan is not None else "")
    said = check.message or ("the candidate is the same function as the reference, to rounding" if check.passed else "")
    parts = [
        top,
        f"<p>{escape(said)}</p>" if said else "",
        _facts(check),
        *(f"<p class='reduced'>warning: {escape(warning)}</p>" for warning in check.warnings),
        _parting(check.where) if check.where else "",
        _outputs(check.outputs),
        _histograms(check.outputs),
        _norms(plan, done) if plan is not None else "",
        _operators(*check.operators),
    ]
    return "\n".join(part for part in parts if part)


Cell = tuple[str, str] | str


def table_html(head: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: Sequence[int] = ()) -> str:
    """Cells are text, or text with a class; the columns `numbers` are set to the right."""

    def cell(tag: str, i: int, value: Cell) -> str:
        text, kind = value if isinstance(value, tuple) else (value, "")
        classes = " ".join(filter(None, [kind, "n" if i in numbers else ""]))
        return f"<{tag}{f' class={chr(39)}{classes}{chr(39)}' if classes else ''}>{escape(text)}</{tag}>"

    top = "".join(cell("th", i, name) for i, name in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', i, v) for i, v in enumerate(row))}</tr>\n" for row in rows)
    return f"<div class='wide'><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"


def _facts(check: Check) -> str:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in check.shapes.items())
    rows = [
        ("reference", check.names[0]), ("candidate", check.names[1]), ("run by", check.runner),
        ("criterion", check.criterion),
        ("resolution", finest_line(check) if check.passed and check.resolution else ""), ("inputs", shapes),
        ("seed", str(check.seed)),
    ]  # fmt: skip
    return table_html(("", ""), [row for row in rows if row[1]])


def _outputs(outputs: Sequence[OutputError]) -> str:
    if not outputs:
        return ""
    head = ("output", "inputs", "largest error", "relative", "own error", "judged by", "value", "bound", "")
    rows = []
    for o in outputs:
        hardest = max(o.measures, key=lambda measure: measure.strain, default=None)
        judged = ("", "", "") if hardest is None else (hardest.name, f"{hardest.value:.3g}", f"{hardest.bound:.3g}")
        own = "" if o.own is None else f"{o.own:.2e}"
        mark = ("skipped", "reduced") if o.note == "skipped" else ("ok", "ok") if o.passed else ("differs", "differs")
        rows.append((o.output, o.kind, f"{o.error:.2e}", f"{o.relative:.1e}", own, *judged, mark))
    return "<h2>Outputs</h2>" + table_html(head, rows, (2, 3, 4, 6, 7))


def _histograms(outputs: Sequence[OutputError]) -> str:
    """For each output the inputs on which it comes closest to its bound."""
    hardest: dict[str, OutputError] = {}
    for o in outputs:
        if any(o.histogram) and (o.output not in hardest or hardest[o.output].strain < o.strain):
            hardest[o.output] = o
    if not hardest:
        return ""
    figures = "".join(_histogram(o) for o in hardest.values())
    return (
        "<h2>Errors</h2><p>How many elements have an error of each size, over the largest magnitude of the output: "
        "<span style='color:var(--own)'>&#9632;</span> the reference's own, "
        "<span style='color:var(--new)'>&#9632;</span> the candidate's.</p>"
        f"<div class='plots'>{figures}</div>"
    )


def _histogram(o: OutputError) -> str:
    low, high, count = HISTOGRAM
    width, height = 12, 90
    most = max(max(row) for row in o.histogram if row) or 1
    bars = []
    for row, colour, shift in zip(o.histogram, ("--own", "--new"), (0, 5), strict=True):
        for i, value in enumerate(row):
            tall = height * math.log1p(value) / math.log1p(most)
            if value:
                bars.append(
                    f"<rect x='{i * width + shift}' y='{height - tall:.1f}' width='5' height='{tall:.1f}' "
                    f"fill='var({colour})'><title>{value}</title></rect>"
                )
    step = (high - low) / count
    ticks = "".join(
        f"<text x='{i * width}' y='{height + 14}'>1e{low + i * step:.0f}</text>" for i in range(0, count, 4)
    )
    caption = f"{escape(o.output)} on {escape(o.kind)} inputs"
    return (
        f"<figure><svg width='{count * width}' height='{height + 20}' role='img' aria-label='errors of {caption}'>"
        f"{''.join(bars)}{ticks}</svg><figcaption>{caption}</figcaption></figure>"
    )


def _parting(where: Where) -> str:
    text = f"<h2>Where they part</h2><p>{escape(str(where))}</p>"
    return text + (_profile(where) if len(where.profile) > 1 else "")


def _profile(where: Where) -> str:
    """Errors along the network: two lines over a logarithmic axis."""
    width, height, left = 960, 200, 46
    rows = {"--own": [p.own for p in where.profile], "--new": [p.found for p in where.profile]}
    known = [math.log10(v) for row in rows.values() for v in row if 0 < v < math.inf]
    low, high = (math.floor(min(known)), math.ceil(max(known))) if known else (-8, 0)
    high = max(high, low + 1)
    step = (width - left) / max(1, len(where.profile) - 1)

    def y(value: float) -> float:
        level = high if value == math.inf else math.log10(value) if value > 0 else low
        return height * (high - min(max(level, low), high)) / (high - low) + 8

    lines = "".join(
        f"<polyline fill='none' stroke='var({colour})' stroke-width='2' points='"
        + " ".join(f"{left + i * step:.1f},{y(value):.1f}" for i, value in enumerate(row))
        + "'/>"
        for colour, row in rows.items()
    )
    grid = "".join(
        f"<line x1='{left}' x2='{width}' y1='{y(10.0**level):.1f}' y2='{y(10.0**level):.1f}' stroke='var(--line)'/>"
        f"<text x='0' y='{y(10.0**level) + 4:.1f}'>1e{level}</text>"
        for level in range(low, high + 1)
    )
    names = [point.tensor for point in where.profile]
    mark = ""
    if where.tensor in names:
        x = left + names.index(where.tensor) * step
        mark = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{height + 8}' stroke='var(--bad)' stroke-dasharray='4 3'/>"
    dots = "".join(
        f"<circle cx='{left + i * step:.1f}' cy='{y(p.found):.1f}' r='4' fill='transparent'>"
        f"<title>{escape(p.tensor)} ({escape(p.op)}): own {p.own:.1e}, found {p.found:.1e}</title></circle>"
        for i, p in enumerate(where.profile)
    )
    return (
        "<p>Root mean square of the errors over that of the values, from the first tensor to the last: "
        "<span style='color:var(--own)'>&#9632;</span> the reference, <span style='color:var(--new)'>&#9632;</span> "
        f"the candidate.</p><div class='wide'><svg width='{width + 8}' height='{height + 16}' role='img' "
        f"aria-label='error profile'>{grid}{mark}{lines}{dots}</svg></div>"
    )


def _norms(plan: Plan, done: bool) -> str:
    head = ("batch norm", "between", "verdict", "went into / why it stayed")
    rows = [(bn.name, f"{bn.input} -> {bn.output}", (bn.said, bn.verdict), fate(bn)) for bn in plan.lines]
    notes = "".join(f"<p class='reduced'>note: {escape(note)}</p>" for note in plan.notes)
    if not done:
        notes = f"<p>What a fold of the reference would make of them, with default options.</p>{notes}"
    top = f"<h2>Batch norms</h2>{notes}<p>{escape(summary(plan))}</p>" + (table_html(head, rows) if rows else "")
    return top + _merges(plan.merges) + _drops(plan.drops)


def _merges(merges: Sequence[LayerMerge]) -> str:
    """Layers that become one, and those that look as if they could."""
    head = ("layers", "verdict", "went into / why they stayed", "multiplications", "bytes")
    rows = [
        (", ".join(merge.nodes), (merge.verdict, "folded" if merge.verdict == "merged" else "reduced"),
         _why(merge.into, merge.reason), change(merge.multiplications), change(merge.bytes))
        for merge in merges
    ]  # fmt: skip
    return "<h2>Merged layers</h2>" + table_html(head, rows, (3, 4)) if rows else ""


def _drops(drops: Sequence[ChannelDrop]) -> str:
    """Channels that carry nothing."""
    head = ("tensor", "channels", "empty", "dropped", "why the rest stays", "multiplications", "bytes")
    rows = [
        (drop.tensor, str(drop.channels), str(drop.empty), str(drop.dropped), _why("", drop.reason),
         change(drop.multiplications), change(drop.bytes))
        for drop in drops
    ]  # fmt: skip
    return "<h2>Channels that carry nothing</h2>" + table_html(head, rows, (1, 2, 3, 5, 6)) if rows else ""


def _why(into: str, reason: Reason | None) -> str:
    return into if reason is None else f"[{reason.code}] {reason.text}"


def _operators(before: dict[str, int], after: dict[str, int]) -> str:
    if not before or not after:
        return ""
    names = sorted({*before, *after}, key=lambda name: (-before.get(name, 0), name))
    rows = [(name, str(before.get(name, 0)), str(after.get(name, 0))) for name in names]
    rows.append(("all", str(sum(before.values())), str(sum(after.values()))))
    return "<h2>Operators</h2>" + table_html(("type", "reference", "candidate"), rows, (1, 2))
