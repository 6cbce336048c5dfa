"""Norms: the batch norm ops of ATen, and module calls that are nothing but constant arithmetic per channel.

A frozen batch norm, a layer scale, a subclass of BatchNorm2d: whatever a module computes with multiplications and
additions of constants is one `Affine`, however it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from ...core.affine import ChannelAffine
from ...core.graph import Affine, Op, Opaque, Reason, Statistics
from ..trace.constants import op_name
from .bindings import AffineBinding
from .node import Node, Reading
from .sharing import argument

Vector = npt.NDArray[np.float64]
INFERENCE = frozenset({"_native_batch_norm_legit_no_training", "_batch_norm_no_update"})
MAYBE = frozenset({"batch_norm", "native_batch_norm", "_native_batch_norm_legit"})
NORMS = INFERENCE | MAYBE | {
    "_native_batch_norm_legit_functional", "_batch_norm_with_update", "_batch_norm_with_update_functional",
}  # fmt: skip
ROLES = "weight", "bias", "running_mean", "running_var"
CASTS = frozenset({"_to_copy", "to", "type_as"})
ARITHMETIC = frozenset({"add", "sub", "mul", "div", "rsub"})


def first_output(node: fx.Node) -> str:
    """The name of the values that a node gives: its own, or that of the getitem that takes the first of several."""
    users = [user for user in node.users if user.target is getitem and user.args[1] == 0]
    return users[0].name if users else node.name


def norm(node: Node) -> Reading:
    """A batch norm op."""
    args, out = node.args, first_output(node.fx)
    node.context.shapes.setdefault(out, node.shape(node.first))
    outputs = (out, *(user.name for user in node.fx.users if user.target is getitem and user.args[1] != 0))
    source = node.shape(node.first)
    channels = source[1] if source is not None and len(source) > 1 and isinstance(source[1], int) else 0
    vectors = {name: vector(node, args.get(name)) for name in ROLES}
    reason = _reason(node, vectors)
    affine = None
    mean, var = vectors["running_mean"], vectors["running_var"]
    if reason is None and mean is not None and var is not None:
        affine = ChannelAffine.from_batch_norm(mean, var, vectors["weight"], vectors["bias"], float(args["eps"]))
        if not affine.finite:
            text = "its statistics give a factor that is not a finite number"
            reason = Reason("bad-statistics", text, node.label)
    if reason is not None or affine is None or mean is None or var is None:
        return [Opaque(node.label, (node.input,), outputs, "BatchNormalization", reason, channels)], {}
    statistics = Statistics(mean, var, float(args["eps"]))
    one = Affine(
        node.label, (node.input,), (out,), "BatchNormalization", "bn", 1, affine.inv, affine.shift, statistics,
        layer=node.context.layers and (node.rank or 0) > 2 and _single(node),
    )  # fmt: skip
    binding = AffineBinding("", (node.name, out), node.input, _names(node), float(args["eps"]))
    return [one], {0: binding}


def _names(node: Node) -> tuple[str, ...]:
    """The parameters that a batch norm op reads as they are."""
    return tuple(node.context.constants.direct(node.args.get(role)) for role in ROLES)


def _single(node: Node) -> bool:
    """Whether the data are float32."""
    return bool(node.fx.all_input_nodes[0].meta["val"].dtype == torch.float32)


def vector(node: Node, value: object) -> Vector | None:
    """A constant vector in float64, or None."""
    number = node.number(value)
    return None if number is None else number.ravel()


def _reason(node: Node, vectors: dict[str, Vector | None]) -> Reason | None:
    """Why a norm is not one at inference with constant statistics."""
    kept = node.context.kept(node.label)
    if kept is not None:
        return kept
    args, label = node.args, node.label
    trains = node.type not in INFERENCE and (node.type not in MAYBE or bool(args.get("training")))
    if trains or args.get("running_mean") is None:
        hint = "call eval() on the module, or pass eval=True" if args.get("running_mean") is not None else ""
        text = "it computes its statistics from each batch"
        text += "" if args.get("running_mean") is not None else " (it has no running statistics)"
        return Reason("training-mode", text, label, hint)
    present = [name for name in vectors if args.get(name) is not None]
    missing = [name for name in present if vectors[name] is None]
    if missing:
        return Reason("not-constant", f"its {' and '.join(missing)} not a constant of the model", label)
    if len({v.size for v in vectors.values() if v is not None}) > 1:
        return Reason("bad-statistics", "its vectors are not of one length", label)
    return None


@dataclass(frozen=True)
class Call:
    """A module call that is constant arithmetic from one tensor to another: `nodes` from first to last."""

    path: str
    nodes: tuple[fx.Node, ...]
    data: fx.Node

    @property
    def output(self) -> fx.Node:
        """The node that gives the result."""
        return self.nodes[-1]


def affine_call(path: str, nodes: list[fx.Node], node_of: dict[fx.Node, Node]) -> Call | None:
    """The call, where its nodes are a chain of norms and constant arithmetic; None where they are more than that.

    `nodes`: those that ran in the module itself, constants left out. What runs in its submodules comes behind.
    """
    chain: list[fx.Node] = []
    data: fx.Node | None = None
    nodes = [node for node in nodes if op_name(node) != "_assert_tensor_metadata"]  # which come with casts
    for node in nodes:
        view = node_of[node]
        source = _data(view)
        if source is None or (chain and source is not chain[-1]):
            return None
        if chain and any(user is not node and op_name(user) != "_assert_tensor_metadata" for user in chain[-1].users):
            return None
        data = data or source
        chain.append(node)
    return Call(path, tuple(chain), data) if data is not None else None


def bound(call: Call, node_of: dict[fx.Node, Node]) -> AffineBinding:
    """The binding of a call. Where it is one batch norm op and no more, with the parameters that this reads."""
    ops = [node_of[node] for node in call.nodes if node.target is not getitem]
    names = tuple(node.name for node in call.nodes)
    if len(ops) != 1 or ops[0].type not in NORMS:
        return AffineBinding(call.path, names, call.data.name)
    return AffineBinding(call.path, names, call.data.name, _names(ops[0]), float(ops[0].args["eps"]))


def _data(node: Node) -> fx.Node | None:
    """The tensor that a constant arithmetic op works on; None where it is something else."""
    if node.fx.target is getitem:
        source = node.fx.args[0]
        return source if isinstance(source, fx.Node) and op_name(source) in NORMS and node.fx.args[1] == 0 else None
    if node.type in NORMS:
        source = node.fx.args[0]
        made, _ = norm(node)
        return source if isinstance(source, fx.Node) and isinstance(made[0], Affine) else None
    if node.type in CASTS:
        floats = all(value.meta["val"].is_floating_point() for value in (node.first, node.fx))
        return node.first if floats and not node.constant(node.first) else None
    if node.type not in ARITHMETIC or argument(node.fx, "alpha") not in (None, 1) or node.args.get("rounding_mode"):
        return None
    first, second = node.args["self"], node.args["other"]
    if node.number(second) is not None and isinstance(first, fx.Node) and not node.constant(first):
        return first
    swapped = node.number(first) is not None and isinstance(second, fx.Node) and not node.constant(second)
    return second if swapped and isinstance(second, fx.Node) and node.type in ("add", "mul", "sub") else None


def composed(call: Call, node_of: dict[fx.Node, Node], statistics: Statistics | None, kind: str) -> Op | None:
    """One affine for a whole call, along the axis of its constants; None where these lie along several."""
    rank = node_of[call.nodes[0]].rank
    shape = node_of[call.nodes[0]].shape(call.data)
    if rank is None or shape is None:
        return None
    total, axis = ChannelAffine.identity(1), None
    for fx_node in call.nodes:
        step = _step(node_of[fx_node], len(shape))
        if step is None or (axis is not None and step[1] not in (None, axis)):
            return None
        total, axis = total.then(step[0]), step[1] if axis is None else axis
    size = total.inv.size
    if axis is None or shape[axis] != size or not total.finite or node_of[call.output].out_shape != shape:
        return None
    if call.output.meta["val"].dtype != call.data.meta["val"].dtype:
        return None
    label = call.path
    kept = node_of[call.nodes[0]].context.kept(label)
    if kept is not None:
        return Opaque(label, (call.data.name,), (call.output.name,), kind, kept, size)
    both = not (total.shift == 0).all() and not (total.inv == 1).all()
    form = "bn" if both or kind == "BatchNormalization" else "add" if (total.inv == 1).all() else "mul"
    return Affine(
        label, (call.data.name,), (call.output.name,), kind, form, axis, total.inv, total.shift, statistics
    )  # fmt: skip


def _step(node: Node, rank: int) -> tuple[ChannelAffine, int | None] | None:
    """The map of one node, and the axis along which it varies."""
    if node.fx.target is getitem or node.type in CASTS:
        return ChannelAffine.identity(1), None
    if node.type in NORMS:
        made, _ = norm(node)
        return (ChannelAffine(made[0].scale, made[0].offset), 1) if isinstance(made[0], Affine) else None
    first, second = node.args["self"], node.args["other"]
    backward = node.number(second) is None
    number = node.number(first if backward else second)
    if number is None or number.ndim > rank or not np.isfinite(number).all():
        return None
    number = number.reshape((1,) * (rank - number.ndim) + number.shape)
    varying = [axis for axis, size in enumerate(number.shape) if size > 1]
    if len(varying) > 1 or (node.type == "div" and not number.all()):
        return None
    return constant_map(node.type, number.ravel(), backward), varying[0] if varying else None


def constant_map(kind: str, number: Vector, backward: bool) -> ChannelAffine:
    """The map of an op of `ARITHMETIC` with a constant; `backward`: the constant comes first."""
    one, zero = np.ones(number.size), np.zeros(number.size)
    if kind == "mul":
        return ChannelAffine(number, zero)
    if kind == "div":
        return ChannelAffine(1.0 / number, zero)
    if kind == "add":
        return ChannelAffine(one, number)
    if (kind == "sub") == backward:  # c - x; rsub(x, c) is that too
        return ChannelAffine(-one, number)
    return ChannelAffine(one, -number)
