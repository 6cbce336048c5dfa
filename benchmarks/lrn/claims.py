"""What is said of BN, measured beside LRN: it stands larger learning rates, it cares less how weights start, and it
makes dropout needless.

    python -m benchmarks.lrn.claims --data cifar10 --seeds 0 1 --out claims.json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch

from .data import Images, arguments, load
from .network import ConvNet
from .training import BATCH, accuracy, train

NORMS = ("lrn", "bn", "none")
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SCALES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
DROPOUTS = (0.0, 0.25, 0.5)


def run(images: Images, norm: str, steps: int, seed: int, lr: float = 0.03, scale: float = 1.0,
        dropout: float = 0.0) -> tuple[float, float]:  # fmt: skip
    """Accuracy on test and training images after some steps from scratch; chance where the loss went to infinity."""
    torch.manual_seed(seed)
    channels, size = images.shape
    net = ConvNet(channels, size, norm, dropout, scale)
    loss = train(net, images, steps, lr, seed, flip=channels == 3)
    if not np.isfinite(loss):
        return 0.1, 0.1
    return accuracy(net, images), accuracy(net, images.part(2000), "train")


def grids(images: Images, steps: int, seeds: list[int], long: int) -> dict[str, Any]:
    """Mean test accuracies: by norm and learning rate, by norm and scale, by norm and dropout (with training's)."""

    def mean(**options: Any) -> list[float]:
        runs = [run(images, steps=options.pop("steps", steps), seed=seed, **options) for seed in seeds]
        found: list[float] = np.mean(runs, axis=0).tolist()
        return found

    rates = [[mean(norm=norm, lr=lr)[0] for lr in RATES] for norm in NORMS]
    print(grid("learning rate", RATES, rates), flush=True)
    scales = [[mean(norm=norm, scale=scale)[0] for scale in SCALES] for norm in NORMS]
    print(grid("initial scale", SCALES, scales), flush=True)
    few = images.part(len(images.train) // 2)
    drops = []
    for norm in NORMS[:2]:
        row = []
        for dropout in DROPOUTS:
            runs = [run(few, norm, long, seed, dropout=dropout) for seed in seeds]
            row.append(np.mean(runs, axis=0).tolist())
        drops.append(row)
    print(grid("dropout", DROPOUTS, [[test for test, _ in row] for row in drops], NORMS[:2]), flush=True)
    print(grid("dropout, on training images", DROPOUTS, [[own for _, own in row] for row in drops], NORMS[:2]))
    return {"rates": rates, "scales": scales, "dropout": drops, "steps": steps, "long": long}


def grid(title: str, columns: tuple[float, ...], rows: list[list[float]], names: tuple[str, ...] = NORMS) -> str:
    """Accuracies as Markdown."""
    lines = [f"| {title} | {' | '.join(f'{c:g}' for c in columns)} |", "|---|" + "---:|" * len(columns)]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"| {name} | {' | '.join(f'{value:.1%}' for value in row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """All grids."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--steps", type=int, default=200, help=f"of {BATCH} images (default %(default)s)")
    parser.add_argument("--long", type=int, default=800, help="steps of the runs with dropout (default %(default)s)")
    given = parser.parse_args()
    images = load(given.data).part(given.images)
    found = grids(images, given.steps, given.seeds, given.long)
    if given.out is not None:
        said = {"data": images.name, "images": len(images.train), "seeds": given.seeds, **found}
        given.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
