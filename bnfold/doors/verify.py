"""Any two models, given as objects or as files, before the judge."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..errors import UsageError, VerificationError
from ..judge.criteria.check import Check
from ..judge.criteria.criterion import Criterion
from ..judge.criteria.device import Device
from ..judge.criteria.inputs import Feed, Inputs, InputSpec, inputs_of
from ..judge.judge import judge
from ..judge.latency import FEWEST, Bench, race
from ..judge.subjects.subject import OnnxSubject, Subject
from ..kinds import in_memory, kind_of
from ..options import TorchOptions
from ..process.quiet import TURN, quiet

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
        with self._on_disk() as whole, whole._known() as (pair, said), pair.turn():
            a, b = pair.subjects()
            with _quiet():
                check = judge(a, b, self.inputs, self.criterion, progress)
        warnings = (*check.warnings, said) if said else check.warnings
        return replace(check, names=(_name(self.reference, a), _name(self.candidate, b)), warnings=warnings)

    @contextmanager
    def _known(self) -> Iterator[tuple[Pair, str]]:
        """The pair without operators that nothing here knows, where both are ONNX files; and what is to be said."""
        if not all(map(_is_onnx, (self.reference, self.candidate))):
            yield self, ""
            return
        from ..judge.subjects.foreign import around

        with around(Path(fspath(self.reference)), Path(fspath(self.candidate))) as (first, second, said):
            yield replace(self, reference=first, candidate=second), said

    @contextmanager
    def _on_disk(self) -> Iterator[Pair]:
        """The pair with models of ONNX in memory written to files, which are gone afterwards."""
        parts = {"reference": self.reference, "candidate": self.candidate}
        held = {part: model for part, model in parts.items() if in_memory(model)}
        if not held:
            yield self
            return
        from ..onnx.files import dump
        from ..onnx.write.apply import Applied

        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            paths: dict[str, Any] = {part: Path(folder) / f"{part}.onnx" for part in held}
            for part, model in held.items():
                dump(Applied(model), paths[part])
            yield replace(self, **paths)

    def turn(self) -> AbstractContextManager[object]:
        """Modules of PyTorch are run by one thread at a time."""
        return nullcontext() if all(map(_is_onnx, (self.reference, self.candidate))) else TURN

    def subjects(self) -> tuple[Subject, Subject]:
        """Both models as something that has inputs and can be run."""
        return _subject(self.reference, self.first, self.device), _subject(self.candidate, self.second, self.device)

    def bench(self, seconds: float, rounds: int | None, threads: int, progress: Progress = lambda stage: None) -> Bench:
        """Latencies of both, on random inputs. See `bnfold.bench`."""
        if rounds is not None and rounds < FEWEST:
            raise UsageError(f"rounds {rounds}: at least {FEWEST} expected; fewer say nothing with 95 % confidence")
        with self._on_disk() as pair, pair.turn(), _quiet():
            a, b = pair.subjects()
            progress("loading")
            specs = a.specs()
            with _threads_restored():
                feed, (label, first) = _first_call(a, specs, self.inputs, threads)
                other, second = _second_call(b, _renamed(a, b, feed), threads)
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


def _renamed(a: Subject, b: Subject, feed: Feed) -> Feed:
    """Inputs of one model under the names that the other has for them."""
    names = [spec.name for spec in b.specs()]
    if a.named and b.named:
        return {name: value for name, value in feed.items() if name in names} if set(names) <= set(feed) else feed
    if len(names) != len(feed):
        raise VerificationError(f"{b.name} has {len(names)} inputs, {len(feed)} expected")
    return feed if set(names) == set(feed) else dict(zip(names, feed.values(), strict=True))


def _second_call(subject: Subject, feed: Feed, threads: int) -> tuple[str, Callable[[], object]]:
    """What runs the candidate. VerificationError where it does not take the reference's inputs."""
    try:
        label, call = subject.timed(feed, threads)
        call()
        return label, call
    except VerificationError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise VerificationError(
            f"the candidate {subject.name} cannot be run on the inputs of the reference ({said})"
        ) from error


def _subject(model: Any, options: TorchOptions, device: Device | None) -> Subject:
    if _is_onnx(model):
        from ..judge.subjects.runners import CPU, input_specs
        from ..onnx.files import load

        path = Path(fspath(model))
        return OnnxSubject(path, input_specs(load(path)), device or CPU)
    if not isinstance(model, str | PathLike) and ("torch" not in sys.modules or not of_torch(model)):
        known = "a path, an onnx.ModelProto, a torch.nn.Module or an ExportedProgram"
        raise UsageError(f"{known} expected, {type(model).__name__} found")
    from .torch_models import subject

    return subject(model, options, device)


def _is_onnx(model: Any) -> bool:
    return isinstance(model, str | PathLike) and kind_of(Path(fspath(model))) == "onnx"


@contextmanager
def _threads_restored() -> Iterator[None]:
    """torch's number of threads is the process's own, and is put back."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def of_torch(model: Any) -> bool:
    """Whether an object is one of torch's, without importing it."""
    return any(base.__module__.partition(".")[0] == "torch" for base in type(model).__mro__)


def _quiet() -> AbstractContextManager[None]:
    return quiet() if "torch" in sys.modules else nullcontext()


def _name(model: Any, subject: Subject) -> str:
    return fspath(model) if isinstance(model, str | PathLike) else subject.name


def check_settings(arguments: Mapping[str, Any]) -> None:
    """UsageError for arguments of `bnfold.verify` that no two models can be compared with."""

    def some(*names: str) -> dict[str, Any]:
        return {name: arguments[name] for name in names if name in arguments}

    Criterion(**some("multiple", "limit", "atol", "rtol", "cosine", "top_k", "agreement"))
    Device(arguments.get("device") or "cpu")
    plain = {"seed": 0, "kinds": (), "samples": None, "mean": 0.0, "std": 1.0}
    inputs_of(**{**plain, **some(*plain)}, shapes=None, data=None)
