"""What torch.export sees of a module: a functional graph of ATen ops, and the graph as it ran, in-place ops and all.

The module is traced as a copy that shares its tensors. Its hooks run, since networks use what hooks have kept, and see
everything through an op that nothing is known of, which pins it. Layers without a bias get one of zeros in the copy, so
that the graph shows whether the code of the layer would use it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_map_only

from ...errors import ModelError
from ...process.quiet import tracing
from .blocks import flat, mixed
from .leaves import opened
from .memory import Memory

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Forward pre-hooks that compute a weight from other parameters and look at nothing else."""
SEEN = "bnfold::seen"
"""An op that stands for a hook: nothing is known of it but that it needs the values as they are."""
AUTOCAST = ("cpu", "cuda", "xpu", "mps")
RESULT = "alias"
"""An op that stands for what an in-place activation returns: others may read what it wrote by the name of its input."""


@torch.library.custom_op(SEEN, mutates_args=())
def _seen(x: torch.Tensor, who: str) -> torch.Tensor:
    return x.clone()


@_seen.register_fake
def _(x: torch.Tensor, who: str) -> torch.Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True)
class Capture:
    """A traced module or program.

    `program`: functional, of ATen ops. `raw`: the graph before it was made functional, None where there is none.
    `tensors`: parameters, buffers and constants by qualified name. `added`: biases that the module does not have.
    """

    program: ExportedProgram
    raw: fx.Graph | None
    tensors: Mapping[str, torch.Tensor]
    added: frozenset[str] = field(default_factory=frozenset)
    hooked: Mapping[str, str] = field(default_factory=dict)
    """Modules with hooks, by qualified name, and which kind of hook."""
    memory: Memory = field(default_factory=Memory)
    """Which of the tensors are tied."""
    mixed: frozenset[str] = frozenset()
    """Modules that run under torch.autocast, by qualified name."""


def capture(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], ignore_hooks: bool = False,
    memory: Memory | None = None, bare: bool = False,
) -> Capture:  # fmt: skip
    """Trace a module in eval mode. ModelError with torch's message where it cannot be.

    `ignore_hooks`: no hook needs the values as they are; what hooks do to them is seen all the same. `memory`: which
    tensors count as tied; those of the module that are, by default. `bare`: layers get no biases, as code may ask for
    those.
    """
    hooked = {} if ignore_hooks else {name: kind for name, inner in module.named_modules() if (kind := _hook(inner))}
    traced = _traced(module, ignore_hooks)
    added = [] if bare else _with_biases(traced)
    if not isinstance(traced, torch.jit.ScriptModule):
        traced.register_forward_hook(lambda module, args, output: opened(output))
    with tracing(), torch.no_grad(), without_autocast():
        try:
            program = flat(torch.export.export(traced, tuple(args), dict(kwargs), strict=False))
            functional = program.run_decompositions({})
        except Exception as error:  # whatever torch trips over, the caller needs to know it
            raise ModelError(f"torch.export cannot trace {type(module).__name__}: {one_line(error)}") from error
    _without_aliases(functional.graph)
    tied = memory if memory is not None else Memory.of(module)
    raw = flat(program, everything=True).graph
    return Capture(functional, raw, _tensors(functional), frozenset(added), hooked, tied, mixed(program))


def _without_aliases(graph: fx.Graph) -> None:
    """Take out what is the same value by another name: it has the place of its reader, and not of the activation."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0], delete_user_cb=lambda user: user.op != "output")
            if not node.users:
                graph.erase_node(node)


def capture_program(program: ExportedProgram) -> Capture:
    """The functional form of an exported program."""
    with tracing(), torch.no_grad(), without_autocast():
        try:
            with _without_derived(program):
                functional = flat(program).run_decompositions({})
        except Exception as error:
            raise ModelError(f"the exported program cannot be made functional: {one_line(error)}") from error
    functional.range_constraints.update(program.range_constraints)
    return Capture(functional, None, _tensors(functional))


@contextmanager
def without_autocast() -> Iterator[None]:
    """The code inside computes in the types that weights and inputs have, whatever the caller has switched on."""
    with ExitStack() as stack:
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _without_derived(program: ExportedProgram) -> Iterator[None]:
    """Ranges of sizes that follow from others (`2*h`), which a program has when it was read from a file, and which
    torch does not expect when it traces one, are put aside."""
    modes = (getattr(node.meta.get("val"), "fake_mode", None) for node in program.graph.nodes)
    env = next((mode.shape_env for mode in modes if mode is not None), None)
    ranges: dict[Any, Any] = {} if env is None else env.var_to_range
    derived = {size: ranges.pop(size) for size in list(ranges) if not size.is_Symbol}
    try:
        yield
    finally:
        ranges.update(derived)


def one_line(error: BaseException) -> str:
    """The first lines of a message of torch, which are long."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _tensors(program: ExportedProgram) -> dict[str, torch.Tensor]:
    return {**program.state_dict, **{k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}}


def _hook(module: nn.Module) -> str:
    """The kind of a hook that a module has, "" where it has none; those that only make a weight are not counted."""
    if getattr(module, "_forward_hooks", None):
        return "forward hook"
    before = getattr(module, "_forward_pre_hooks", None) or {}
    return "" if all(isinstance(hook, WEIGHTS) for hook in before.values()) else "forward pre-hook"


def own(layer: nn.Module) -> Any:
    """The tensor that tells the type and device of a layer; the weight is computed where a hook makes it."""
    return next(iter(layer.parameters(recurse=False)), layer.weight)


def _traced(module: nn.Module, ignore_hooks: bool) -> nn.Module:
    """A copy that shares all tensors, with hooks that show in the graph."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    try:
        traced = copy.deepcopy(module, {**computed(module), **memo})
    except Exception as error:  # a tensor that was computed with gradients hangs on it, or a lock, or a file
        raise ModelError(f"{type(module).__name__} cannot be copied: {one_line(error)}") from error
    if not ignore_hooks:
        for path, inner in list(traced.named_modules()):
            if kind := _hook(inner):
                _mark(inner, f"the {kind} of {path or type(inner).__name__}")
    for inner in traced.modules():
        if getattr(inner, "inplace", False) is True and not isinstance(inner, torch.jit.ScriptModule):
            inner.register_forward_hook(_result)
    return traced


def _result(module: nn.Module, args: Any, output: Any) -> Any:
    """What an in-place activation returns, as a value of its own."""
    return torch.ops.aten.alias(output) if isinstance(output, torch.Tensor) else output


def computed(module: nn.Module) -> dict[int, torch.Tensor]:
    """Copies of the tensors that modules hold and that deepcopy refuses, as a memo for it: those that carry gradients,
    and sparse ones."""
    held = [value for inner in module.modules() for value in vars(inner).values() if isinstance(value, torch.Tensor)]
    held += [buffer for buffer in module.buffers() if buffer.layout is not torch.strided]
    return {
        id(value): value.detach().clone() for value in held if not value.is_leaf or value.layout is not torch.strided
    }


def _mark(module: nn.Module, who: str) -> None:
    """Let everything that a module takes and gives pass through the op that stands for its hooks.

    What an in-place activation takes stays in its memory, where the code may read it afterwards.
    """
    inplace = getattr(module, "inplace", False) is True

    def seen(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        return t.copy_(_seen(t, who)) if inplace else _seen(t, who)

    def marked(values: Any) -> Any:
        return tree_map_only(torch.Tensor, seen, values)

    module.register_forward_pre_hook(
        lambda module, args, kwargs: marked((args, kwargs)), prepend=True, with_kwargs=True
    )
    module.register_forward_hook(lambda module, args, output: marked(output), prepend=True)


def _with_biases(module: nn.Module) -> list[str]:
    """Give zeros to layers whose bias is None; their qualified names."""
    added: set[int] = set()
    for inner in module.modules():
        weight = getattr(inner, "weight", None)
        if not isinstance(inner, LAYERS) or inner._parameters.get("bias", 0) is not None or weight is None:
            continue
        size = inner.out_channels if isinstance(inner, nn.modules.conv._ConvNd) else inner.out_features
        inner.bias = nn.Parameter(torch.zeros(int(size), dtype=own(inner).dtype, device=own(inner).device), False)
        added.add(id(inner))
    named = module.named_modules(remove_duplicate=False)
    return [f"{name}.bias" if name else "bias" for name, inner in named if id(inner) in added]
