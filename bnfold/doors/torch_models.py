"""Models of PyTorch, given as objects or as files: opened, folded, and written in the form that was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from ..core.plan import OtherNorm, Plan
from ..core.skip import demand_match, unmatched
from ..errors import BnfoldError, UsageError
from ..files import check_target, written
from ..judge.criteria.check import Check
from ..judge.criteria.device import Device
from ..judge.criteria.inputs import Judging
from ..judge.subjects.modules import ModuleSubject
from ..kinds import kind_of
from ..lrn.find import find_lrn
from ..options import Folding, TorchOptions
from ..process.quiet import in_turn
from ..torch.store import load as files
from ..torch.store import save
from ..torch.store.checkpoint import Checkpoint
from ..torch.store.script import completed, grown, save_scripted
from ..torch.trace.capture import one_line
from ..torch.trace.specs import dtype_of, examples, named
from ..torch.write.fold import Options, copied, evaluated
from .torch import (
    Call,
    Policy,
    fold_program,
    inspect_module,
    inspect_program,
    judgement,
    program_of_script,
)
from .torch_modules import fold_module


@dataclass
class TorchModel:
    """A network of PyTorch, with what is needed to fold it. `path`, `state`: the file that it came from."""

    model: nn.Module | ExportedProgram
    call: Call
    policy: Policy
    options: Options
    folding: Folding = field(default_factory=Folding)
    path: Path | None = None
    state: Checkpoint | None = None
    kind: str = field(default="module")
    script: nn.Module | None = None
    """The TorchScript module that the program was made of."""

    def check_skip(self) -> None:
        """UsageError where a name to skip is that of no norm; those in the code are looked for only then."""
        modules = self.model.named_modules() if isinstance(self.model, nn.Module) else ()
        rest = unmatched(self.options.skip, (name for name, module in modules if hasattr(module, "running_mean")))
        if rest:
            plan = replace(self, options=replace(self.options, skip=())).inspect()
            demand_match(rest, (norm.name for norm in plan.batch_norms), plan.model)

    @in_turn
    def inspect(self) -> Plan:
        """The plan."""
        if isinstance(self.model, ExportedProgram):
            return inspect_program(self.model, self.policy, self.options)
        plan = inspect_module(self.model, self.call, self.policy, self.options)
        return self._noted(with_lrns(plan, self.model, self.call))

    @in_turn
    def fold(
        self, out: Path | None, judging: Judging, inplace: bool = False
    ) -> tuple[Callable[[], Any], Plan, Check | None]:
        """What gives the folded model, its plan and the verdict; written to `out` when it passed."""
        form = self._form(out)
        folded: nn.Module | ExportedProgram
        if isinstance(self.model, ExportedProgram):
            if inplace:
                raise UsageError("inplace=True: an exported program is never changed, only a module can be")
            folded, plan, check = fold_program(self.model, self.call, self.policy, self.options, judging)
            plan = replace(plan, notes=(*plan.notes, *_lost(self.script if form == "script" else None)))
        else:
            before = copied(self.model) if form in ("checkpoint", "safetensors") else self.model
            folded, plan, check = fold_module(self.model, self.call, self.policy, self.options, judging, inplace)
            plan = self._noted(plan)
            placed = self._placed(save.changes(before, folded) if form in ("checkpoint", "safetensors") else {})
            tensors = form in ("checkpoint", "safetensors")
            stored, note = self._stored(before, folded, judging) if tensors and plan.edits else (folded, ())
            plan = replace(plan, notes=(*plan.notes, *note))
        original = self._same(form, plan)
        if out is not None and original is not None:
            with written(out) as temporary:
                shutil.copyfile(original, temporary)
        elif out is not None:
            judging.progress("writing")
            with written(out) as temporary:
                if isinstance(folded, ExportedProgram):
                    self._write_program(folded, form, temporary)
                else:
                    self._write_module(stored, form, temporary, placed)
        return lambda: folded, plan, check

    def _stored(self, before: nn.Module, folded: nn.Module, judging: Judging) -> tuple[nn.Module, tuple[str, ...]]:
        """The folded network in the type of the file that it came from, where it passes in that; and what to say."""
        dtype = self.state.shorter(before) if self.state is not None and judging.verify else None
        if dtype is None:
            return folded, ()
        name = str(dtype).removeprefix("torch.")
        judging.progress(f"verifying as {name}")
        made, call = copied(folded).to(dtype), (self.call.args, dict(self.call.kwargs))
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, call)
        try:
            passed = judgement(evaluated(copied(before)).to(dtype), made, Call(args, kwargs), judging).passed
        except BnfoldError:  # not every op takes every type
            passed = False
        return (made, (f"written as {name}",)) if passed else (folded, (f"not written as {name}: it did not pass so",))

    def _same(self, form: str, plan: Plan) -> Path | None:
        """The file that the result is a copy of: where nothing changed, and the kind of file stays the same."""
        if plan.changed or self.options.bake or self.path is None or kind_of(self.path) != form:
            return None
        return self.path if self.state is not None or isinstance(self.model, ExportedProgram) else None

    def _noted(self, plan: Plan) -> Plan:
        """With what is to be said of the file."""
        return plan if self.state is None else replace(plan, notes=(*plan.notes, *self.state.notes))

    def _placed(self, changes: dict[str, str]) -> dict[str, str]:
        """With those changes that the file had already."""
        return {**((save.placed_in(self.state) or {}) if self.state is not None else {}), **changes}

    def _form(self, out: Path | None) -> str:
        """What `out` is to hold; UsageError where this model cannot become that."""
        if out is None:
            return ""
        check_target(out, self.path)
        form = save.format_of(out)
        if isinstance(self.model, ExportedProgram) and form in ("checkpoint", "safetensors"):
            if self.kind == "script" and form == "checkpoint":
                return "script"
            raise UsageError(f"{out}: an exported program is written as .pt2 or .onnx")
        return form

    def _write_program(self, folded: ExportedProgram, form: str, out: Path) -> None:
        if form == "script":
            save_scripted(folded, self.script, self.call.args, out)
        elif form == "onnx":
            raise UsageError("bnfold export writes ONNX files")
        else:
            save.save_program(folded, self.call.args, self.call.kwargs, out)

    def _write_module(self, folded: nn.Module, form: str, out: Path, placed: dict[str, str]) -> None:
        if form in ("checkpoint", "safetensors"):
            save.save_checkpoint(folded, placed, out, self.state)
        elif form == "script":
            save.save_script(folded, self.call.args, out)
        elif form == "onnx":
            raise UsageError("bnfold export writes ONNX files")
        else:
            save.save_program(folded, self.call.args, self.call.kwargs, out)


@in_turn
def opened(model: Any, given: TorchOptions, folding: Folding) -> TorchModel:
    """A module, a program, or the path of a file of PyTorch."""
    policy = Policy(folding.precision_limit, folding.leftovers, merge=folding.merge)
    options = Options(folding.skip, given.eval, given.bake, given.ignore_hooks)
    if not isinstance(model, str | PathLike):
        if not isinstance(model, nn.Module | ExportedProgram):
            raise UsageError(f"a torch.nn.Module or an ExportedProgram expected, {type(model).__name__} found")
        return _ready(TorchModel(model, Call(), policy, options, folding), given)
    path = Path(fspath(model))
    loaded = files.load(path, given.trust_pickle)
    if not isinstance(loaded, Checkpoint):
        found = TorchModel(loaded, Call(), policy, _evaluating(options), folding, path)
        return _ready(found, given)
    if given.arch is None:
        raise UsageError(
            f"{path}: a checkpoint, which holds tensors and no network; say what makes it with --arch "
            "package.module:factory or --arch path/to/net.py:Net, and its inputs with --input 1x3x224x224"
        )
    module = filled(built(given.arch, given.arch_args), loaded, str(path))
    return _ready(TorchModel(module, Call(), policy, _evaluating(options), folding, path, loaded), given)


@in_turn
def subject(model: Any, given: TorchOptions, device: Device | None) -> ModuleSubject:
    """A module, a program, or the path of a file, for the judge: in the mode that it is in; files in eval mode."""
    from ..judge.subjects.modules import ModuleSubject

    found = opened(model, given, Folding())
    program = found.model if isinstance(found.model, ExportedProgram) else None
    module = found.model.module() if isinstance(found.model, ExportedProgram) else found.model
    if given.eval or (found.path is not None and not isinstance(found.model, ExportedProgram)):
        module = evaluated(copied(module))
    return ModuleSubject(module, found.call.args, found.call.kwargs, device, program)


def filled(module: nn.Module, state: Checkpoint, where: str) -> nn.Module:
    """A network that was freshly made, with the modules and tensors of a checkpoint, which is fitted to it."""
    state.fit(module)
    if save.placed_in(state) is not None:
        return save.restore(module, state, where)
    files.fill(module, state, where)
    return module


def _lost(script: nn.Module | None) -> list[str]:
    """What the new archive has not, in a sentence."""
    held: Any = script
    methods = set() if held is None else {method for method in held._c._method_names() if method != "forward"}
    fixed = [] if held is None else [a.name for a in held.forward.schema.arguments[1:] if a.has_default_value()]
    return [
        *([f"the archive's methods {', '.join(sorted(methods))} are not in the result"] if methods else []),
        *([f"the archive's {', '.join(fixed)} had defaults, which are fixed in the result"] if fixed else []),
    ]


def _evaluating(options: Options) -> Options:
    """A network that comes from a file is in no mode yet, and is used for inference."""
    return Options(options.skip, True, options.bake, options.ignore_hooks)


def with_lrns(plan: Plan, module: nn.Module, call: Call) -> Plan:
    """A plan that lists the LRNs of a module too, or has a note where they could not be looked for."""
    try:
        sites = find_lrn(module, call.args, call.kwargs)
    except BnfoldError:
        return plan
    except Exception as error:  # code of a user's that runs as a whole need not run in pieces
        return replace(plan, notes=(*plan.notes, f"LRNs could not be looked for: {one_line(error)}"))
    listed = [OtherNorm(s.name, "LRN", s.input, s.output) for s in sites]
    return replace(plan, others=(*plan.others, *listed))


def built(arch: str | Callable[[], Any], arguments: str | None) -> nn.Module:
    """The network that `arch` makes. UsageError where that is none."""
    made = files.build(arch, arguments) if isinstance(arch, str) else arch()
    if not isinstance(made, nn.Module):
        raise UsageError(f"arch: {type(made).__name__} found, a torch.nn.Module expected")
    return made


def _ready(model: TorchModel, given: TorchOptions) -> TorchModel:
    """With the inputs that it is called with; TorchScript turned into a program."""
    dtype = dtype_of(model.model)
    kwargs = {**named(given.inputs, dtype), **(given.kwargs or {})}
    model.call = Call.of(examples(given.inputs, dtype), kwargs, model.model)
    if isinstance(model.model, torch.jit.ScriptModule):
        if given.eval or model.path is not None:
            model.model.eval()
        script = model.model
        if model.call.kwargs:
            raise UsageError("inputs of TorchScript go by place: --input 1x3x224x224, without a name")
        model.call = replace(model.call, args=grown(script, completed(script, model.call.args)))
        model.model, model.kind, model.script = program_of_script(script, model.call), "script", script
    return model
