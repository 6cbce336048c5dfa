"""Latency of a network with LRN, of the swapped one, and of the swapped and folded one.

    python -m benchmarks.lrn.latency --out latency.json

In torch (eager) and in onnxruntime (its optimisations on), with 1 and 2 threads and batches of 1 and 16 images; each
pair is run in turn. Weights are random: they do not matter here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import bnfold

from .network import ConvNet

THREADS = (1, 2)
BATCHES = (1, 16)


def measured(seconds: float, size: int = 32) -> list[dict[str, Any]]:
    """A row for each runner, number of threads and batch: milliseconds with LRN, and the ratios of the others to it."""
    torch.manual_seed(0)
    net = ConvNet(3, size).eval()
    swapped = bnfold.swap_lrn(net, data=torch.randn(64, 3, size, size).numpy()).model
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in BATCHES:
            x = torch.randn(batch, 3, size, size)
            folded = bnfold.fold(swapped, (x,)).model
            nets = {"lrn": net, "swapped": swapped, "folded": folded}
            files = {name: Path(folder) / f"{name}{batch}.onnx" for name in nets}
            for name, module in nets.items():
                bnfold.export(module, (x,), out=files[name], keep_bn=True, verify=False)
            for threads in THREADS:
                for runner, models in (("torch", nets), ("onnxruntime", files)):
                    rows.append(_row(runner, dict(models), x, batch, threads, seconds))
                    print(line(rows[-1]), flush=True)
    return rows


def _row(
    runner: str, models: dict[str, Any], x: torch.Tensor, batch: int, threads: int, seconds: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"runner": runner, "batch": batch, "threads": threads}
    for name in ("swapped", "folded"):
        found = bnfold.bench(models["lrn"], models[name], (x,), threads=threads, seconds=seconds)
        row["lrn"] = found.of("reference").median * 1e3
        row[name] = vars(found.ratio)
    return row


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    ratios = (f"{row[n]['median']:.2f} ({row[n]['low']:.2f}-{row[n]['high']:.2f})" for n in ("swapped", "folded"))
    return f"| {row['runner']} | {row['batch']} | {row['threads']} | {row['lrn']:.2f} | {' | '.join(ratios)} |"


HEAD = "| | batch | threads | with LRN, ms | swapped over LRN | folded over LRN |\n|---|---:|---:|---:|---:|---:|"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each pair (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write the numbers")
    given = parser.parse_args()
    print(HEAD)
    rows = measured(given.seconds)
    if given.out is not None:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
