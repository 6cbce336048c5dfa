"""What a training run gave, as a table and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..version import __version__

if TYPE_CHECKING:
    from ..train.history import History

SCHEMA = 1


def training_report(model: str, output: str, settings: dict[str, Any], history: History) -> dict[str, Any]:
    """The run as plain data: what was trained, how, and what every epoch gave."""
    return {
        "schema": SCHEMA,
        "bnfold": __version__,
        "model": model,
        "output": output,
        "settings": settings,
        "history": history.to_dict(),
    }


def history_table(history: History) -> Table:
    """A row for each epoch; number 0 is the network before the first step."""
    measured = {"labels": "accuracy", "teacher": "as teacher"}.get(history.accuracy_of, "accuracy")
    table = Table(title="Retraining", title_justify="left")
    for name in ("epoch", "loss", measured, "validation loss", f"validation {measured}", "seconds"):
        table.add_column(name, justify="right")
    for epoch in history.epochs:
        kept = " (kept)" if epoch.number == history.best else ""
        table.add_row(
            f"{epoch.number}{kept}",
            _number(epoch.loss),
            _percent(epoch.accuracy),
            _number(epoch.validation_loss),
            _percent(epoch.validation_accuracy),
            f"{epoch.seconds:.1f}",
        )
    return table


def history_lines(history: History) -> list[str]:
    """What a reader should know besides the table."""
    lines = list(history.notes)
    if history.resumed:
        lines.append(f"went on after {history.resumed} steps of an earlier run")
    if history.stopped:
        lines.append("stopped early: the validation loss fell no further")
    if history.best == 0:
        lines.append("the network before the first step was the best, so it is the result")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
