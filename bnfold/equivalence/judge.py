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
SKIPPED = "skipped"
"""Note of an entry where the reference is not finite: nothing to compare with."""
EMPTY = "empty"
"""Note of an entry without elements."""

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
    if seed < 0:
        raise UsageError(f"seed {seed}: a number from 0 up expected")
    runner, used, first = _open(reference, specs, seed, shapes or {}, progress)
    results: list[OutputError] = []
    warnings: list[str] = []
    varying: set[str] = set()

    def verdict(message: str) -> Check:
        said = (*warnings, *_steady(first, varying)) if specs and not message else tuple(warnings)
        return Check(not message, runner.name, seed, used, tuple(results), message, said)

    try:
        other = type(runner)(candidate)
    except Exception as error:
        return verdict(f"the candidate cannot be loaded: {_line(error)}")
    for kind, feed in feeds(specs, used, seed):
        progress(f"comparing on {kind} inputs")
        try:
            expected = first if kind == "normal" else runner.run(feed)
        except Exception as error:
            warnings.append(f"the reference cannot be run on {kind} inputs, so they were left out: {_line(error)}")
            continue
        try:
            found = other.run(feed)
        except Exception as error:
            return verdict(f"the candidate cannot be run on {kind} inputs: {_line(error)}")
        results += compare(expected, found, kind, limit)
        if expected is not first:
            varying |= {entry.output for entry in compare(first, expected, kind, limit) if not entry.passed}
    return verdict(_fault(results))


def _fault(results: list[OutputError]) -> str:
    """Why the candidate does not pass, "" when it does: every output passes, and had something to compare."""
    if not results:
        return "the models have no outputs to compare"
    failed = next((r for r in results if not r.passed and r.note != SKIPPED), None)
    if failed is not None:
        return f"{failed.output} differs on {failed.kind} inputs{failed.note and ': ' + failed.note}"
    finite = {r.output for r in results if r.note != SKIPPED}
    never = next((r.output for r in results if r.output not in finite), None)
    if never is not None:
        return f"the reference gives no finite {never} on any input"
    if all(r.note == EMPTY for r in results):
        return "no output has any element to compare"
    return ""


def _steady(first: Mapping[str, Array], varying: set[str]) -> list[str]:
    """A warning that names the outputs that are the same for all inputs: agreement on them proves little."""
    names = [name for name in first if name not in varying]
    if not names:
        return []
    which = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    return [f"the reference gives the same {which} on all inputs, within the limit: that the models agree says little"]


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
        f"nothing here can run the original model ({causes[0]}); input shapes can be given with --shape"
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
    if a.size == 0:
        return OutputError(name, kind, 0.0, 0.0, 0.0, True, EMPTY)
    if a.dtype.name not in LIMITS:
        share = float(np.mean(a != b))
        return OutputError(name, kind, share, 1.0, INTEGER_LIMIT, share <= INTEGER_LIMIT)
    allowed = LIMITS[a.dtype.name] if limit is None else limit
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(x).all():
        return OutputError(name, kind, 0.0, 0.0, allowed, False, SKIPPED)
    scale = float(np.abs(x).max())
    if not np.isfinite(y).all():
        return OutputError(
            name, kind, float("inf"), scale, allowed, False, "NaN or infinity where the reference is finite"
        )
    error = float(np.abs(x - y).max())
    return OutputError(name, kind, error, scale, allowed, error <= allowed * scale)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
