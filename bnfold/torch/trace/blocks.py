"""Blocks of code under torch.autocast, no_grad and the like, of which torch.export makes graphs of their own.

Made functional, what lies in such a graph loses the modules that it runs in, and it hides what its in-place ops write
to. Where the block computes what it would compute without, its nodes belong among those around it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, TensorArgument

GRAD, CAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"
BODY = {GRAD: 1, CAST: 4}
"""Which argument of an op that stands for a block is its graph; those of the graph follow."""


def flat(program: ExportedProgram, everything: bool = False) -> ExportedProgram:
    """A program without the blocks that change no number; the program itself where it has none.

    `everything`: without those either that compute in other types. Then the numbers are others, the order of ops and
    what they write to are not.
    """

    def chosen(outer: fx.GraphModule, block: fx.Node) -> bool:
        return everything or not casts(outer, block)

    if not any(chosen(program.graph_module, block) for block in _blocks(program.graph_module)):
        return program
    module = copied(program)
    while block := next((b for b in _blocks(module) if chosen(module, b)), None):
        inline(module, block, body(module, block), block.args[BODY[kind(block)] + 1 :])
    return with_graph(program, module)


def copied(program: ExportedProgram) -> fx.GraphModule:
    """A copy of the graph of a program, to be changed."""
    module: fx.GraphModule = copy.deepcopy(program.graph_module)
    for old, new in zip(program.graph_module.graph.nodes, module.graph.nodes, strict=True):
        new.name = old.name  # a copy calls `input` input_1, since Python has a function of that name
    return module


def _blocks(module: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in module.graph.nodes if kind(node) in BODY)


def kind(node: fx.Node) -> str:
    """The name of a higher-order op, "" for other nodes."""
    return str(node.target._name) if isinstance(node.target, torch._ops.HigherOrderOperator) else ""


def body(outer: fx.GraphModule, block: fx.Node) -> fx.GraphModule:
    """The graph of a block."""
    holder: Any = block.args[BODY[kind(block)]]
    inner: fx.GraphModule = getattr(outer, holder.target)
    return inner


def casts(outer: fx.GraphModule, block: fx.Node) -> bool:
    """Whether a block computes in other types: autocast that is enabled, for a device on which data lie."""
    if kind(block) != CAST or not block.args[2]:
        return False
    values = [node.meta.get("val") for node in body(outer, block).graph.nodes]
    return block.args[0] in {value.device.type for value in values if isinstance(value, torch.Tensor)}


def mixed(program: ExportedProgram) -> frozenset[str]:
    """The paths of the modules that run in a block that computes in other types."""
    module = program.graph_module
    within = (node for block in _blocks(module) if casts(module, block) for node in _all(body(module, block)))
    stacks = (list((node.meta.get("nn_module_stack") or {}).values()) for node in within)
    return frozenset(str(stack[-1][0]) for stack in stacks if stack)


def _all(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of a graph and of the blocks in it."""
    for node in module.graph.nodes:
        yield node
        if kind(node) in BODY:
            yield from _all(body(module, node))


def inline(outer: fx.GraphModule, block: fx.Node, inner: fx.GraphModule, operands: Sequence[Any]) -> None:
    """The nodes of a block, whose graph is `inner`, in the place of the op that stands for it."""
    values = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
    results: Any = None
    lookup: Callable[[fx.Node], Any] = values.__getitem__
    with outer.graph.inserting_before(block):
        for node in inner.graph.nodes:
            if node.op == "output":
                results = fx.map_arg(node.args[0], lookup)
            elif node.op != "placeholder":
                values[node] = made = outer.graph.node_copy(node, lookup)
                if node.op == "get_attr":
                    made.target = _held(outer, getattr(inner, str(node.target)))
    for user in list(block.users):
        if user.target is getitem:
            user.replace_all_uses_with(results[user.args[1]])
            outer.graph.erase_node(user)
    if block.users:
        block.replace_all_uses_with(results)
    holders = [node for node in block.all_input_nodes if node.op == "get_attr"]
    outer.graph.erase_node(block)
    for holder in holders:
        if not holder.users:
            outer.graph.erase_node(holder)


def _held(outer: fx.GraphModule, value: Any) -> str:
    """A name under which a graph now holds a value that the graph of a block held."""
    count = 1
    while hasattr(outer, f"block_{count}"):
        count += 1
    setattr(outer, f"block_{count}", value)
    return f"block_{count}"


def with_graph(program: ExportedProgram, module: fx.GraphModule) -> ExportedProgram:
    """The same program with another graph that takes and gives the same."""
    module.delete_all_unused_submodules()
    module.recompile()
    last: Any = next(iter(module.graph.find_nodes(op="output")))
    outputs = []
    for spec, node in zip(program.graph_signature.output_specs, last.args[0], strict=True):
        tensor = isinstance(spec.arg, TensorArgument) and isinstance(node, fx.Node)
        outputs.append(type(spec)(spec.kind, TensorArgument(node.name) if tensor else spec.arg, spec.target))
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(program.graph_signature.input_specs, outputs),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )
