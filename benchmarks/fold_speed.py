"""How long a fold takes: the whole command on a 100 MB file beside a process that only loads and saves it.

python -m benchmarks.fold_speed [--rounds 9]
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx

from benchmarks.process import in_turn, table
from bnfold.core.gauge.planner import plan
from bnfold.onnx.read.read import read
from bnfold.onnx.store.skeleton import skeleton
from tests.zoo import ZOO

LOAD_SAVE = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"
ROUND_TRIP = (
    "import sys, onnx, onnx_graphsurgeon as gs; "
    "onnx.save(gs.export_onnx(gs.import_onnx(onnx.load(sys.argv[1]))), sys.argv[2])"
)


def whole_command(name: str, folder: Path, rounds: int) -> str:
    """The command on a network at its true width, about 100 MB."""
    path = folder / f"{name}.onnx"
    onnx.save(ZOO[name](dtype=np.float32, width=64), path)
    out = str(folder / "out.onnx")
    commands = {
        "onnx load and save": [sys.executable, "-c", LOAD_SAVE, str(path), out],
        "onnx-graphsurgeon round trip": [sys.executable, "-c", ROUND_TRIP, str(path), out],
        "bnfold fold --no-verify": [sys.executable, "-m", "bnfold", "fold", str(path), "-o", out, "--no-verify"],
    }
    size = path.stat().st_size / 1e6
    return f"{name}, {size:.0f} MB:\n\n{table(in_turn(commands, rounds), 'onnx load and save')}\n"


def start_up(rounds: int) -> str:
    """`bnfold --help` beside an empty interpreter."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "bnfold --help": [sys.executable, "-m", "bnfold", "--help"],
    }
    return f"Start-up:\n\n{table(in_turn(commands, rounds), 'python -c pass')}\n"


def planning(name: str, width: int, rounds: int) -> str:
    """Planning alone, in this process."""
    model = ZOO[name](dtype=np.float32, width=width)
    graph = read(model, skeleton(model), name).graph
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        made = plan(graph)
        times.append(time.perf_counter() - start)
    count = made.counts()["batch_norms"]
    return f"| {name}, width {width} | {len(graph.ops)} | {count} | {statistics.median(times):.3f} | {min(times):.3f} |"


@click.command()
@click.option("--rounds", default=9, show_default=True)
def main(rounds: int) -> None:
    """Print the tables of docs/benchmarks.md."""
    print(f"Python {platform.python_version()}, onnx {onnx.__version__}, numpy {np.__version__}, {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resnet50", "resnetv2_50"):
            print(whole_command(name, Path(folder), rounds))
    print(start_up(rounds))
    print("Planning:\n\n| network | ops | norms | median s | fastest s |\n|---|--:|--:|--:|--:|")
    for name, width in (("densenet121", 32), ("resnetv2_50", 64), ("resnet50", 64)):
        print(planning(name, width, rounds))


if __name__ == "__main__":
    main()
