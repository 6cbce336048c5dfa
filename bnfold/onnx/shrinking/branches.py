"""Whole branches that are constant: a residual branch whose last norm died, a gate that is always the same.

`x + branch` with a constant branch is `x + c`, or x; `x * gate` is `x * c`. The layers of the branch go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from ...core.shrinking.channels import Network, Track, Vector
from ...core.shrinking.decide import Decision
from ..read.scope import Scope
from ..write.editor import Editor, ready, rewrite, rounded
from .read import neutral


@dataclass(frozen=True, eq=False)
class Branch:
    """Input `position` of the node at `index`, tensor `name`, always holds `value` along the channels."""

    index: int
    position: int
    name: str
    value: Vector
    """Of shape (channels, 1, .., 1)."""

    def vanishes(self, node: NodeProto) -> bool:
        """Whether the node does nothing without it."""
        return not self.value.any() and (node.op_type == "Add" or (node.op_type == "Sub" and self.position == 1))


def branches(scope: Scope, net: Network, decision: Decision) -> Iterator[Branch]:
    """The constant inputs of the sums and products of a graph whose other input has the shape of the whole."""
    for index, node in enumerate(scope.graph.node):
        if node.op_type not in ("Add", "Sub", "Mul") or node.domain not in ("", "ai.onnx") or scope.constants.opset < 7:
            continue
        for position, name in enumerate(node.input):
            other, track = node.input[1 - position], net.tracks.get(neutral(scope, name))
            constant = name in scope.constants or other in scope.constants
            if track is None or constant or not _whole(scope, other, node.output[0]):
                continue
            value = _held(track, decision)
            if value is not None and scope.dtype(name):
                behind = (scope.rank(name) or 0) - track.axis - 1
                yield Branch(index, position, name, value.reshape(-1, *[1] * behind))
                break


def _whole(scope: Scope, name: str, whole: str) -> bool:
    """Whether a tensor has the shape of another, as far as can be told: each size known, by number or by name."""
    shape = scope.shapes.get(name)
    return shape is not None and None not in shape and shape == scope.shapes.get(whole)


def _held(track: Track, decision: Decision) -> Vector | None:
    """The constants of the channels that stay, exactly; None where one is no constant."""
    kept = decision.keeps(track)
    left = track if kept is None else track.at(kept)
    return left.value if (left.radius == 0).all() and left.known.all() else None


def replaced(editor: Editor, branch: Branch) -> None:
    """Let a node read a constant in the place of a branch, or let its readers have the other input."""
    node = editor.graph.node[branch.index]
    source, target = node.input[1 - branch.position], node.output[0]
    editor.release(branch.name)
    if not branch.vanishes(node):
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(editor.scope.dtype(branch.name)))
        node.input[branch.position] = editor.new(ready(rounded(branch.value, dtype)), f"{branch.name}_constant")
    elif editor.renaming.merge(source, target, False):
        editor.dropped.add(branch.index)
    else:  # both names must stay
        rewrite(node, "Identity", [source])


def unread(scope: Scope, found: list[Branch]) -> set[int]:
    """The nodes that nobody reads any more without the branches."""
    uses = Counter(scope.uses)
    makers = {name: index for index, node in enumerate(scope.graph.node) for name in node.output if name}
    gone: set[int] = set()
    queue = [branch.name for branch in found]
    while queue:
        name = queue.pop()
        uses[name] -= 1
        index = makers.get(name)
        if index is None or index in gone or any(uses[out] for out in scope.graph.node[index].output if out):
            continue
        gone.add(index)
        queue += [name for name in scope.graph.node[index].input if name]
    return gone
