"""What merging linear layers gains at run time, and whether the costs that decide it are those that are measured.

python -m benchmarks.merging [--rounds 30]
"""

from __future__ import annotations

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import bnfold
from benchmarks.latency import medians
from benchmarks.training_forms import FORMS
from bnfold.frontends.onnx.merging import Merged, merge


def merged(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, Merged]:
    """The model folded, and merged after that; each a model of its own."""
    folded = bnfold.fold(model, verify=False).model
    copy = onnx.ModelProto()
    copy.CopyFrom(folded)
    found = merge(copy)
    return folded, found.applied.complete(), found


def layers(model: onnx.ModelProto) -> int:
    """How many convolutions and products a model has."""
    return sum(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in model.graph.node)


def networks(rounds: int) -> None:
    """Milliseconds, layers, nodes and megabytes of whole networks before and after."""
    print("| network | threads | original ms | folded | merged | layers | nodes | MB |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, build in FORMS.items():
        model = build()
        folded, small, _ = merged(model)
        sizes = f"{model.ByteSize() / 1e6:.1f} -> {small.ByteSize() / 1e6:.1f}"
        counts = f"{layers(model)} -> {layers(small)} | {len(model.graph.node)} -> {len(small.graph.node)} | {sizes}"
        for threads in (1, 2):
            times = medians({"original": model, "folded": folded, "merged": small}, threads, rounds)
            base = times["original"]
            ratios = " | ".join(f"{times[key] / base:.3f}" for key in ("folded", "merged"))
            print(f"| {name} | {threads} | {1e3 * base:.2f} | {ratios} | {counts} |", flush=True)


@click.command()
@click.option("--rounds", default=30, show_default=True)
def main(rounds: int) -> None:
    """Print the tables of docs/benchmarks.md on merging."""
    print(f"onnxruntime {ort.__version__}, CPU, optimisations on, medians of runs in turn, shares of the original's time\n")
    networks(rounds)


if __name__ == "__main__":
    main()
