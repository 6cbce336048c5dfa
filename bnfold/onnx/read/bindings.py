"""What the ops of the neutral graph are in the file: the nodes and weights that an edit changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.absorb import Layout
from ...core.graph import Op


@dataclass(frozen=True)
class Quantized:
    """Weights behind a DequantizeLinear: node `node` holds the scale, for each entry of `axis` or one for all.

    `between`: the nodes from it to the layer, the layer's first. `shared`: others read what they give too, so that the
    layer gets copies when it changes. `free`: output channels whose integers may be negated around the zero point; None
    where no integers can be written.
    """

    node: int
    axis: int
    channels: int
    between: tuple[int, ...] = ()
    shared: bool = False
    free: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class LinearBinding:
    """A linear op: `node` holds the weight at input `weight`, `bias_node` (the same, or an Add) the bias at `bias`.

    `alpha`, `beta`: Gemm's factors. `bias` is the input position where a bias is or may be put; None where there is no
    room for one; `behind`: the axes behind that of its channels. `matrix`: the shape of the weight as the layout reads
    it, where it has another; `spread`: the shape that it gets where it is one number for all channels. `quantized`:
    where the scale of int8 weights is, `bias_scale`: that of an int32 bias. `halves`: the bias of a recurrent layer,
    (directions, 2 * halves), begins with that of the input and goes on with that of the state; 0 for other layers.
    """

    node: int
    weight: int
    layout: Layout
    bias_node: int
    bias: int | None
    out_channels: int
    alpha: float = 1.0
    beta: float = 1.0
    behind: int = 0
    matrix: tuple[int, int] | None = None
    spread: tuple[int, ...] = ()
    quantized: Quantized | None = None
    bias_scale: Quantized | None = None
    halves: int = 0
    tail: bool = False
    """Whether its bias has the shape of its weight, with more than one entry for each channel."""
    growing: int | None = None
    """Where an addition may be put behind it: how many axes of the output follow that of its channels."""


@dataclass(frozen=True)
class AffineBinding:
    """An affine op: node `node`, whose data input is `data` (0, or 1 when the constant comes first)."""

    node: int
    data: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class ClipBinding:
    """A Clip between two numbers, infinite where there is no bound."""

    node: int
    low: float
    high: float


@dataclass(frozen=True)
class BoundBinding:
    """Max, Min, Where or a sum with the constant at input `constant` and the data at input `data`.

    `sign`: -1 where the constant is taken off.
    """

    node: int
    data: int
    constant: int
    sign: float = 1.0


@dataclass(frozen=True)
class NodeBinding:
    """Any other op that is one node."""

    node: int


Binding = NodeBinding | LinearBinding | AffineBinding | ClipBinding | BoundBinding

Reading = tuple[list[Op], dict[int, Binding]]
"""What a node became: ops of the neutral graph, and the bindings of some by their position in the list."""
