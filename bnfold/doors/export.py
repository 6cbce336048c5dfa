"""PyTorch to ONNX: folded or with its norms kept, named by module paths, verified against the module."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils._pytree import tree_leaves, tree_map_only

from ..core.plan import Plan
from ..errors import ModelError, UsageError, VerificationError
from ..files import check_target, written
from ..judge.criteria.inputs import Judging
from ..judge.criteria.scopes import SCOPES, noted
from ..onnx.store.external import side_name
from ..process.quiet import in_turn, quiet
from ..torch.trace.capture import one_line, without_autocast
from ..torch.write.fold import prepared
from ..version import __version__
from .torch import Call, fold_program
from .torch_models import TorchModel

if TYPE_CHECKING:
    from ..judge.criteria.check import Check

NAMED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
LARGE = 1_800_000_000
"""Bytes of tensors from which they go into a file of their own: one ONNX file holds 2 GiB at most."""


@dataclass(frozen=True)
class Settings:
    """How the file is made. `dynamic`: `batch` (axis 0 of every input) or `NAME:AXIS=LABEL`."""

    keep_bn: bool = False
    opset: int | None = None
    dynamic: Sequence[str] = ()
    external_data: bool = False


@without_autocast()
@in_turn
def export_model(
    model: TorchModel, out: Path, settings: Settings, judging: Judging
) -> tuple[Plan | None, Check | None]:
    """Write a model as ONNX, once it passed; the plan (None with `keep_bn`) and the verdict."""
    if out.suffix.lower() != ".onnx":
        raise UsageError(f"{out}: the name of an ONNX file ends in .onnx")
    for path in (out, out.with_name(side_name(out))):
        check_target(path, model.path)
    reference = _reference(model)
    axes = _axes(settings.dynamic, reference, model.call)
    call = _grown(model.call, axes)
    judging.progress("tracing")
    program = _program(model.model, reference, call, axes)
    plan = None
    if not settings.keep_bn:
        judging.progress("folding")
        policy = replace(model.policy, exports=True, merge=False)  # that is done in the file
        program, plan, _ = fold_program(program, call, policy, model.options, replace(judging, verify=False))
    judging.progress("exporting")
    made = _onnx(program, call, settings)
    _name_sizes(made.model, axes)
    _describe(made.model, plan, model)
    large = settings.external_data or _size(made.model) > LARGE
    with written(out) as temporary:
        made.save(temporary, external_data=large)
        plan = _smaller(temporary, plan, model, large)
        if not judging.verify:
            return plan, None
        calls = [call] if not axes else [call, _doubled(call, axes)]
        return plan, _judged(reference, temporary, calls, judging, plan)


def _smaller(path: Path, plan: Plan | None, model: TorchModel, large: bool) -> Plan | None:
    """Merge layers and drop channels of the file; the plan that says so. What lies beside a file stays as it is."""
    if plan is None or not (model.folding.merge or model.folding.shrink):
        return plan
    if large:
        return replace(plan, notes=(*plan.notes, "its layers can be merged by bnfold fold, once it is written"))
    from ..onnx.files import dump, load
    from ..onnx.write.apply import Applied
    from .onnx import smaller

    state, plan = smaller(Applied(load(path)), plan, model.folding)
    if plan.merged or plan.dropped:
        dump(state, path, None)
    return plan


def _reference(model: TorchModel) -> nn.Module:
    if isinstance(model.model, ExportedProgram):
        return model.model.module()
    return prepared(model.model, model.options)


Axes = dict[int, dict[int, str]]
"""Dynamic axes of each tensor, by its position among all tensors: the axis and its label."""


def _axes(dynamic: Sequence[str], module: nn.Module, call: Call) -> Axes:
    """What `Settings.dynamic` says. UsageError where it names no input or axis."""
    from ..judge.subjects.modules import ModuleSubject

    subject = ModuleSubject(module, call.args, call.kwargs)
    names = [name for name in subject.names if name]
    tensors = [leaf for leaf in subject.leaves if isinstance(leaf, torch.Tensor)]
    found: Axes = {}
    for text in dynamic:
        place, _, label = text.rpartition("=")
        name, _, axis = (place or "").rpartition(":")
        if not label.isidentifier():
            raise UsageError(f"--dynamic {text}: the label of an axis is a word, as batch or height")
        if not place:
            found = {i: {**found.get(i, {}), 0: label} for i, tensor in enumerate(tensors) if tensor.dim()}
            continue
        if name not in names or not axis.isdecimal() or int(axis) >= tensors[names.index(name)].dim():
            raise UsageError(
                f"--dynamic {text}: batch, or NAME:AXIS=LABEL expected, with one of the inputs {', '.join(names)}"
            )
        found.setdefault(names.index(name), {})[int(axis)] = label
    return found


def _mapped(call: Call, change: Callable[[int, torch.Tensor], torch.Tensor]) -> Call:
    """A call with its tensors changed, each by its position."""
    position = iter(range(len(tree_leaves((call.args, dict(call.kwargs))))))
    args, kwargs = tree_map_only(torch.Tensor, lambda t: change(next(position), t), (call.args, dict(call.kwargs)))
    return Call(args, kwargs)


def _grown(call: Call, axes: Axes) -> Call:
    """Tensors with two entries along dynamic axes that have one: torch takes a size of 1 for fixed."""

    def grow(i: int, tensor: torch.Tensor) -> torch.Tensor:
        for axis in axes.get(i, {}):
            if tensor.shape[axis] == 1:
                tensor = torch.cat([tensor, tensor], axis)
        return tensor

    return _mapped(call, grow)


def _doubled(call: Call, axes: Axes) -> Call:
    """Twice the size along every dynamic axis, to see that they are."""

    def double(i: int, tensor: torch.Tensor) -> torch.Tensor:
        for axis in axes.get(i, {}):
            tensor = torch.cat([tensor, tensor.flip(axis)], axis)
        return tensor

    return _mapped(call, double)


def _program(model: nn.Module | ExportedProgram, module: nn.Module, call: Call, axes: Axes) -> ExportedProgram:
    if isinstance(model, ExportedProgram):
        if axes:
            raise UsageError("--dynamic: which axes of an exported program are dynamic was fixed when it was exported")
        return model
    tensors = [leaf for leaf in tree_leaves((call.args, dict(call.kwargs))) if isinstance(leaf, torch.Tensor)]
    least = {label: int(tensors[i].shape[axis]) for i, of_tensor in axes.items() for axis, label in of_tensor.items()}
    try:
        return _traced(module, call, axes, tensors, {label: Dim(label) for label in least})
    except Exception as error:
        try:  # tiny sizes may need another path through the code, as a window that holds one pixel
            return _traced(module, call, axes, tensors, {label: Dim(label, min=n) for label, n in least.items()})
        except Exception:
            raise ModelError(f"torch.export cannot trace {type(module).__name__}: {one_line(error)}") from error


def _traced(
    module: nn.Module, call: Call, axes: Axes, tensors: Sequence[torch.Tensor], dims: Mapping[str, Any]
) -> ExportedProgram:
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for i, of_tensor in axes.items():
        shapes[tensors[i]] = {axis: dims[label] for axis, label in of_tensor.items()}
    with quiet(), torch.no_grad():
        wanted = None
        if axes:
            wanted = shapes.dynamic_shapes(module, call.args, dict(call.kwargs))  # type: ignore[no-untyped-call]
        return torch.export.export(module, call.args, dict(call.kwargs), dynamic_shapes=wanted, strict=False)


def _onnx(program: ExportedProgram, call: Call, settings: Settings) -> Any:
    """The ONNX program. Its own optimiser would fold norms behind convolutions, so only constants are folded."""
    try:
        from onnxscript import optimizer
    except ImportError as error:
        raise UsageError("bnfold export needs the package onnxscript: pip install onnxscript") from error
    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(
                program, call.args, kwargs=dict(call.kwargs), dynamo=True, optimize=False, verbose=False,
                opset_version=settings.opset,
            )  # fmt: skip
            assert made is not None
            optimizer.fold_constants(made.model)
            _drop_zero_biases(made.model)
            _part_outputs(made.model)
            optimizer.remove_unused_nodes(made.model)
    except Exception as error:
        raise ModelError(f"torch.onnx cannot export the model: {one_line(error)}") from error
    if settings.opset not in (None, made.model.opset_imports[""]):
        raise UsageError(f"--opset {settings.opset}: torch.onnx gives {made.model.opset_imports['']} instead")
    return made


def _part_outputs(model: Any) -> None:
    """A copy for a tensor that comes out more than once: outputs of ONNX are told apart by their names."""
    import onnx_ir as ir

    seen: set[str] = set()
    for i, value in enumerate(model.graph.outputs):
        if value.name in seen:
            node = ir.node("Identity", [value])
            copy = node.outputs[0]
            copy.name, copy.type, copy.shape = f"{value.name}_again_{i}", value.type, value.shape
            model.graph.append(node)
            model.graph.outputs[i] = copy
        seen.add(value.name)


def _name_sizes(model: Any, axes: Axes) -> None:
    """Give dynamic axes the labels that were asked for, wherever torch wrote its own symbols."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for i, of_tensor in axes.items():
        for axis, label in of_tensor.items():
            names.setdefault(str(getattr(model.graph.inputs[i].shape[axis], "value", "")), label)

    def named(size: Any) -> Any:
        text = str(getattr(size, "value", size))
        if not isinstance(size, ir.SymbolicDim) or text.isdecimal():
            return int(text) if text.isdecimal() else size
        return ir.SymbolicDim(re.sub(r"[A-Za-z_]\w*", lambda word: names.get(word[0], word[0]), text))

    for value in (*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([named(size) for size in value.shape])


def _drop_zero_biases(model: Any) -> None:
    """Take out biases of zeros: the exporter makes them up for 3-D convs without one, in a shape that nothing runs."""
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 and node.inputs[2] is not None:
            value = node.inputs[2].const_value
            if value is not None and not value.numpy().any():
                node.resize_inputs(2)


def _describe(model: Any, plan: Plan | None, source: TorchModel) -> None:
    """Names of modules for layers and norms; who made the file, from what, and what was folded."""
    nodes = [node for node in model.graph if node.op_type in NAMED]
    paths = {id(node): noted(node.metadata_props.get(SCOPES, "")) for node in nodes}
    taken = Counter(paths.values()) + Counter(node.name for node in model.graph)
    for node in nodes:
        path = paths[id(node)]
        if path and taken[path] == 1:
            node.name = path
    props = {"bnfold.version": __version__, "bnfold.source": _digest(source)}
    if plan is not None:
        folded = [bn.name for bn in plan.batch_norms if bn.verdict == "folded"]
        props["bnfold.summary"] = json.dumps(plan.counts())
        props["bnfold.folded"] = json.dumps(folded)
    model.metadata_props.update(props)


def _digest(source: TorchModel) -> str:
    """SHA-256 of the file, or of the tensors of a module."""
    total = hashlib.sha256()
    if source.path is not None:
        with source.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
        return f"sha256:{total.hexdigest()}"
    state: Mapping[str, Any] = (
        source.model.state_dict if isinstance(source.model, ExportedProgram) else source.model.state_dict()
    )
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            value = value if value.layout is torch.strided else value.to_dense()
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def _size(model: Any) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _judged(reference: nn.Module, path: Path, calls: Sequence[Call], judging: Judging, plan: Plan | None) -> Check:
    """The verdict of all calls; VerificationError where one did not pass."""
    from ..judge.judge import judge
    from ..judge.subjects.modules import ModuleSubject
    from ..judge.subjects.subject import OnnxSubject

    checks = []
    for call in calls:  # data have the sizes of the first
        inputs = judging.inputs if call is calls[0] else replace(judging.inputs, data=None)
        with quiet():
            checks.append(judge(ModuleSubject(reference, call.args, call.kwargs), OnnxSubject(path), inputs, None,
                                judging.progress))  # fmt: skip
        if not checks[-1].passed:
            error = VerificationError(f"the exported model did not pass, nothing was written: {checks[-1].message}")
            error.check, error.plan = checks[-1], plan
            raise error
    outputs = tuple(output for check in checks for output in check.outputs)
    runner = f"{checks[0].runner} against onnxruntime (CPU, optimisations off)"
    return replace(checks[0], outputs=outputs, runner=runner)
