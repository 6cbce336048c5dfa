"""ONNX models, from a path or in memory: planned, folded, written, judged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..core.gauge.planner import plan as make_plan
from ..core.gauge.planner import plan_that_fits
from ..core.plan import ChannelDrop, OtherNorm, Plan
from ..core.skip import Skip, demand_match, unmatched
from ..errors import BnfoldError, DataError, ModelError, PlanError, UsageError, VerificationError
from ..kinds import check_suffix
from ..options import Folding

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..judge.criteria.check import Check
    from ..judge.criteria.inputs import InputSpec, Judging
    from ..lrn.onnx_find import OnnxSite
    from ..onnx.read.read import Source
    from ..onnx.shrinking import Shrunk
    from ..onnx.store.skeleton import Skeleton
    from ..onnx.write.apply import Applied

Model = "str | PathLike[str] | ModelProto"
WEIGHTS = 300_000_000
"""Models with more are not run to find LRNs that are no operators."""


@dataclass(frozen=True)
class _Loaded:
    model: ModelProto
    source: Source
    path: Path | None
    name: str
    frozen: bool = False


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX model, given as a path or in memory, and what a fold of it may do."""

    model: str | PathLike[str] | ModelProto
    folding: Folding = field(default_factory=Folding)

    def inspect(self) -> Plan:
        """The plan, and the model's LRNs."""
        loaded = _load(self.model, self.folding, lengths=True)
        plan = _plan(loaded, self.folding)
        try:
            plan = _carried_out(loaded, plan, self.folding)[1]
        except PlanError as error:
            plan = replace(plan, notes=(*plan.notes, f"a fold would be refused: {error}"))
        return _with_lrns(plan, self.model)

    def fold(
        self, out: Path | None, judging: Judging, inplace: bool = False
    ) -> tuple[Callable[[], ModelProto], Plan, Check | None]:
        """What gives the folded model, its plan and the verdict; written to `out` when it passed."""
        if inplace:
            raise UsageError("inplace is for models of PyTorch")
        return fold_onnx(self.model, self.folding, out, judging)


def _with_lrns(plan: Plan, model: str | PathLike[str] | ModelProto) -> Plan:
    """A plan that lists LRNs too that are no operators, or has a note where they could not be looked for."""
    try:
        sites = find_onnx_lrns(model)
    except Exception as error:  # what is planned holds without it
        said = " ".join(str(error).split())[:200]
        return replace(plan, notes=(*plan.notes, f"LRNs that are no operators could not be looked for: {said}"))
    known = {other.output for other in plan.others}
    listed = [OtherNorm(s.name, "LRN", s.source, s.result) for s in sites if s.result not in known]
    return replace(plan, others=(*plan.others, *listed))


def find_onnx_lrns(model: str | PathLike[str] | ModelProto) -> list[OnnxSite]:
    """The LRNs of a model, weights loaded and inputs made up only where some may be no operators.

    See `bnfold.find_lrn`. DataError where no inputs can be made up.
    """
    import onnx

    from ..calibration.onnx_run import made_up
    from ..lrn.onnx_find import find, guesses
    from ..onnx.files import load_whole

    path = _path(model)
    graph = onnx.load(path, load_external_data=False) if path else cast("ModelProto", model)
    if path is None or not guesses(graph.graph):
        return find(graph, lambda: made_up(graph))
    if sum(prod(t.dims) for t in graph.graph.initializer) > WEIGHTS:
        raise DataError(f"{path.name} has more than {WEIGHTS:,} weights")
    whole = load_whole(path)
    return find(whole, lambda: made_up(whole))


def fold_onnx(
    model: str | PathLike[str] | ModelProto, folding: Folding, target: Path | None, judging: Judging
) -> tuple[Callable[[], ModelProto], Plan, Check | None]:
    """The folded model, for when it is asked for, the plan and the verdict. See `bnfold.fold`."""
    from ..files import check_target
    from ..onnx.store.external import check_target as check_data_target
    from ..onnx.store.external import external_tensors

    if target is not None:
        check_target(target, _path(model))
        check_suffix(target)
    judging.progress("reading")
    loaded = _load(model, folding)
    if target is None and external_tensors(loaded.model):
        raise UsageError(
            f"{loaded.name} has external data, which a model in memory cannot carry; name a file with out="
        )
    if target is not None:
        check_data_target(target, loaded.model, loaded.source.constants.folder)
    less = [replace(folding, exact=True), replace(folding, merge=False, shrink=False)]
    attempt, why = folding, ""
    while True:
        try:
            complete, plan, check = _folded(model, loaded, attempt, target, judging)
            return complete, replace(plan, notes=(*plan.notes, why)) if why else plan, check
        except (PlanError, VerificationError) as error:
            smaller = isinstance(error.plan, Plan) and (error.plan.merged or error.plan.dropped)
            if not smaller or not less:
                raise
            done = "fewer channels were dropped" if len(less) > 1 else "no layers were merged and no channels dropped"
            why = f"{done}: with more the result was refused ({error})"
            attempt = less.pop(0)
            loaded = _load(model, attempt)


def _folded(
    model: str | PathLike[str] | ModelProto, loaded: _Loaded, folding: Folding, target: Path | None, judging: Judging
) -> tuple[Callable[[], ModelProto], Plan, Check | None]:
    """The result for a model that was read. Errors of the result have the plan."""
    from ..judge.criteria.check import Check
    from ..onnx.files import check as check_model
    from ..onnx.files import dump

    verify, progress = judging.verify, judging.progress
    progress("planning")
    plan = _plan(loaded, folding)
    specs: list[InputSpec] | VerificationError = []
    try:  # before any edit: norms tell sizes too
        specs = _specs(loaded) if verify else []
    except VerificationError as error:
        specs = error
    progress("folding")
    applied, plan = _carried_out(loaded, plan, folding)
    if not plan.changed:
        if verify and judging.inputs.shapes:
            next(judging.inputs.choices(_demanded(specs)))  # sizes that do not fit are an error, used or not
        check = Check.unchanged(loaded.name) if verify else None
        return _unchanged(model, loaded, target), plan, check
    fit, folder = _demanded(specs), loaded.source.constants.folder
    with _reference(model, loaded, verify) as reference:
        check_model(applied.model, f"{loaded.name} (folded)", lengths=False, pending=applied.pending, folder=folder)
        with _destination(target, loaded, needed=verify or target is not None) as temporary:
            if temporary is not None:
                progress("writing")
                try:
                    dump(applied, temporary, folder)
                except PlanError as error:
                    error.plan = plan
                    raise
            verdict = None
            if verify and temporary is not None:
                verdict = _judge(reference, temporary, fit, judging)
                if not verdict.passed:
                    raise _failure(verdict, plan)
            return applied.complete, plan, verdict


def _demanded(specs: list[InputSpec] | VerificationError) -> list[InputSpec]:
    """The inputs; the error where they are none."""
    if isinstance(specs, VerificationError):
        raise specs
    return specs


def _carried_out(loaded: _Loaded, plan: Plan, folding: Folding) -> tuple[Applied, Plan]:
    """The edited model, with layers merged, channels dropped; and the plan that says so. The model itself changes."""
    from ..onnx.store.external import external_tensors
    from ..onnx.write.apply import Applied, apply

    if plan.edits:
        state = apply(loaded.model, loaded.source, plan)
    else:
        state = Applied(loaded.model, {}, bool(external_tensors(loaded.model)))
    return smaller(state, plan, folding, loaded.source.constants.folder, loaded.frozen)


def smaller(
    state: Applied, plan: Plan, folding: Folding, folder: Path | None = None, frozen: bool = False
) -> tuple[Applied, Plan]:
    """An edited model with its layers merged and its empty channels dropped, as far as a fold may do so."""
    from ..onnx.merging.merge import merge
    from ..onnx.shrinking import shrink

    kept = plan.held
    if folding.merge:
        merged = merge(state, folder, kept, frozen)
        state, plan = merged.applied, plan.with_merges(candidate.plain for candidate in merged.candidates)
    if folding.shrink:
        shrunk = shrink(state, exact=folding.exact, folder=folder, freeze_inputs=frozen, kept=kept)
        state, plan = (
            shrunk.applied,
            replace(plan, drops=tuple(_drops(shrunk)), shrunk=(shrunk.multiplications, shrunk.bytes)),
        )
    return state, plan


def _drops(shrunk: Shrunk) -> Iterator[ChannelDrop]:
    """The groups of channels, and the branches that are constants now."""
    for found in shrunk.groups:
        yield ChannelDrop(
            found.tensor, found.layers, found.channels, found.empty, found.dropped, found.verdict, found.reason,
            found.multiplications, found.bytes,
        )  # fmt: skip
    for name, count in shrunk.branches:
        yield ChannelDrop(name, (), count, count, count, "dropped")


def _unchanged(
    model: str | PathLike[str] | ModelProto, loaded: _Loaded, target: Path | None
) -> Callable[[], ModelProto]:
    """The original as the result, byte for byte where it is one file: what reading it has changed is forgotten."""
    from onnx import ModelProto

    from ..files import written
    from ..onnx.files import dump, load
    from ..onnx.store.external import external_tensors
    from ..onnx.write.apply import Applied

    def original() -> ModelProto:
        made = ModelProto()
        made.CopyFrom(load(loaded.path) if loaded.path else cast("ModelProto", model))
        return made

    single = loaded.path is not None and not external_tensors(loaded.model)
    if target is not None:
        with written(target) as temporary:
            if single and loaded.path:
                shutil.copyfile(loaded.path, temporary)
            else:
                dump(Applied(original()), temporary, loaded.source.constants.folder)
    return original


def _plan(loaded: _Loaded, folding: Folding) -> Plan:
    from ..onnx.write.strain import strained

    with _sound(loaded.model, loaded.name):
        plan = plan_that_fits(
            loaded.source.graph, folding.precision_limit, folding.leftovers, lambda plan: strained(loaded.source, plan)
        )  # fmt: skip
    _vouch(loaded.model, loaded.source, loaded.name)
    return replace(plan, notes=(*plan.notes, *_notes(loaded, bool(plan.edits))))


def _notes(loaded: _Loaded, changed: bool) -> list[str]:
    """What a reader of a plan should know of the file."""
    notes = []
    frozen = sorted(loaded.source.constants.frozen) if changed else []
    if frozen:
        what = f"graph inputs with a default ({_some(frozen)}) are constants now, and no inputs any more"
        notes.append(f"{len(frozen)} {what} (--keep-inputs leaves them as they are)")
    if loaded.model.training_info:
        notes.append("the training information in the file stays as it is, and may name tensors that are gone")
    if loaded.source.graph.annotated:
        notes.append("quantization annotations of tensors that hold other values in the folded model do not come along")
    held = sorted(loaded.source.constants.overridable)
    if not held:
        return notes
    why = "graph inputs with a default, which callers may override, so what reads them stays as it is"
    return [*notes, f"{_some(held)}: {why} (--freeze-inputs makes them constant)"]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _sound(model: ModelProto, name: str) -> Iterator[None]:
    """Whatever goes wrong inside is the model's fault where its shapes do not fit together: ModelError then."""
    from ..onnx.store.skeleton import misfit, skeleton

    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        why = misfit(skeleton(model).model)
        if why:
            raise ModelError(f"{name}: its shapes do not fit together: {why}") from error
        raise


def _vouch(model: ModelProto, source: Source, name: str) -> None:
    """ModelError where ops could not be handled since the model's shapes do not fit together."""
    from ..onnx.store.skeleton import misfit, skeleton

    why = misfit(skeleton(model).model) if source.graph.faults else ""
    if why:
        raise ModelError(f"{name}: its shapes do not fit together: {why}")


def _path(model: str | PathLike[str] | ModelProto) -> Path | None:
    return Path(fspath(model)) if isinstance(model, str | PathLike) else None


def _load(model: str | PathLike[str] | ModelProto, folding: Folding, lengths: bool = False) -> _Loaded:
    """Read and check a model; a ModelProto is copied, so that the caller's stays as it is."""
    from onnx import ModelProto

    from ..onnx.files import check, load
    from ..onnx.read.constants import lists_weights
    from ..onnx.read.read import read
    from ..onnx.store.external import check as check_external

    path = _path(model)
    if path is not None:
        proto, name = load(path), path.name
    elif isinstance(model, ModelProto):
        proto, name = ModelProto(), model.graph.name or "model"
        proto.CopyFrom(model)
    else:
        raise UsageError(f"a path or an onnx.ModelProto expected, {type(model).__name__} found")
    folder = path.parent if path else None
    frozen = lists_weights(proto) if folding.frozen is None else folding.frozen
    check_external(proto, folder)
    bare = check(proto, str(path or name), lengths, folder=folder)
    skipped = Skip(folding.skip)

    def load_source(model: ModelProto, bare: Skeleton) -> Source:
        with _sound(model, name):
            source = read(model, bare, name, folder, frozen, skipped)
        _vouch(model, source, name)
        return source

    inlined = _inlined(_Loaded(proto, load_source(proto, bare), path, name, frozen), load_source)
    loaded = _swapped(_decided(inlined, load_source), load_source)
    rest = unmatched(skipped.patterns, skipped.names)
    if rest:
        demand_match(rest, [norm.name for norm in make_plan(loaded.source.graph).batch_norms], name)
    return loaded


def _decided(loaded: _Loaded, load_source: Callable[[ModelProto, Skeleton], Source]) -> _Loaded:
    """The model with the branch that is taken in the place of each If whose condition is constant."""
    from ..onnx.store.skeleton import skeleton
    from ..onnx.write.decided import decide

    folder = loaded.path.parent if loaded.path else None
    while decide(loaded.model, loaded.source.scopes):
        source = load_source(loaded.model, skeleton(loaded.model, folder))
        loaded = _Loaded(loaded.model, source, loaded.path, loaded.name, loaded.frozen)
    return loaded


def _swapped(loaded: _Loaded, load_source: Callable[[ModelProto, Skeleton], Source]) -> _Loaded:
    """The model with Adds before the Muls that stand between them and a product, where more goes that way."""
    from onnx import ModelProto

    from ..onnx.store.skeleton import skeleton
    from ..onnx.write.swapped import swap, swappable

    if not swappable(loaded.model.graph, loaded.source.constants):
        return loaded
    trial = ModelProto()
    trial.CopyFrom(loaded.model)
    swap(trial, loaded.source.constants)
    try:
        source = load_source(trial, skeleton(trial, loaded.path.parent if loaded.path else None))
    except BnfoldError:  # what is tried costs nothing but the trial
        return loaded

    def left(source: Source) -> int:
        plan = make_plan(source.graph)
        return len(plan.batch_norms) - plan.counts()["folded"]

    better = left(source) < left(loaded.source)
    return _Loaded(trial, source, loaded.path, loaded.name, loaded.frozen) if better else loaded


def _inlined(loaded: _Loaded, load_source: Callable[[ModelProto, Skeleton], Source]) -> _Loaded:
    """The model with local functions inlined: those that hold norms, and the others where more norms go that way."""
    from onnx import ModelProto

    from ..onnx.read.functions import called, inline, with_norms
    from ..onnx.store.skeleton import skeleton

    proto, folder = loaded.model, loaded.path.parent if loaded.path else None
    if not called(proto):
        return loaded
    holding = with_norms(proto)
    if holding and inline(proto, holding):
        loaded = _Loaded(proto, load_source(proto, skeleton(proto, folder)), loaded.path, loaded.name, loaded.frozen)
    plan = _plan(loaded, Folding())
    if not called(proto) or plan.counts()["folded"] == len(plan.batch_norms):
        return loaded
    trial = ModelProto()
    trial.CopyFrom(proto)
    if not inline(trial, called(trial)):
        return loaded
    source = load_source(trial, skeleton(trial, folder))
    better = make_plan(source.graph).counts()["folded"] > plan.counts()["folded"]
    return _Loaded(trial, source, loaded.path, loaded.name, loaded.frozen) if better else loaded


@contextmanager
def _reference(model: str | PathLike[str] | ModelProto, loaded: _Loaded, needed: bool) -> Iterator[Path]:
    """The original as a file for the judge: its own, or a temporary one written before the edits."""
    if loaded.path is not None or not needed:
        yield loaded.path or Path()
        return
    from ..onnx.files import dump
    from ..onnx.write.apply import Applied

    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        path = Path(folder) / "original.onnx"
        dump(Applied(cast("ModelProto", model)), path)
        yield path


def _destination(target: Path | None, loaded: _Loaded, needed: bool) -> AbstractContextManager[Path | None]:
    """Where the result is written before it is judged."""
    from ..files import written

    if target is not None:
        return written(target)
    return _scratch() if needed else _nowhere()


@contextmanager
def _scratch() -> Iterator[Path | None]:
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        yield Path(folder) / "folded.onnx"


@contextmanager
def _nowhere() -> Iterator[Path | None]:
    yield None


def _specs(loaded: _Loaded) -> list[InputSpec]:
    """The inputs of a model before any edit: its norms tell sizes too."""
    from ..judge.subjects.runners import input_specs

    with _verifiable():
        return input_specs(loaded.model)


def _judge(reference: Path, candidate: Path, specs: list[InputSpec], judging: Judging) -> Check:
    from ..judge.judge import judge
    from ..judge.subjects.foreign import around
    from ..judge.subjects.subject import OnnxSubject

    with _verifiable(), around(reference, candidate) as (first, second, said):
        known = None if said else specs
        check = judge(OnnxSubject(first, known), OnnxSubject(second, known), judging.inputs, None, judging.progress)
    return replace(check, warnings=(*check.warnings, said)) if said else check


@contextmanager
def _verifiable() -> Iterator[None]:
    """VerificationError that says what to do where the check cannot be made."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(
            f"the result cannot be verified: {error}; --no-verify writes without a check"
        ) from error


def _failure(check: Check, plan: Plan) -> VerificationError:
    """The error of a result that did not pass; `check` and `plan` hang on it for reports."""
    error = VerificationError(f"the folded model did not pass, nothing was written: {check.message}")
    error.check, error.plan = check, plan
    return error
