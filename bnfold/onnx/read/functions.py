"""Local functions: inlined where norms stand in them, or where that lets more norms go; else left alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx.inliner
from onnx import FunctionProto, ModelProto, NodeProto
from onnx.defs import SchemaError, get_schema

from ..store.skeleton import nested_graphs, sparse_names
from .constants import default_opset

Id = tuple[str, str]
"""Domain and name of a function."""
STANDARD = frozenset({"", "ai.onnx"})
"""How the domain of the standard operators is written."""


def with_norms(model: ModelProto) -> set[Id]:
    """The functions that are called and hold a batch norm, themselves or in what they call."""
    functions = _bodies(model)
    return {key for key in called(model) if _holds_norm(functions, key, frozenset())}


def called(model: ModelProto) -> set[Id]:
    """The functions that the graph calls, directly or by way of other functions."""
    functions = _bodies(model)
    found: set[Id] = set()
    queue = [_callee(node) for node in _nodes(model.graph.node)]
    while queue:
        key = queue.pop()
        if key in functions and key not in found:
            found.add(key)
            queue += map(_callee, functions[key])
    return found


def inline(model: ModelProto, names: set[Id], partly: bool = False) -> bool:
    """Inline functions into a model, in place; False, and nothing changed, where onnx's inliner cannot.

    `names` with all that call them. `partly`: what can be inlined is, and the rest stays. The inliner sees a model
    without initializers, so that no weight is copied.
    """
    try:
        done = _in_rounds(_without_weights(model), names)
    except Exception:  # whatever it trips over, the model stays as it is
        return False
    if names & called(done) and not partly:
        return False
    for part in ("node", "value_info"):
        model.graph.ClearField(part)
        getattr(model.graph, part).extend(getattr(done.graph, part))
    for part in ("functions", "opset_import"):
        model.ClearField(part)
        getattr(model, part).extend(getattr(done, part))
    return True


def inlined(model: ModelProto) -> ModelProto:
    """A copy with every function inlined that onnx's inliner can; where that is all, none is left."""
    copy = ModelProto()
    copy.CopyFrom(model)
    inline(copy, called(copy), partly=True)
    if not called(copy):
        copy.ClearField("functions")
    return copy


def _without_weights(model: ModelProto) -> ModelProto:
    """The model with inputs for initializers: their names are taken."""
    bare = ModelProto(ir_version=model.ir_version, functions=model.functions, opset_import=model.opset_import)
    for part in ("node", "input", "output", "value_info"):
        getattr(bare.graph, part).extend(getattr(model.graph, part))
    weights = {tensor.name for tensor in model.graph.initializer} | sparse_names(model.graph)
    for name in sorted(weights - {value.name for value in bare.graph.input}):
        bare.graph.input.add(name=name)
    return bare


def _in_rounds(model: ModelProto, names: set[Id]) -> ModelProto:
    """Inline callers before what they call, until nothing more can be.

    So each call stands in the graph, with all that its caller hands on, when the defaults of its attributes are
    written into it: the inliner knows no defaults (a fault of onnx.inliner, seen in onnx 1.23).
    """
    while outermost := _outermost(model, names):
        _write_defaults(model, outermost)
        model = _inlined_once(model, outermost)
        names = names - outermost
    return model


def _inlined_once(model: ModelProto, names: set[Id]) -> ModelProto:
    """The inliner sees no other functions: one that it refuses must not keep it from the rest.

    It takes no function of another opset than the model's; where that means the same, the function gets the model's.
    """
    others = [function for function in model.functions if _id(function) not in names]
    chosen = [function for function in model.functions if _id(function) in names]
    version = default_opset(model)
    for function in chosen:
        for imported in function.opset_import:
            if imported.domain in STANDARD and _alike(function, imported.version, version):
                imported.version = version
    model.ClearField("functions")
    model.functions.extend(chosen)
    done: ModelProto = onnx.inliner.inline_local_functions(model)
    done.functions.extend(others)
    return done


def _alike(function: FunctionProto, one: int, other: int) -> bool:
    """Whether the standard operators of a function are the same in two opsets."""
    standard = {node.op_type for node in _nodes(function.node) if node.domain in STANDARD}
    try:
        return all(get_schema(op, one, "").since_version == get_schema(op, other, "").since_version for op in standard)
    except SchemaError:  # none of the standard's, or newer than the installed onnx
        return False


def _outermost(model: ModelProto, names: set[Id]) -> set[Id]:
    """Those that the graph calls and no function that it calls."""
    functions, reached = _bodies(model), called(model)
    return names & reached - {_callee(node) for key in reached for node in functions[key]}


def _write_defaults(model: ModelProto, names: set[Id]) -> None:
    """Let the calls of functions say what their attributes are where only the functions say so."""
    defaults = {(*_id(function), function.overload): function.attribute_proto for function in model.functions}
    for node in _nodes(model.graph.node):
        given = {attribute.name for attribute in node.attribute}
        missing = defaults.get((*_callee(node), node.overload), ()) if _callee(node) in names else ()
        node.attribute.extend(attribute for attribute in missing if attribute.name not in given)


def _callee(node: NodeProto) -> Id:
    return node.domain, node.op_type


def _bodies(model: ModelProto) -> dict[Id, list[NodeProto]]:
    """All nodes of each function, of all its overloads and the bodies in them."""
    found: dict[Id, list[NodeProto]] = {}
    for function in model.functions:
        found.setdefault(_id(function), []).extend(_nodes(function.node))
    return found


def _id(function: FunctionProto) -> Id:
    return function.domain, function.name


def _holds_norm(functions: dict[Id, list[NodeProto]], key: Id, around: frozenset[Id]) -> bool:
    if key not in functions or key in around:
        return False
    if any(node.op_type == "BatchNormalization" and node.domain in STANDARD for node in functions[key]):
        return True
    return any(_holds_norm(functions, _callee(node), around | {key}) for node in functions[key])


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for body in nested_graphs(node):
            yield from _nodes(body.node)
