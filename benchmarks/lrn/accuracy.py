"""From an LRN network to a BN network: accuracy at every stage.

    python -m benchmarks.lrn.accuracy --data cifar10 --seeds 0 1 --out accuracy.json

For each seed a network with two LRN layers is trained from scratch, then swapped with each placement and each
initialisation, and retrained for 1, 2 and 5 epochs: with labels, or from the outputs of the old network alone. At the
end the retrained network is folded, and must label every test image as before.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import nn

import bnfold

from .data import Images, arguments, load
from .network import ConvNet
from .training import BATCH, accuracy, train

EPOCHS = (1, 2, 5)
CALIBRATION = 1000


def stages(images: Images, seed: int, epochs: int, retrain: tuple[int, ...] = EPOCHS) -> dict[str, float]:
    """Accuracy on the test images, by what was done."""
    torch.manual_seed(seed)
    channels, size = images.shape
    old = ConvNet(channels, size)
    train(old, images, epochs * len(images.train) // BATCH, 0.03, seed, flip=channels == 3)
    found = {"LRN network": accuracy(old, images)}
    x = torch.from_numpy(images.train[:2])
    for placement in ("foldable", "in-place"):
        for init in ("standard", "fit"):
            swapped = bnfold.swap_lrn(old, (x,), data=images.train[:CALIBRATION], placement=placement, init=init).model
            found[f"swapped, {placement}, {init}"] = accuracy(swapped, images)
            if placement == "in-place" and init == "standard":
                continue
            for how in ("labels", "distilled") if init == "fit" else ("labels",):
                for count in retrain:
                    net = retrained(swapped, old, images, how, count, seed)
                    found[f"swapped, {placement}, {init}, {how}, {count}"] = accuracy(net, images)
            if (placement, init) == ("foldable", "fit"):
                folded = bnfold.fold(net, (x,)).model
                assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
                found["folded"] = accuracy(folded, images)
                assert found["folded"] == found[f"swapped, foldable, fit, distilled, {retrain[-1]}"]
    removed = torch.nn.Sequential(*[m for m in old.features if not isinstance(m, nn.LocalResponseNorm)])
    old.features = removed
    found["LRN left out, nothing in its place"] = accuracy(old, images)
    return found


def retrained(swapped: nn.Module, old: nn.Module, images: Images, how: str, epochs: int, seed: int) -> nn.Module:
    """The swapped network after some epochs, with labels or with the old network as the teacher."""
    data: dict[str, Any] = {"": images.train}
    if how == "labels":
        data["y"] = images.train_classes
    options = {"teacher": old} if how == "distilled" else {"labels": True}
    net: nn.Module = bnfold.retrain(swapped, data, epochs=epochs, seed=seed, **options).model
    return net


def table(runs: list[dict[str, float]]) -> str:
    """Each stage with the accuracy of each seed and their mean, as Markdown."""
    rows: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, value in run.items():
            rows[name].append(value)
    heads = "".join(f" seed {i} |" for i in range(len(runs)))
    lines = [f"| |{heads} mean |", "|---|" + "---:|" * (len(runs) + 1)]
    for name, values in rows.items():
        cells = " | ".join(f"{value:.1%}" for value in values)
        lines.append(f"| {name} | {cells} | {np.mean(values):.1%} |")
    return "\n".join(lines)


def main() -> None:
    """All seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--epochs", type=int, default=12, help="of the LRN network from scratch (default %(default)s)")
    given = parser.parse_args()
    images = load(given.data).part(given.images)
    runs = []
    for seed in given.seeds:
        runs.append(stages(images, seed, given.epochs))
        print(f"seed {seed}\n{table(runs)}\n", flush=True)
        if given.out is not None:
            said = {"data": images.name, "images": len(images.train), "seeds": given.seeds[: len(runs)], "runs": runs}
            given.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
