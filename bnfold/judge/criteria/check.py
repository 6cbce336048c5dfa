"""The verdict of the judge, a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Counts = tuple[int, ...]
HISTOGRAM = (-12.0, 0.0, 24)
"""First and last power of ten, and the number of bins between them."""


@dataclass(frozen=True)
class Measure:
    """One number that a candidate is judged by: it passes up to and with `bound`.

    `name`: "error ratio" and "peak ratio" (the candidate's error over the reference's own, both against float64:
    root mean square and largest), "part ratio" (the root mean squares of the channel where that is largest), "relative
    error" (`error / scale`), "tolerance" (the largest `error / (atol + rtol * |reference|)`), "cosine distance", "top-5
    disagreement", "flips" (the share of whole numbers that differ). `samples`: of how many a value is the share; 0
    where it is none.
    """

    name: str
    value: float
    bound: float
    samples: int = 0

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.value <= self.bound

    @property
    def strain(self) -> float:
        """`value / bound`: above 1 it fails."""
        if self.value <= self.bound:
            return self.value / self.bound if self.bound else 0.0
        return self.value / self.bound if self.bound and self.value == self.value else float("inf")


@dataclass(frozen=True)
class OutputError:
    """How far one output of two models is apart on one set of inputs.

    `error`: the largest absolute difference. `scale`: the largest magnitude in the reference. Where the reference was
    run in float64 too, `own` and `found` are the root mean squares of its error and of the candidate's against that;
    None elsewhere. `measures`: what `passed` rests on. `note`: what else there is to say. `histogram`: how many
    elements have an error of each size, in the reference (empty where there is no float64) and in the candidate: bins
    of half a power of ten of the scale, from `HISTOGRAM[0]` up, the first with all below, the last with all above.
    `resolution`: the largest error, a root mean square over `scale`, that may pass as rounding; None where bounds were
    given, or nothing was measured.
    """

    output: str
    kind: str
    error: float
    scale: float
    passed: bool
    note: str = ""
    measures: tuple[Measure, ...] = ()
    own: float | None = None
    found: float | None = None
    histogram: tuple[Counts, Counts] = ((), ())
    resolution: float | None = None

    @property
    def relative(self) -> float:
        """`error / scale`; the error itself where the reference is 0."""
        return self.error / self.scale if self.scale > 0 else self.error

    @property
    def strain(self) -> float:
        """How near the entry is to its bound: the largest of its measures, above 1 where it fails."""
        return max((measure.strain for measure in self.measures), default=0.0 if self.passed else float("inf"))

    def measure(self, name: str) -> float | None:
        """The value of a measure, None where it was not taken."""
        return next((measure.value for measure in self.measures if measure.name == name), None)


UNCHANGED = "nothing was changed, so nothing was run"
"""Stands for the runner where the candidate is the reference."""


@dataclass(frozen=True)
class Point:
    """One tensor of the reference: root mean squares of both models' errors, over that of the values."""

    tensor: str
    op: str
    own: float
    found: float
    ratio: float


@dataclass(frozen=True)
class Where:
    """Where two models part.

    `tensor`, `op`, `by`: the first tensor at which they do, and what computes it in the reference and in the candidate;
    "" where all with a name in both agree.
    `agrees`: the last one before it. `kind`: the inputs. `profile`: errors along the network, in the reference's order.
    """

    tensor: str
    op: str
    agrees: str
    kind: str
    profile: tuple[Point, ...]
    by: str = ""

    def __str__(self) -> str:
        if not self.profile:
            return "no inner tensor could be matched in both models by its name and shape"
        if not self.tensor:
            return f"all {len(self.profile)} tensors with a name in both models agree; they part behind {self.agrees}"
        before = f"; {self.agrees} still agrees" if self.agrees else "; it is the first tensor with a name in both"
        op = self.op if self.by in ("", self.op) else f"{self.op}; in the candidate {self.by}"
        return f"they part first at {self.tensor} ({op}) on {self.kind} inputs{before}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return plain({"text": str(self), **asdict(self)})


@dataclass(frozen=True)
class Check:
    """Whether a candidate is the same function as its reference, in finite precision.

    `runner`: what ran both models. `shapes`: the input shapes used. `outputs`: one entry for each output and kind.
    `criterion`: what the verdict rests on, in words. `warnings`: what makes it worth less than it looks, in sentences.
    `where`: where two models part that differ, when that was looked for. `names`, `operators`: of both models; how many
    operators of each type, or modules that hold no others.
    """

    passed: bool
    runner: str
    seed: int
    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[OutputError, ...]
    message: str = ""
    warnings: tuple[str, ...] = ()
    criterion: str = ""
    where: Where | None = None
    names: tuple[str, str] = ("", "")
    operators: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))

    @classmethod
    def unchanged(cls, name: str) -> Check:
        """The verdict on a model in which nothing was changed, so that nothing needs to be run."""
        return cls(True, UNCHANGED, 0, {}, (), names=(name, name))

    def __repr__(self) -> str:
        return f"Check({'passed' if self.passed else f'failed: {self.message}'}; {len(self.outputs)} comparisons)"

    @property
    def worst(self) -> OutputError | None:
        """The entry that comes closest to its bound, or is the furthest beyond."""
        failed = [o for o in self.outputs if not o.passed]
        return max(failed or self.outputs, key=lambda o: o.strain, default=None)

    @property
    def resolution(self) -> dict[str, float]:
        """Of each output that is not the same to the last bit: the finest of all kinds of inputs."""
        found: dict[str, float] = {}
        for o in self.outputs:
            if o.resolution is not None and o.error > 0:
                found[o.output] = min(o.resolution, found.get(o.output, o.resolution))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report; numbers that are not finite as text."""
        worst = self.worst
        return {
            "passed": self.passed,
            "reference": self.names[0],
            "candidate": self.names[1],
            "runner": self.runner,
            "criterion": self.criterion,
            "seed": self.seed,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "message": self.message,
            "warnings": list(self.warnings),
            "resolution": self.resolution,
            "worst": _entry(worst) if worst else None,
            "outputs": [_entry(output) for output in self.outputs],
            "where": self.where.to_dict() if self.where else None,
            "operators": {"reference": self.operators[0], "candidate": self.operators[1]},
        }


def _entry(output: OutputError) -> dict[str, Any]:
    entry = {name: value for name, value in asdict(output).items() if name != "histogram"}
    return plain({**entry, "relative": output.relative})


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON lacks as text."""
    return {key: _plain(value) for key, value in data.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, float) and not abs(value) < float("inf") else value
