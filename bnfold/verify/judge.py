"""Are two ONNX models the same function? Run both on seeded inputs of several kinds and compare every output.

A floating output passes when its largest difference, over the largest magnitude in the reference, is within the limit
of its type. NaN never passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..errors import UsageError, VerificationError
from .check import Check, OutputError
from .inputs import Array, Feed, InputSpec, feeds, shape_choices
from .runners import OrtRunner, ReferenceRunner, Runner

LIMITS = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest `error / scale` for an output of each type."""
INTEGER_LIMIT = 1e-3
"""Share of the elements of an integer output (a label map, say) that may flip at ties."""

Shapes = dict[str, tuple[int, ...]]


def judge(
    reference: Path,
    candidate: Path,
    specs: list[InputSpec],
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    limit: float | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Check:
    """Compare two files. VerificationError when nothing here can run the reference.

    `shapes` fixes the shapes of inputs; `limit` replaces the limits of `LIMITS`.
    """
    runner, used, first = _open(reference, specs, seed, shapes or {}, progress)
    try:
        other = type(runner)(candidate)
    except Exception as error:
        return Check(False, runner.name, seed, used, (), f"the folded model cannot be loaded: {_line(error)}")
    results: list[OutputError] = []
    for kind, feed in feeds(specs, used, seed):
        progress(f"comparing on {kind} inputs")
        expected = first if kind == "normal" else runner.run(feed)
        try:
            found = other.run(feed)
        except Exception as error:
            return Check(
                False, runner.name, seed, used, tuple(results), f"the folded model cannot be run: {_line(error)}"
            )
        results += compare(expected, found, kind, limit)
    return _verdict(runner.name, seed, used, results)


def _verdict(runner: str, seed: int, shapes: Shapes, results: list[OutputError]) -> Check:
    """All outputs pass, and at least one was a number to compare."""
    if not results:
        return Check(False, runner, seed, shapes, (), "the models have no outputs to compare")
    usable = [r for r in results if r.note != "skipped"]
    if not usable:
        return Check(False, runner, seed, shapes, tuple(results), "the reference gives no finite output on any input")
    failed = [r for r in usable if not r.passed]
    message = (
        f"{failed[0].output} differs on {failed[0].kind} inputs{failed[0].note and ': ' + failed[0].note}"
        if failed
        else ""
    )
    return Check(not failed, runner, seed, shapes, tuple(results), message)


def _open(
    path: Path, specs: list[InputSpec], seed: int, given: Mapping[str, tuple[int, ...]], progress: Callable[[str], None]
) -> tuple[Runner, Shapes, dict[str, Array]]:
    """The first runner, with the first way to fill in dynamic sizes, that runs the reference; and what it gave."""
    causes = []
    for make in (OrtRunner, ReferenceRunner):
        progress(f"running the reference in {make.name}")
        try:
            runner = make(path)
        except Exception as error:
            causes.append(f"{make.name}: {_line(error)}")
            continue
        for shapes in shape_choices(specs, given):
            try:
                return runner, shapes, runner.run(_first(specs, shapes, seed))
            except UsageError:
                raise
            except Exception as error:
                causes.append(f"{make.name}: {_line(error)}")
    raise VerificationError(
        "nothing here can run the original model, so the result cannot be verified "
        f"({causes[0]}); give input shapes with --shape, or write without a check with --no-verify"
    )


def _first(specs: list[InputSpec], shapes: Shapes, seed: int) -> Feed:
    return next(feeds(specs, shapes, seed))[1]


def compare(
    expected: Mapping[str, Array], found: Mapping[str, Array], kind: str, limit: float | None = None
) -> list[OutputError]:
    """One entry for each output of the reference."""
    return [_compare(name, kind, value, found.get(name), limit) for name, value in expected.items()]


def _compare(name: str, kind: str, a: Array, b: Array | None, limit: float | None) -> OutputError:
    if b is None:
        return OutputError(name, kind, float("inf"), 0.0, 0.0, False, "the output is missing")
    if a.shape != b.shape or a.dtype != b.dtype:
        note = f"{a.dtype.name}{list(a.shape)} expected, {b.dtype.name}{list(b.shape)} found"
        return OutputError(name, kind, float("inf"), 0.0, 0.0, False, note)
    if a.dtype.name not in LIMITS:
        share = float((a != b).mean()) if a.size else 0.0
        return OutputError(name, kind, share, 1.0, INTEGER_LIMIT, share <= INTEGER_LIMIT)
    allowed = LIMITS[a.dtype.name] if limit is None else limit
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(x).all():
        return OutputError(name, kind, 0.0, 0.0, allowed, False, "skipped")
    scale = float(np.abs(x).max(initial=0.0))
    if not np.isfinite(y).all():
        return OutputError(
            name, kind, float("inf"), scale, allowed, False, "NaN or infinity where the reference is finite"
        )
    error = float(np.abs(x - y).max(initial=0.0))
    return OutputError(name, kind, error, scale, allowed, error <= allowed * scale)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
