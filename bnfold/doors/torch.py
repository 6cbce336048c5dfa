"""The front door for PyTorch: modules, exported programs, and their files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from ..core.gauge.planner import plan_that_fits
from ..core.plan import Plan
from ..errors import ModelError, UsageError, VerificationError
from ..judge.criteria.check import Check
from ..judge.criteria.inputs import Judging
from ..limits import LEFTOVERS, PRECISION_LIMIT
from ..process.quiet import quiet
from ..torch.read.read import Source, read
from ..torch.trace.capture import capture_program, one_line, without_autocast
from ..torch.trace.decided import decide
from ..torch.write import program as programs
from ..torch.write.fold import ModulePlan, Options, prepared, survey
from ..torch.write.merging import merge, mergeable
from ..torch.write.strain import strained


@dataclass(frozen=True)
class Call:
    """How a network is called: `args` and `kwargs`, whose tensors stand for those that it will be given."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any, kwargs: Mapping[str, Any] | None, model: object) -> Call:
        """From what a caller gives: a tuple of arguments, or a single one. UsageError where nothing is given."""
        if inputs is None and not kwargs:
            if isinstance(model, ExportedProgram):
                return cls(*_examples(model))
            raise UsageError(
                f"{type(model).__name__}: example inputs are needed: --input 1x3x224x224, or in Python "
                "bnfold.fold(module, (x,))"
            )
        args = () if inputs is None else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        return cls(args, dict(kwargs or {}))


def _examples(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs that a program was exported with, or some that fit."""
    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return tuple(args), dict(kwargs)
    names = program.graph_signature.user_inputs
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    values = [_made(nodes[name]) if isinstance(name, str) and name in nodes else name for name in names]
    args, kwargs = tree_unflatten(values, program.call_spec.in_spec)
    return tuple(args), dict(kwargs)


def _made(value: Any) -> Any:
    """A tensor of the shape and type of a fake one; dynamic sizes as they were when it was traced."""
    if not isinstance(value, torch.Tensor):
        return value
    sizes = [int(size) if isinstance(size, int) else int(size.node.hint or 2) for size in value.shape]
    return torch.randn(sizes).to(value.dtype) if value.is_floating_point() else torch.zeros(sizes, dtype=value.dtype)


@dataclass(frozen=True)
class Policy:
    """What a plan may do: see `bnfold.inspect`. `exports`: the result is to run in onnxruntime, and not in torch.
    `merge`: layers of programs become one."""

    precision_limit: float = PRECISION_LIMIT
    leftovers: str = LEFTOVERS[0]
    exports: bool = False
    merge: bool = False

    def plan(self, source: Source) -> Plan:
        """The plan of a network that was read. In torch every single op is faster than a norm (docs/benchmarks.md)."""
        leftovers = "all" if self.leftovers == "fast" and not self.exports else self.leftovers
        return plan_that_fits(source.graph, self.precision_limit, leftovers, partial(strained, source))

    def read(self, program: ExportedProgram, options: Options) -> Source:
        """An exported program as it is planned."""
        return read(decide(capture_program(program)), "program", None, skipped=options.skipped, layers=self.exports)


def inspect_module(module: nn.Module, call: Call, policy: Policy, options: Options) -> Plan:
    """What folding a module would do."""
    made = survey(prepared(module, options), call.args, call.kwargs, options).plan(policy.plan)
    return told_mergeable(made, policy)


def told_mergeable(made: ModulePlan, policy: Policy) -> Plan:
    """The plan of a module, with a note where layers could be merged, which would take other classes."""
    if not policy.merge or len(made.parts) != 1 or made.parts[0][0]:
        return made.plan
    planned = made.parts[0][1]
    try:
        count = mergeable(planned.modules.capture, planned.source)
    except Exception:  # what is told besides must not cost the fold
        return made.plan
    groups = "a group" if count == 1 else f"{count} groups"
    note = f"{groups} of layers can be merged in the exported program, or in what bnfold export writes"
    return replace(made.plan, notes=(note, *made.plan.notes)) if count else made.plan


@quiet()
def inspect_program(program: ExportedProgram, policy: Policy, options: Options) -> Plan:
    """What folding an exported program would do."""
    source = policy.read(program, options)
    made = policy.plan(source)
    if not policy.merge:
        return made
    return _merged(programs.apply(source, made) if made.edits else program, made)[1]


def _merged(program: ExportedProgram, made: Plan) -> tuple[ExportedProgram, Plan]:
    """A folded program with its layers merged, and the plan that says so."""
    found = merge(program, made.held)
    return found.program, made.with_merges(candidate.plain for candidate in found.candidates)


@quiet()
def fold_program(
    program: ExportedProgram, call: Call, policy: Policy, options: Options, judging: Judging
) -> tuple[ExportedProgram, Plan, Check | None]:
    """A folded program, its plan, and the judge's verdict."""
    judging.progress("reading")
    source = policy.read(program, options)
    made = policy.plan(source)
    judging.progress("folding")
    folded = programs.apply(source, made) if made.edits else copy.deepcopy(program)
    if policy.merge:
        folded, made = _merged(folded, made)
    if not made.changed:
        return folded, made, Check.unchanged(made.model) if judging.verify else None
    if not judging.verify:
        return folded, made, None
    try:
        return folded, made, judged(program.module(), folded.module(), call, judging, made)
    except VerificationError as error:
        if not made.merged:
            raise
        folded, plain, check = fold_program(program, call, replace(policy, merge=False), options, judging)
        note = f"no layers were merged: with them the result was refused ({error})"
        return folded, replace(plain, notes=(*plain.notes, note)), check


def judged(reference: nn.Module, folded: nn.Module, call: Call, judging: Judging, made: Plan) -> Check:
    """The verdict on a folded module; VerificationError where it did not pass."""
    check = judgement(reference, folded, call, judging)
    if not check.passed:
        error = VerificationError(f"the folded module did not pass, nothing was changed: {check.message}")
        error.check, error.plan = check, made
        raise error
    return check


def judgement(
    reference: nn.Module, folded: nn.Module, call: Call, judging: Judging, kinds: tuple[str, ...] = ()
) -> Check:
    """The verdict on a folded module. `kinds`: on these inputs and those given, without looking for the place."""
    from ..judge.judge import judge
    from ..judge.subjects.modulecalls import single
    from ..judge.subjects.modules import ModuleSubject

    short = single(reference)
    first, second = (ModuleSubject(m, call.args, call.kwargs, single=short) for m in (reference, folded))
    with quiet():
        inputs = replace(judging.inputs, kinds=kinds) if kinds else judging.inputs
        return judge(first, second, inputs, None, judging.progress, not kinds)


def program_of_script(module: torch.jit.ScriptModule, call: Call) -> ExportedProgram:
    """A TorchScript module as an exported program. ModelError where torch cannot convert it."""
    from torch._export.converter import TS2EPConverter

    try:
        with quiet(), without_autocast():
            return TS2EPConverter(module, call.args, dict(call.kwargs)).convert()
    except Exception as error:
        raise ModelError(
            f"torch cannot turn this TorchScript module into an exported program ({one_line(error)}); fold the module "
            "it was made from, or its ONNX file"
        ) from error
