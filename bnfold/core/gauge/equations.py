"""The variables and equations that the rules write down and the solvers read.

A gauge variable `i` stands for a scale `p_i` and a shift `q_i` that some channels of some tensors share: where the
original holds `v`, the folded model holds `p_i * v + q_i`. Variable 0 is pinned: p = 1, q = 0. A tensor's gauge is an
integer array of variables (`Ids`) of the tensor's rank, with size 1 along every axis on which the gauge does not vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..graph import Affine, Bound, Clipped, Linear, Op

Ids = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearPort:
    """A linear op with the variables of its input channels and of its output channels."""

    op: Linear
    x: Ids
    y: Ids


@dataclass(frozen=True, eq=False)
class AffinePort:
    """An affine op with the variables on its two sides; `scale` and `offset` aligned with them, all of one length."""

    op: Affine
    x: Ids
    y: Ids
    scale: Vector
    offset: Vector
    axis: int


@dataclass(frozen=True, eq=False)
class BoundPort:
    """An op with a constant that moves with its gauge, and the variables of its input and output along `axis`."""

    op: Bound
    x: Ids
    y: Ids
    axis: int


@dataclass(frozen=True, eq=False)
class Demand:
    """What one op demands of some variables, and in which words a person would say so."""

    ids: Ids
    op: Op
    why: str
    zeros: bool = False
    """Whether it does because of zeros that it puts beside the values."""


@dataclass(frozen=True, eq=False)
class Unary:
    """`y = f(x)` elementwise, f linear on either side of 0 with `slope` below it."""

    x: Ids
    y: Ids
    slope: Vector


@dataclass(frozen=True, eq=False)
class Bend:
    """A Relu that may become `max(x', q)`, since `p*relu(v) + q = max(p*v + q, q)`: then q_x = q_y, and not 0.

    In the same way a Clip may get bounds per channel, `p*low + q` and `p*high + q`: then p_x = p_y > 0, and not 1.
    """

    op: Op
    x: Ids
    y: Ids
    axis: int
    holds: tuple[Demand, ...]
    """The demands on x and y alone, which fall when it bends elsewhere."""

    @property
    def pins(self) -> bool:
        """Whether it demands p = 1 as long as it stays as it is."""
        return isinstance(self.op, Clipped)


@dataclass
class Equations:
    """Everything that the ops of a graph demand of its gauges. All hold for p = 1, q = 0."""

    count: int = 1
    blocks: list[Ids] = field(default_factory=list)
    """The variables in the order in which they were made, each tensor's together."""
    ties: list[tuple[Ids, Ids, Op]] = field(default_factory=list)
    """Equal scale."""
    sums: list[tuple[Ids, list[tuple[Ids, float]]]] = field(default_factory=list)
    """q of the left side is the weighted sum of the q on the right; the left side is fresh."""
    equal: list[tuple[Ids, Ids, Op]] = field(default_factory=list)
    """Equal shift (and, listed in `ties`, equal scale)."""
    pins: list[Demand] = field(default_factory=list)
    """p = 1."""
    still: list[Demand] = field(default_factory=list)
    """q = 0."""
    positive: list[Demand] = field(default_factory=list)
    """p > 0."""
    borders: list[Demand] = field(default_factory=list)
    """A channel that is constant must be 0 here: zeros are blended in, or no bias can take it."""
    sources: list[Ids] = field(default_factory=list)
    """Variables that some op computes from several values: never constant."""
    needed: list[Ids] = field(default_factory=list)
    """Variables whose scale may not become 0."""
    unary: list[Unary] = field(default_factory=list)
    bends: list[Bend] = field(default_factory=list)
    linears: list[LinearPort] = field(default_factory=list)
    affines: list[AffinePort] = field(default_factory=list)
    bounds: list[BoundPort] = field(default_factory=list)
    shared: dict[str, LinearPort] = field(default_factory=dict)
    """The first layer of each group that has one weight."""
    bystanders: list[Affine] = field(default_factory=list)
    """Constants that do not run along channels: nobody's batch norm."""

    def mark(self) -> dict[str, int]:
        """How much there is of everything, for `undo`."""
        return {name: value if isinstance(value, int) else len(value) for name, value in vars(self).items()}

    def undo(self, mark: dict[str, int]) -> None:
        """Take back what was added since `mark`."""
        self.count = mark["count"]
        for name in mark.keys() - {"count"}:
            part = getattr(self, name)
            for key in list(part)[mark[name] :] if isinstance(part, dict) else ():
                del part[key]
            if isinstance(part, list):
                del part[mark[name] :]

    def fresh(self, shape: Sequence[int]) -> Ids:
        """New variables, numbered in row-major order."""
        n = int(np.prod(shape, dtype=np.int64))
        ids = np.arange(self.count, self.count + n, dtype=np.int64).reshape(tuple(shape))
        self.count += n
        self.blocks.append(ids.ravel())
        return ids

    def tie(self, a: Ids, b: Ids, op: Op) -> None:
        """p_a = p_b."""
        self.ties.append((a.ravel(), b.ravel(), op))

    def same(self, a: Ids, b: Ids, op: Op) -> None:
        """p_a = p_b and q_a = q_b."""
        self.tie(a, b, op)
        self.equal.append((a.ravel(), b.ravel(), op))

    def pin(self, ids: Ids, op: Op, why: str) -> None:
        """p = 1 and q = 0, but for those that are variable 0 already."""
        free = ids[ids != 0]
        if free.size:
            self.pins.append(Demand(free, op, why))
            self.still.append(Demand(free, op, why))

    def fix(self, ids: Ids, op: Op, why: str) -> None:
        """p = 1."""
        self.pins.append(Demand(ids[ids != 0], op, why))

    def hold(self, ids: Ids, op: Op, why: str, border: bool = False, zeros: bool = False) -> None:
        """q = 0; with `border` or `zeros` also: a constant channel must be 0 here."""
        demand = Demand(ids.ravel(), op, why, zeros)
        self.still.append(demand)
        if border or zeros:
            self.borders.append(demand)

    def demand_positive(self, ids: Ids, op: Op, why: str) -> None:
        """p > 0."""
        self.positive.append(Demand(ids.ravel(), op, why))

    def collapse(self, ids: Ids, axes: Sequence[int], op: Op) -> Ids:
        """The gauge made equal along `axes`, where the op blends neighbours; size 1 there."""
        for axis in axes:
            if ids.shape[axis] > 1:
                first = np.take(ids, [0], axis)
                rest = np.take(ids, range(1, ids.shape[axis]), axis)
                self.same(np.broadcast_to(first, rest.shape), rest, op)
                ids = first
        return ids

    def channels(self, ids: Ids, axis: int, size: int, op: Op) -> Ids:
        """The variables along one axis, (size,), made equal along all others."""
        ids = self.collapse(ids, [a for a in range(ids.ndim) if a != axis], op).ravel()
        return np.repeat(ids, size) if ids.size == 1 else ids
