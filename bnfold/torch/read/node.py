"""A view of one ATen op while a traced graph is read: arguments by name, constants, shapes, the module it ran in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from ...core.graph import Op, Reason, Shape
from ..trace.constants import Constants
from .bindings import Binding
from .sharing import Weights

Array = npt.NDArray[np.float64]
Reading = tuple[list[Op], dict[int, Binding]]
Ops = list[Op]


@dataclass
class Context:
    """What the readers of nodes share.

    `weights`: how the parameters of layers may be edited. `program`: whether a program is edited, in which everything
    can be replaced, and not a module, whose code stays. `calls`: the calls of modules by their key.
    """

    constants: Constants
    shapes: dict[str, Shape | None]
    weights: Weights
    program: bool
    kept: Callable[[str], Reason | None] = lambda label: None
    """Why a norm, by its label, has to stay."""
    untapped: frozenset[str] = frozenset()
    """Layers that cannot take up a copy of their input, because the code adds it all the same."""
    exchangeable: Callable[[str], bool] = lambda path: False
    """Whether another module can take the place of the one at a path."""
    layers: bool = False
    """Whether depthwise convolutions may take the place of norms."""


@dataclass(frozen=True, eq=False)
class Node:
    """One op: `name` is its name in the graph, `label` one for people: the path of its module where it has one."""

    fx: fx.Node
    type: str
    label: str
    context: Context = field(repr=False)
    whole: str = ""
    """The path of the module whose own code is this op and no more."""

    @cached_property
    def args(self) -> dict[str, Any]:
        """Arguments by the names of the op's schema, with its defaults."""
        schema = getattr(self.fx.target, "_schema", None)
        if schema is None:
            return {str(i): value for i, value in enumerate(self.fx.args)}
        found = {}
        for i, argument in enumerate(schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            found[argument.name] = (
                self.fx.args[i] if i < len(self.fx.args) else self.fx.kwargs.get(argument.name, default)
            )
        return found

    @property
    def name(self) -> str:
        """The name of the output."""
        return self.fx.name

    def constant(self, value: object) -> bool:
        """Whether an argument is a constant tensor or a number."""
        return isinstance(value, int | float) or value in self.context.constants

    def number(self, value: object) -> Array | None:
        """A constant argument in float64, None where it is none or of no floating type."""
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return np.asarray(float(value))
        if not isinstance(value, fx.Node) or value not in self.context.constants:
            return None
        kind = value.meta["val"].dtype
        return self.context.constants.value(value) if kind.is_floating_point or kind in INTEGERS else None

    def settled(self, condition: object) -> bool | None:
        """What a constant condition says where it says the same everywhere, else None."""
        if not isinstance(condition, fx.Node) or condition not in self.context.constants:
            return None
        said = self.context.constants.value(condition).astype(bool)
        return bool(said.flat[0]) if said.size and said.all() == said.any() else None

    def shape(self, value: object) -> Shape | None:
        """The shape of an argument, dynamic sizes by name."""
        return shape_of(value.meta.get("val")) if isinstance(value, fx.Node) else None

    @property
    def first(self) -> Any:
        """The first argument, given by place or by name."""
        return next(iter(self.args.values()), None)

    @property
    def input(self) -> str:
        """The name of the first argument."""
        return str(self.first.name) if isinstance(self.first, fx.Node) else ""

    @property
    def rank(self) -> int | None:
        """The rank of the first argument."""
        shape = self.shape(self.first)
        return None if shape is None else len(shape)

    @property
    def keeps_type(self) -> bool:
        """Whether the output has the element type of every data tensor among the arguments."""
        data = [node for node in self.fx.all_input_nodes if node not in self.context.constants]
        return len({getattr(node.meta.get("val"), "dtype", None) for node in (self.fx, *data)}) == 1

    @property
    def out_shape(self) -> Shape | None:
        """The shape of the output."""
        return self.shape(self.fx)

    def inside(self, package: str) -> bool:
        """Whether the op runs in a module of a package of torch: its arguments are no computed ones."""
        stack = list((self.fx.meta.get("nn_module_stack") or {}).values())
        return bool(stack) and package in str(stack[-1][1])

    def step(self, name: str, shape: Shape | None) -> str:
        """The name of a tensor between two neutral ops that one node became."""
        inner = f"{self.name}::{name}"
        self.context.shapes[inner] = shape
        return inner


INTEGERS = (torch.int64, torch.int32)


def shape_of(value: object) -> Shape | None:
    """The shape of a fake tensor: sizes as int, dynamic ones by name."""
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(int(dim) if isinstance(dim, int) else str(dim) for dim in value.shape)
