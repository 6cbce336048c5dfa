"""PyTorch: what folding gains in eager mode, beside torch's fuse and torch.compile with freezing; and what it costs.

python -m benchmarks.pytorch [--rounds 30] [--no-compile] [--device cuda]

Rows: latency in milliseconds of one batch, in turn, medians, and the ratio to the module as it was. `BN left` counts
norms that still run. `fx fuse` is torch.fx.experimental.optimization.fuse, `compile` is torch.compile with freezing on.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import nn

import bnfold
from tests.torch_nets import alive, error, positive
from tests.torch_zoo import Dense, PreActivation, RepBlock, of_transformers

IMAGE = (1, 3, 128, 128)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet-50": of_transformers("ResNetForImageClassification"),
    "mobilenet_v2": of_transformers("MobileNetV2ForImageClassification"),
    "pre-activation": lambda: PreActivation(64, 8),
    "repvgg": lambda: nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), *(RepBlock(64, 64) for _ in range(8))),
    "dense": lambda: Dense(32, 8),
}


def network(name: str) -> nn.Module:
    """A network with norms that are not trivial, gammas positive."""
    torch.manual_seed(0)
    return positive(alive(NETWORKS[name](), zeros=False))


def seconds(run: Callable[[], Any], cuda: bool) -> float:
    """How long one run takes, the device's queue emptied."""
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def norms_left(module: nn.Module, x: torch.Tensor) -> int:
    """How many batch norms run."""
    ran: list[nn.Module] = []
    handles = [
        inner.register_forward_hook(lambda *a: ran.append(a[0]))
        for inner in module.modules()
        if isinstance(inner, nn.modules.batchnorm._BatchNorm)
    ]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return len(ran)


def fused(module: nn.Module) -> nn.Module | str:
    """torch.fx's fuse, or why not."""
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(copy.deepcopy(module))
    except Exception as problem:
        return type(problem).__name__


def compiled(module: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], Any] | str:
    """torch.compile with freezing, warmed up, or why not."""
    import torch._inductor.config as config

    try:
        with torch.no_grad(), config.patch(freezing=True):
            made = torch.compile(copy.deepcopy(module))
            made(x)
        return made
    except Exception as problem:
        return type(problem).__name__


def versions(name: str, x: torch.Tensor, compile_too: bool) -> dict[str, Any]:
    """The original and all its rivals."""
    original = network(name).to(x.device)
    folded = bnfold.fold(original, (x,), verify=False)
    found: dict[str, Any] = {"original": original, "fx fuse": fused(original), "bnfold": folded.model}
    if compile_too:
        found["compile"] = compiled(original, x)
        found["bnfold, compile"] = compiled(folded.model, x)
    return found


def latency(name: str, rounds: int, device: str, compile_too: bool) -> None:
    """Print the rows of one network."""
    x = torch.randn(IMAGE, device=device)
    models = versions(name, x, compile_too)
    runnable = {key: made for key, made in models.items() if not isinstance(made, str)}
    times: dict[str, list[float]] = {key: [] for key in runnable}
    with torch.no_grad():
        exact = models["original"](x)
        for i in range(rounds + 3):
            for key, made in runnable.items():
                took = seconds(lambda made=made: made(x), device != "cpu")  # type: ignore[misc]
                if i >= 3:
                    times[key].append(took)
        for key, made in models.items():
            if isinstance(made, str):
                print(f"| {name} | {key} | {made} | | | |")
                continue
            ratios = [a / b for a, b in zip(times[key], times["original"], strict=True)]
            left = norms_left(made, x) if isinstance(made, nn.Module) and "compile" not in key else "-"
            wrong = error(exact, made(x))
            milli = 1e3 * statistics.median(times[key])
            print(
                f"| {name} | {key} | {left} | {milli:.2f} | {statistics.median(ratios):.2f} | {wrong:.1e} |", flush=True
            )


def cost(name: str, rounds: int, device: str) -> None:
    """Print how long folding takes beside torch.export alone."""
    x = torch.randn(IMAGE, device=device)
    module = network(name).to(device)
    runs: dict[str, Callable[[], Any]] = {
        "export": lambda: torch.export.export(module, (x,), strict=False),
        "fold": lambda: bnfold.fold(module, (x,), verify=False),
        "fold, verified": lambda: bnfold.fold(module, (x,)),
    }
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(seconds(run, device != "cpu"))
    medians = {key: statistics.median(values) for key, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["fold"], times["export"], strict=True))
    print(
        f"| {name} | {medians['export']:.2f} | {medians['fold']:.2f} | {ratio:.2f} | {medians['fold, verified']:.2f} |"
    )


@click.command(help=__doc__)
@click.option("--rounds", default=30, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--compile/--no-compile", "compile_too", default=True, show_default=True)
def main(rounds: int, device: str, compile_too: bool) -> None:
    """Both tables."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {device}, 1 thread, batch 1 of 3x128x128\n")
    print("| network | version | BN left | ms | ratio | difference |\n|---|---|--:|--:|--:|--:|")
    for name in NETWORKS:
        latency(name, rounds, device, compile_too)
    print("\n| network | torch.export s | fold s | ratio | fold and verify s |\n|---|--:|--:|--:|--:|")
    for name in NETWORKS:
        cost(name, 3, device)


if __name__ == "__main__":
    main()
