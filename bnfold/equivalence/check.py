"""The verdict of the judge, a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class OutputError:
    """How far one output of two models is apart on one kind of input.

    `error`: the largest absolute difference. `scale`: the largest magnitude in the reference. `limit`: the largest
    `error / scale` that passes (for integers: the largest share of elements that may differ).
    """

    output: str
    kind: str
    error: float
    scale: float
    limit: float
    passed: bool
    note: str = ""

    @property
    def relative(self) -> float:
        """`error / scale`; the error itself where the reference is 0."""
        return self.error / self.scale if self.scale > 0 else self.error


@dataclass(frozen=True)
class Check:
    """Whether a candidate is the same function as its reference, in finite precision.

    `runner`: what ran both models. `shapes`: the input shapes used. `outputs`: one entry for each output and kind.
    `warnings`: what makes the verdict worth less than it looks, in sentences.
    """

    passed: bool
    runner: str
    seed: int
    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[OutputError, ...]
    message: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def worst(self) -> OutputError | None:
        """The entry that comes closest to its limit, or is the furthest beyond."""
        failed = [o for o in self.outputs if not o.passed]
        return max(failed or self.outputs, key=lambda o: o.relative / o.limit if o.limit else o.relative, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report; numbers that are not finite as text."""
        worst = self.worst
        return {
            "passed": self.passed,
            "runner": self.runner,
            "seed": self.seed,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "message": self.message,
            "warnings": list(self.warnings),
            "worst": _entry(worst) if worst else None,
            "outputs": [_entry(output) for output in self.outputs],
        }


def _entry(output: OutputError) -> dict[str, Any]:
    plain = {**asdict(output), "relative": output.relative}
    return {k: repr(v) if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in plain.items()}
