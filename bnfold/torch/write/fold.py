"""A module, planned and edited as a whole or in parts, copied or in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ...core.graph import Reason
from ...core.plan import BatchNorm, Edit, Plan
from ...errors import ModelError, UsageError
from ..read.house import Modules
from ..read.module import Planned, plan_module
from ..read.parts import parts
from ..trace.capture import WEIGHTS, capture, computed, one_line
from ..trace.memory import Memory, named_tensors
from .apply import apply


@dataclass(frozen=True)
class Options:
    """How a module is read. `eval`, `bake`, `ignore_hooks`: see `bnfold.fold`."""

    skip: tuple[str, ...] = ()
    eval: bool = False
    bake: bool = False
    ignore_hooks: bool = False

    def skipped(self, label: str) -> bool:
        """Whether a norm is to be left alone."""
        return any(fnmatchcase(label, pattern) for pattern in self.skip)


@dataclass(frozen=True)
class ModulePlan:
    """What is to be done to a module: for each traced part its path and its plan; and the plan of all."""

    plan: Plan
    parts: tuple[tuple[str, Planned], ...]

    def apply(self, target: nn.Module) -> nn.Module:
        """Edit a module like the one that this was made for."""
        for path, planned in self.parts:
            apply(target.get_submodule(path), planned)
        return target


def prepared(module: nn.Module, options: Options) -> nn.Module:
    """A copy of a module, in eval mode and with its parametrizations baked in where that was asked for.

    UsageError for a module in train mode, ModelError where it cannot be copied.
    """
    if module.training and not options.eval:
        raise UsageError(
            f"{type(module).__name__} is in train mode, in which batch norms use the statistics of each batch; "
            "call eval() on it first, or pass eval=True"
        )
    if any(tensor.is_meta for tensor in named_tensors(module).values()):
        raise ModelError(
            f"{type(module).__name__} is on the meta device, where tensors have no values; give it weights first "
            "(load_state_dict with assign=True)"
        )
    return ready(copied(module), options)


def ready(module: nn.Module, options: Options) -> nn.Module:
    """The module itself, in eval mode and baked where that was asked for."""
    if options.eval:
        module.eval()
    return _baked(module) if options.bake else module


def evaluated(module: nn.Module) -> nn.Module:
    """The module itself, in eval mode: `train` of some classes forgets to return it."""
    module.eval()
    return module


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. ModelError where there is none."""
    try:
        return copy.deepcopy(module, dict(computed(module)))
    except Exception as error:
        raise ModelError(f"{type(module).__name__} cannot be copied: {one_line(error)}") from error


def _baked(module: nn.Module) -> nn.Module:
    """Parametrizations and the hooks of old weight norms turned into plain parameters."""
    for inner in list(module.modules()):
        if parametrize.is_parametrized(inner):
            own = type(inner)  # a copy shares the class of its original, from which the removal takes properties out
            inner.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
            for name in list(inner.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(inner, name, leave_parametrized=True)
        for hook in list(inner._forward_pre_hooks.values()):
            if hasattr(hook, "remove") and (hasattr(hook, "name") or isinstance(hook, WEIGHTS)):
                for key in [k for k, other in inner._forward_pre_hooks.items() if other is hook]:
                    hook.remove(inner)
                    del inner._forward_pre_hooks[key]
    return module


@dataclass(frozen=True)
class Survey:
    """A module that was traced, as a whole or in parts: for each part its path; `note`: why it is in parts."""

    module: nn.Module
    parts: tuple[tuple[str, Modules], ...]
    note: str
    options: Options

    def plan(
        self, planner: Callable[..., Plan], kept: Mapping[str, Reason] | None = None, solid: bool = False
    ) -> ModulePlan:
        """A plan. `kept`: norms that are to stay, and why. `solid`: zeros that norms leave have the shape of the norm's
        output, each in its own place, as code may ask that works on them in place."""
        plans = []
        for path, modules in self.parts:
            start = f"{path}." if path else ""

            def skipped(label: str, start: str = start) -> bool:
                return self.options.skipped(f"{start}{label}")

            own = {name[len(start) :]: reason for name, reason in (kept or {}).items() if name.startswith(start)}
            made = plan_module(modules, path or self._name, planner, skipped, own)
            plans.append((path, replace(made, solid=solid)))
        return ModulePlan(self._joined(plans) if self.note else self._whole(plans), tuple(plans))

    def _whole(self, plans: Sequence[tuple[str, Planned]]) -> Plan:
        made = plans[0][1].plan
        return replace(made, batch_norms=(*made.batch_norms, *_unseen(self.module, made.batch_norms, IDLE)))

    @property
    def biased(self) -> bool:
        """Whether layers have a bias in the trace that they do not have in the module."""
        return any(modules.capture.added for _, modules in self.parts)

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def _joined(self, plans: Sequence[tuple[str, Planned]]) -> Plan:
        norms = _prefixed(plans)
        norms += _unseen(self.module, norms, UNTRACED)
        edits: list[Edit] = []
        start = 0
        for _, planned in plans:
            edits += [replace(edit, op=edit.op + start) for edit in planned.plan.edits]
            start += len(planned.source.graph.ops)
        return Plan(self._name, tuple(norms), (), tuple(edits), (self.note,))


def survey(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options,
    original: nn.Module | None = None, bare: bool = False,
) -> Survey:  # fmt: skip
    """Trace a module that is in the mode in which it is to be used. Nothing of it is changed.

    `original`: the module that it is a copy of, where that is to be edited: what is tied there counts as tied.
    `bare`: layers without a bias stay so.
    """
    memory = Memory.of(module, original)
    try:
        made = capture(module, args, kwargs, options.ignore_hooks, memory, bare)
        return Survey(module, (("", Modules(module, made)),), "", options)
    except ModelError as error:
        found = parts(module, args, kwargs, options.ignore_hooks, memory, bare)
        note = f"{error}. Traced on their own instead: {', '.join(part.path for part in found) or 'none'}"
        inner = [(part.path, Modules(part.module, part.capture, part.foreign, part.memory)) for part in found]
        return Survey(module, tuple(inner), note, options)


def _prefixed(plans: Sequence[tuple[str, Planned]]) -> list[BatchNorm]:
    return [
        replace(bn, name=f"{path}.{bn.name}", into=tuple(f"{path}.{layer}" for layer in bn.into))
        for path, planned in plans
        for bn in planned.plan.batch_norms
    ]


UNTRACED = "torch.export cannot trace the code around it", "see the note"
IDLE = (
    "it is not in the trace: the example inputs do not run through it, or only by choice of the data, or nothing "
    "depends on what comes out of it",
    "",
)


def _unseen(module: nn.Module, listed: Sequence[BatchNorm], why: tuple[str, str]) -> list[BatchNorm]:
    """The norms of a module that are not listed, as a whole or in part, each once: they stay, for the reason given."""
    paths = dict(module.named_modules(remove_duplicate=False))
    names = [bn.name for bn in listed]
    seen = {id(paths.get(name)) for name in names}
    return [
        BatchNorm(path, "BatchNormalization", "?", "?", _channels(inner), "kept",
                  reason=Reason("untraced", why[0], path, why[1]))
        for path, inner in module.named_modules()
        if _is_norm(inner) and id(inner) not in seen
        and not any(name.startswith(f"{path}.") or path.startswith(f"{name}.") for name in names)
    ]  # fmt: skip


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm of torch, scripted ones included."""
    name = str(getattr(module, "original_name", "")) if isinstance(module, torch.jit.ScriptModule) else ""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in name


def _channels(norm: nn.Module) -> int:
    var = getattr(norm, "running_var", None)
    return int(var.numel()) if isinstance(var, torch.Tensor) else int(getattr(norm, "num_features", 0))
