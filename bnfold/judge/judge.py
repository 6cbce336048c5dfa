"""Are two models the same function? Run both on inputs of several kinds and compare every output.

Both are compared with the reference in float64 (`criterion`). What fails gets a second hearing: weights and inputs that
differ by units in the last place show how much rounding moves the reference's own output (a sigmoid near 0 has few
digits left), and a difference of up to NOISE_MULTIPLE times what one unit does passes. Where nothing here computes in
float64, or where that says something else than the reference, the limit of the type decides. NaN never passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from time import monotonic

import numpy as np

from ..errors import UsageError, VerificationError
from .criteria.check import Check, Measure, OutputError, Where
from .criteria.criterion import (
    COARSE,
    EMPTY,
    EPS,
    INTEGER_LIMIT,
    LIMITS,
    PARTS,
    SKIPPED,
    Criterion,
    Errors,
    apart,
    beside,
    blocks,
    facts,
    in_doubt,
    magnitude,
    tolerance,
)  # fmt: skip
from .criteria.inputs import RESIZED, Array, Axes, Choice, Feed, Inputs, dynamic_axes
from .criteria.locate import locate
from .criteria.parts import LEAST as FEW
from .criteria.scopes import paired
from .subjects.nudges import Nudged, nudged
from .subjects.runners import OrtRunner, ReferenceRunner, Runner
from .subjects.subject import Aligned, Subject

NOISE_MULTIPLE = 4.0
"""A difference of so many times what one unit in the last place of the weights and inputs does is no fault."""
NUDGES = tuple((sign * units, draw) for draw, units in enumerate((1.0, 2.0, 2.0, 4.0, 4.0)) for sign in (1, -1))
"""Units in the last place, and which draw of directions: one way and the other, as a step lies on one side. Several
units find the steps of a QuantizeLinear, or of a saturated function, that a fold may cross."""
FIRST = 2
"""How many of these runs are made whenever there is doubt; the others as long as they may change the verdict."""
FLIPS = 2.0
"""So many times the share of whole numbers that such runs flip in the reference itself may flip in the candidate."""
TRUST, UNITS = 100.0, 16.0
"""The reference may be so many times its noise, or so many units in the last place of the inputs, away from float64
before that is taken for another function."""
RUNTIME = "the same function, apart from the rounding of the candidate's runtime"
"""Note of an entry where two runtimes round differently."""
ROUNDING = "within the reference's own rounding"
"""Note of an entry that passed by the second hearing."""

Progress = Callable[[str], None]


def judge(
    reference: Subject,
    candidate: Subject,
    inputs: Inputs | None = None,
    criterion: Criterion | None = None,
    progress: Progress = lambda stage: None,
    locating: bool = True,
) -> Check:
    """Compare two models. VerificationError when nothing here can run the reference.

    Inputs and outputs of models of different kinds are matched by their order, where their names differ. `locating`:
    look for the tensor at which they part, where they do.
    """
    inputs, criterion = inputs or Inputs(), criterion or Criterion()
    runner, choice, first = _open(reference, inputs, progress)
    pace = Pace(progress, choice.count + _gives(reference, choice))
    hearing = Hearing(reference, Nudges(reference, runner, inputs.seed), criterion, pace.note)
    entries: dict[tuple[str, str], OutputError] = {}
    warnings: list[str] = []
    varying: set[str] = set()
    failing: tuple[str, Feed] | None = None

    def verdict(message: str) -> Check:
        found = tuple(entries.values())
        said = [*warnings, *hearing.warnings]
        if not message:
            said += [*(_steady(first, varying) if reference.specs() else []), *_only_rounding(found)]
            said += _coarse(Check(True, "", 0, {}, found).resolution)
        return Check(not message, runner.name, inputs.seed, choice.shapes, found, message, tuple(dict.fromkeys(said)),
                     criterion.used(found), None, (reference.name, candidate.name))  # fmt: skip

    again = _irreproducible(first, runner, choice)
    if again:
        return verdict(
            f"the reference gives another {again} when it runs again on the same inputs, so nothing can be said"
        )
    try:
        other = _aligned(candidate, runner, reference, first)
    except Exception as error:
        return verdict(f"the candidate cannot be loaded: {_line(error)}")
    hearing.other = _Exact(candidate, other) if other.name != runner.name else None
    hearing.theirs = Nudges(candidate, other, inputs.seed)
    warnings += _strangers(other, reference)
    warnings += [
        f"the {which} has norms or dropout in train mode, and was run like that"
        for which, subject in (("reference", reference), ("candidate", candidate))
        if getattr(subject, "training", False)
    ]

    def compared(kind: str, feed: Feed, expected: Mapping[str, Array]) -> str:
        nonlocal failing
        pace.begin(kind)
        try:
            found = other.run(feed)
        except Exception as error:
            return f"the candidate cannot be run on {kind} inputs: {_line(error)}"
        for entry in hearing.compare(expected, found, kind, feed):
            before = entries.get((entry.output, kind))
            entries[entry.output, kind] = entry if before is None else _worse(before, entry)
            if not entry.passed and entry.note != SKIPPED and failing is None:
                failing = kind, feed
        more = [name for name in found if name not in expected]
        warnings.extend([f"the candidate has outputs that the reference lacks: {', '.join(more)}"] if more else [])
        return ""

    for i, (kind, feed) in enumerate(_all_feeds(reference, choice)):
        try:
            expected = first if i == 0 else runner.run(feed)
        except Exception as error:
            warnings.append(f"the reference cannot be run on {kind} inputs, so they were left out: {_line(error)}")
            continue
        wrong = compared(kind, feed, expected)
        if wrong:
            return verdict(wrong)
        varying |= {name for name in expected if name not in varying and _varies(first[name], expected.get(name), feed)}
    resized = _resized(inputs, choice, _axes(reference, candidate, other), reference, runner)
    wrong = compared(RESIZED, *resized) if resized else ""
    fault = wrong or _fault(list(entries.values()))
    if resized:
        sizes = f"resized inputs ({_sizes(resized[0])}; --shape holds the comparison to one size)"
        fault = fault.replace("resized inputs", sizes, 1)
    check = replace(verdict(fault), operators=_operators(reference, candidate))
    if failing is None or check.passed or not locating:
        return check
    return replace(check, where=_where(reference, candidate, runner, other, failing, criterion.multiple, progress))


def _resized(
    inputs: Inputs, choice: Choice, axes: Axes, reference: Subject, runner: Runner
) -> tuple[Feed, dict[str, Array]] | None:
    """Inputs of other sizes that the reference takes, and what it gives; None where sizes are fixed."""
    for other in inputs.resized(reference.specs(), choice.shapes, axes):
        ((_, feed),) = other.feeds()
        try:
            return feed, runner.run(feed)
        except Exception:  # a network may take some sizes only: that is no fault
            continue
    return None


def _axes(reference: Subject, candidate: Subject, other: Runner) -> Axes:
    """Dynamic axes of the reference; where that is a module, which does not say, those of the candidate."""
    axes = dynamic_axes(reference.specs())
    if reference.named or not isinstance(other, Aligned):
        return axes
    theirs = dynamic_axes(candidate.specs())
    return {name: axes[name] | theirs.get(own, set()) for name, own in zip(axes, other.inputs, strict=True)}


def _sizes(feed: Feed) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in feed.items())


def _strangers(runner: Runner, reference: Subject) -> list[str]:
    """A warning that names inputs which the candidate does not have: the reference may not need them."""
    if not isinstance(runner, OrtRunner | ReferenceRunner):
        return []
    names = [spec.name for spec in reference.specs() if spec.name not in runner.inputs]
    return [f"the candidate lacks inputs that the reference has: {', '.join(names)}"] if names else []


def _operators(*subjects: Subject) -> tuple[dict[str, int], dict[str, int]]:
    """How many of each; nothing where a model cannot be counted."""
    found = []
    for subject in subjects:
        try:
            found.append(subject.operators())
        except Exception:  # for people only, and no part of the verdict
            found.append({})
    return found[0], found[1]


def _where(
    reference: Subject, candidate: Subject, runner: Runner, other: Runner, failing: tuple[str, Feed], multiple: float,
    progress: Progress,
) -> Where | None:  # fmt: skip
    """The tensor at which they part; None where one cannot be looked into."""
    try:
        first, second = reference.probe(runner.name), candidate.probe(other.name)
        if first is None or second is None:
            return None
        pair = paired(first, second, other.renamed if isinstance(other, Aligned) else dict)
        return locate(*pair, failing[1], failing[0], multiple, progress, len({runner.name, other.name}))
    except Exception:  # a convenience, which must not hide the verdict
        return None


def _irreproducible(first: Mapping[str, Array], runner: Runner, choice: Choice) -> str:
    """The name of an output that another run on the same inputs changes by more than rounding, "" if none."""
    again = runner.run(next(choice.feeds())[1])
    for name, value in first.items():
        other = again.get(name)
        if other is None or other.shape != value.shape:
            return name
        limit = LIMITS.get(value.dtype.name, INTEGER_LIMIT)
        entry = facts("", "", value, other)
        if not entry.note and entry.error > limit * entry.scale:
            return name
    return ""


@dataclass
class _Exact:
    """The candidate in float64, under the names of the reference."""

    candidate: Subject
    runner: Runner

    def run(self, feed: Feed) -> dict[str, Array]:
        """Its outputs; none where nothing here computes them."""
        aligned = self.runner if isinstance(self.runner, Aligned) else None
        try:
            found = self.candidate.exact(aligned.renamed(feed) if aligned else feed)
        except Exception:  # an operator without an evaluator
            return {}
        return aligned.named(found) if aligned and found else found


@dataclass
class Nudges:
    """Runs a model with its weights and inputs nudged. `moved`: the model with other weights, once that is needed."""

    subject: Subject
    runner: Runner
    seed: int
    moved: Nudged | None = None

    def runs(self, feed: Feed) -> Iterator[tuple[float, dict[str, Array]]]:
        """Outputs under the names of the reference, each with the number of units."""
        aligned = self.runner if isinstance(self.runner, Aligned) else None
        feed = aligned.renamed(feed) if aligned else feed
        for units, draw in NUDGES:
            rng = np.random.default_rng([self.seed, 1000 + draw])
            inputs = {name: nudged(value, rng, units) for name, value in feed.items()}
            try:
                self.moved = self.moved or self.subject.nudged(self.runner.name)
                found = self.moved.run(inputs, rng, units)
            except Exception:  # not every model can be copied, or run with each of its weights moved
                self.moved = _Unmoved(aligned.runner if aligned else self.runner)
                found = self.moved.run(inputs, rng, units)
            yield abs(units), aligned.named(found) if aligned else found


@dataclass
class _Unmoved:
    """A model that keeps its weights: its inputs alone are nudged, which says less."""

    runner: Runner

    def run(self, feed: Feed, rng: np.random.Generator, units: float) -> dict[str, Array]:
        """Outputs by name."""
        return self.runner.run(feed)


@dataclass
class Hearing:
    """Compares outputs of two models; runs them again where rounding must be told from faults.

    `mine`, `theirs`: the reference and the candidate with other weights. A fold may move outputs as far as units in the
    last place of the reference's weights do, and no further than those of its own do: where the reference subtracts
    numbers that are nearly equal, a unit in each says nothing of what their difference is rounded to. `other`: the
    candidate in float64, where it runs in another runtime than the reference. `failed`: whether an entry failed when
    all was heard; what comes then is heard briefly.
    """

    reference: Subject
    mine: Nudges
    criterion: Criterion
    progress: Progress
    warnings: list[str] = field(default_factory=list)
    other: _Exact | None = None
    theirs: Nudges | None = None
    failed: bool = False

    def compare(
        self, expected: Mapping[str, Array], found: Mapping[str, Array], kind: str, feed: Feed
    ) -> list[OutputError]:
        """One entry for each output of the reference."""
        entries = [facts(name, kind, value, found.get(name)) for name, value in expected.items()]
        odd = {
            entry.output for entry in entries if not entry.note and _odd(expected[entry.output], found[entry.output])
        }
        entries = [self._whole(entry, expected, found) for entry in entries]
        doubtful = [i for i, entry in enumerate(entries) if in_doubt(entry)]
        exact = self._exact(feed, kind) if odd or self._wants_exact(entries, expected) else {}
        candidate: dict[str, Array] = {}
        noise = Noise(self.mine.runs(feed), expected)
        theirs = Noise(self.theirs.runs(feed), found) if self.theirs else None
        for i in doubtful:
            entry = entries[i]
            a, b = expected[entry.output], found[entry.output]
            truth = exact.get(entry.output)
            if entry.output in odd and _odd(a if truth is None or truth.shape != a.shape else truth, b):
                entries[i] = replace(entry, note="another value where the reference is infinite or NaN")
                continue
            known = truth is not None and truth.shape == a.shape and _short(a) and self._covers(truth, a, entry.output)
            own = Errors.of(a, truth, entry.scale) if truth is not None and known else None
            if own is not None and own.peak > LIMITS[a.dtype.name] * entry.scale:
                # outputs near 0 may have been far from it on the way: units in the last place of the inputs count
                least = UNITS * EPS[a.dtype.name] * magnitude(feed)
                moves = (max(TRUST * float(moved.max(initial=0.0)), least) for moved in noise.of(entry.output))
                own = self._trusted(own, moves, entry.output)
            if own is not None and truth is not None and entry.scale > 0:
                new, multiple = Errors.of(b, truth, entry.scale), self.criterion.multiple
                entry = beside(entry, a, own, new, multiple, apart(a, b, truth, a.dtype.name))
                if in_doubt(entry) and self.other is not None:
                    candidate = candidate or self.other.run(feed)
                    entry = self._of_runtime(entry, a, b, truth, own, candidate.get(entry.output))
            else:
                entry = self.criterion.measure(a, b, entry, _floor(entry, a, feed))
            if in_doubt(entry) and not self.criterion.fixed:
                entry = self._heard(entry, a, b, truth if own is not None else None, noise, theirs)
            entries[i] = entry
        return [self._flipped(entry, noise, theirs, lambda: exact or self._exact(feed, kind)) for entry in entries]

    def _flipped(
        self, entry: OutputError, noise: Noise, theirs: Noise | None, exact: Callable[[], Mapping[str, Array]]
    ) -> OutputError:
        """An entry of whole numbers that flip at ties, judged by those that flip in both models when they are nudged.

        As many may flip, or each to what the other model gives there. Where half of many do, they say nothing. What
        flips to the number of float64 is right, whatever flips in the candidate and what else in the reference.
        """
        share = entry.measure("flips")
        if entry.passed or entry.note or share is None or self.criterion.fixed:
            return entry
        bound = _flips(entry.output, share, noise, theirs)
        truth = exact().get(entry.output) if theirs is not None else None
        if bound is None and truth is not None:
            bound = _flips(entry.output, share, noise, theirs, truth)
        if bound is not None and theirs is not None:
            a, b = noise.expected[entry.output], theirs.expected[entry.output]
            right = _right(a, b, truth)
            other = bound if right else _flips(entry.output, share, theirs, noise)
            bound = None if other is None else min(bound, other)
        if bound is None:
            return entry
        return replace(entry, passed=True, note=ROUNDING, measures=(Measure("flips", share, bound),))

    def _whole(
        self, entry: OutputError, expected: Mapping[str, Array], found: Mapping[str, Array]
    ) -> OutputError:  # fmt: skip
        """Whole numbers by the differences that a user allows, where that is said."""
        bounds = (self.criterion.atol, self.criterion.rtol)
        numbers = expected[entry.output].dtype.kind in "biu"
        if entry.measure("flips") is None or not numbers or all(bound is None for bound in bounds):
            return entry
        share = tolerance(expected[entry.output], found[entry.output], bounds[0] or 0.0, bounds[1] or 0.0)
        return replace(entry, passed=share <= 1.0, measures=(Measure("tolerance", share, 1.0),))

    def _of_runtime(
        self, entry: OutputError, a: Array, b: Array, truth: Array, own: Errors, exact: Array | None
    ) -> OutputError:
        """An entry judged by its two parts: what the candidate computes in float64, and what its runtime rounds.

        The first is held against the reference as ever; the second must be small, whatever the reference's is.
        """
        if exact is None or exact.shape != truth.shape:
            return entry
        new = Errors.of(exact, truth, entry.scale)
        part = beside(entry, a, own, new, self.criterion.multiple, apart(a, exact, truth, a.dtype.name))
        rounding = Errors.of(b, exact).peak / entry.scale
        allowed = LIMITS[a.dtype.name]
        if not part.passed or rounding > allowed:
            return entry
        measures = (*part.measures, Measure("runtime's rounding", rounding, allowed))
        return replace(entry, passed=True, note=RUNTIME, measures=measures, resolution=part.resolution)

    def _heard(
        self, entry: OutputError, a: Array, b: Array, truth: Array | None, noise: Noise, theirs: Noise | None
    ) -> OutputError:
        """An entry judged by the rounding of both models, as a whole and channel by channel where float64 is known."""
        bound = PARTS * self.criterion.multiple
        self.progress("measuring the reference's own rounding")

        def heard(noise: Noise, error: float) -> OutputError:
            for moved in noise.of(entry.output):
                part = 0.0 if truth is None else apart(a, b, truth, a.dtype.name, moved * (NOISE_MULTIPLE / bound))
                found = second_hearing(entry, float(moved.max(initial=0.0)), error) if part <= bound else entry
                if found.passed or self.failed:
                    return found
            return entry

        found = heard(noise, entry.error)
        if found.passed and theirs is not None:
            own = heard(theirs, entry.error if truth is None else Errors.of(b, truth).peak)
            found = own if not own.passed else max(found, own, key=lambda entry: entry.strain)
        self.failed |= not found.passed
        return found

    def _wants_exact(self, entries: list[OutputError], expected: Mapping[str, Array]) -> bool:
        """Whether there is a number to judge that float64 says more about; equal outputs need no judge."""
        return not self.criterion.fixed and any(
            in_doubt(entry) and entry.error > 0 and _short(expected[entry.output]) for entry in entries
        )

    def _exact(self, feed: Feed, kind: str) -> dict[str, Array]:
        """The outputs of the reference in float64 on inputs; none, and a warning, where nothing computes them."""
        why = "nothing here computes the reference in float64"
        try:
            found = self.reference.exact(feed)
        except Exception as error:  # an operator without an evaluator, not enough memory
            found, why = {}, f"{why} ({_line(error)})"
        if not found:
            self.warnings.append(f"{why}: a fixed limit was used, which says less")
        return found

    def _trusted(self, own: Errors, rounding: Iterator[float], output: str) -> Errors | None:
        """Own errors, unless they are so large that float64 must have computed something else."""
        if any(own.peak <= moved for moved in rounding):
            return own
        self.warnings.append(
            f"{output} in float64 is further from the reference than rounding explains: a fixed limit was used instead"
        )
        return None

    def _covers(self, truth: Array, a: Array, output: str) -> bool:
        """Whether float64 has a number wherever the reference has one."""
        if all((np.isfinite(x) | ~np.isfinite(y)).all() for x, y in blocks(truth, a)):
            return True
        self.warnings.append(
            f"{output} in float64 is NaN or infinite where the reference is not: a fixed limit was used instead"
        )
        return False


class Noise:
    """How far rounding moves each element of a model's outputs, looked for in more and more runs."""

    def __init__(self, runs: Iterator[tuple[float, dict[str, Array]]], expected: Mapping[str, Array]) -> None:
        """`runs`: see `Nudges.runs`. `expected`: the outputs that these are held against."""
        self.runs, self.expected = runs, expected
        self.seen: list[tuple[float, dict[str, Array]]] = []

    def of(self, output: str) -> Iterator[Array]:
        """The largest change of each element for each unit; once more when there are more runs."""
        a = self.expected[output]
        for seen in self._rounds():
            noise = np.zeros(a.shape)
            for units, found in seen:
                if output in found and found[output].shape == a.shape:
                    noise = np.maximum(noise, _change(found[output], a) / units)
            yield noise

    def flips(self, output: str) -> Iterator[list[tuple[float, Array]]]:
        """What the output was in these runs, each with its units; once more when there are more."""
        shape = self.expected[output].shape
        for seen in self._rounds():
            yield [(u, found[output]) for u, found in seen if output in found and found[output].shape == shape]

    def _rounds(self) -> Iterator[list[tuple[float, dict[str, Array]]]]:
        if not self.seen:
            self.seen += islice(self.runs, FIRST)
        yield self.seen
        while more := list(islice(self.runs, 2)):
            self.seen += more
            yield self.seen


def _odd(a: Array, b: Array) -> bool:
    """Whether one is infinite or NaN where the other is not so, or has another sign; elements of `b` of any kind."""
    if a.dtype.name not in LIMITS:
        return False
    for x, y in blocks(a, b):
        wild = ~np.isfinite(x)
        if wild.any() and not np.array_equal(x[wild], y[wild], equal_nan=True):
            return True
    return False


def _change(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        change = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.where(np.isfinite(change), change, 0.0)


def second_hearing(entry: OutputError, noise: float, error: float) -> OutputError:
    """An entry in doubt judged by the rounding of a model, which moves its outputs by `noise`."""
    if not in_doubt(entry) or error > NOISE_MULTIPLE * noise:
        return entry
    measure = Measure("noise ratio", error / noise if noise else 0.0, NOISE_MULTIPLE)
    finest = NOISE_MULTIPLE * noise / entry.scale if entry.scale > 0 else None
    return replace(entry, passed=True, note=ROUNDING, measures=(measure,), resolution=finest)


def _right(a: Array, b: Array, truth: Array | None) -> bool:
    """Whether every number of `b` that differs from that of `a` is the right one."""
    return truth is not None and truth.shape == b.shape and bool(np.logical_or(a == b, b == truth).all())


def _flips(output: str, share: float, noise: Noise, other: Noise | None, truth: Array | None = None) -> float | None:
    """How many whole numbers may differ between two models, by what flips in one of them; None where fewer than do.

    `other`: of the model whose numbers those that flip may flip to; None where it is not known. `truth`: numbers that
    are right wherever what flips is not sure of its own.
    """
    a = noise.expected[output]
    for seen in noise.flips(output):
        flips = [(float(np.mean(value != a)), units) for units, value in seen]
        rate, most = max((f / u for f, u in flips), default=0.0), max((f for f, _ in flips), default=0.0)
        if share <= FLIPS * rate < 1:
            return FLIPS * rate
        if other is not None and (most < 0.5 or a.size < FEW):
            b = other.expected[output]
            known = np.logical_or.reduce([b == value for _, value in ((0.0, a), *seen)])
            if truth is not None and truth.shape == b.shape:
                known |= (b == truth) & np.logical_or.reduce([a != value for _, value in seen])
            if known.all():
                return most
    return None


def _short(value: Array) -> bool:
    return value.dtype.name in LIMITS and value.dtype.name != "float64"


def _floor(entry: OutputError, a: Array, feed: Feed) -> float:
    """Where the reference is 0 everywhere, a unit in the last place of the inputs' magnitude is no difference."""
    return magnitude(feed) * EPS[a.dtype.name] if entry.scale == 0 else 0.0


def _worse(a: OutputError, b: OutputError) -> OutputError:
    """Of two entries of an output on inputs of one kind; shares of samples are those of both."""
    if any(m.samples for m in (*a.measures, *b.measures)) and not a.note and not b.note:
        pairs = zip(a.measures, b.measures, strict=True)
        measures = tuple(_both(m, n) for m, n in pairs)
        worst = max(a, b, key=lambda entry: entry.relative)
        return replace(worst, measures=measures, passed=all(m.passed for m in measures))
    if a.passed != b.passed:
        failed, other = (a, b) if not a.passed else (b, a)
        return other if failed.note == SKIPPED else failed
    return max(a, b, key=lambda entry: entry.strain)


def _both(a: Measure, b: Measure) -> Measure:
    if not a.samples + b.samples:
        return max(a, b, key=lambda measure: measure.strain)
    count = a.samples + b.samples
    return replace(a, value=round((a.value * a.samples + b.value * b.samples) / count, 12), samples=count)


def _varies(first: Array, value: Array | None, feed: Feed) -> bool:
    """Whether an output differs from that on the first inputs, or from sample to sample."""
    if _differ(first, value):
        return True
    batches = {array.shape[0] for array in feed.values() if array.ndim}
    return first.ndim > 0 and len(first) > 1 and {len(first)} == batches and _differ(first[:1], first[-1:])


def _differ(a: Array, b: Array | None) -> bool:
    """Whether two outputs of a model on different inputs differ by more than rounding."""
    if b is None or a.shape != b.shape:
        return True
    if a.dtype.name not in LIMITS:
        return not np.array_equal(a, b)
    entry = facts("", "", a, b)
    return bool(entry.note) or entry.error > LIMITS[a.dtype.name] * entry.scale


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
    names = [name for name in first if name not in varying and f"{name}[0]" not in first]  # but lengths of sequences
    if not names:
        return []
    which = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    return [f"the reference gives the same {which} on all inputs, within the limit: that the models agree says little"]


def _only_rounding(results: tuple[OutputError, ...]) -> list[str]:
    """A warning that names the outputs which passed on no inputs but by the second hearing."""
    sound = {entry.output for entry in results if entry.passed and entry.note != ROUNDING}
    names = sorted({entry.output for entry in results if entry.note == ROUNDING} - sound)
    return [f"{', '.join(names)} agrees only within the reference's own rounding, on all inputs"] if names else []


def _coarse(resolution: Mapping[str, float]) -> list[str]:
    """Warnings for outputs with so few digits that faults which matter may pass."""
    return [
        f"{name}: differences below {finest:.1e} of the largest magnitude (root mean square) may pass as rounding, "
        "so small faults cannot be seen here"
        for name, finest in resolution.items()
        if finest >= COARSE
    ]


def _open(reference: Subject, inputs: Inputs, progress: Progress) -> tuple[Runner, Choice, dict[str, Array]]:
    """The first runner, with the first way to fill in dynamic sizes, that runs the reference; and what it gave."""
    causes = []
    specs = reference.specs()
    for engine in reference.engines():
        progress(f"running the reference in {engine.name}")
        try:
            runner = engine.open()
        except VerificationError:
            raise
        except Exception as error:
            causes.append(f"{engine.name}: {_line(error)}")
            continue
        for choice in inputs.choices(specs):
            try:
                return runner, choice, runner.run(next(choice.feeds())[1])
            except (UsageError, VerificationError):
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
    own, theirs = ([spec.name for spec in found] for found in (candidate.specs(), specs))
    if len(own) != len(specs):
        raise VerificationError(f"it has {len(own)} inputs, {len(specs)} expected")
    return Aligned(engine.open(), theirs if sorted(own) == sorted(theirs) else own, list(first))


def _all_feeds(reference: Subject, choice: Choice) -> Iterator[tuple[str, Feed]]:
    """Inputs of all kinds, and those that came with the reference."""
    yield from choice.feeds()
    if _gives(reference, choice):
        yield "given", reference.given() or {}


def _gives(reference: Subject, choice: Choice) -> bool:
    """Whether inputs came with the reference, of the sizes that the others have."""
    given = reference.given()
    return given is not None and {name: value.shape for name, value in given.items()} == choice.shapes


class Pace:
    """Tells how far the comparisons are, and how long the rest will take by those that are done."""

    def __init__(self, progress: Progress, total: int, clock: Callable[[], float] = monotonic) -> None:
        self.progress, self.total, self.clock = progress, total, clock
        self.begun, self.start, self.text = 0, clock(), ""

    def begin(self, kind: str) -> None:
        """The next comparison, on inputs of a kind; there may be one more than expected, of other sizes."""
        self.begun += 1
        self.total = max(self.total, self.begun)
        spent, done = self.clock() - self.start, self.begun - 1
        left = spent / done * (self.total - done) if done else 0.0
        self.text = f"comparing {self.begun} of {self.total}: {kind}" + (
            f", about {left:.0f} s left" if left >= 1 else ""
        )
        self.progress(self.text)

    def note(self, what: str) -> None:
        """What is done for the comparison beyond running both models."""
        self.progress(f"{self.text}; {what}")


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
