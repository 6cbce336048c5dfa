"""TorchScript archives of folded programs, which take what the archive took that was folded.

A program is turned into code that TorchScript compiles, with sizes that are computed; where that cannot be done it is
traced, which fixes every size. Either way it is run at other sizes beside the original: what that takes and the result
does not, or what gives something else, is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_leaves, tree_structure, tree_unflatten

from ...errors import ModelError
from ...process.quiet import in_turn, quiet
from ..trace.capture import one_line, without_autocast

TOLERANCE = {torch.float16: 3e-2, torch.bfloat16: 1e-1}
CLOSE = 1e-3
LARGE = 1 << 20
"""Bounds of sizes from here on are none."""


def completed(module: nn.Module, args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of a TorchScript module with the defaults of those that are not given: torch converts it with all.

    ModelError where one without a default is missing.
    """
    method: Any = module
    wanted = method.forward.schema.arguments[1:]
    rest = wanted[len(args) :]
    missing = [argument.name for argument in rest if not argument.has_default_value()]
    if missing:
        raise ModelError(f"the archive's forward also needs {', '.join(missing)}; inputs go by place")
    return (*args, *(argument.default_value for argument in rest))


def grown(module: nn.Module, args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments with two entries along axes that have one, where the module takes them: torch fixes a size of 1."""

    def grow(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        for axis, size in enumerate(value.shape):
            value = torch.cat([value, value], axis) if size == 1 and axis != 1 else value
        return value

    more = tuple(grow(value) for value in args)
    return more if _run(module, more) is not None else tuple(args)


@in_turn
def save_scripted(program: ExportedProgram, original: nn.Module | None, args: Sequence[Any], out: Path) -> None:
    """Write a program as TorchScript. ModelError where that cannot be, or would take less than `original` does."""
    with quiet(), torch.no_grad(), without_autocast():
        module = program.module(check_guards=False)
        try:
            spec = program.call_spec.out_spec if original is None else tree_structure(original(*_copied(args)))
            made = torch.jit.script(_flat(module, spec, args))
        except Exception:
            made = traced(module, args)
        if original is not None:
            compare(original, lambda *given: made(*(value for value in given if not _constant(value))), args, program)
        torch.jit.save(made, str(out))


def traced(module: nn.Module, args: Sequence[Any]) -> Any:
    """A module as TorchScript that has the path which these arguments take. ModelError where torch cannot do that."""
    try:
        return torch.jit.trace(module, tuple(_copied(args)), strict=False)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ModelError(f"torch.jit cannot trace the result, a .pt2 file may do: {one_line(error)}") from error


def _constant(value: Any) -> bool:
    """Whether torch makes a constant of an argument."""
    return value is None or isinstance(value, int | float | str)


def _flat(module: nn.Module, spec: TreeSpec, args: Sequence[Any]) -> fx.GraphModule:
    """A program as plain calls, with tensors as arguments: what TorchScript understands. `spec`: of its outputs.

    Other arguments, which torch has made constant, are taken out.
    """
    assert isinstance(module, fx.GraphModule)
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node, value in zip(graph.find_nodes(op="placeholder"), args, strict=True):
        if _constant(value):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
        elif node.op == "output":
            node.args = (tree_unflatten(tree_leaves(node.args[0]), spec),)
    flat = fx.GraphModule(module, graph)
    flat.recompile()
    return flat


def compare(
    original: nn.Module, made: Callable[..., Any], args: Sequence[Any], program: ExportedProgram | None = None
) -> None:
    """ModelError where a size that the original takes gives something else. `program`: where bounds of sizes are."""
    for what, probe in _probes(args, program):
        expected = _run(original, probe)
        if expected is not None and not _close(expected, _run(made, probe)):
            raise ModelError(
                f"the archive takes other sizes than those given ({what}), and the folded one would not give the same "
                "there: the code decides by sizes, or torch fixes them; write a .pt2 file, which checks its inputs, or "
                "fold the module that the archive was made from"
            )


def _probes(args: Sequence[Any], program: ExportedProgram | None) -> Iterator[tuple[str, list[Any]]]:
    """Inputs of other sizes: each symbol and each fixed axis doubled, and one step past the bounds of a symbol."""
    yield "as given", list(args)
    ranges = {} if program is None else program.range_constraints
    for key, found in _axes(args, program).items():
        i, axis = found[0]
        size = int(args[i].shape[axis])
        low, high = (ranges[key].lower, ranges[key].upper) if key in ranges else (0, LARGE)
        wanted = {2 * size, *([int(low) - 1] if low > 2 else []), *([int(high) + 1] if high < LARGE else [])}
        for other in sorted(wanted - {size, 0}):
            changed = list(args)
            for at, along in found:
                changed[at] = _resized(changed[at], along, other)
            yield f"{other} along axis {axis} of input {i + 1}", changed


def _axes(args: Sequence[Any], program: ExportedProgram | None) -> dict[Any, list[tuple[int, int]]]:
    """The axes of the inputs, those of one symbol together: for each the input and the axis."""
    shapes = [value.shape if isinstance(value, torch.Tensor) else () for value in args]
    if program is not None:
        held = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        names = program.graph_signature.user_inputs[: len(args)]
        shapes = [getattr(held.get(name), "shape", ()) if isinstance(name, str) else () for name in names]
    places: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        for axis, size in enumerate(shape):
            places[(i, axis) if isinstance(size, int) else size.node.expr].append((i, axis))
    return places


def _resized(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """A tensor repeated or cut to a size along an axis."""
    index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
    return tensor.index_select(axis, index)


def _run(module: Callable[..., Any], args: Sequence[Any]) -> list[torch.Tensor] | None:
    """The tensors that come out; None where the module does not take the arguments."""
    try:
        with torch.no_grad():
            return [value for value in tree_leaves(module(*_copied(args))) if isinstance(value, torch.Tensor)]
    except Exception:
        return None


def _copied(args: Sequence[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in args]


def _close(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor] | None) -> bool:
    """Whether values are the same but for rounding: this looks for other paths through the code, not for digits."""
    if found is None or [(t.shape, t.dtype) for t in expected] != [(t.shape, t.dtype) for t in found]:
        return False
    return all(_near(a, b) for a, b in zip(expected, found, strict=True))


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.is_floating_point() or not a.numel():
        return a.is_floating_point() or torch.equal(a, b)
    wide, other = a.double(), b.double()
    limit = TOLERANCE.get(a.dtype, CLOSE) * float(wide.nan_to_num().abs().max())
    return torch.allclose(wide, other, rtol=0.0, atol=limit, equal_nan=True)
