"""Ifs whose condition is constant: the branch that is taken stands in their place, so that its norms meet the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, helper

from ..read.constants import Constants
from ..read.scope import Scope
from ..store.skeleton import nested_graphs, sparse_names


def decide(model: ModelProto, scopes: Sequence[Scope]) -> bool:
    """Take the branches of such Ifs into the graphs in which these stand, in place; whether there was one.

    `scopes`: the graphs of the model, bodies behind what is around them.
    """
    known = Counter(name for graph in _graphs(model.graph) for name in _defined(graph))
    found = [_decide_in(scope.graph, scope.constants, known) for scope in reversed(scopes)]
    return any(found)


def _decide_in(graph: GraphProto, constants: Constants, known: Counter[str]) -> bool:
    branches = {i: branch for i, node in enumerate(graph.node) if (branch := _taken(node, constants)) is not None}
    if not branches:
        return False
    nodes: list[NodeProto] = []
    for i, node in enumerate(graph.node):
        nodes += _inside(graph, node, branches[i], known) if i in branches else [node]
    graph.ClearField("node")
    graph.node.extend(nodes)
    return True


def _taken(node: NodeProto, constants: Constants) -> GraphProto | None:
    """The branch that an If always takes, or None."""
    if node.op_type != "If" or node.domain not in ("", "ai.onnx") or node.input[0] not in constants:
        return None
    value = constants.value(node.input[0])
    wanted = "then_branch" if value.size == 1 and value.item() else "else_branch"
    return next((a.g for a in node.attribute if a.name == wanted), None) if value.size == 1 else None


def _inside(graph: GraphProto, node: NodeProto, branch: GraphProto, known: Counter[str]) -> Iterator[NodeProto]:
    """The nodes of a branch, whose weights go into the graph around it; names that are used twice become others."""
    names: dict[str, str] = {}
    made = {name for inner in branch.node for name in inner.output if name}
    for value, outer in zip(branch.output, node.output, strict=True):
        if value.name in made and value.name not in names and outer:
            names[value.name] = outer
    for name in _defined(branch):
        if name not in names and known[name] > 1:
            fresh = f"{node.name or node.op_type}/{name}"
            while known[fresh]:
                fresh += "_"
            known[fresh] += 1
            names[name] = fresh
    _rename(branch, names)
    for part in ("initializer", "sparse_initializer", "value_info", "quantization_annotation"):
        getattr(graph, part).extend(getattr(branch, part))
    yield from branch.node
    for value, outer in zip(branch.output, node.output, strict=True):
        if outer and value.name != outer:
            yield helper.make_node("Identity", [value.name], [outer], name=f"{outer}/Identity")


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Other names for tensors, in a graph and in the bodies in it that do not have the names themselves."""
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
        for body in nested_graphs(node):
            own = set(_defined(body))
            _rename(body, {old: new for old, new in names.items() if old not in own})
    for value in (*graph.initializer, *graph.value_info, *graph.output, *graph.input):
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)


def _defined(graph: GraphProto) -> list[str]:
    """The tensors that a graph gives names to, each once."""
    made = [name for node in graph.node for name in node.output if name]
    given = [value.name for value in (*graph.input, *graph.initializer)]
    return list(dict.fromkeys([*made, *given, *sorted(sparse_names(graph))]))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for body in nested_graphs(node):
            yield from _graphs(body)
