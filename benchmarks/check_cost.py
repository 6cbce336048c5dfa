"""What the check costs: the whole command with and without it, on files of about 100 MB at their true width.

python -m benchmarks.check_cost [--rounds 5] [--size 224]
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx

from benchmarks.process import in_turn, table
from tests.zoo import ZOO

NETWORKS = {"resnet50": 64, "densenet121": 32, "resnetv2_50": 64}
"""Widths at which they are those of their papers."""


def row(name: str, size: str, folder: Path, rounds: int) -> str:
    """One network, its input of a fixed size, or of the size that the check makes up."""
    path, out = folder / f"{name}.onnx", str(folder / "out.onnx")
    model = ZOO[name](dtype=np.float32, width=NETWORKS[name])
    if size:
        for dim, value in zip(
            model.graph.input[0].type.tensor_type.shape.dim, (1, 3, int(size), int(size)), strict=True
        ):
            dim.Clear()
            dim.dim_value = value
        del model.graph.value_info[:]
    onnx.save(model, path)
    fold = [sys.executable, "-m", "bnfold", "fold", str(path), "-o", out]
    commands = {"fold --no-verify": [*fold, "--no-verify"], "fold": fold}
    title = f"{name}, {path.stat().st_size / 1e6:.0f} MB, {f'1x3x{size}x{size}' if size else 'sizes made up'}"
    return f"{title}:\n\n{table(in_turn(commands, rounds), 'fold --no-verify')}\n"


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--size", "sizes", multiple=True, default=["224", ""], help='Heights and widths; "" for dynamic ones.')
def main(rounds: int, sizes: tuple[str, ...]) -> None:
    """Print the table of docs/benchmarks.md."""
    print(f"Python {platform.python_version()}, onnx {onnx.__version__}, numpy {np.__version__}, {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            for size in sizes:
                print(row(name, size, Path(folder), rounds))


if __name__ == "__main__":
    main()
