"""Shapes of the values that Loops carry: onnx infers none, since a body may change them from one turn to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from ...core.graph import Shape
from .skeleton import nested_graphs

ROUNDS = 20
"""After so many, and one for each value that is carried, nothing is assumed."""
Shapes = dict[str, Shape | None]
Known = dict[tuple[int, int], Shape | None]
"""Of each Loop, and of each value that it carries: the shape that it has in every turn, None where there is none."""


@dataclass(frozen=True)
class _Loop:
    """A Loop, its body, the graph that it stands in, and the shapes that are known there and in the body."""

    node: NodeProto
    body: GraphProto
    graph: GraphProto
    outside: Shapes
    inside: Shapes

    @property
    def count(self) -> int:
        """How many values it carries."""
        return max(0, min(len(self.node.input), len(self.body.input)) - 2)


def has_loops(graph: GraphProto) -> bool:
    """Whether there is a Loop in a graph or in a body in it."""
    return any(True for _ in _loops(graph, {}))


def carried(model: ModelProto, infer: Callable[[ModelProto], ModelProto]) -> ModelProto:
    """A model with all shapes that `infer` finds, once what its Loops carry is known as far as the bodies keep it.

    By induction: what goes into a Loop is assumed in every turn; what the body does not give back under that assumption
    is taken out of it, until nothing changes.
    """
    declared = [[_shape(value) for value in loop.body.input[2:]] for loop in _loops(model.graph, {})]
    known: Known = {}
    for _ in range(ROUNDS + sum(map(len, declared))):
        found = infer(_assuming(model, known))
        started, kept = _turn(list(_loops(found.graph, {})), declared, known)
        if not started and kept == known:
            return found
        # what one Loop gives may go into another, and be what a body around it gives back: all are assumed first
        known = {**known, **started} if started else kept
    return infer(model)


def _turn(loops: list[_Loop], declared: list[list[Shape | None]], known: Known) -> tuple[Known, Known]:
    """What can be assumed of further values, and what the bodies keep of those of which something is."""
    started: Known = {}
    kept: Known = {}
    for i, loop in enumerate(loops):
        for k in range(loop.count):
            start = _start(loop.outside.get(loop.node.input[2 + k]), declared[i][k])
            if (i, k) in known:
                given = loop.inside.get(loop.body.output[1 + k].name) if len(loop.body.output) > 1 + k else None
                kept[i, k] = _common(known[i, k], _common(start, given))
            elif start is not None:
                started[i, k] = start
    return started, kept


def _assuming(model: ModelProto, known: Known) -> ModelProto:
    """A copy in which the Loops carry values of these shapes."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for i, loop in enumerate(_loops(copy.graph, {})):
        for k in range(loop.count):
            shape = known.get((i, k))
            if shape is None:
                continue
            value = loop.body.input[2 + k]
            _write(value, shape)
            name = loop.node.output[k] if k < len(loop.node.output) else ""
            said = next((out for out in (*loop.graph.output, *loop.graph.value_info) if out.name == name), None)
            if name and (said is None or _shape(said) is None):
                _write(said or loop.graph.value_info.add(name=name, type=value.type), shape)
    return copy


def _loops(graph: GraphProto, around: Shapes) -> Iterator[_Loop]:
    outside = {**around, **_own(graph)}
    for node in graph.node:
        for body in nested_graphs(node):
            if node.op_type == "Loop" and node.domain in ("", "ai.onnx"):
                yield _Loop(node, body, graph, outside, {**outside, **_own(body)})
            yield from _loops(body, outside)


def _own(graph: GraphProto) -> Shapes:
    found: Shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found.update((value.name, _shape(value)) for value in (*graph.value_info, *graph.output, *graph.input))
    return found


def _shape(value: ValueInfoProto) -> Shape | None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)


def _write(value: ValueInfoProto, shape: Shape) -> None:
    """Give a tensor a shape."""
    dims = value.type.tensor_type.shape
    dims.Clear()
    dims.SetInParent()
    for size in shape:
        dim = dims.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


def _start(given: Shape | None, declared: Shape | None) -> Shape | None:
    """What goes into a Loop, by the tensor and by what the body says of its input."""
    if given is None or declared is None:
        return declared if given is None else given
    if len(given) != len(declared):
        return None
    return tuple(
        b if isinstance(b, int) and not isinstance(a, int) else a for a, b in zip(given, declared, strict=True)
    )


def _common(a: Shape | None, b: Shape | None) -> Shape | None:
    """What two shapes have in common; None where their ranks differ or are unknown."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


def infer_shapes(bare: ModelProto) -> ModelProto:
    """The skeleton with the types and shapes of its tensors, as far as they can be inferred."""
    return carried(bare, _inferred) if has_loops(bare.graph) else _inferred(bare)


def _inferred(bare: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return bare
