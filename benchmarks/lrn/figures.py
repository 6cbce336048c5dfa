"""Pictures of what the other scripts wrote.

python -m benchmarks.lrn.figures docs/lrn
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .claims import DROPOUTS, NORMS, RATES, SCALES

STAGES = (
    "LRN network", "LRN left out, nothing in its place", "swapped, foldable, standard", "swapped, foldable, fit",
    "swapped, foldable, fit, distilled, 1", "swapped, foldable, fit, distilled, 5",
    "swapped, foldable, fit, labels, 1", "swapped, foldable, fit, labels, 5",
)  # fmt: skip


def heat_maps(claims: dict[str, Any], out: Path) -> None:
    """Test accuracy by norm and learning rate, by norm and initial scale, by norm and dropout."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    drops = [[test for test, _ in row] for row in claims["dropout"]]
    grids = (
        ("learning rate", RATES, NORMS, claims["rates"]),
        ("scale of the initial weights", SCALES, NORMS, claims["scales"]),
        ("dropout", DROPOUTS, NORMS[:2], drops),
    )
    axes = figure.subplots(1, 3, width_ratios=[6, 6, 3.4])
    for ax, (title, columns, rows, values) in zip(axes, grids, strict=True):
        data = np.array(values)
        ax.imshow(data, aspect="auto", vmin=0.1, vmax=max(0.5, float(data.max())), cmap="viridis")
        ax.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
        ax.set_yticks(range(len(rows)), rows)
        ax.set_title(title, fontsize=10)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                ax.text(
                    j, i, f"{value:.0%}", ha="center", va="center", color="white" if value < 0.4 else "black", size=8
                )
    figure.savefig(out, dpi=110)


def stages(runs: dict[str, Any], out: Path) -> None:
    """Accuracy at some stages, a point for each seed."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for run in runs["runs"]:
        ax.plot([run[name] for name in STAGES], range(len(STAGES)), "o", color="tab:blue", alpha=0.7)
    ax.axvline(float(np.mean([run["LRN network"] for run in runs["runs"]])), linestyle=":", color="grey")
    ax.set_yticks(range(len(STAGES)), STAGES, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(f"accuracy on test images ({runs['data']}, {runs['images']} to train on)")
    figure.savefig(out, dpi=110)


def main() -> None:
    """The pictures, beside the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with claims.json and accuracy-cifar10.json")
    folder = parser.parse_args().folder
    heat_maps(json.loads((folder / "claims.json").read_text()), folder / "claims.png")
    stages(json.loads((folder / "accuracy-cifar10.json").read_text()), folder / "accuracy.png")


if __name__ == "__main__":
    main()
