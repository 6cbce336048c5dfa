"""Channels as variables: which channels of which tensors are one, and which of them hold a constant.

A tensor with channels has a `Track`: a variable for each channel along one axis, and what the channel holds where that
is a constant. An op that works on each channel alone hands the variables on; Concat, Split and Reshape are index maps;
a sum makes the variables of its branches one. A layer with weights gives new variables: it can let an input channel go
when that is a constant (its bias takes it) or has no weight, and an output channel at any time. So a channel, with all
that is one with it, leaves when each layer that reads it can let it go and nothing else holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..graph import Fault, Linear, Reason
from .rounding import Rounding

Ids = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


SPREAD = 16.0
"""How much larger a constant may be than the one that is to stand for it: its rounding grows so much."""


@dataclass(frozen=True, eq=False)
class Track:
    """The channels of a tensor along `axis`; each of shape (channels,).

    `ids`: the variables, 0 for a channel that stays whatever happens. `value`: the constant that a channel holds, nan
    where it holds none. `radius`: how far what it holds is from that at most.
    """

    axis: int
    ids: Ids
    value: Vector
    radius: Vector

    def __post_init__(self) -> None:
        lost = ~(np.isfinite(self.value) & np.isfinite(self.radius))
        object.__setattr__(self, "value", np.where(lost, np.nan, self.value))
        object.__setattr__(self, "radius", np.where(lost, np.inf, self.radius))

    @property
    def known(self) -> Mask:
        """Whether a channel is constant."""
        return np.isfinite(self.value)

    def value_and_radius(self) -> tuple[Vector, Vector]:
        """What the channels hold."""
        return self.value, self.radius

    def at(self, places: Ids, axis: int | None = None) -> Track:
        """The channels at `places`."""
        return Track(
            self.axis if axis is None else axis, self.ids[places], self.value[places], self.radius[places]
        )  # fmt: skip

    def live(self) -> Track:
        """The same channels, of whose values nothing is known."""
        return replace(self, value=np.full(self.ids.size, np.nan), radius=np.full(self.ids.size, np.inf))


def fixed(axis: int, size: int) -> Track:
    """Channels that stay, and hold anything."""
    return Track(axis, np.zeros(size, np.int64), np.full(size, np.nan), np.full(size, np.inf))


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer: `weight` (groups, out/groups, in/groups, taps) in its own type, `bias` (out,) in float64."""

    op: Linear
    weight: npt.NDArray[np.floating]
    bias: Vector
    rounding: Rounding
    sizes: npt.NDArray[np.floating] = field(init=False)
    """Sum of |weight| over the taps, (groups, out/groups, in/groups), in float32 at least."""

    def __post_init__(self) -> None:
        sizes = np.abs(self.weight).sum(-1, dtype=np.promote_types(self.weight.dtype, np.float32))
        object.__setattr__(self, "sizes", sizes)

    @property
    def groups(self) -> int:
        """How many groups of channels do not see each other."""
        return int(self.weight.shape[0])

    @property
    def folds(self) -> bool:
        """Whether a constant input other than 0 can go into the bias."""
        return self.op.carries_shift and self.op.takes_bias

    def inputs(self, x: Track | None) -> tuple[Vector, Vector]:
        """What the input channels hold as the layer can use it, `value` and `radius`, (groups, in/groups).

        At zero padding, and where no bias takes it, a constant c counts as 0, give or take |c|.
        """
        shape = self.groups, self.weight.shape[2]
        if x is None or x.ids.size != shape[0] * shape[1]:
            return np.full(shape, np.nan), np.full(shape, np.inf)
        value, radius = x.value.reshape(shape), x.radius.reshape(shape)
        if not self.folds:
            radius = np.where(np.isnan(value), radius, np.abs(value) + radius)
            value = np.where(np.isnan(value), value, 0.0)
        return value, radius

    def sums(self, value: Vector) -> Vector:
        """`sum_taps(W) value`, (groups, out/groups), float64; what is no number counts as 0."""
        taken = np.nan_to_num(value, nan=0.0)
        columns = np.flatnonzero(taken.any(0))
        total = self.weight[:, :, columns].sum(-1, dtype=np.float64)
        result: Vector = np.einsum("gba,ga->gb", total, taken[:, columns])
        return result

    def outputs(self, x: Track | None, reach: float) -> tuple[Vector, Vector]:
        """What the output channels hold: `b + sum_taps(W) value`, within `sum |W| radius`; nan where that says nothing.

        `reach`: how large a value that is not known may be.
        """
        value, radius = self.inputs(x)
        with np.errstate(over="ignore", invalid="ignore"):
            off = np.einsum("gba,ga->gb", self.sizes, np.where(np.isnan(value), reach, radius)).ravel()
            held = self.bias + self.sums(value).ravel()
            known = off <= self.rounding.hidden(held)
        return np.where(known, held, np.nan), np.where(known, off, np.inf)

    def carriers(self, x: Track, left: Mask) -> Vector:
        """What each input channel can hold for others, (in,): its own constant, or 0 where it holds none or is gone.

        Where a constant cannot go into the bias, `W_c k_c + W_d k_d = (W_c + W_d k_d / k_c) k_c`: of all constants one
        channel is enough, also at zero padding. `left`: the input channels that are not gone.
        """
        use = left & (x.radius == 0) & (self.groups == 1) & (not self.folds)
        return np.where(use, np.nan_to_num(x.value), 0.0)

    def lets_go(self, x: Track, stays: Mask, left: Mask) -> Mask:
        """Which input channels can go, (in,), where of the outputs those remain that `stays`, of the inputs `left`.

        A channel without weights can. A constant can when its radius changes no output by more than a part of what the
        rounding of that output does already.
        """
        value, radius = self.inputs(x)
        rows = self.sizes[:, stays] if self.groups == 1 else self.sizes
        bias = self.bias[stays] if self.groups == 1 else self.bias
        sizes = rows.reshape(-1, rows.shape[-1])  # (out, in): dense layers only
        free = np.asarray(~sizes.any(0))
        exact = np.asarray(~np.isnan(value.ravel()) & (radius.ravel() == 0))
        near = np.flatnonzero(~free & ~exact & np.isfinite(radius.ravel()))
        if near.size:
            live = np.where(np.isnan(value.ravel()), sizes, 0.0).max(1, initial=0.0)
            moved = sizes[:, near] * radius.ravel()[near]
            held = np.maximum(np.abs(bias)[:, None], sizes[:, near] * np.abs(value.ravel()[near]))
            held = np.maximum(held, live[:, None] * self.rounding.floor)
            exact[near] = (moved <= self.rounding.share * held / sizes.shape[1]).all(0)
        held = np.abs(self.carriers(x, left))
        first, second = np.argmax(held), np.partition(held, -2)[-2] if held.size > 1 else 0.0
        largest = np.where(np.arange(held.size) == first, second, held[first])  # of the others
        shared = x.known & (x.radius == 0) & (np.abs(np.nan_to_num(x.value)) <= SPREAD * largest) & (not self.folds)
        return np.asarray(free | exact | shared)


@dataclass(frozen=True, eq=False)
class Port:
    """A layer with its channels on both sides; `x` None where nothing is known of them."""

    layer: Layer
    x: Track | None
    y: Track
    name: str
    place: int


class Variables:
    """A union-find over channels. Variable 0 stays; `pin` names what else does, and why."""

    def __init__(self) -> None:
        self.parent: list[int] = [0]
        self.pinned: dict[int, Reason] = {}

    def fresh(self, size: int) -> Ids:
        """New variables."""
        first = len(self.parent)
        self.parent.extend(range(first, first + size))
        return np.arange(first, first + size, dtype=np.int64)

    def root(self, i: int) -> int:
        """The variable that stands for all that are one with i."""
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def tie(self, a: Ids, b: Ids, why: Reason) -> None:
        """Channels that leave together, pair by pair."""
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            if 0 in (i, j):
                self.pin(np.array([i + j]), why)
                continue
            first, second = self.root(i), self.root(j)
            self.parent[max(first, second)] = min(first, second)

    def pin(self, ids: Ids, why: Reason) -> None:
        """Channels that stay."""
        for i in ids.tolist():
            if i:
                self.pinned.setdefault(i, why)

    def roots(self) -> Ids:
        """The root of each variable."""
        return np.array([self.root(i) for i in range(len(self.parent))], np.int64)


@dataclass
class Network:
    """The channels of a graph: the tracks of its tensors (None: it has none that could go) and the layers between."""

    variables: Variables = field(default_factory=Variables)
    tracks: dict[str, Track | None] = field(default_factory=dict)
    ports: list[Port] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """Ops that a rule tripped over; what they touch stays."""

    def pin(self, tracks: Sequence[Track | None], why: Reason) -> None:
        """Let all channels of some tensors stay."""
        for track in tracks:
            if track is not None:
                self.variables.pin(track.ids, why)
