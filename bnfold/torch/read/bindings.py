"""What the ops of the neutral graph are in a module or program: the parameters and modules that an edit changes."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.absorb import Layout


@dataclass(frozen=True)
class LinearBinding:
    """A layer: qualified names of its weight and its bias; `node` is its name in the graph.

    `bias` is "" where there is no room for one. `weight` may be "" where the weight is computed: then only the bias is
    ever edited. `turned`: the parameter is the transpose of what the layout says.
    """

    node: str
    weight: str
    layout: Layout
    bias: str
    out_channels: int
    turned: bool = False


@dataclass(frozen=True)
class AffineBinding:
    """A norm: the path of the module that it is, "" where it is code; its nodes in the graph, from input to output.

    `parameters`: names of scale, offset, mean and variance where the norm reads them as they are.
    """

    path: str
    nodes: tuple[str, ...]
    data: str
    parameters: tuple[str, ...] = ()
    eps: float = 0.0


@dataclass(frozen=True)
class ActivationBinding:
    """A Relu or Clip: the path of its module, "" where it is code, and its node."""

    path: str
    node: str
    low: float = 0.0
    high: float = float("inf")


Binding = LinearBinding | AffineBinding | ActivationBinding
