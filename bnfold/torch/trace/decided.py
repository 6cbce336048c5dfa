"""torch.cond with a constant predicate: the branch that is taken stands in its place, so that norms meet the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from .blocks import copied, inline, kind, with_graph
from .capture import Capture
from .constants import Constants


def decide(capture: Capture) -> Capture:
    """A captured program with the branches that are always taken; the program itself where there are none."""
    while taken := _taken(capture):
        module = copied(capture.program)
        nodes = {node.name: node for node in module.graph.nodes}
        for name, branch in taken.items():
            block: Any = nodes[name]
            inline(module, block, getattr(module, block.args[branch].target), block.args[3])
        capture = replace(capture, program=with_graph(capture.program, module))
    return capture


def _taken(capture: Capture) -> dict[str, int]:
    """The nodes that stand for such a cond, by name, and which of their arguments is the branch."""
    conds = [node for node in capture.program.graph.nodes if kind(node) == "cond"]
    constants = Constants(capture) if conds else None
    found = {}
    for node in conds:
        predicate = node.args[0]
        if isinstance(predicate, fx.Node) and constants is not None and predicate in constants:
            predicate = bool(constants.value(predicate).item())
        if isinstance(predicate, bool):
            found[node.name] = 1 if predicate else 2
    return found
