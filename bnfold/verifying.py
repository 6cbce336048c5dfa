"""Any two models, given as objects or as files, before the judge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .equivalence.criterion import Criterion
from .equivalence.device import Device
from .equivalence.inputs import Feed, Inputs, InputSpec
from .equivalence.judge import judge
from .equivalence.latency import Bench, race
from .equivalence.subject import OnnxSubject, Subject
from .errors import UsageError, VerificationError
from .kinds import kind_of

if TYPE_CHECKING:
    from .api import TorchOptions
    from .equivalence.check import Check

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """Two models, and how they are compared. `first`, `second`: what those of PyTorch need."""

    reference: Any
    candidate: Any
    first: TorchOptions
    second: TorchOptions
    inputs: Inputs = field(default_factory=Inputs)
    criterion: Criterion = field(default_factory=Criterion)
    device: Device | None = None

    def judge(self, progress: Progress = lambda stage: None) -> Check:
        """The verdict of the judge. See `bnfold.verify`."""
        a, b = self.subjects()
        with _quiet():
            check = judge(a, b, self.inputs, self.criterion, progress)
        return replace(check, names=(_name(self.reference, a), _name(self.candidate, b)))

    def subjects(self) -> tuple[Subject, Subject]:
        """Both models as something that has inputs and can be run."""
        return _subject(self.reference, self.first, self.device), _subject(self.candidate, self.second, self.device)

    def bench(self, seconds: float, rounds: int | None, threads: int, progress: Progress = lambda stage: None) -> Bench:
        """Latencies of both, on random inputs. See `bnfold.bench`."""
        a, b = self.subjects()
        with _quiet():
            progress("loading")
            specs = a.specs()
            feed, (label, first) = _first_call(a, specs, self.inputs, threads)
            own = feed if a.named and b.named else dict(zip([s.name for s in b.specs()], feed.values(), strict=True))
            other, second = b.timed(own, threads)
            progress("measuring")
            times = race(first, second, seconds, rounds)
        runner = label if label == other else f"{label} beside {other}"
        shapes = {name: value.shape for name, value in feed.items()}
        return Bench((_name(self.reference, a), _name(self.candidate, b)), runner, shapes, *times)


def _first_call(
    subject: Subject, specs: list[InputSpec], inputs: Inputs, threads: int
) -> tuple[Feed, tuple[str, Callable[[], object]]]:
    """The first inputs that the reference takes. VerificationError where there are none."""
    cause: Exception | None = None
    for choice in inputs.choices(specs):
        feed = next(choice.feeds())[1]
        try:
            label, call = subject.timed(feed, threads)
            call()
            return feed, (label, call)
        except VerificationError:
            raise
        except Exception as error:
            cause = cause or error
    said = " ".join(str(cause).split())[:300]
    raise VerificationError(f"{subject.name} cannot be run ({said}); input shapes can be given with --shape")


def _subject(model: Any, options: TorchOptions, device: Device | None) -> Subject:
    if isinstance(model, str | PathLike) and kind_of(Path(fspath(model))) == "onnx":
        from .equivalence.runners import CPU, input_specs
        from .frontends.onnx.files import load

        path = Path(fspath(model))
        return OnnxSubject(path, input_specs(load(path)), device or CPU)
    if not isinstance(model, str | PathLike) and ("torch" not in sys.modules or not of_torch(model)):
        raise UsageError(f"a path, a torch.nn.Module or an ExportedProgram expected, {type(model).__name__} found")
    from .torchfiles import subject

    return subject(model, options, device)


def of_torch(model: Any) -> bool:
    """Whether an object is one of torch's, without importing it."""
    return any(base.__module__.partition(".")[0] == "torch" for base in type(model).__mro__)


def _quiet() -> Any:
    if "torch" not in sys.modules:
        return nullcontext()
    from .frontends.torch.quiet import quiet

    return quiet()


def _name(model: Any, subject: Subject) -> str:
    return fspath(model) if isinstance(model, str | PathLike) else subject.name


def inputs_of(
    seed: int, shapes: Mapping[str, tuple[int, ...]] | None, kinds: Any, data: Any, samples: int | None,
    mean: Any, std: Any,
) -> Inputs:  # fmt: skip
    """What the front door takes as one value."""
    chosen = (kinds,) if isinstance(kinds, str) else tuple(kinds or ())
    scales = [tuple(map(float, value)) if isinstance(value, tuple | list) else (float(value),) for value in (mean, std)]
    return Inputs(seed, dict(shapes or {}), chosen, data, samples, *scales)
