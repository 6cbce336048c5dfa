"""Takes channels out of the nodes of an ONNX graph: weights, biases, constants along channels, sizes and indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from ...core.shrinking.channels import Ids, Port, Vector
from ..read.bindings import LinearBinding
from ..read.constants import attributes
from ..read.scope import Scope
from ..write.editor import Editor, demand_finite, fill, ready, rounded, set_attribute

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Cut:
    """What a tensor loses: of the `size` channels along `axis` of `rank` axes those at `kept` stay."""

    axis: int
    rank: int
    size: int
    kept: Ids

    def moved(self) -> Ids:
        """Where each channel is now, -1 where it is gone."""
        places = np.full(self.size, -1, np.int64)
        places[self.kept] = np.arange(self.kept.size)
        return places


Cuts = dict[str, Cut]


def put(editor: Editor, node: NodeProto, position: int, value: Array, wish: str) -> None:
    """Let an input be a constant of another shape: under its own name where nobody else reads that."""
    old = node.input[position] if position < len(node.input) else ""
    inputs = {given.name for given in editor.graph.input}
    if old in editor.initializers and editor.uses[old] == 1 and old not in inputs:
        fill(editor.graph.initializer[editor.initializers[old]], value, old)
        editor.refilled.add(old)
        return
    if old:
        editor.release(old)
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = editor.new(ready(value), wish)


def layer(editor: Editor, port: Port, at: LinearBinding, keep_in: Ids | None, keep_out: Ids | None) -> None:
    """A layer without the channels that are gone; what its inputs held of constants goes into the bias."""
    node, groups = editor.graph.node[at.node], at.layout.groups
    weight = editor.value(node.input[at.weight])
    first, second = (keep_out, keep_in) if at.layout.axes == "oi" else (keep_in, keep_out)
    if groups > 1:  # a group leaves with all its channels: along the other axis each holds as many as before
        second = None
        kept = keep_in if keep_in is not None else keep_out
        total = port.layer.op.in_channels if keep_in is not None else port.layer.op.out_channels
        if kept is not None:
            set_attribute(node, "group", kept.size * groups // total)
    new = _carried(weight.reshape(at.matrix) if at.matrix else weight, port, at, keep_in)
    for axis, places in ((0, first), (1, second)):
        new = new if places is None else np.take(new, places, axis)
    _rebias(editor, port, at, keep_in, keep_out, weight.dtype)
    put(
        editor, node, at.weight, new.reshape(*weight.shape[: -2 if at.matrix else 0], *new.shape), f"{port.name}_weight"
    )


def _carried(weight: Array, port: Port, at: LinearBinding, keep_in: Ids | None) -> Array:
    """The weight with `W_c + sum_d W_d k_d / k_c` for one channel c that stays, d those that are gone.

    Only where the constants k cannot go into the bias.
    """
    if keep_in is None or port.x is None or port.layer.folds or port.layer.groups > 1:
        return weight
    left = np.zeros(port.x.ids.size, np.bool_)
    left[keep_in] = True
    held, lost = port.layer.carriers(port.x, left), np.where(left, 0.0, np.nan_to_num(port.x.value))
    place = int(np.abs(held).argmax())
    if not held[place] or not lost.any():
        return weight
    axis = at.layout.axes.index("i")
    taken = np.moveaxis(weight, axis, -1).astype(np.float64) @ (lost / held[place])
    new = np.moveaxis(weight.astype(np.float64), axis, 0).copy()
    new[place] += taken
    result = rounded(np.moveaxis(new, 0, axis), weight.dtype)
    demand_finite(result, weight, port.name)
    return result


def _rebias(
    editor: Editor, port: Port, at: LinearBinding, keep_in: Ids | None, keep_out: Ids | None, dtype: np.dtype[Any]
) -> None:
    """`(b + sum_taps(W) c)[kept]` with the constants c of the inputs that are gone; as it was where that is 0."""
    node = editor.graph.node[at.bias_node]
    added = _taken(port, keep_in)
    stored = at.bias is not None and at.bias < len(node.input) and bool(node.input[at.bias])
    old = editor.value(node.input[at.bias]) if stored and at.bias is not None else None
    if at.bias is None or (old is None and not added.any()):
        return
    if not added.any() and (old is None or old.size == 1 or keep_out is None):
        return
    kept = slice(None) if keep_out is None else keep_out
    if added.any() or old is None:
        new = rounded((port.layer.bias + added)[kept] / at.beta, dtype if old is None else old.dtype)
        demand_finite(new, added, port.name)
    else:
        new = old.reshape(-1)[kept]
    shape = [-1] if old is None or old.size == 1 else [-1 if size == old.size else 1 for size in old.shape]
    put(editor, node, at.bias, new.reshape([*shape, *[1] * (at.behind if old is not None and old.size == 1 else 0)]),
        f"{port.name}_bias")  # fmt: skip


def _taken(port: Port, keep_in: Ids | None) -> Vector:
    """What the inputs that are gone add to each output, (out,)."""
    if port.x is None or keep_in is None or port.layer.groups > 1:
        return np.zeros(port.layer.op.out_channels)
    value, _, _ = port.layer.inputs(port.x)
    value = np.nan_to_num(value, nan=0.0)
    value[:, keep_in] = 0.0
    return port.layer.sums(value).ravel()


def constants(editor: Editor, index: int, cut: Cut) -> None:
    """The channels out of every constant that runs along them; before opset 7 an attribute says where it lies."""
    node = editor.graph.node[index]
    attrs = attributes(node)
    for position, name in enumerate(node.input):
        if name not in editor.constants:
            continue
        shape = editor.constants.shape(name)
        axis = cut.axis - (cut.rank - len(shape))
        if node.op_type == "BatchNormalization" or (node.op_type == "PRelu" and editor.constants.opset < 7):
            axis = 0
        elif editor.constants.opset < 7 and "axis" in attrs:
            axis = cut.axis - attrs["axis"] % cut.rank
        if 0 <= axis < len(shape) and shape[axis] == cut.size:
            put(editor, node, position, np.take(editor.value(name), cut.kept, axis), f"{name}_kept")


def split(editor: Editor, index: int, cuts: Cuts) -> None:
    """The sizes of the parts."""
    node = editor.graph.node[index]
    source = cuts[node.input[0]]
    sizes = _sizes(editor, node, source)
    sizes = [cuts[name].kept.size if name in cuts else size for name, size in zip(node.output, sizes, strict=True)]
    _without(node, "num_outputs")
    _numbers(editor, node, 1, "split", sizes, editor.constants.opset >= 13)


def _sizes(editor: Editor, node: NodeProto, source: Cut) -> list[int]:
    """How large the parts were."""
    given = _given(editor, node, 1, "split")
    part = -(-source.size // len(node.output))
    return given or [max(0, min(part, source.size - i * part)) for i in range(len(node.output))]


def cut_out(editor: Editor, index: int, cuts: Cuts) -> None:
    """A Slice along the channels: what stays lies side by side, or is gathered before."""
    node, attrs = editor.graph.node[index], attributes(editor.graph.node[index])
    source = cuts.get(node.input[0])
    if source is None:
        return
    starts, ends = _given(editor, node, 1, "starts"), _given(editor, node, 2, "ends")
    axes = _given(editor, node, 3, "axes") or list(range(len(starts)))
    place = next((i for i, axis in enumerate(axes) if axis % source.rank == source.axis), None)
    if place is None:
        return
    steps = _given(editor, node, 4, "steps") or [1] * len(starts)
    taken = np.arange(source.size)[slice(starts[place], _end(ends[place], steps[place]), steps[place])]
    places = source.moved()[taken]
    places = places[places >= 0]
    if steps[place] == 1:
        starts[place], ends[place] = (int(places[0]), int(places[-1]) + 1) if places.size else (0, 0)
    else:
        _gather_before(editor, index, places, source.axis)
        starts[place], ends[place], steps[place] = 0, int(places.size), 1
        _numbers(editor, node, 4, "steps", steps, "starts" not in attrs)
    _numbers(editor, node, 1, "starts", starts, "starts" not in attrs)
    _numbers(editor, node, 2, "ends", ends, "starts" not in attrs)


def _end(end: int, step: int) -> int | None:
    return None if step < 0 and end < -(2**31) + 1 else end


def _gather_before(editor: Editor, index: int, places: Ids, axis: int) -> None:
    node = editor.graph.node[index]
    name = editor.free_name(f"{node.output[0]}_kept")
    indices = editor.new(ready(places), f"{name}_indices")
    gather = helper.make_node("Gather", [node.input[0], indices], [name], f"{node.name or name}_kept", axis=axis)
    editor.inserted.setdefault(index, []).append(gather)
    node.input[0] = name


def gather(editor: Editor, index: int, cuts: Cuts) -> None:
    """The indices of what stays."""
    node = editor.graph.node[index]
    source = cuts.get(node.input[0])
    axis = int(attributes(node).get("axis", 0))
    if source is None or axis % source.rank != source.axis:
        return
    old = editor.value(node.input[1])
    places = source.moved()[old.astype(np.int64) % source.size]
    put(editor, node, 1, (places[places >= 0] if old.ndim else places).astype(old.dtype), f"{node.input[1]}_kept")


def shaped(editor: Editor, index: int, cuts: Cuts) -> None:
    """The size asked of a Reshape, an Expand or a Resize along the channels."""
    node = editor.graph.node[index]
    target = cuts.get(node.output[0])
    if target is None:
        return
    position = 3 if node.op_type == "Resize" else 1
    if position < len(node.input) and node.input[position] and node.input[position] not in editor.constants:
        _joined_entry(editor, node.input[position], target)
        return
    sizes = _given(editor, node, position, "shape")
    axes = list(attributes(node).get("axes", range(target.rank))) if node.op_type == "Resize" else range(target.rank)
    place = next((i for i, axis in enumerate(axes) if axis % target.rank == target.axis), None)
    if node.op_type == "Expand" and place is not None:  # its sizes may be fewer
        place -= target.rank - len(sizes)
    if (
        place is None
        or place < 0
        or not sizes
        or sizes[place] == -1
        or (node.op_type == "Expand" and sizes[place] == 1)
    ):
        return
    sizes[place] = target.kept.size
    _numbers(editor, node, position, "shape", sizes, position < len(node.input))


def pad(editor: Editor, index: int, cuts: Cuts) -> None:
    """How many channels of zeros are added: those in front and behind that stay."""
    node, cut = editor.graph.node[index], cuts.get(editor.graph.node[index].output[0])
    if cut is None:
        return
    attribute = "pads" if editor.constants.opset > 1 else "paddings"
    amounts, axes = _given(editor, node, 1, attribute), _given(editor, node, 3, "axes") or list(range(cut.rank))
    place = next((i for i, axis in enumerate(axes) if axis % cut.rank == cut.axis), None)
    if place is None:
        return
    front, back = amounts[place], amounts[place + len(axes)]
    amounts[place] = int((cut.kept < front).sum())
    amounts[place + len(axes)] = int((cut.kept >= cut.size - back).sum())
    _numbers(editor, node, 1, attribute, amounts, len(node.input) > 1)


def joined(scope: Scope, name: str) -> NodeProto | None:
    """The Concat that joins a list of sizes, which nobody else reads."""
    maker = scope.constants.producer(name)
    once = scope.uses[name] == 1 and name in scope.local and name not in scope.pinned
    return maker if maker is not None and maker.op_type == "Concat" and once else None


def entry(scope: Scope, name: str, place: int) -> tuple[NodeProto, int, int] | None:
    """Where entry `place` of joined sizes is a constant: the Concat, which of its inputs, and the place in that."""
    maker = joined(scope, name)
    for i, part in enumerate([] if maker is None else maker.input):
        shape = scope.constants.shape(part) if part in scope.constants else scope.shapes.get(part)
        size = shape[0] if shape is not None and len(shape) == 1 else None
        if not isinstance(size, int):
            return None
        if place < size:
            return (maker, i, place) if maker is not None and part in scope.constants else None
        place -= size
    return None


def _joined_entry(editor: Editor, name: str, target: Cut) -> None:
    """Another number for the channels in sizes that are joined from parts."""
    found = entry(editor.scope, name, target.axis)
    if found is None:
        return
    maker, i, place = found
    sizes = editor.value(maker.input[i]).copy()
    if sizes[place] > 0 or (sizes[place] == 0 and target.size > 0):
        sizes[place] = target.kept.size
        put(editor, maker, i, sizes, f"{maker.input[i]}_kept")


def _given(editor: Editor, node: NodeProto, position: int, attribute: str) -> list[int]:
    """Integers at an input or in an attribute; none where neither says."""
    if position < len(node.input) and node.input[position]:
        return (
            [int(v) for v in editor.value(node.input[position]).ravel()]
            if node.input[position] in editor.constants
            else []
        )
    return [int(v) for v in attributes(node).get(attribute, [])]


def _numbers(editor: Editor, node: NodeProto, position: int, attribute: str, values: list[int], as_input: bool) -> None:
    if as_input:
        old = node.input[position] if position < len(node.input) else ""
        dtype = editor.value(old).dtype if old else np.dtype(np.int64)
        put(editor, node, position, np.array(values, dtype), f"{old or node.name or node.output[0]}_{attribute}")
        return
    _without(node, attribute)
    node.attribute.append(helper.make_attribute(attribute, values))


def _without(node: NodeProto, attribute: str) -> None:
    for i in reversed([i for i, a in enumerate(node.attribute) if a.name == attribute]):
        del node.attribute[i]


WRITERS: dict[str, Callable[[Editor, int, Cuts], None]] = {
    "Split": split,
    "Slice": cut_out,
    "Gather": gather,
    "Reshape": shaped,
    "Expand": shaped,
    "Resize": shaped,
    "Pad": pad,
}
CONSTANTS = frozenset({"Add", "Sub", "Mul", "Div", "PRelu", "Max", "Min", "Sum", "Where", "Pow", "BatchNormalization"})
"""Operators with constants that may run along the channels."""
AS_THEY_ARE = frozenset(
    {
        "Relu", "LeakyRelu", "Abs", "Neg", "Clip", "Identity", "Dropout", "Cast", "CastLike", "Mean", "MaxPool",
        "GlobalMaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin",
        "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Tile", "Upsample", "DepthToSpace",
        "SpaceToDepth",
    }
)  # fmt: skip
"""Operators that say nothing of how many channels there are."""
