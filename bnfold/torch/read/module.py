"""Plans for modules, and their edits carried out on one: by qualified names, every other line of it left as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...core.graph import Affine, Op, Reason, Sum
from ...core.plan import BatchNorm, Edit, Merge, Plan, Remove
from .aliases import Aliases
from .bindings import AffineBinding
from .house import Modules
from .read import Source, module_call, read

Planner = Callable[[Source], Plan]


@dataclass(frozen=True)
class Planned:
    """A plan that the module can hold, and what it was made from.

    `vanished`: ops that give zeros from now on. `outplace`: activations that may write into their input no more.
    `copies`: norms in whose place a copy of the values is left. `solid`: zeros have the shape of what went.
    """

    source: Source
    plan: Plan
    modules: Modules
    vanished: frozenset[int] = frozenset()
    outplace: frozenset[str] = frozenset()
    copies: frozenset[str] = frozenset()
    solid: bool = False


def plan_module(
    modules: Modules, name: str, planner: Planner, skipped: Callable[[str], bool],
    stay: Mapping[str, Reason] | None = None,
) -> Planned:  # fmt: skip
    """The plan for a module; what its code cannot hold stays, with a reason, and the rest is planned anew.

    `stay`: norms that are known not to go, and why.
    """
    capture = modules.capture
    house = modules.house(skipped)
    kept = dict(stay or {})
    untapped: set[str] = set()
    while True:
        source = read(capture, name, house, kept, untapped)
        plan = planner(source)
        vanished, stuck = _branches(source, plan)
        torn = _torn(source, plan, modules, vanished)
        if not torn and not stuck:
            plan = plan if plan.batch_norms else _with_hidden(plan, planner(read(capture, name, None)))
            return _without_overwriting(Planned(source, plan, modules, frozenset(vanished)))
        kept.update(torn)
        untapped.update(stuck)


def _with_hidden(plan: Plan, program: Plan) -> Plan:
    """A plan without norms, that says so where there are some in the code, which shows in the program that it makes."""
    inside = {norm.name for norm in program.batch_norms if norm.reason and norm.reason.code == "in-subgraph"}
    found = [norm.name for norm in program.batch_norms if norm.name not in inside]
    if not found:
        return plan
    text = (
        f"no module here is a norm that could be taken out, but {len(found)} ops in its code scale or shift channels "
        f"by constants, as norms do ({', '.join(found[:3])}{' and others' if found[3:] else ''}): a Keras model on the "
        "torch backend, say; fold the exported program instead: bnfold.fold(torch.export.export(module, args))"
    )
    return replace(plan, notes=(*plan.notes, text))


def _torn(source: Source, plan: Plan, modules: Modules, vanished: set[int]) -> dict[str, Reason]:
    """Norms that are called more than once, and would become different things."""
    calls: dict[int, list[int]] = defaultdict(list)
    for op, binding in source.bindings.items():
        if isinstance(binding, AffineBinding) and binding.path:
            calls[id(modules.paths[binding.path])].append(op)
    edits: dict[int, Edit] = {edit.op: edit for edit in plan.edits}
    found = {}
    for inner, group in calls.items():
        what = [(_what(edits.get(op)), op in vanished) for op in group]
        times = len(modules.calls[inner])
        what += [(None, False)] * (times - len(group))  # calls that could not be read stay as they are
        if any(other != what[0] for other in what[1:]):
            text = f"it is called {times} times, and its calls would have to become different things"
            for op in group:
                path = _path(source, op)
                found[path] = Reason("shared", text, path, "give each call a norm of its own")
    return found


def _path(source: Source, op: int) -> str:
    binding = source.bindings[op]
    return binding.path if isinstance(binding, AffineBinding) else ""


def _what(edit: Edit | None) -> Edit | None:
    """An edit without what tells calls apart."""
    if isinstance(edit, Remove):
        return Remove(0, "")
    return None if edit is None else replace(edit, op=0, name="")


def _branches(source: Source, plan: Plan) -> tuple[set[int], set[str]]:
    """Ops that give zeros once their branch is part of a layer; layers of branches that the code adds all the same."""
    ops = source.graph.ops
    vanished: set[int] = set()
    stuck: set[str] = set()
    for edit in plan.edits:
        if isinstance(edit, Merge):
            zeros = _zeros(ops, edit)
            if zeros is None or not all(_path(source, op) for op in zeros if isinstance(ops[op], Affine)):
                stuck.update(ops[op].name for op in edit.layers)
            else:
                vanished |= zeros
    return vanished, stuck


def _zeros(ops: Sequence[Op], edit: Merge) -> set[int] | None:
    """The norms on the way from the layers' input, which become zeros; None where the input is added as it is."""
    dead = {ops[edit.layers[0]].inputs[0]}
    base = set(dead)
    zeros = set()
    for index in sorted({*edit.drop, edit.op}):
        op = ops[index]
        if isinstance(op, Affine) and op.inputs[0] in dead:
            zeros.add(index)
            dead.update(op.outputs)
        elif isinstance(op, Sum) and (base & set(op.inputs) or any(factor != 1 for factor in op.factors)):
            return None
    return zeros


def _without_overwriting(planned: Planned) -> Planned:
    """The plan with in-place activations made to leave their input alone where others read it, or with copies."""
    raw, source = planned.source.capture.raw, planned.source
    if raw is None:
        return planned
    parameters = {node.name for node in source.constants.nodes if node.op == "placeholder"}
    gone = {
        binding.path
        for edit in planned.plan.edits
        if isinstance(edit, Remove) and edit.op not in planned.vanished
        and isinstance(binding := source.bindings.get(edit.op), AffineBinding)
    }  # fmt: skip
    outplace: set[str] = set()
    copies: set[str] = set()
    while True:
        aliases = Aliases(raw, gone - copies, parameters)
        open_ = [(w, t) for w, t in aliases.conflicts() if module_call(w)[1] not in outplace]
        if not open_:
            plan = _with_copies(planned.plan, copies)
            return replace(planned, plan=plan, outplace=frozenset(outplace), copies=frozenset(copies))
        write, target = open_[0]
        path = module_call(write)[1]
        inner = planned.modules.paths.get(path)
        if getattr(inner, "inplace", False) is True and aliases.replaceable(write, target):
            outplace.add(path)
        else:
            copies |= aliases.behind(target) or gone


def _with_copies(plan: Plan, copies: set[str]) -> Plan:
    """The plan, saying where a copy is left."""

    def said(bn: BatchNorm) -> BatchNorm:
        if bn.name not in copies:
            return bn
        text = "code behind it overwrites its output, which is now a tensor that others read, so a copy is left"
        return replace(bn, verdict="reduced", form="copy", reason=Reason("in-place", text, bn.name))

    return replace(plan, batch_norms=tuple(said(bn) for bn in plan.batch_norms))
