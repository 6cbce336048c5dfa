"""Whether weights that take up a norm still fit the type that they are stored in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .absorb import Layout, new_bias, rounding, tapped
from .plan import Rescale

Array = npt.NDArray[Any]
SAFE = 2.0**40
"""Factors from its inverse to itself do not take float32 out of its range; weights are not read for them."""


def strains(
    weight: Callable[[], Array], dtype: npt.DTypeLike, layout: Layout, edit: Rescale, alpha: float = 1.0,
    bias: Callable[[], Array | None] = lambda: None,
) -> bool:  # fmt: skip
    """Whether new weights or biases overflow, or are rounded with more than twice the usual error where that tells.

    `weight`, `bias`: read the old ones, the weight in the shape that the layout says; asked only where this can be.
    `alpha`: Gemm's.
    """
    kind = np.dtype(dtype)
    if kind.kind != "f" or (kind != np.float16 and _mild(edit)):
        return False
    old, vector = tapped(weight(), layout, edit, alpha), bias()
    new = None if vector is None and edit.q_out is None else new_bias(vector, old, layout, edit, _outputs(old, layout))
    with np.errstate(over="ignore"):
        if new is not None and not np.isfinite(new.astype(kind)).all():
            return True
    return rounding(old.astype(kind), layout, edit, new) > float(np.finfo(kind).eps) / 2


def _outputs(weight: Array, layout: Layout) -> int:
    """How many output channels a weight has."""
    return int(weight.shape[0] if layout.axes == "oi" else weight.shape[1] * layout.groups)


def _mild(edit: Rescale) -> bool:
    """Whether no factor is far from one, and no offset far from all values."""
    if edit.q_out is not None and np.abs(edit.q_out).max(initial=0.0) > SAFE:
        return False
    sizes = [np.abs(v[v != 0]) for v in (edit.p_out, edit.u_in) if v is not None]
    high = np.prod([size.max(initial=1.0) for size in sizes])
    low = np.prod([size.min(initial=1.0) for size in sizes])
    return bool(high < SAFE and low > 1 / SAFE)
