"""Layers whose new weights would not fit the type that they are stored in."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...absorb import rounding, tapped
from ...plan import Plan, Rescale
from .bindings import LinearBinding
from .read import Source

SAFE = 2.0**40
"""Factors from its inverse to itself do not take float32 out of its range; weights are not read for them."""
NARROW = frozenset({"float16"})


def strained(source: Source, plan: Plan) -> list[str]:
    """The names of layers that would overflow, or round their weights with more than twice the usual error."""
    found = []
    for edit in plan.edits:
        binding = source.bindings.get(edit.op)
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding) and binding.quantized is None:
            scope = source.scopes[source.places.get(edit.op, 0)]
            name = scope.graph.node[binding.node].input[binding.weight]
            dtype = scope.constants.dtype(name)
            if dtype.name in NARROW or not _mild(edit):
                value = scope.constants.value(name)
                weight = tapped(value.reshape(binding.matrix or value.shape), binding.layout, edit, binding.alpha)
                if rounding(weight.astype(dtype), binding.layout, edit) > _usual(dtype):
                    found.append(edit.name)
    return found


def _mild(edit: Rescale) -> bool:
    """Whether no factor is far from one."""
    sizes = [np.abs(v[v != 0]) for v in (edit.p_out, edit.u_in) if v is not None]
    high = np.prod([size.max(initial=1.0) for size in sizes])
    low = np.prod([size.min(initial=1.0) for size in sizes])
    return bool(high < SAFE and low > 1 / SAFE)


def _usual(dtype: np.dtype[Any]) -> float:
    """Half a unit in the last place: about twice the mean error of rounding normal numbers."""
    return float(np.finfo(dtype).eps) / 2 if dtype.kind == "f" else np.inf
