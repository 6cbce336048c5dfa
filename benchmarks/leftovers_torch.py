"""What the forms that a norm can be left in cost in eager PyTorch, next to keeping the norm.

python -m benchmarks.leftovers_torch [--rounds 200]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
import torch
from torch import nn

SHAPES = ((1, 64, 56, 56), (1, 512, 14, 14), (1, 1024, 7, 7), (1, 64, 400), (196, 384), (1, 32, 8, 14, 14))
INSTEAD = {"Max": "BN, Relu in place", "Max, Min": "BN, Relu6"}
"""What a form takes the place of; the others take that of the norm alone."""
COLUMNS = ("BN", "Add", "Mul", "depthwise Conv", "BN, Relu in place", "Max", "BN, Relu6", "Max, Min")


def calls(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """What is timed, for data of a shape: (N, C, *space)."""
    channels, axes = shape[1], len(shape) - 2
    x, low = torch.randn(shape), torch.rand(channels, *[1] * axes)
    high = low + 6
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes](channels).eval()
    made: dict[str, Callable[[], object]] = {
        "BN": lambda: norm(x),
        "Add": lambda: x + low,
        "Mul": lambda: x * low,
        "BN, Relu in place": lambda: norm(x).relu_(),
        "Max": lambda: torch.maximum(x, low),
        "BN, Relu6": lambda: nn.functional.relu6(norm(x)),
        "Max, Min": lambda: torch.minimum(torch.maximum(x, low), high),
    }
    if axes:
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](channels, channels, 1, groups=channels)
        made["depthwise Conv"] = lambda: layer(x)
    return made


def medians(timed: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, made in turn."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for i in range(rounds + 3):
        for name, call in timed.items():
            start = time.perf_counter()
            call()
            if i >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@click.command()
@click.option("--rounds", default=200, show_default=True)
@torch.no_grad()
def main(rounds: int) -> None:
    """Microseconds of what may stand in place of a norm, one thread, and the ratio to what it stands for."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, CPU, eager, 1 thread, medians of runs in turn\n")
    print(f"| shape | {' | '.join(COLUMNS)} |\n|---|{'--:|' * len(COLUMNS)}")
    for shape in SHAPES:
        times = medians(calls(shape), rounds)
        cells = [_cell(times, name) if name in times else "" for name in COLUMNS]
        print(f"| {'x'.join(map(str, shape))} | {' | '.join(cells)} |", flush=True)


def _cell(times: Mapping[str, float], name: str) -> str:
    microseconds = f"{1e6 * times[name]:.0f}"
    if name == "BN" or name in INSTEAD.values():
        return microseconds
    return f"{microseconds} ({times[name] / times[INSTEAD.get(name, 'BN')]:.2f})"


if __name__ == "__main__":
    main()
