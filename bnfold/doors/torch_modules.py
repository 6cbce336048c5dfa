"""Folding a module: on a copy first, without the norms that its code does not let go, then, if asked for, in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from time import monotonic as clock

from torch import nn

from ..core.graph import Reason
from ..core.plan import Plan
from ..errors import BnfoldError, InternalError, ModelError, VerificationError
from ..judge.criteria.check import Check
from ..judge.criteria.inputs import Inputs, Judging
from ..process.quiet import quiet
from ..torch.trace.capture import one_line
from ..torch.trace.sizes import resized, shapes
from ..torch.write import replay
from ..torch.write.blame import TO_SEND, Budget, Search, SpentError, internal, uncooperative, undecided
from ..torch.write.fold import ModulePlan, Options, Survey, copied, prepared, ready, survey
from ..torch.write.undo import Undo
from .torch import Call, Policy, judged, judgement, told_mergeable

QUICK = ("normal",)
"""The kinds of inputs, beside those that are given, on which a trial is checked where no others were refused."""


def fold_module(
    module: nn.Module, call: Call, policy: Policy, options: Options, judging: Judging, inplace: bool = False
) -> tuple[nn.Module, Plan, Check | None]:
    """A folded copy of a module, or the module itself with `inplace`, its plan, and the judge's verdict.

    With `inplace` the module changes only after a copy passed, and is put back when it then differs from that.
    """
    began = clock()
    judging.progress("tracing")
    reference = prepared(module, options)
    look = partial(survey, reference, call.args, call.kwargs, options, module if inplace else None)
    seen = look()
    judging.progress("folding")
    folding = _Folding(seen, call, policy, judging, look, began)
    made = seen.plan(policy.plan)
    if not made.plan.edits:
        check = Check.unchanged(made.plan.model) if judging.verify else None
        return ready(module, options) if inplace else copied(reference), told_mergeable(made, policy), check
    folded = made.apply(copied(reference))
    check = None
    if judging.verify:
        made, folded, check = folding.verified(made, folded)
    if inplace:
        return _in_place(module, made, folded, call, options, judging), told_mergeable(made, policy), check
    return folded, told_mergeable(made, policy), check


def _in_place(
    module: nn.Module, made: ModulePlan, folded: nn.Module, call: Call, options: Options, judging: Judging
) -> nn.Module:
    """The module itself, edited, and compared with the copy that passed; as it was, where anything goes wrong."""
    from ..judge.subjects.alike import difference, outputs

    name, undo = type(module).__name__, Undo(module)
    with quiet():  # before the edits, for memory that the module shares with nobody knows what may be the copy's too
        expected = outputs(folded, call.args, call.kwargs) if judging.verify else []
    try:
        made.apply(ready(module, options))
        with quiet():
            fault = difference(expected, module, call.args, call.kwargs) if judging.verify else ""
        if fault:
            raise VerificationError(
                f"{name}, edited in place, does not give what its folded copy gives ({fault}): its tensors may share "
                "memory with others that it does not hold; it was put back; fold a copy of it (inplace=False)"
            )
    except BaseException as error:
        undo.back()
        if isinstance(error, BnfoldError) or not isinstance(error, Exception):
            raise
        raise ModelError(f"{name} cannot be edited in place, and was put back: {one_line(error)}") from error
    return module


@dataclass(frozen=True)
class _Folding:
    """The folds of one module that are tried until one passes."""

    seen: Survey
    call: Call
    policy: Policy
    judging: Judging
    look: Callable[..., Survey]
    """Traces the module again."""
    began: float
    """When the fold began, on the clock."""
    raised: set[str] = field(default_factory=set)
    """What folded modules stumbled over in the code of the network, instead of giving numbers."""

    def verified(
        self, made: ModulePlan, folded: nn.Module, budget: Budget | None = None
    ) -> tuple[ModulePlan, nn.Module, Check]:
        """A fold that passed, with its plan; VerificationError, with what is wrong with the first, where none does.

        `budget`: that of a search that found nothing, where there was one.
        """
        try:
            return made, folded, self._judged(made, folded)
        except VerificationError as error:
            if error.check is None:
                raise
            count, again = len(_gone(made.plan)), budget is not None
            budget = budget.again(count) if budget else Budget.after(self.began, clock, count)
            blaming = _Blaming(self, made, _kinds(error.check), budget)
            other = blaming.plan(error)
            if other is None or (again and blaming.nothing):
                return self._without_biases(error, budget)
            try:
                folded = other.apply(copied(self.seen.module))
                return other, folded, self._judged(other, folded)
            except BnfoldError:
                raise (_internal(error, blaming.ours) if blaming.ours else error) from None

    def _without_biases(self, error: VerificationError, budget: Budget) -> tuple[ModulePlan, nn.Module, Check]:
        """A fold that gives no layer a bias, as the code may ask for one; the error where that does not pass either."""
        if error.check is None or not self.seen.biased:
            raise error
        seen = self.look(bare=True)
        made = seen.plan(self.policy.plan)
        try:
            made, folded, check = replace(self, seen=seen).verified(made, made.apply(copied(seen.module)), budget)
        except BnfoldError:
            raise error from None
        note = "no layer got a bias: the network did not pass with those, so its code looks at them"
        return replace(made, plan=replace(made.plan, notes=(*made.plan.notes, note))), folded, check

    def _judged(self, made: ModulePlan, folded: nn.Module) -> Check:
        """The verdict, also at other sizes; VerificationError where the module did not pass."""
        check = judged(self.seen.module, folded, self.call, self.judging, made.plan)
        fault = self.elsewhere(folded)
        if fault:
            error = VerificationError(f"the folded module did not pass, nothing was changed: {fault}")
            error.check, error.plan = replace(check, passed=False, message=fault), made.plan
            raise error
        return check

    def elsewhere(self, folded: nn.Module) -> str:
        """What is wrong at other sizes than those of the example inputs, where the module runs there; else ""."""
        if self.other is None:
            return ""
        try:
            elsewhere = replace(self.judging, inputs=Inputs(self.judging.inputs.seed))  # data have sizes of their own
            check = judgement(self.seen.module, folded, self.other, elsewhere, QUICK)
        except VerificationError:  # the module itself does not run on what is made up for these sizes
            return ""
        where = shapes((self.other.args, dict(self.other.kwargs)))
        return f"with inputs of other sizes ({where}) {check.message}" if check.message else ""

    @cached_property
    def other(self) -> Call | None:
        """A call with inputs of other sizes than the examples that the module takes; None where none is found."""
        from ..judge.subjects.alike import outputs

        for args, kwargs in resized(self.call.args, self.call.kwargs):
            try:
                with quiet():
                    outputs(copied(self.seen.module), args, kwargs)
            except Exception:  # whatever the code has against these sizes
                continue
            return Call(args, kwargs)
        return None


def _kinds(check: Check) -> tuple[str, ...]:
    """The kinds of inputs on which a module did not pass: by its numbers, or since it could not be run."""
    from ..judge.criteria.inputs import KINDS

    failed = {output.kind for output in check.outputs if not output.passed}
    found = tuple(kind for kind in KINDS if kind in failed or f"on {kind} inputs" in check.message)
    return found[:2] or QUICK


def _gone(plan: Plan) -> list[str]:
    """The norms that do not stay, by name."""
    return list(dict.fromkeys(bn.name for bn in plan.batch_norms if bn.verdict != "kept"))


class _Blaming:
    """Why a folded module did not pass: our fault, which the trace alone shows, or the code of the network."""

    def __init__(self, folding: _Folding, made: ModulePlan, kinds: tuple[str, ...], budget: Budget) -> None:
        """`kinds`: of inputs on which it was refused."""
        self.folding, self.kinds, self.budget = folding, kinds, budget
        self.names = _gone(made.plan)
        self.ours: str | None = None
        """What is wrong with our own result, "" where it is right, None where that is not known."""
        self.nothing = False
        """Whether the search was over before it found anything."""
        self.zeros = any(planned.vanished for _, planned in made.parts)

    def plan(self, error: VerificationError) -> ModulePlan | None:
        """A plan that leaves alone what does not go; None where that is not found.

        InternalError where the plan is wrong in the trace too, and not for some norms only.
        """
        self.folding.judging.progress("looking for norms that do not go")
        if self.zeros and self._passes({}, True):
            return _noted(self._planned({}, True), [], True)
        ours = self.ours = self._replayed(())
        if ours is None:
            return None
        fault = self._replayed if ours else partial(self._fault, solid=self.zeros)
        search = Search(self.names, lambda kept: fault(kept) or "", self._kin, self.budget, self._raised)
        culprits = search.culprits()
        self.nothing = len(search.undecided) == len(self.names)
        if not culprits and not search.undecided:
            if ours:
                raise _internal(error, ours)
            return None
        found = {name: (internal if ours else uncooperative)(name, message) for name, message in culprits.items()}
        kept = {**found, **{name: undecided(name) for name in search.undecided}}
        solid = self.zeros and not self._passes(kept, False)
        return _noted(self._planned(kept, solid), _said(culprits, search.undecided, bool(ours)), solid)

    def _planned(self, kept: Mapping[str, Reason], solid: bool) -> ModulePlan:
        return self.folding.seen.plan(self.folding.policy.plan, kept, solid)

    def _passes(self, kept: Collection[str], solid: bool) -> bool:
        """Whether the fold that keeps these norms passes; False where it is too late to see."""
        try:
            return not self.budget.spend(lambda: self._fault(kept, solid))
        except SpentError:
            return False

    def _tried(self, kept: Collection[str], solid: bool) -> tuple[ModulePlan, nn.Module]:
        """The fold that keeps these norms."""
        made = self._planned({name: uncooperative(name) for name in kept}, solid)
        return made, made.apply(copied(self.folding.seen.module))

    def _fault(self, kept: Collection[str], solid: bool) -> str:
        """What is wrong with the fold that keeps these norms, on few inputs; "" where nothing is."""
        folding = self.folding
        try:
            _, folded = self._tried(kept, solid)
            check = judgement(folding.seen.module, folded, folding.call, folding.judging, self.kinds)
        except BnfoldError as error:
            return one_line(error)
        if check.message and not check.outputs:
            folding.raised.add(check.message)
        return check.message or folding.elsewhere(folded)

    def _replayed(self, kept: Collection[str]) -> str | None:
        """What is wrong with that fold in the trace, where no code of the network runs; None where nothing runs it."""
        try:
            made, folded = self._tried(kept, self.zeros)
            pairs = [(planned, replay.after(planned, folded.get_submodule(path))) for path, planned in made.parts]
        except BnfoldError as error:
            return one_line(error)
        for planned, after in pairs:
            try:
                before, call = replay.before(planned.modules), Call(replay.given(planned.modules))
                check = judgement(before, after, call, self.folding.judging, self.kinds)
            except BnfoldError:  # the trace itself does not run
                return None
            if check.message:
                return check.message
        return ""

    def _raised(self, message: str) -> bool:
        return message in self.folding.raised

    def _kin(self, name: str) -> Hashable:
        """The classes of a norm and of the module around it, and its name there."""
        around, _, leaf = name.rpartition(".")
        modules = dict(self.folding.seen.module.named_modules(remove_duplicate=False))
        return type(modules.get(around)), leaf, type(modules.get(name))


def _internal(error: VerificationError, message: str) -> InternalError:
    """The same error, as a fault of ours."""
    found = InternalError(
        f"{error} (internal: the plan is wrong in the trace of the network, too, where none of its code runs: "
        f"{message}). This is a fault of bnfold; please report it with {TO_SEND}"
    )
    found.check, found.plan = error.check, error.plan
    return found


def _said(culprits: Mapping[str, str], open_: Collection[str], ours: bool) -> list[str]:
    """What was found by trial, in sentences."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, message in culprits.items():
        groups[message].append(name)
    why = "bnfold's own fold is wrong" if ours else "the network did not pass"
    notes = [f"kept, because {why} without: {', '.join(names)} ({message})" for message, names in groups.items()]
    if ours:
        notes.append(f"a norm kept so shows a fault of bnfold: please report it with {TO_SEND}")
    if open_:
        notes.append(f"kept undecided, because the search for norms to blame has a bound: {', '.join(open_)}")
    return notes


def _noted(made: ModulePlan, notes: Collection[str], solid: bool) -> ModulePlan:
    """The plan, saying what was found by trial."""
    zeros = "norms that layers beside them took up leave zeros of full shape, which the code works on"
    notes = (*made.plan.notes, *notes, *([zeros] if solid else []))
    return replace(made, plan=replace(made.plan, notes=notes))
