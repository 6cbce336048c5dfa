"""Readers of add, sub, mul and div that stand in code and not in a module of their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import fx

from ...core.graph import Affine, Gate, Shape, Sum
from .bindings import AffineBinding
from .node import Node, Ops, Reading
from .norms import constant_map

Number = npt.NDArray[np.float64]


def arithmetic(node: Node) -> Reading | Ops | None:
    """Of two tensors a sum or a gate; with a constant an affine, which goes or changes only in a program."""
    alpha = node.args.get("alpha", 1)
    if node.args.get("rounding_mode") or isinstance(alpha, fx.Node):
        return None
    first, second = node.args["self"], node.args["other"]
    if not any(isinstance(value, fx.Node) and not node.constant(value) for value in (first, second)):
        return None
    constant = next((i for i, value in ((1, second), (0, first)) if node.constant(value)), None)
    if constant is None:
        return _between(node, float(alpha))
    number, data = node.number((first, second)[constant]), (first, second)[1 - constant]
    shape = node.shape(data)
    if number is None or shape is None or not isinstance(data, fx.Node) or not np.isfinite(number).all():
        return None
    if constant == 0 and node.type in ("div", "rsub"):
        return None
    if node.type == "div" and not number.all():
        return None
    if number.ndim > len(shape):
        return None
    number = number.reshape((1,) * (len(shape) - number.ndim) + number.shape)
    factor = float(alpha)
    if factor != 1:
        if constant == 0 or node.type == "rsub":
            return None
        number = number * factor
    return _constant(node, number, data, constant == 0, shape)


def _constant(node: Node, number: Number, data: fx.Node, backward: bool, shape: Shape) -> Reading | Ops | None:
    varying = [axis for axis, size in enumerate(number.shape) if size > 1]
    product = node.type in ("mul", "div")
    if any(shape[axis] != number.shape[axis] for axis in varying):
        return None
    if not varying and product:
        value = number.item() if node.type == "mul" else 1.0 / number.item()
        return [Sum(node.label, (data.name,), (node.name,), (value,))]
    if len(varying) > 1 or not node.context.program or not node.keeps_type:
        return _fixed(node, number, data, backward, product)
    affine = constant_map(node.type, number.ravel(), backward)
    op = Affine(
        node.label,
        (data.name,),
        (node.name,),
        node.type.capitalize(),
        "mul" if product else "add",
        varying[0] if varying else 0,
        affine.inv,
        affine.shift,
        candidate=bool(varying),
        listed=bool(varying),
    )
    return [op], {0: AffineBinding("", (node.name,), data.name)}


def _fixed(node: Node, number: Number, data: fx.Node, backward: bool, product: bool) -> Ops:
    """A constant that cannot be edited: a factor lets scale through, an offset nothing."""
    both = (data.name, node.step("constant", tuple(number.shape)))
    if product:
        return [Gate(node.label, both, (node.name,), node.type == "div")]
    reverse = (node.type == "sub") == backward and node.type != "add"
    return [Sum(node.label, both, (node.name,), (-1.0 if reverse else 1.0, 1.0))]


def _between(node: Node, alpha: float) -> Ops | None:
    first, second = node.args["self"], node.args["other"]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    names = (first.name, second.name)
    if node.type in ("mul", "div"):
        return [Gate(node.label, names, (node.name,), node.type == "div")]
    if node.type == "rsub":
        return [Sum(node.label, names, (node.name,), (-alpha, 1.0))]
    return [Sum(node.label, names, (node.name,), (1.0, -alpha if node.type == "sub" else alpha))]
