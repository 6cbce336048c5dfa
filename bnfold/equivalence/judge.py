"""Are two models the same function? Run both on seeded inputs of several kinds and compare every output.

A floating output passes when its largest difference, over the largest magnitude in the reference, is within the limit
of its type. Where it is not, the candidate gets a second hearing: inputs that differ by one unit in the last place show
how much rounding moves the reference's own output (a sigmoid near 0 has few digits left), and a difference of up to
NOISE_MULTIPLE times that passes. Last, the reference is run in float64, where it does not round: a candidate that is no
more than ERROR_MULTIPLE times as far from that as the reference itself passes. NaN never passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from ..errors import UsageError, VerificationError
from .check import Check, OutputError
from .inputs import Array, Feed, InputSpec, feeds, shape_choices
from .runners import Runner
from .subject import Aligned, Subject

LIMITS = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest `error / scale` for an output of each type."""
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
INTEGER_LIMIT = 1e-3
"""Share of the elements of an integer output (a label map, say) that may flip at ties."""
NOISE_MULTIPLE = 10.0
"""A difference of so many times what one unit in the last place of the inputs does is no fault."""
NOISE_RUNS = 3
ERROR_MULTIPLE = 4.0
"""A candidate may be so many times as far from the float64 outputs as the reference, and is as good as it."""
CLEAR = 0.1
"""A difference of this share of the largest magnitude is no rounding: nothing is run to find out."""
NEARLY = "as near to the float64 outputs as the reference"
"""Note of an entry that passed by the last hearing."""
SKIPPED = "skipped"
"""Note of an entry where the reference is not finite: nothing to compare with."""
ROUNDING = "within the reference's own rounding"
"""Note of an entry that passed by the second hearing."""
EMPTY = "empty"
"""Note of an entry without elements."""

Shapes = dict[str, tuple[int, ...]]


def judge(
    reference: Subject,
    candidate: Subject,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    limit: float | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Check:
    """Compare two models. VerificationError when nothing here can run the reference.

    Inputs and outputs of models of different kinds are matched by their order, where their names differ.

    `shapes` fixes the shapes of inputs; `limit` replaces the limits of `LIMITS`.
    """
    if seed < 0:
        raise UsageError(f"seed {seed}: a number from 0 up expected")
    specs = reference.specs()
    runner, used, first = _open(reference, seed, shapes or {}, progress)
    results: list[OutputError] = []
    warnings: list[str] = []
    varying: set[str] = set()

    def verdict(message: str) -> Check:
        said = (*warnings, *_steady(first, varying)) if specs and not message else tuple(warnings)
        said = (*said, *_only_rounding(results)) if not message else said
        return Check(not message, runner.name, seed, used, tuple(results), message, said)

    try:
        other = _aligned(candidate, runner, reference, first)
    except Exception as error:
        return verdict(f"the candidate cannot be loaded: {_line(error)}")
    for kind, feed in _all_feeds(reference, specs, used, seed):
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
        entries = compare(expected, found, kind, limit, _size(feed))
        if limit is None and any(_in_doubt(entry) for entry in entries):
            progress(f"measuring the reference's own rounding on {kind} inputs")
            entries = _second_hearing(entries, _noise(runner, feed, expected, seed))
        if limit is None and any(_in_doubt(entry) and entry.error <= CLEAR * entry.scale for entry in entries):
            progress(f"running the reference in float64 on {kind} inputs")
            entries = _last_hearing(entries, expected, found, _exact(reference, feed))
        results += entries
        if expected is not first:
            varying |= {entry.output for entry in compare(first, expected, kind, limit) if not entry.passed}
    return verdict(_fault(results))


def _size(feed: Feed) -> float:
    """The largest magnitude of the inputs, at least 1."""
    parts = [np.abs(value.astype(np.float64)).max(initial=0.0) for value in feed.values() if value.dtype.name in LIMITS]
    return float(max([1.0, *parts]))


def _in_doubt(entry: OutputError) -> bool:
    """Whether an entry failed by a number, and not because something is missing or not finite."""
    return not entry.passed and not entry.note and bool(np.isfinite(entry.error)) and entry.limit != INTEGER_LIMIT


def _noise(runner: Runner, feed: Feed, expected: Mapping[str, Array], seed: int) -> dict[str, float]:
    """The largest change of each output when every input moves by one unit in the last place."""
    noise = dict.fromkeys(expected, 0.0)
    for i in range(NOISE_RUNS):
        rng = np.random.default_rng([seed, 1000 + i])
        outputs = runner.run({name: _nudged(value, rng) for name, value in feed.items()})
        for name, value in outputs.items():
            if value.dtype.name in LIMITS:
                change = np.abs(value.astype(np.float64) - expected[name].astype(np.float64))
                noise[name] = max(noise[name], float(np.nan_to_num(change, posinf=0.0).max(initial=0.0)))
    return noise


def _nudged(value: Array, rng: np.random.Generator) -> Array:
    if value.dtype.name not in LIMITS:  # bfloat16 is of no kind that numpy knows
        return value
    up = rng.random(value.shape) < 0.5
    above, below = (np.nextafter(value, np.asarray(bound, value.dtype)) for bound in (np.inf, -np.inf))
    nudged: Array = np.where(up, above, below).astype(value.dtype)
    return nudged


def _second_hearing(entries: list[OutputError], noise: Mapping[str, float]) -> list[OutputError]:
    """Entries in doubt judged by the reference's own rounding."""
    heard = []
    for entry in entries:
        allowed = NOISE_MULTIPLE * noise[entry.output]
        if _in_doubt(entry) and entry.error <= allowed:
            limit = allowed / entry.scale if entry.scale > 0 else allowed
            entry = replace(entry, passed=True, limit=limit, note=ROUNDING)
        heard.append(entry)
    return heard


def _exact(reference: Subject, feed: Feed) -> dict[str, Array]:
    """The outputs of the reference in float64; none where nothing here computes them."""
    try:
        return reference.exact(feed)
    except Exception:  # an operator without an evaluator, not enough memory: then there is no last hearing
        return {}


def _last_hearing(
    entries: list[OutputError], expected: Mapping[str, Array], found: Mapping[str, Array], exact: Mapping[str, Array]
) -> list[OutputError]:
    """Entries in doubt judged by how far the reference and the candidate are from the float64 outputs."""
    heard = []
    for entry in entries:
        truth = exact.get(entry.output)
        if _in_doubt(entry) and truth is not None and truth.shape == expected[entry.output].shape:
            own, new = (
                float(np.abs(outputs[entry.output].astype(np.float64) - truth).max()) for outputs in (expected, found)
            )
            if np.isfinite(own) and new <= ERROR_MULTIPLE * own:
                entry = replace(entry, passed=True, note=NEARLY)
        heard.append(entry)
    return heard


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


def _only_rounding(results: list[OutputError]) -> list[str]:
    """A warning that names the outputs which passed on no inputs but by the second hearing."""
    sound = {entry.output for entry in results if entry.passed and entry.note not in (ROUNDING, NEARLY)}
    names = sorted({entry.output for entry in results if entry.note in (ROUNDING, NEARLY)} - sound)
    return [f"{', '.join(names)} agrees only within the reference's own rounding, on all inputs"] if names else []


def _open(
    reference: Subject, seed: int, given: Mapping[str, tuple[int, ...]], progress: Callable[[str], None]
) -> tuple[Runner, Shapes, dict[str, Array]]:
    """The first runner, with the first way to fill in dynamic sizes, that runs the reference; and what it gave."""
    causes = []
    specs = reference.specs()
    for engine in reference.engines():
        progress(f"running the reference in {engine.name}")
        try:
            runner = engine.open()
        except Exception as error:
            causes.append(f"{engine.name}: {_line(error)}")
            continue
        for shapes in shape_choices(specs, given):
            try:
                return runner, shapes, runner.run(_first(specs, shapes, seed))
            except UsageError:
                raise
            except Exception as error:
                causes.append(f"{engine.name}: {_line(error)}")
    raise VerificationError(
        f"nothing here can run the original model ({causes[0]}); input shapes can be given with --shape"
    )


def _aligned(candidate: Subject, runner: Runner, reference: Subject, first: Mapping[str, Array]) -> Runner:
    """The candidate in the engine that runs the reference, else in its own, under the reference's names."""
    specs = reference.specs()
    engines = candidate.engines()
    engine = next((engine for engine in engines if engine.name == runner.name), engines[0])
    if candidate.named and reference.named:
        return engine.open()
    own = [spec.name for spec in candidate.specs()]
    if len(own) != len(specs):
        raise VerificationError(f"it has {len(own)} inputs, {len(specs)} expected")
    return Aligned(engine.open(), own, list(first))


def _all_feeds(reference: Subject, specs: list[InputSpec], used: Shapes, seed: int) -> Iterator[tuple[str, Feed]]:
    """Inputs of all kinds, and those that came with the reference."""
    yield from feeds(specs, used, seed)
    given = reference.given()
    if given is not None and {name: value.shape for name, value in given.items()} == used:
        yield "given", given


def _first(specs: list[InputSpec], shapes: Shapes, seed: int) -> Feed:
    return next(feeds(specs, shapes, seed))[1]


def compare(
    expected: Mapping[str, Array], found: Mapping[str, Array], kind: str, limit: float | None = None, size: float = 0.0
) -> list[OutputError]:
    """One entry for each output of the reference.

    Where that is 0 everywhere, a unit in the last place of `size`, the magnitude of the inputs, is no difference.
    """
    return [_compare(name, kind, value, found.get(name), limit, size) for name, value in expected.items()]


def _compare(name: str, kind: str, a: Array, b: Array | None, limit: float | None, size: float) -> OutputError:
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
    floor = size * EPS[a.dtype.name] if scale == 0 else 0.0
    return OutputError(name, kind, error, scale, allowed, error <= allowed * scale + floor)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
