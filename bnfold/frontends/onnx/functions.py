"""Local functions: inlined where norms stand in them, or where that lets more norms go; else left alone."""

from __future__ import annotations

from collections.abc import Iterator

import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from .skeleton import nested_graphs

Id = tuple[str, str]
"""Domain and name of a function."""


def with_norms(model: ModelProto) -> set[Id]:
    """The functions that are called and hold a batch norm, themselves or in what they call."""
    functions = {_id(function): function for function in model.functions}
    return {key for key in called(model) if _holds_norm(functions, key, frozenset())}


def called(model: ModelProto) -> set[Id]:
    """The functions that the graph calls, directly or by way of other functions."""
    functions = {_id(function): function for function in model.functions}
    found: set[Id] = set()
    queue = [(node.domain, node.op_type) for node in _nodes(model.graph)]
    while queue:
        key = queue.pop()
        if key in functions and key not in found:
            found.add(key)
            queue += [(node.domain, node.op_type) for node in _inner(functions[key])]
    return found


def inline(model: ModelProto, names: set[Id]) -> bool:
    """Inline functions into a model, in place; False, and nothing changed, where onnx's inliner cannot.

    The inliner sees a model without initializers, so that no weight is copied.
    """
    bare = ModelProto(ir_version=model.ir_version, functions=model.functions, opset_import=model.opset_import)
    for part in ("node", "input", "output", "value_info"):
        getattr(bare.graph, part).extend(getattr(model.graph, part))
    try:
        done = onnx.inliner.inline_selected_functions(bare, sorted(names))
    except Exception:  # whatever it trips over, the model stays as it is
        return False
    weights = {tensor.name for tensor in model.graph.initializer}
    if names & called(done) or weights & {name for node in done.graph.node for name in node.output}:
        return False
    for part in ("node", "value_info"):
        model.graph.ClearField(part)
        getattr(model.graph, part).extend(getattr(done.graph, part))
    for part in ("functions", "opset_import"):
        model.ClearField(part)
        getattr(model, part).extend(getattr(done, part))
    return True


def _id(function: FunctionProto) -> Id:
    return function.domain, function.name


def _holds_norm(functions: dict[Id, FunctionProto], key: Id, around: frozenset[Id]) -> bool:
    if key not in functions or key in around:
        return False
    inner = list(_inner(functions[key]))
    if any(node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx") for node in inner):
        return True
    return any(_holds_norm(functions, (node.domain, node.op_type), around | {key}) for node in inner)


def _inner(function: FunctionProto) -> Iterator[NodeProto]:
    for node in function.node:
        yield node
        for body in nested_graphs(node):
            yield from _nodes(body)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for body in nested_graphs(node):
            yield from _nodes(body)
