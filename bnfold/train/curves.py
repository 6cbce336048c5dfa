"""Curves of a run as a picture."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..files import check_target, written
from .history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".pdf", ".svg")


def check_picture(path: Path, model: Path | None = None) -> None:
    """Know before the work that curves can be written: UsageError, OutputError."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: {', '.join(SUFFIXES)} expected")
    check_target(path, model)


def plot_history(history: History, path: str | PathLike[str]) -> None:
    """Loss and accuracy by epoch, written whole to a .png, .pdf or .svg file; no display is needed.

    UsageError for another suffix, OutputError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = Path(fspath(path))
    check_picture(out)
    measured = bool(history.column("accuracy") or history.column("validation_accuracy"))
    figure = Figure(figsize=(9 if measured else 4.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    _draw(axes[0], history, "loss", "loss")
    if measured:
        named = "agreement with the teacher" if history.accuracy_of == "teacher" else "accuracy"
        _draw(axes[1], history, "accuracy", named)
    with written(out) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw(axes: Axes, history: History, column: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, label in ((column, "training"), (f"validation_{column}", "validation")):
        points = history.column(name)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    if history.best is not None:
        axes.axvline(history.best, linestyle=":", color="grey", label="kept")
    axes.set_xlabel("epoch")
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
