"""A view of one node while the graph is read: names, attributes, constants and shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from ...core.graph import Op, Shape
from .constants import Constants
from .scope import INNER

BESIDE = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "BatchNormalization", "Add", "Sub", "Mul", "Div"}
)
"""Operators that may take up a single number next to them."""
FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})


def to_floats(to: int | str) -> bool:
    """Whether a Cast gives floats; what opsets before 6 have as text is left alone."""
    return isinstance(to, int) and np.dtype(helper.tensor_dtype_to_np_dtype(to)).name in FLOATS


@dataclass
class Context:
    """What the readers of nodes share."""

    constants: Constants
    shapes: dict[str, Shape | None]
    opset: int
    uses: Counter[str]
    pinned: Mapping[str, str]
    dtypes: Mapping[str, int] = field(default_factory=dict)
    bias_adds: dict[int, Node] = field(default_factory=dict)
    """Add nodes that are the bias of a MatMul: position of the Add -> the MatMul."""
    makers: dict[str, str] = field(default_factory=dict)
    """The operator that makes each tensor."""
    readers: dict[str, str] = field(default_factory=dict)
    """The operator that reads each tensor, the last of several."""
    scales: set[int] = field(default_factory=set)
    """Mul nodes that are read with the one behind them, as the scale of integers."""
    products: set[str] = field(default_factory=set)
    """Tensors that are a product of data, or that one is made from."""


@dataclass(frozen=True, eq=False)
class Node:
    """One node: `index` is its position in the graph, `label` a name for people, unique or not."""

    index: int
    type: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    context: Context = field(repr=False)

    def input(self, i: int) -> str:
        """The name of input i, "" where it is absent."""
        return self.inputs[i] if i < len(self.inputs) else ""

    def constant(self, i: int) -> bool:
        """Whether input i is there and constant."""
        return self.input(i) in self.context.constants

    def value(self, i: int) -> npt.NDArray[Any]:
        """The value of constant input i."""
        return self.context.constants.value(self.input(i))

    def float_constant(self, i: int) -> npt.NDArray[np.float64] | None:
        """Input i as float64, or None when it is no constant of a floating type."""
        if not self.constant(i):
            return None
        value = self.value(i)
        return np.asarray(value, np.float64) if value.dtype.name in FLOATS else None

    def ints(self, i: int, attribute: str) -> list[int] | None:
        """Integers that newer opsets take from input i and older ones from an attribute; None where neither says."""
        if self.input(i):
            return [int(v) for v in self.value(i).ravel()] if self.constant(i) else None
        value = self.attrs.get(attribute)
        return None if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor as far as it is known."""
        if name in self.context.constants:
            return self.context.constants.shape(name)
        return self.context.shapes.get(name)

    def rank(self, i: int = 0) -> int | None:
        """The rank of input i."""
        shape = self.shape(self.input(i))
        return None if shape is None else len(shape)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.context.opset

    @property
    def only_output(self) -> bool:
        """Whether no output but the first is used."""
        return not any(name and self.context.uses[name] for name in self.outputs[1:])

    def beside_layer(self, data: int = 0) -> bool:
        """Whether it stands right behind or before a layer, or a constant or norm, and nothing else is there.

        A number beside a product of data is left: runtimes know a GELU or a HardSwish by its nodes, and run it as one.
        """
        context = self.context
        source, target = self.input(data), self.outputs[0]
        if {source, target} & context.products:
            return False
        before = context.makers.get(source, "") if context.uses[source] == 1 else ""
        behind = context.readers.get(target, "") if context.uses[target] == 1 else ""
        return before in BESIDE or behind in BESIDE

    def step(self, name: str, shape: Shape | None) -> str:
        """The name of a tensor between two neutral ops that one node became."""
        inner = f"{self.outputs[0]}{INNER}{name}"
        self.context.shapes[inner] = shape
        return inner


Ops = list[Op]
