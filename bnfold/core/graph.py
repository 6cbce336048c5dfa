"""The neutral dataflow graph that every front end fills and the gauge algebra reads.

A graph holds ops in topological order. Tensors are known by unique names; of a tensor the algebra needs the shape only,
and of the weights nothing: a plan is made without loading one. Each class below is one way of treating channels, not
one operator of a framework: Conv, Gemm and MatMul are all `Linear`, Identity and Resize are both `Carry`.
`bnfold.core.gauge.rules` has one rule for each class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

Dim = int | str | None
"""A size, the name of a dynamic size, or unknown."""
Shape = tuple[Dim, ...]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reason:
    """Why something stays: a stable code, a sentence, the node that is in the way, and what would help."""

    code: str
    text: str
    node: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a batch norm knows of its own input, for the conditioning report; each of shape (channels,), float64."""

    mean: Array
    var: Array
    eps: float


@dataclass(frozen=True, eq=False)
class Op:
    """One op: `inputs` and `outputs` name its data tensors (weights are not listed)."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Opaque(Op):
    """An op that carries no gauge: every input and output is pinned. `reason` is set when it is a norm that stays.

    `where` names its input and output for people where the graph does not hold them, in a subgraph say.
    """

    type: str = "op"
    reason: Reason | None = None
    channels: int = 0
    where: tuple[str, str] = ("", "")


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """A linear map between channels with constant weights (Conv, ConvTranspose, Gemm, MatMul with a bias or without).

    `in_axis`, `out_axis`: the channel axis of the data tensors. `carries_shift`: a constant added to an input channel
    changes the output by a constant (no zero padding is met). `takes_bias`: an output channel can be shifted.
    `scales`: which factors the weights can take: "both" sides, each channel its own; "out", as int8 weights with a
    scale for each output channel (the input one for all channels); or "none". `taps`: output channel c may get a
    multiple of input channel c, element by element (a conv of stride 1 that keeps the size has a centre tap for it).
    `free`: of "out", the output channels that may have a negative factor, or 0; None where none may.
    `shared`: a name for all layers that read one and the same weight and so change in the same way, "" for one alone.
    """

    in_axis: int = 1
    out_axis: int = 1
    in_channels: int = 0
    out_channels: int = 0
    rank: int = 0
    carries_shift: bool = True
    takes_bias: bool = True
    scales: str = "both"
    taps: bool = False
    conv: bool = False
    """Whether it is a convolution, and no transposed one."""
    shared: str = ""
    why: str = "has quantised weights, which take no other scale"
    """Why its weights take not every scale, in words that a person would use."""
    biased: bool = True
    """Whether it has a bias where it takes one."""
    grows: bool = False
    """Whether an addition may be put behind it, as a bias that it does not have."""
    free: npt.NDArray[np.bool_] | None = None
    sign: str = "has quantised weights, whose scale is positive"
    """Why only a positive factor may go where `free` has none, in such words too."""


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """`y = scale * x + offset`, constant, varying along `axis` only; a batch norm, or a constant Mul, Add, Sub or Div.

    `kind` says what the op can hold when it stays: "bn" both, "mul" a scale, "add" an offset. `candidate` is false for
    constants that nobody wants removed; they still take up what others leave. An "add" has scale 1, or -1 where it is
    `c - x`. `listed`: whether it counts as a norm; a single number does not, and goes only where that hinders no norm.
    `layer`: whether a depthwise convolution can be written in its place.
    """

    type: str = "BatchNormalization"
    kind: str = "bn"
    axis: int = 1
    scale: Array = field(default_factory=lambda: np.ones(1))
    offset: Array = field(default_factory=lambda: np.zeros(1))
    statistics: Statistics | None = None
    candidate: bool = True
    listed: bool = True
    layer: bool = False

    @property
    def reversed(self) -> bool:
        """Whether it is `c - x`."""
        return self.kind == "add" and bool((self.scale < 0).any())


@dataclass(frozen=True, eq=False)
class Homogeneous(Op):
    """`f(a*x) = a*f(x)` for `a >= 0`: Relu, LeakyRelu, PRelu. `slope` for negative x, shaped to broadcast with x.

    A Relu that `takes_threshold` may become `max(x, q)` with a constant q per channel.
    """

    slope: Array = field(default_factory=lambda: np.zeros(()))
    takes_threshold: bool = False


@dataclass(frozen=True, eq=False)
class Clipped(Op):
    """`min(max(x, low), high)` with two numbers: Relu6, HardTanh. It may become the same with bounds per channel."""

    low: float = 0.0
    high: float = 6.0


@dataclass(frozen=True, eq=False)
class Bound(Op):
    """`y = f(x, c)` with a constant c, where `f(p*x + q, p*c + q) = p*f(x, c) + q`: Max and Min (`ordered`: for
    p > 0 only), Where. `shape` is that of c, which broadcasts to x. With `adds` it is `x + c`, and c becomes
    `p*c + q_out - q_in`: it takes up any offset.
    """

    shape: tuple[int, ...] = ()
    ordered: bool = True
    adds: bool = False


@dataclass(frozen=True, eq=False)
class Select(Op):
    """One of several values: MaxPool, ReduceMax over space (one input), Max, Min (several), Where (not `ordered`)."""

    axes: tuple[int, ...] = ()
    keepdims: bool = True
    ordered: bool = True


@dataclass(frozen=True, eq=False)
class Carry(Op):
    """The same channels come out: Identity, Cast, Dropout, Resize, Pad, average pooling, mean over `axes`.

    `mixes` are the axes along which neighbours are blended (pooled, resized, padded): a gauge may not vary there.
    `carries_shift` is false where a fixed zero is blended in. `zeros`: an axis along which zeros are added in front and
    behind, as many as the other two numbers say, or entries cut off where they are negative.
    """

    axes: tuple[int, ...] = ()
    keepdims: bool = True
    mixes: tuple[int, ...] = ()
    carries_shift: bool = True
    zeros: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Sum(Op):
    """`y = sum_i factor_i * x_i` of data tensors: Add, Sub, Sum, Neg, a single constant factor.

    `whole`: whether it is all that a node of the model does, and may be taken out.
    """

    factors: tuple[float, ...] = ()
    whole: bool = True


@dataclass(frozen=True, eq=False)
class Gate(Op):
    """`y = x * g`, or `x / g` when it `divides`, with `g` computed from data."""

    divides: bool = False


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in the same order; the shapes say all."""


@dataclass(frozen=True, eq=False)
class Transpose(Op):
    """Axes in another order."""

    perm: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Inputs behind one another along `axis`."""

    axis: int = 1


@dataclass(frozen=True, eq=False)
class Take(Op):
    """Output i holds the entries `indices[i]` of the input along `axis`: Split, Slice, Gather with constant indices."""

    axis: int = 1
    indices: tuple[npt.NDArray[np.int64], ...] = ()


@dataclass(frozen=True, eq=False)
class Broadcast(Op):
    """Expand: the input, repeated along axes of size 1."""


@dataclass(frozen=True)
class Fault:
    """An op that a reader or a rule tripped over, which is a fault of bnfold's: it is pinned, and all else goes on.

    `name` and `type` are for people, `error` is what happened.
    """

    name: str
    type: str
    error: str


def fault(name: str, type: str, error: Exception) -> Fault:
    """The fault that an exception is."""
    return Fault(name, type, f"{error.__class__.__name__}: {' '.join(str(error).split())[:200]}")


def internal(fault: Fault) -> Reason:
    """Why a norm stays that could not be handled."""
    return Reason("internal", f"bnfold could not handle it ({fault.error})", fault.name, "please report it")


@dataclass
class Graph:
    """Ops in topological order; `shapes` of the tensors (None: not even the rank is known).

    `pinned` maps a tensor to what holds it: a graph input or output, a subgraph that reads it, a hook.
    """

    ops: list[Op]
    shapes: dict[str, Shape | None]
    pinned: dict[str, str]
    name: str = ""
    octaves: float = 40.0
    """How far, as a power of two, tensors may move from their scale: what the range of the element type leaves."""
    watched: set[str] = field(default_factory=set)
    """Tensors of which something else is read than their values: the shape, the type."""
    annotated: set[str] = field(default_factory=set)
    """Tensors of which the model says something that holds for their values only."""
    faults: dict[str, Fault] = field(default_factory=dict)
    """What could not be handled, by the first output of each op."""

    def shape(self, tensor: str) -> Shape | None:
        """The shape of a tensor, or None when its rank is unknown."""
        return self.shapes.get(tensor)

    def rank(self, tensor: str) -> int | None:
        """The number of axes of a tensor, or None."""
        shape = self.shapes.get(tensor)
        return None if shape is None else len(shape)

    def size(self, tensor: str) -> int:
        """How many elements a tensor has, with dynamic sizes counted as 1: the work that an elementwise op costs."""
        return prod(dim for dim in self.shapes.get(tensor) or () if isinstance(dim, int))
