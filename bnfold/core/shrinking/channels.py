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
from .rounding import APART, Rounding, from_zero

Ids = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


SPREAD = 16.0
"""How much larger a constant may be than the one that is to stand for it: its rounding grows so much."""


@dataclass(frozen=True, eq=False)
class Track:
    """The channels of a tensor along `axis`; each of shape (channels,).

    `ids`: the variables, 0 for a channel that stays whatever happens. `value`: the constant that a channel holds, nan
    where it holds none. `radius`: how far what it holds is from that at most, (2, channels): where values that are not
    known are as large as they may be, and as a share of what an ordinary channel of the tensor holds. `size`: what a
    channel holds at least, as such a share. `bound`: no value is larger.
    """

    axis: int
    ids: Ids
    value: Vector
    radius: Vector
    size: Vector
    bound: float = np.inf

    def __post_init__(self) -> None:
        lost = ~(np.isfinite(self.value) & np.isfinite(self.radius).all(0))
        object.__setattr__(self, "value", np.where(lost, np.nan, self.value))
        object.__setattr__(self, "radius", np.where(lost, np.inf, self.radius))

    @property
    def known(self) -> Mask:
        """Whether a channel is constant, or nearly."""
        return np.isfinite(self.value)

    @property
    def exact(self) -> Mask:
        """Whether a channel is constant."""
        return np.asarray((self.radius == 0).all(0))

    def value_and_radius(self) -> tuple[Vector, Vector]:
        """What the channels hold."""
        return self.value, self.radius

    def at(self, places: Ids, axis: int | None = None) -> Track:
        """The channels at `places`."""
        taken = (self.ids[places], self.value[places], self.radius[:, places], self.size[places])
        return Track(self.axis if axis is None else axis, *taken, self.bound)

    def live(self) -> Track:
        """The same channels, of whose values nothing is known."""
        return replace(self, value=np.full(self.ids.size, np.nan), radius=np.full((2, self.ids.size), np.inf))


def joined(axis: int, tracks: Sequence[Track]) -> Track:
    """Channels behind one another."""
    ids, value, radius, size = (
        np.concatenate([getattr(track, name) for track in tracks], -1) for name in ("ids", "value", "radius", "size")
    )
    return Track(axis, ids, value, radius, size, max(track.bound for track in tracks))


def fixed(axis: int, size: int) -> Track:
    """Channels that stay, and hold anything."""
    return replace(zeros(axis, np.zeros(size, np.int64)).live(), bound=np.inf)


def zeros(axis: int, ids: Ids) -> Track:
    """Channels that hold 0."""
    return Track(axis, ids, np.zeros(ids.size), np.zeros((2, ids.size)), np.ones(ids.size), 0.0)


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

    def inputs(self, x: Track | None) -> tuple[Vector, Vector, Vector]:
        """What the input channels hold as the layer can use it: `value`, `radius` and `size`, (.., groups, in/groups).

        At zero padding, and where no bias takes it, a constant c counts as 0, give or take |c|.
        """
        shape = self.groups, self.weight.shape[2]
        if x is None or x.ids.size != shape[0] * shape[1]:
            return np.full(shape, np.nan), np.full((2, *shape), np.inf), np.ones(shape)
        value, radius = x.value.reshape(shape), x.radius.reshape(2, *shape)
        if not self.folds:
            radius = np.where(np.isnan(value), radius, from_zero(value, radius))
            value = np.where(np.isnan(value), value, 0.0)
        return value, radius, x.size.reshape(shape)

    def sums(self, value: Vector) -> Vector:
        """`sum_taps(W) value`, (groups, out/groups), float64; what is no number counts as 0."""
        taken = np.nan_to_num(value, nan=0.0)
        columns = np.flatnonzero(taken.any(0))
        total = self.weight[:, :, columns].sum(-1, dtype=np.float64)
        result: Vector = np.einsum("gba,ga->gb", total, taken[:, columns])
        return result

    def outputs(self, x: Track | None) -> tuple[Vector, Vector, Vector]:
        """What the output channels hold: `b + sum_taps(W) value`, within `sum |W| radius`; nan where that says nothing.

        A channel counts as nearly constant where the rest is lost beside the constant, or beside the layer's largest
        channel, which is the ordinary one.
        """
        value, radius, size = self.inputs(x)
        rest = np.broadcast_to(np.array([self.rounding.reach, 1.0])[:, None, None], radius.shape)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            off = np.einsum("gba,rga->rgb", self.sizes, np.where(np.isnan(value), rest, radius)).reshape(2, -1)
            live = np.einsum("gba,ga->gb", self.sizes, np.where(np.isnan(value), size, 0.0)).ravel()
            unit = live.max(initial=0.0)
            off[1] = np.where(off[1] == 0, 0.0, off[1] / unit)
            held = self.bias + self.sums(value).ravel()
            known = (off[0] <= self.rounding.share * np.abs(held)) | (off[1] <= self.rounding.faint)
        return np.where(known, held, np.nan), np.where(known, off, np.inf), live / (unit or 1.0)

    def carriers(self, x: Track, left: Mask) -> Vector:
        """What each input channel can hold for others, (in,): its own constant, or 0 where it holds none or is gone.

        Where a constant cannot go into the bias, `W_c k_c + W_d k_d = (W_c + W_d k_d / k_c) k_c`: of all constants one
        channel is enough, also at zero padding. `left`: the input channels that are not gone.
        """
        use = left & x.exact & (self.groups == 1) & (not self.folds)
        return np.where(use, np.nan_to_num(x.value), 0.0)

    def lets_go(self, x: Track, stays: Mask, left: Mask) -> Mask:
        """Which input channels can go, (in,), where of the outputs those remain that `stays`, of the inputs `left`.

        A channel without weights can. A constant can when its radius changes no output by more than a part of what the
        rounding of that output does already.
        """
        value, radius, size = (part.reshape(*part.shape[:-2], -1) for part in self.inputs(x))
        sizes, bias = self.sizes[0][stays], self.bias[stays, None]  # (out, in): only dense layers let single ones go
        free = np.asarray(~sizes.any(0))
        exact = ~np.isnan(value) & (radius == 0).all(0)
        near = np.flatnonzero(~free & ~exact & ~np.isnan(value))
        if near.size:
            ordinary = np.where(np.isnan(value), sizes * size, 0.0).max(1, initial=0.0)[:, None]
            held = np.maximum(np.abs(bias), sizes[:, near] * np.abs(value[near]))
            share = self.rounding.share / sizes.shape[1]
            lost = sizes[:, near] * radius[0, near] <= share * held
            lost |= sizes[:, near] * radius[1, near] <= share * APART * ordinary
            exact[near] = lost.all(0)
        held = np.abs(self.carriers(x, left))
        first, second = np.argmax(held), np.partition(held, -2)[-2] if held.size > 1 else 0.0
        largest = np.where(np.arange(held.size) == first, second, held[first])  # of the others
        shared = x.known & x.exact & (np.abs(np.nan_to_num(x.value)) <= SPREAD * largest) & (not self.folds)
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
