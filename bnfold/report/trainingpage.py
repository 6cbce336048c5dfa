"""A training run as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..train.history import History
from .page import table_html, whole
from .training import history_lines

WIDTH, HEIGHT, LEFT = 420, 220, 52


def training_html(model: str, output: str, settings: dict[str, Any], history: History) -> str:
    """Settings, curves of loss and accuracy, and a row for each epoch."""
    named = {"labels": "accuracy", "teacher": "agreement with the teacher"}.get(history.accuracy_of, "accuracy")
    head = ("epoch", "loss", named, "validation loss", f"validation {named}", "learning rate", "seconds")
    rows = [
        (
            f"{epoch.number}{' (kept)' if epoch.number == history.best else ''}",
            *("" if value is None else f"{value:.4g}" for value in (
                epoch.loss, epoch.accuracy, epoch.validation_loss, epoch.validation_accuracy)),
            f"{epoch.lr:.3g}", f"{epoch.seconds:.1f}",
        )
        for epoch in history.epochs
    ]  # fmt: skip
    said = [(name, str(value)) for name, value in {"model": model, "result": output, **settings}.items()]
    figures = "".join(_curves(history, column, title) for column, title in (("loss", "loss"), ("accuracy", named)))
    parts = [
        "<h1>bnfold retrain</h1>", table_html(("", ""), said), *(f"<p>{escape(x)}</p>" for x in history_lines(history)),
        f"<h2>Curves</h2><p><span style='color:var(--new)'>&#9632;</span> training, "
        f"<span style='color:var(--own)'>&#9632;</span> validation</p><div class='plots'>{figures}</div>",
        "<h2>Epochs</h2>", table_html(head, rows, tuple(range(7))),
    ]  # fmt: skip
    return whole("bnfold retrain", parts)


def _curves(history: History, column: str, title: str) -> str:
    """Training and validation by epoch; nothing where there are no numbers."""
    lines = [
        (colour, points)
        for name, colour in ((column, "--new"), (f"validation_{column}", "--own"))
        if (points := history.column(name))
    ]
    if not lines:
        return ""
    values = [value for _, points in lines for _, value in points]
    numbers = [number for _, points in lines for number, _ in points]
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    last = max(1, *numbers)

    def place(number: int, value: float) -> tuple[float, float]:
        return LEFT + number / last * (WIDTH - LEFT - 10), 10 + (high - value) / (high - low) * (HEIGHT - 40)

    drawn = "".join(_line(colour, [place(*point) for point in points]) for colour, points in lines)
    grid = "".join(
        f"<line x1='{LEFT}' x2='{WIDTH - 10}' y1='{y:.1f}' y2='{y:.1f}' stroke='var(--line)'/>"
        f"<text x='0' y='{y + 4:.1f}'>{value:.3g}</text>"
        for value in (low, (low + high) / 2, high)
        for _, y in [place(0, value)]
    )
    ticks = "".join(f"<text x='{place(n, low)[0] - 3:.1f}' y='{HEIGHT - 10}'>{n}</text>" for n in _ticks(last))
    return (
        f"<figure><svg width='{WIDTH}' height='{HEIGHT}' role='img' aria-label='{escape(title)} by epoch'>"
        f"{grid}{ticks}{drawn}</svg><figcaption>{escape(title)} by epoch</figcaption></figure>"
    )


def _line(colour: str, points: Sequence[tuple[float, float]]) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='var({colour})'/>" for x, y in points)
    return f"<polyline fill='none' stroke='var({colour})' stroke-width='2' points='{text}'/>{dots}"


def _ticks(last: int) -> list[int]:
    step = max(1, -(-last // 8))
    return list(range(0, last + 1, step))
