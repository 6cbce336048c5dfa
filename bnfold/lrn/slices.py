"""LRN in the code of a forward: the part of its graph between a value and the value over its local energy."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from ..torch.write.fold import evaluated
from .response import Response, identify

DIVISIONS = {operator.truediv, torch.div, torch.true_divide, torch.divide, "div", "divide", "true_divide"}
PRODUCTS = {operator.mul, torch.mul, torch.multiply, "mul", "multiply"}
DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d, F.alpha_dropout: nn.AlphaDropout,
}  # fmt: skip
LONGEST = 400
"""Nodes in the code of one LRN; one sum over shifted slices takes four for each channel of its window."""


class Tracer(fx.Tracer):
    """Follows the code of one module; every module in it is called as a whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Always."""
        return True


@dataclass(eq=False)
class Slice:
    """An LRN in a graph: `node` is its result, `source` what it takes, `module` computes it, `shape` that of both."""

    node: fx.Node
    source: fx.Node
    inner: list[fx.Node]
    module: nn.Module
    shape: torch.Size
    response: Response
    written: bool
    """Whether it is hand-written, and not a call of local_response_norm."""


def traced(owner: nn.Module) -> fx.Graph:
    """The graph of the code of a module, in the mode that it is in. Raises whatever torch.fx trips over.

    Nodes keep no module stack: it would name modules that others have taken the place of since.
    """
    graph = Tracer().trace(owner)
    for node in graph.nodes:
        node.meta.clear()
    return graph


def slices(owner: nn.Module, graph: fx.Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Slice]:
    """The LRNs in the graph of a module that was once called with these arguments."""
    drafts = list(_drafts(graph))
    if not drafts:
        return []
    shapes = _shapes(owner, graph, args, kwargs)
    found: list[Slice] = []
    for node, source, inner in drafts:
        shape = shapes.get(source)
        if shape is None or shapes.get(node) != shape:
            continue
        module, written = _module(owner, node, source, inner), node.target is not F.local_response_norm
        response = lrn_of(module, shape)
        if response is not None:
            found.append(Slice(node, source, inner, module, shape, response, written))
    return found


def lrn_of(module: nn.Module, shape: torch.Size) -> Response | None:
    """The LRN that a module of one tensor is, tried in float64 and then in float32, on the CPU."""
    if isinstance(module, nn.LocalResponseNorm):
        return Response.of(module.size, module.alpha, module.beta, module.k)
    import copy

    small = (min(shape[0], 2), *shape[1:]) if len(shape) else ()
    for dtype, kind in ((torch.float64, np.float64), (torch.float32, np.float32)):
        try:
            own = evaluated(copy.deepcopy(module).cpu().to(dtype)).requires_grad_(False)
        except (RuntimeError, TypeError):
            return None
        with torch.no_grad():
            found = identify(lambda x, own=own: own(torch.from_numpy(x)).numpy(), small, kind)  # type: ignore[misc]
        if found is not None:
            return found
    return None


def _drafts(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node, list[fx.Node]]]:
    """Nodes that may be the result of an LRN, what it would take, and the nodes that belong to it."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if node.target is F.local_response_norm:
            source = node.args[0] if node.args else node.kwargs.get("input")
            if isinstance(source, fx.Node):
                yield node, source, [node]
            continue
        args = [arg for arg in node.args if isinstance(arg, fx.Node)]
        if node.target not in DIVISIONS | PRODUCTS or len(args) != 2:
            continue
        for source, other in (args, args[::-1]) if node.target in PRODUCTS else (args,):
            inner = _between(other, source)
            if inner:
                yield node, source, [*inner, node]


def _between(node: fx.Node, source: fx.Node) -> list[fx.Node]:
    """The nodes that make `node` of `source` and constants alone, in order; none where it needs anything else."""
    seen: dict[fx.Node, None] = {}
    waiting, reached = [node], False
    while waiting:
        at = waiting.pop()
        if at is source:
            reached = True
        elif at not in seen:
            if at.op == "placeholder" or len(seen) > LONGEST:
                return []
            seen[at] = None
            waiting += at.all_input_nodes
    order = {at: i for i, at in enumerate(node.graph.nodes)}
    return sorted(seen, key=order.__getitem__) if reached else []


def _module(owner: nn.Module, node: fx.Node, source: fx.Node, inner: Sequence[fx.Node]) -> nn.Module:
    """A module of one tensor that computes a part of a graph."""
    if node.target is F.local_response_norm:
        given = _bound(node)
        if given is not None:
            return nn.LocalResponseNorm(*given)
    graph = fx.Graph()
    copies = {source: graph.placeholder("x")}
    for one in inner:
        copies[one] = graph.node_copy(one, copies.__getitem__)
    graph.output(copies[node])
    return fx.GraphModule(owner, graph, "LocalResponse")


def _bound(node: fx.Node) -> tuple[int, float, float, float] | None:
    """The parameters of a call of local_response_norm, None where they are computed."""
    names = ("input", "size", "alpha", "beta", "k")
    given = {"alpha": 1e-4, "beta": 0.75, "k": 1.0, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    values = tuple(given.get(name) for name in names[1:])
    return values if all(isinstance(value, int | float) for value in values) else None  # type: ignore[return-value]


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = result.shape
        return result


def _shapes(
    owner: nn.Module, graph: fx.Graph, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[fx.Node, torch.Size]:
    """The shape of each tensor in the graph."""
    bound = inspect.signature(owner.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    runner = _Shapes(fx.GraphModule(owner, graph))
    try:
        with torch.no_grad():
            runner.run(*bound.arguments.values())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return {}
    return runner.shapes


def rewritten(owner: nn.Module, graph: fx.Graph, found: Sequence[Slice]) -> tuple[nn.Module, list[str]]:
    """The module as a graph in which each LRN is a submodule, and the names of those. All other names stay."""
    names: list[str] = []
    made = fx.GraphModule(owner, fx.Graph(), type(owner).__name__)
    _adopt(made, owner)
    for one in found:
        names.append(_free(made, names))
        made.add_module(names[-1], one.module)
        with graph.inserting_after(one.node):
            call = graph.create_node("call_module", names[-1], (one.source,))
        one.node.replace_all_uses_with(call)
        for node in reversed(one.inner):
            if not node.users:
                graph.erase_node(node)
    made.graph = graph
    _adopt(made, owner)
    return made, names


def _adopt(made: nn.Module, owner: nn.Module) -> None:
    """All submodules, parameters and buffers of the owner, in its order, also those that the graph does not use."""
    own = dict(made._modules)
    for kind in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        getattr(made, kind).clear()
        getattr(made, kind).update(getattr(owner, kind))
    made._modules = {**owner._modules, **{name: inner for name, inner in own.items() if name not in owner._modules}}


def _free(module: nn.Module, taken: Sequence[str]) -> str:
    names = ("lrn", *(f"lrn_{i}" for i in range(2, 1000)))
    return next(name for name in names if not hasattr(module, name) and name not in taken)


def with_dropouts(owner: nn.Module, graph: fx.Graph) -> tuple[dict[str, nn.Module], bool]:
    """Functional dropouts that follow the mode of the module become submodules, which the graph calls.

    The submodules by name, and whether the code does the same in both modes but for them.
    """
    mode = owner.training
    owner.training = not mode
    try:
        other = list(traced(owner).nodes)
    except Exception:  # whatever torch.fx trips over in the other mode
        return {}, False
    finally:
        owner.training = mode
    nodes = list(graph.nodes)
    if len(other) != len(nodes):
        return {}, False
    different = [node for node, twin in zip(nodes, other, strict=True) if _plain(node) != _plain(twin)]
    if any(node.target not in DROPOUTS for node in different):
        return {}, False
    made: dict[str, nn.Module] = {}
    for node in different:
        name = f"dropout_{len(made) + 1}"
        p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        made[name] = DROPOUTS[node.target](float(p))
        with graph.inserting_after(node):
            call = graph.create_node("call_module", name, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    return made, True


def _plain(node: fx.Node) -> str:
    return f"{node.target} {node.args} {node.kwargs}"
