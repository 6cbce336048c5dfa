"""Whole processes side by side: in turn, medians and ratios, the operating system's own accounting."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LAUNCH = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss)
"""
"""A small process between: a child's peak memory counts what its parent held when it forked."""


@dataclass(frozen=True)
class Run:
    """One finished process: wall seconds, peak resident memory in MiB."""

    wall: float
    peak: float


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end. RuntimeError when it fails: a failed run must not count as a fast one."""
    launched = subprocess.run([sys.executable, "-c", LAUNCH, *command], capture_output=True, text=True, env=env)
    code, wall, peak = launched.stdout.split()
    if int(code):
        raise RuntimeError(f"{' '.join(command)}: exit {code}\n{launched.stderr}")
    return Run(float(wall), float(peak) / 1024)


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Run]]:
    """Each command once to warm up, then all of them in turn, `rounds` times."""
    for command in commands.values():
        run(command)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command))
    return runs


def table(runs: Mapping[str, list[Run]], baseline: str) -> str:
    """Medians, and the median of the ratios round by round against `baseline`, as Markdown."""
    lines = ["| process | wall s | ratio | peak MiB | ratio |", "|---|--:|--:|--:|--:|"]
    base = runs[baseline]
    for name, mine in runs.items():
        wall = statistics.median(r.wall for r in mine)
        peak = statistics.median(r.peak for r in mine)
        wall_ratio = statistics.median(a.wall / b.wall for a, b in zip(mine, base, strict=True))
        peak_ratio = statistics.median(a.peak / b.peak for a, b in zip(mine, base, strict=True))
        lines.append(f"| {name} | {wall:.3f} | {wall_ratio:.2f} | {peak:.0f} | {peak_ratio:.2f} |")
    return "\n".join(lines)
