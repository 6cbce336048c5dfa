"""Gauges into weights: arrays in, arrays out.

    W' = diag(p_out) W diag(u_in)
    b' = p_out * (b + sum_taps(W) t_in) + q_out

All products and sums are taken in float64 and rounded once, to the dtype of the array they replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .plan import Rescale

Vector = npt.NDArray[np.float64]
Weights = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How a weight array holds its channels: `axes` "oi" (output channels first, as Conv) or "io"; `groups`.

    "oi": (out, in/groups, *kernel). "io": (in, out/groups, *kernel), as ConvTranspose and a plain matrix.
    """

    axes: str = "oi"
    groups: int = 1

    def spread(self, vector: Vector, side: str, rank: int) -> Vector:
        """A vector over output ("o") or input ("i") channels, shaped to multiply the grouped view of `view`."""
        place = 1 + self.axes.index(side)
        shape = [self.groups] + [1] * rank
        shape[place] = -1
        return vector.reshape(shape)

    def view(self, weight: Weights) -> Weights:
        """(groups * a, b, *kernel) -> (groups, a, b, *kernel), where a and b are the two sides in the order of `axes`.

        The second side of a weight array is per group already; the first runs over all groups.
        """
        return weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])


def tapped(weight: Weights, layout: Layout, edit: Rescale, alpha: float = 1.0) -> Weights:
    """`diag(mix) W` with `own / alpha` at the centre taps, float64; the weight itself where the edit says nothing.

    The centre tap of a kernel of odd sizes reads the pixel that the output stands for. `alpha`: Gemm's factor.
    """
    if edit.mix is None or edit.own is None:
        return weight
    view = layout.view(weight).astype(np.float64) * layout.spread(edit.mix, "o", weight.ndim)
    each = np.arange(view.shape[1])
    centre = tuple(size // 2 for size in view.shape[3:])
    # (groups, out/groups, in/groups, *kernel): on the diagonal of the middle axes, at the centre of the kernel
    view[(slice(None), each, each, *centre)] += edit.own.reshape(view.shape[0], -1) / alpha
    return view.reshape(weight.shape)


def scale_weight(weight: Weights, layout: Layout, edit: Rescale) -> Weights:
    """`diag(p_out) W diag(u_in)` in the shape and dtype of `weight`."""
    if edit.p_out is None and edit.u_in is None:
        return weight
    view = layout.view(weight)
    factor: Vector = np.ones(1)
    for vector, side in ((edit.p_out, "o"), (edit.u_in, "i")):
        if vector is not None:
            factor = factor * layout.spread(vector, side, weight.ndim)
    return multiply(view, factor).reshape(weight.shape)


def multiply(array: Weights, factor: Vector) -> Weights:
    """The product in float64, rounded once to the dtype of `array`."""
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype in (np.float32, np.float16):  # numpy converts in small blocks, without a copy in float64
            result: Weights = np.multiply(array, factor, dtype=np.float64, casting="unsafe", out=np.empty_like(array))
            return result
        return (array.astype(np.float64) * factor).astype(array.dtype)


REACH = 2.0**8
"""How large values are taken to be that a layer reads whose weights fall below what their type holds.

Ordinary weights fall below what float16 and its like hold: there, what the layer gives is taken to be so large.
"""
WIDE = -100
"""Types whose exponents go below this hold numbers that are nothing beside any channel that carries something."""


def rounding(weight: Weights, layout: Layout, edit: Rescale, bias: Vector | None = None) -> float:
    """What rounding the new weights to their type costs: the largest error of an output channel, relative to its norm.

    In the units of the old weights: an input whose values grow as its weights shrink counts as before. Infinite where
    a weight overflows. An error that is lost in what its channel holds costs nothing: one that rounding the new bias
    hides, or, where the type reaches as low as float32, rounding the weights of the layer's largest channel. That is
    how channels with a gamma near 0 go. `weight`: as `tapped` gives it, in the type in which it is stored. `bias`: the
    new one, (out,).
    """
    kind = np.finfo(weight.dtype)
    view = layout.view(weight).astype(np.float64)
    factor: Vector = np.ones((1,) * view.ndim)
    for vector, side in ((edit.p_out, "o"), (edit.u_in, "i")):
        if vector is not None:
            factor = factor * layout.spread(vector, side, weight.ndim)
    axes = tuple(axis for axis in range(view.ndim) if axis not in (0, 1 + layout.axes.index("o")))
    with np.errstate(all="ignore"):
        exact = view * factor
        error = exact.astype(weight.dtype).astype(np.float64) - exact
        norm = _norm(np.where(factor == 0, 0.0, view), axes)
        held = np.zeros(norm.shape) if bias is None else np.abs(bias).reshape(norm.shape)
        reach = np.full(norm.shape, REACH)
        if kind.minexp < WIDE:
            held = np.maximum(held, _norm(exact, axes).max(initial=0.0))
        elif edit.u_in is not None:  # values may have grown as weights shrank, and a narrow type shows it
            held = np.zeros(norm.shape)
        else:  # outputs of REACH: weights of norm n < 1 read values of REACH / n
            reach /= np.where(norm > 0, np.minimum(norm, 1.0), 1.0)
        bound = held * float(kind.eps) / 2
        count = np.sqrt(max(1, view.size // max(1, norm.size)))
        error[np.abs(error) * count <= np.expand_dims(bound / reach, axes)] = 0.0  # together within the bound
        lost = _norm(np.where(error == 0, 0.0, error / factor), axes) / np.where(norm > 0, norm, 1.0)
        lost[_norm(error, axes) * reach <= bound] = 0.0
    return float(np.nan_to_num(lost, nan=np.inf).max(initial=0.0))


def _norm(view: Weights, axes: tuple[int, ...]) -> Vector:
    """Root of the sum of squares over `axes`; squares of the smallest numbers would vanish."""
    size = np.abs(view).max(initial=0.0)
    unit = size if 0 < size < np.inf else 1.0
    total: Vector = np.sqrt(np.square(view / unit).sum(axes)) * unit
    return total


def response(weight: Weights, layout: Layout, t_in: Vector) -> Vector:
    """`sum_taps(W) t_in`: what a constant input t_in, (in,), gives at each output channel, (out,), float64."""
    view = layout.view(weight)
    taps = view.sum(tuple(range(3, view.ndim)), dtype=np.float64) if view.ndim > 3 else view.astype(np.float64)
    i = layout.axes.index("i")
    summed: Vector = (taps * layout.spread(t_in, "i", 2)).sum(1 + i)  # (groups, out/groups)
    return summed.reshape(-1)


def new_bias(bias: Vector | None, weight: Weights, layout: Layout, edit: Rescale, out_channels: int) -> Vector:
    """`p_out * (b + sum_taps(W) t_in) + q_out`, (out,), float64, with the weight as `tapped` gives it.

    b is `mix * b + add` where the edit says so.
    """
    total = np.zeros(out_channels) if bias is None else np.asarray(bias, np.float64)
    if edit.mix is not None and edit.add is not None:
        total = edit.mix * total + edit.add
    if edit.t_in is not None:
        total = total + response(weight, layout, edit.t_in)
    if edit.p_out is not None:
        total = total * edit.p_out
    return total if edit.q_out is None else total + edit.q_out


def moves_bias(edit: Rescale) -> bool:
    """Whether the edit can give a bias to a layer that has none."""
    return edit.t_in is not None or edit.q_out is not None or (edit.add is not None and bool(edit.add.any()))
