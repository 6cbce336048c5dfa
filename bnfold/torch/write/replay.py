"""What was written to a module, carried out in the trace that it was planned from: no code of the network takes part.

Where this gives what the trace gave before, the fold is right, and a folded module that gives something else has code
that does more than was traced. Where it does not, the fault is bnfold's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from ...errors import PlanError
from ..read.house import Modules
from ..read.module import Planned
from ..read.read import calls_of


def before(modules: Modules) -> fx.GraphModule:
    """The trace of a module, its tensors as they are. What it takes and gives is flat: see `given`."""
    return _module(modules, _graph(modules), modules.module)


def after(planned: Planned, written: nn.Module) -> fx.GraphModule:
    """The trace with the tensors of an edited module, and with calls of the modules that took the place of others.

    PlanError where one of these stands for what is no function of one value.
    """
    modules, graph = planned.modules, _graph(planned.modules)
    nodes = {node.name: node for node in graph.nodes}
    for path, region in _exchanged(modules, written):
        source, result = _ends(modules, region, path)
        with graph.inserting_before(nodes[region[0].name]):
            call = graph.call_module(path, (nodes[source.name],))
        nodes[result.name].replace_all_uses_with(call)
        nodes[result.name] = call
    return _module(modules, graph, written)


def given(modules: Modules) -> tuple[Any, ...]:
    """The arguments with which the module was traced, flat."""
    return tuple(tree_leaves(modules.capture.program.example_inputs))


def _graph(modules: Modules) -> fx.Graph:
    """A copy of the graph of a trace that gives its outputs alone: what it leaves in buffers is no concern here."""
    program = modules.capture.program
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    given: Any = graph.graph_copy(program.graph, made)
    for old, new in made.items():
        new.name = old.name  # a copy calls `input` input_1, since Python has a function of that name
    kept = zip(program.graph_signature.output_specs, given, strict=True)
    graph.output(tuple(node for spec, node in kept if spec.kind is OutputKind.USER_OUTPUT))
    return graph


def _exchanged(modules: Modules, written: nn.Module) -> Iterator[tuple[str, list[fx.Node]]]:
    """The nodes of each call of a module in whose place another is, by its path; of nested calls, the outer."""
    new = dict(written.named_modules(remove_duplicate=False))
    gone = {path for path, old in modules.paths.items() if path not in new or type(new[path]) is not type(old)}
    regions: dict[str, tuple[str, list[fx.Node]]] = {}
    for node in modules.nodes:
        for key, path in calls_of(node).items():
            if path in gone:
                regions.setdefault(key, (path, []))[1].append(node)
                break
    yield from regions.values()


def _ends(modules: Modules, region: list[fx.Node], path: str) -> tuple[fx.Node, fx.Node]:
    """The value that a call takes, and the one that it gives."""
    inside = set(region)
    taken = {s for node in region for s in node.all_input_nodes if s not in modules.constants} - inside
    gives = [node for node in region if set(node.users) - inside]
    if len(taken) != 1 or len(gives) != 1:
        raise PlanError(f"{path}: it takes {len(taken)} values and gives {len(gives)}, so no other can take its place")
    return taken.pop(), gives[0]


def _module(modules: Modules, graph: fx.Graph, holder: nn.Module) -> fx.GraphModule:
    """A module that runs a graph, with the tensors and modules of `holder`, and with those that the trace alone has."""
    program = modules.capture.program
    root = nn.Module()
    specs = program.graph_signature.input_specs
    names = {spec.arg.name: spec.target or "" for spec in specs if spec.kind is not InputKind.USER_INPUT}
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name in names:
            with graph.inserting_before(node):
                held = graph.get_attr(node.name)
            _hold(root, node.name, _value(modules, holder, names[node.name]))
            node.replace_all_uses_with(held)
            graph.erase_node(node)
        elif node.op == "get_attr":
            setattr(root, str(node.target), getattr(program.graph_module, str(node.target)))
        elif node.op == "call_module":
            name = f"instead_{len(list(root.children()))}"
            root.add_module(name, holder.get_submodule(str(node.target)))
            node.target = name
    made = fx.GraphModule(root, graph)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made.eval()


def _value(modules: Modules, holder: nn.Module, name: str) -> Any:
    """A tensor or object by its qualified name: that of a module where it has one, else that of the trace."""
    path, _, leaf = name.rpartition(".")
    with suppress(AttributeError):
        found = getattr(holder.get_submodule(path), leaf)
        if isinstance(found, torch.Tensor):
            return found.detach()
    return modules.capture.tensors.get(name, modules.capture.program.constants.get(name))


def _hold(root: nn.Module, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)
