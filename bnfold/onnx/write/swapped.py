"""Adds behind a Mul behind a product without a bias: `c * (W x) + b = c * (W x + b / c)`, and b / c is what a bias is.

A product has no place for a bias but an Add right behind it, so that no offset could go into it otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from ..read.constants import Constants
from ..read.scope import count_uses
from .editor import all_names

Array = npt.NDArray[Any]
PRODUCTS = frozenset({"MatMul", "Einsum"})


@dataclass(frozen=True)
class _Step:
    """A Mul or Add by a constant along the last axis: the positions of the node and of its source, and the constant."""

    node: int
    source: int
    data: str
    value: Array


class _Vectors:
    """Constants along the last axis: those of a graph, and those that were made for it."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.made: dict[str, Array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.made or name in self.constants

    def value(self, name: str) -> Array | None:
        """None where it is no vector of floats."""
        if name in self.made:
            return self.made[name]
        shape = self.constants.shape(name)
        if prod(shape) != (shape or (1,))[-1] or self.constants.dtype(name).kind != "f":
            return None
        return self.constants.value(name)


def swappable(graph: GraphProto, constants: Constants) -> bool:
    """Whether there is such an Add."""
    return _pair(graph, _Vectors(constants)) is not None


def swap(model: ModelProto, constants: Constants) -> None:
    """Let such Adds and Muls of the main graph change places until none is left.

    `constants`: those of the graph as it was.
    """
    vectors = _Vectors(constants)
    while pair := _pair(model.graph, vectors):
        _exchange(model.graph, *pair, vectors.made)


def _pair(graph: GraphProto, vectors: _Vectors) -> tuple[_Step, _Step] | None:
    """A Mul and the Add behind it, behind a product or more Muls of one."""
    uses = count_uses(graph)
    uses.update(value.name for value in graph.output)
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}

    def step(i: int, op: str) -> _Step | None:
        node = graph.node[i]
        if node.op_type != op or node.domain not in ("", "ai.onnx") or len(node.input) != 2 or node.attribute:
            return None
        for data, other in (tuple(node.input), tuple(reversed(node.input))):
            source = producers.get(data)
            if source is not None and uses[data] == 1 and data not in vectors and other in vectors:
                value = vectors.value(other)
                return None if value is None else _Step(i, source, data, value)
        return None

    for i, node in enumerate(graph.node):
        if node.op_type != "Add" or (add := step(i, "Add")) is None or (mul := step(add.source, "Mul")) is None:
            continue
        above: _Step | None = mul
        while above is not None and graph.node[above.source].op_type == "Mul":
            above = step(above.source, "Mul")
        if above is None or graph.node[above.source].op_type not in PRODUCTS or not _fits(mul.value, add.value):
            continue
        return mul, add
    return None


def _fits(factor: Array, offset: Array) -> bool:
    """Whether an offset over a factor is a vector of numbers."""
    if factor.size != offset.size and 1 not in (factor.size, offset.size):
        return False
    with np.errstate(all="ignore"):
        return bool(np.isfinite((offset.astype(np.float64) / factor.astype(np.float64)).astype(offset.dtype)).all())


def _exchange(graph: GraphProto, mul: _Step, add: _Step, made: dict[str, Array]) -> None:
    """Let an Add come before a Mul, with the name of what the Mul gave gone."""
    first, second = NodeProto(), NodeProto()
    first.CopyFrom(graph.node[mul.node])
    second.CopyFrom(graph.node[add.node])
    names = all_names(graph)
    fresh = [f"{second.output[0]}/{part}" for part in ("bias", "before")]
    fresh = [name + "_" * sum(other.startswith(name) for other in names) for name in fresh]
    made[fresh[0]] = (add.value.astype(np.float64) / mul.value.astype(np.float64)).astype(add.value.dtype)
    graph.initializer.append(numpy_helper.from_array(made[fresh[0]], fresh[0]))
    graph.node[mul.node].CopyFrom(
        helper.make_node("Add", [mul.data, fresh[0]], [fresh[1]], second.name, second.doc_string or None)
    )
    graph.node[add.node].CopyFrom(first)
    moved = graph.node[add.node]
    moved.input[:] = [fresh[1] if name == mul.data else name for name in first.input]
    moved.output[:] = second.output
    stale = [i for i, value in enumerate(graph.value_info) if value.name == add.data]
    for i in reversed(stale):
        del graph.value_info[i]
