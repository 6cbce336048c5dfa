"""Linear layers as values: they add and compose, in float64. Arrays in, arrays out.

    A x + a + B x + b = (A + B) x + (a + b)            B (A x + a) + b = (B A) x + (B a + b)

Where the result is no layer, a Reason says why (see `geometry`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..graph import Reason
from .geometry import IDENTITY, Axis, Geometry, product, stack, total
from .reasons import RANGE

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Linear:
    """A layer: `kernel` of the shape `geometry.shape`, `bias` (outputs,); of a diag both (channels,) or (1,)."""

    geometry: Geometry
    kernel: Array
    bias: Array

    def __post_init__(self) -> None:
        if self.kernel.shape != self.geometry.shape:
            raise ValueError(f"a kernel of the shape {self.geometry.shape} expected, {self.kernel.shape} found")


FAINT = 2.0**-10
"""Channels of weights so much smaller than others' are lost beside those."""
DEEPEST = 64
"""So many products one behind another wait for their numbers; a longer row is computed at once."""


@dataclass(frozen=True, eq=False)
class Lazy:
    """A layer whose numbers are made when they are asked for. `terms`: those that it is the sum of, where it is one."""

    geometry: Geometry
    load: Callable[[], Linear]
    terms: tuple[Lazy, ...] = ()
    depth: int = 0

    def plus(self, other: Lazy) -> Lazy | Reason:
        """`self(x) + other(x)`."""
        found = total(self.geometry, other.geometry)
        if isinstance(found, Reason):
            return found
        terms = (self.terms or (self,)) + (other.terms or (other,))
        return Lazy(found, lambda: _sum_of(terms, found), terms, max(self.depth, other.depth) + 1)

    def behind(self, inner: Lazy) -> Lazy | Reason:
        """`self(inner(x))`."""
        found = product(self.geometry, inner.geometry)
        if isinstance(found, Reason):
            return found
        outer, inner = (layer if layer.depth < DEEPEST else layer.known() for layer in (self, inner))
        depth = max(outer.depth, inner.depth) + 1
        return Lazy(found, lambda: _demand(compose(outer.load(), inner.load())), (), depth)

    def known(self) -> Lazy:
        """The same, computed now."""
        made = self.load()
        return Lazy(self.geometry, lambda: made)

    def times(self, factor: float) -> Lazy:
        """`factor * self(x)`."""
        return self if factor == 1 else Lazy(self.geometry, lambda: scaled(self.load(), np.full(1, factor)))


def stacked(layers: Sequence[Lazy]) -> Lazy | Reason:
    """The outputs of layers, put together along the channels."""
    found = stack([layer.geometry for layer in layers])
    if isinstance(found, Reason):
        return found

    def load() -> Linear:
        made = [layer.load() for layer in layers]
        kernels = np.concatenate([m.kernel for m in made], 1)  # (1, out, in, *taps), one behind another in `out`
        return Linear(found, kernels, np.concatenate([np.broadcast_to(m.bias, m.geometry.outputs) for m in made]))

    return Lazy(found, load)


def _sum_of(terms: tuple[Lazy, ...], geometry: Geometry) -> Linear:
    """All terms in the taps and groups of a geometry that holds them all."""
    if geometry.kind == "diag":
        made = [term.load() for term in terms]
        parts = [np.sum([np.broadcast_to(v, geometry.shape) for v in side], 0) for side in
                 ([m.kernel for m in made], [m.bias for m in made])]  # fmt: skip
        return Linear(geometry, parts[0], parts[1])
    kernel, bias = np.zeros(geometry.shape), np.zeros(geometry.outputs)
    for term in terms:
        layer = term.load()
        kernel += laid(layer, geometry)
        bias += layer.bias
    return Linear(geometry, kernel, bias)


def storable(layer: Lazy, dtype: np.dtype[Any]) -> Reason | None:
    """Whether a type holds the numbers of a layer: none too large, and none so small that its channel loses by it."""
    made, kind = layer.load(), np.finfo(dtype)
    rows = made.kernel.reshape(made.geometry.outputs or 1, -1)
    if np.abs(made.bias).max(initial=0) > kind.max:
        return RANGE
    with np.errstate(over="ignore"):
        lost = np.linalg.norm(rows.astype(dtype).astype(np.float64) - rows, axis=1)
    norms = np.linalg.norm(rows, axis=1)
    return RANGE if (lost > kind.eps * np.maximum(norms, norms.max(initial=0) * FAINT)).any() else None


def _demand(found: Linear | Reason) -> Linear:
    assert isinstance(found, Linear), found
    return found


def identity() -> Linear:
    """`x`, of whatever size."""
    return Linear(IDENTITY, np.ones(1), np.zeros(1))


def diagonal(scale: Array, shift: Array, axis: int = 1) -> Linear:
    """`scale * x + shift` along an axis; (channels,) each, or (1,) for all channels alike."""
    count = max(scale.size, shift.size)
    channels = 0 if count == 1 else count
    geometry = Geometry("diag", channels, channels, max(1, channels), (), axis, bool(shift.any()))
    return Linear(geometry, np.broadcast_to(scale, count).copy(), np.broadcast_to(shift, count).copy())


def average(channels: int, axes: tuple[Axis, ...]) -> Linear:
    """An average pooling that counts what it pads."""
    geometry = Geometry("conv", channels, channels, channels, axes)
    return Linear(geometry, np.full(geometry.shape, 1 / prod(geometry.taps)), np.zeros(channels))


def scaled(layer: Linear, scale: Array) -> Linear:
    """`diag(scale) layer(x)`."""
    return _demand(compose(diagonal(scale, np.zeros(1), layer.geometry.axis), layer))


def add(a: Linear, b: Linear) -> Linear | Reason:
    """`a(x) + b(x)` as one layer."""
    geometry = total(a.geometry, b.geometry)
    if isinstance(geometry, Reason):
        return geometry
    if geometry.kind == "diag":
        return Linear(geometry, _summed(a.kernel, b.kernel, geometry), _summed(a.bias, b.bias, geometry))
    bias = np.zeros(geometry.outputs) + a.bias + b.bias
    return Linear(geometry, laid(a, geometry) + laid(b, geometry), bias)


def _summed(a: Array, b: Array, geometry: Geometry) -> Array:
    return np.asarray(np.broadcast_to(a + b, geometry.shape), np.float64)


def laid(layer: Linear, into: Geometry) -> Array:
    """A layer's kernel in the taps and groups of a larger one."""
    kernel, axes = layer.kernel, layer.geometry.axes
    if layer.geometry.kind == "diag":
        kernel = np.broadcast_to(kernel, into.inputs).reshape(into.inputs, 1, 1, *[1] * len(into.axes))
        axes = (Axis(),) * len(into.axes)
    kernel = regrouped(kernel, into.groups)
    places = [placed(axis.first, axis.step, axis.taps, whole) for axis, whole in zip(axes, into.axes, strict=True)]
    result = np.zeros(into.shape)
    result[(slice(None),) * 3 + tuple(places)] = kernel
    return result


def placed(first: int, step: int, taps: int, into: Axis) -> slice:
    """Where taps lie among those of a larger axis."""
    start, stride = (first - into.first) // into.step, max(1, step // into.step)
    return slice(start, start + stride * (taps - 1) + 1, stride)


def regrouped(kernel: Array, groups: int) -> Array:
    """(g, out, in, *taps) -> (groups, r*out, r*in, *taps), r = g / groups: blocks on the diagonals of larger ones."""
    g, out, into, *taps = kernel.shape
    if g == groups:
        return kernel
    r = g // groups
    blocks = np.zeros((groups, r, out, r, into, *taps))
    each = np.arange(r)
    blocks[:, each, :, each] = np.moveaxis(kernel.reshape(groups, r, out, into, *taps), 1, 0)
    return blocks.reshape(groups, r * out, r * into, *taps)


def compose(outer: Linear, inner: Linear) -> Linear | Reason:
    """`outer(inner(x))` as one layer."""
    geometry = product(outer.geometry, inner.geometry)
    if isinstance(geometry, Reason):
        return geometry
    if outer.geometry.kind == "diag":
        return _scaled_outputs(outer, inner, geometry)
    a = np.broadcast_to(inner.bias, outer.geometry.inputs)
    bias = np.zeros(geometry.outputs) + outer.bias + response(outer, a)
    if inner.geometry.kind == "diag":
        factor = np.broadcast_to(inner.kernel, outer.geometry.inputs)
        return Linear(geometry, _times_inputs(outer.kernel, factor), bias)
    return Linear(geometry, _composed(outer, inner, geometry), bias)


def _scaled_outputs(outer: Linear, inner: Linear, geometry: Geometry) -> Linear:
    if inner.geometry.kind == "diag":
        bias = outer.kernel * inner.bias + outer.bias
        return Linear(geometry, np.broadcast_to(outer.kernel * inner.kernel, geometry.shape).copy(), bias)
    factor = np.broadcast_to(outer.kernel, geometry.outputs)
    g, out, *rest = inner.kernel.shape
    kernel = inner.kernel * factor.reshape(g, out, *[1] * len(rest))
    return Linear(geometry, kernel, factor * inner.bias + outer.bias)


def _times_inputs(kernel: Array, factor: Array) -> Array:
    g, _, into, *taps = kernel.shape
    return np.asarray(kernel * factor.reshape(g, 1, into, *[1] * len(taps)), np.float64)


def response(layer: Linear, constant: Array) -> Array:
    """What a constant input, (inputs,), gives: (outputs,), away from the border."""
    if not constant.any():
        return np.zeros(layer.geometry.outputs)
    kernel = layer.kernel
    taps = kernel.sum(tuple(range(3, kernel.ndim)))
    return np.asarray((taps @ constant.reshape(kernel.shape[0], -1, 1)).ravel(), np.float64)


def _composed(outer: Linear, inner: Linear, geometry: Geometry) -> Array:
    """For each tap of the outer kernel, its matrix times the inner kernel, where the two lie together."""
    left, right = regrouped(outer.kernel, geometry.groups), regrouped(inner.kernel, geometry.groups)
    g, mid, into, *taps = right.shape
    columns = right.reshape(g, mid, -1)
    result = np.zeros(geometry.shape)
    for tap in np.ndindex(*outer.geometry.taps):
        block = (left[(..., *tap)] @ columns).reshape(g, left.shape[1], into, *taps)
        result[(slice(None),) * 3 + _under(tap, outer.geometry, inner.geometry, geometry)] += block
    return result


def _under(tap: tuple[int, ...], outer: Geometry, inner: Geometry, into: Geometry) -> tuple[slice, ...]:
    """Where the inner taps lie, seen through one tap of the outer kernel."""
    places = []
    for i, x, y, whole in zip(tap, outer.axes, inner.axes, into.axes, strict=True):
        reach = 1 if into.transposed else y.stride
        places.append(placed(reach * (x.first + x.step * i) + y.first, y.step, y.taps, whole))
    return tuple(places)
