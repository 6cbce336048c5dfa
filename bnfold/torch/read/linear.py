"""Readers of ops that hold weights: convolutions and matrix products. See `read.READERS` for the table."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any

from torch import fx

from ...core.absorb import Layout
from ...core.graph import Linear, Op, Opaque, Shape
from .bindings import Binding, LinearBinding
from .node import Node, Reading
from .sharing import weight_arguments


def conv(node: Node) -> Reading | None:
    """conv1d, conv2d, conv3d: weight (out, in/groups, *kernel)."""
    shape = node.shape(node.args["weight"])
    if shape is None or len(shape) < 3 or not _sizes(shape):
        return None
    out, per_group, *kernel = (int(size) for size in shape if isinstance(size, int))
    groups, stride, dilation = int(node.args["groups"]), _tuple(node, "stride"), _tuple(node, "dilation")
    padding = node.args["padding"]
    amounts = _amounts(padding, kernel, dilation)
    centred = all(k % 2 for k in kernel) and all(s == 1 for s in stride)
    centred = centred and amounts == [(k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True)]
    inputs = per_group * groups
    clean = not any(amounts)
    return _linear(node, Layout("oi", groups), inputs, out, 1, 1, len(shape), clean, centred and inputs == out)


def _tuple(node: Node, name: str) -> list[int]:
    """A list of sizes, one number for all axes spread out."""
    rank = (node.rank or 3) - 2
    shape = node.shape(node.args["weight"])
    rank = len(shape) - 2 if shape is not None else rank
    value = list(node.args[name])
    return value * rank if len(value) == 1 else value


def _amounts(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How far each axis is padded."""
    if padding == "same":
        return [(k - 1) * d // 2 if (k - 1) * d % 2 == 0 else k * d for k, d in zip(kernel, dilation, strict=True)]
    if padding == "valid":
        return [0] * len(kernel)
    amounts = [int(p) for p in padding]
    return amounts * len(kernel) if len(amounts) == 1 else amounts


def convolution(node: Node) -> Reading | None:
    """aten.convolution, of either direction."""
    return conv_transpose(node) if node.args["transposed"] else conv(node)


def conv_transpose(node: Node) -> Reading | None:
    """conv_transpose1d, 2d, 3d: weight (in, out/groups, *kernel). A constant gives no constant but with kernel 1."""
    shape = node.shape(node.args["weight"])
    if shape is None or len(shape) < 3 or not _sizes(shape):
        return None
    inputs, per_group, *kernel = (int(size) for size in shape if isinstance(size, int))
    groups = int(node.args["groups"])
    plain = all(k == 1 for k in kernel) and set(_tuple(node, "stride")) == {1}
    plain = plain and not any(node.args["padding"]) and not any(node.args["output_padding"])
    return _linear(node, Layout("io", groups), inputs, per_group * groups, 1, 1, len(shape), plain, False)


def linear(node: Node) -> Reading | None:
    """F.linear: weight (out, in), over the last axis."""
    shape, rank = node.shape(node.args["weight"]), node.rank
    if shape is None or rank is None or len(shape) != 2 or not _sizes(shape) or rank < 2:
        return None
    out, inputs = (int(size) for size in shape if isinstance(size, int))
    return _linear(node, Layout("oi"), inputs, out, rank - 1, rank - 1, rank, True, inputs == out)


def product(node: Node) -> Reading | None:
    """addmm, mm, matmul with a constant matrix (in, out) on the right."""
    name, _ = weight_arguments(node.type)
    matrix = node.args[name]
    data: Any = node.args["mat1"] if node.type == "addmm" else node.first
    shape, source = node.shape(matrix), node.shape(data)
    if shape is None or source is None or len(shape) != 2 or not _sizes(shape) or not node.constant(matrix):
        return None
    if len(source) < 2 or node.constant(data):
        return None
    if node.args.get("beta", 1) != 1 or node.args.get("alpha", 1) != 1 or node.args.get("out_dtype") is not None:
        return None
    inputs, out = (int(size) for size in shape if isinstance(size, int))
    rank = len(source)
    return _linear(node, Layout("io"), inputs, out, rank - 1, rank - 1, rank, True, inputs == out, data)


def _sizes(shape: Shape) -> bool:
    return all(isinstance(size, int) for size in shape)


def _linear(
    node: Node, layout: Layout, inputs: int, out: int, in_axis: int, out_axis: int, rank: int, clean: bool,
    taps: bool, data: fx.Node | None = None,
) -> Reading | None:  # fmt: skip
    """The op and its binding, with what the parameters allow."""
    context = node.context
    weight_name, bias_name = weight_arguments(node.type)
    weight, bias = node.args[weight_name], node.args[bias_name] if bias_name else None
    source = data if data is not None else node.first
    if not isinstance(source, fx.Node) or not node.constant(weight) or (data is None and node.rank == 1):
        return None
    if bias is not None and not node.constant(bias):
        return None
    if len(node.shape(source) or ()) != rank:  # a sample without a batch axis
        return None
    sides = context.weights.sides(node.fx, context.program)
    takes_bias = sides.bias and (bias is None or node.shape(bias) == (out,))
    op = Linear(
        node.label,
        (source.name,),
        (node.name,),
        in_axis,
        out_axis,
        inputs,
        out,
        rank,
        clean,
        takes_bias,
        "both" if sides.weight else "none",
        taps and sides.weight and takes_bias and node.label not in context.untapped,
        layout.axes == "oi" and in_axis == 1 and rank > 2,
        sides.shared,
        sides.why,
    )
    return [op], {0: LinearBinding(node.name, sides.weight_name, layout, sides.bias_name, out, sides.turned)}


def recurrent(node: Node) -> Reading | None:
    """lstm, gru, rnn: the weights of the first layer take what comes in, in each direction; what goes out stays.

    None for packed sequences, for a sample without a batch axis, and where a weight is not the layer's alone.
    """
    source, params = node.first, node.args.get("params")
    if "batch_sizes" in node.args or node.rank != 3 or not isinstance(source, fx.Node) or not params:
        return None
    directions, biased = 1 + bool(node.args["bidirectional"]), bool(node.args["has_biases"])
    each = len(params) // (directions * int(node.args["num_layers"]))
    ops: list[Op] = []
    bindings: dict[int, Binding] = {}
    for direction in range(directions):
        places = [direction * each, direction * each + 2][: 1 + biased]
        names = [_own_parameter(node, params, place) for place in places]
        shape = node.shape(params[places[0]])
        if not all(names) or shape is None or not _sizes(shape):
            return None
        rows, inputs = (int(size) for size in shape if isinstance(size, int))
        step = node.step(f"gates_{direction}", (None, None, rows))
        ops.append(Linear(node.label, (source.name,), (step,), 2, 2, inputs, rows, 3, takes_bias=biased))
        bindings[direction] = LinearBinding(node.name, names[0], Layout("oi"), names[1] if biased else "", rows)
    known = {source.name} | {inner.name for inner in node.fx.all_input_nodes if node.constant(inner)}
    rest = [inner.name for inner in node.fx.all_input_nodes if inner.name not in known]
    outputs = (node.name, *(user.name for user in node.fx.users if user.target is getitem))
    steps = [op.outputs[0] for op in ops]
    return [*ops, Opaque(node.label, (*steps, *rest), outputs, node.type)], bindings


def _own_parameter(node: Node, params: Sequence[Any], place: int) -> str:
    """The name by which one parameter of many is edited, "" where something else reads it too."""
    if not node.constant(params[place]) or sum(other is params[place] for other in params) > 1:
        return ""
    return f"params.{place}" if node.context.program else node.context.weights.alone(params[place])
