"""Layers of ONNX models whose new weights would not fit their type."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.plan import Plan, Rescale
from ...core.strain import strains
from ..read.bindings import LinearBinding, Quantized
from ..read.read import Source
from .editor import rounded
from .weights import spread


def strained(source: Source, plan: Plan) -> list[str]:
    """Their names. Few weights are read: those of float16, and others where a factor is extreme."""
    found = []
    for edit in plan.edits:
        binding = source.bindings.get(edit.op)
        if not isinstance(edit, Rescale) or not isinstance(binding, LinearBinding):
            continue
        scope = source.scopes[source.places.get(edit.op, 0)]
        if binding.quantized is not None:
            at = binding.quantized
            if _rounded_away(edit, at, scope.constants.value(scope.graph.node[at.node].input[1])):
                found.append(edit.name)
        else:
            name = scope.graph.node[binding.node].input[binding.weight]

            def value(at: LinearBinding = binding, name: str = name, constants: Any = scope.constants) -> Any:
                weight = spread(constants.value(name), at)
                return weight.reshape(at.matrix or weight.shape)

            def bias(at: LinearBinding = binding, scope: Any = scope) -> Any:
                inputs = scope.graph.node[at.bias_node].input
                held = inputs[at.bias] if at.bias is not None and at.bias < len(inputs) else ""
                plain = held in scope.constants and at.beta == 1.0 and not at.halves
                old = scope.constants.value(held) if plain else np.zeros(0)
                return old.ravel() if old.size == at.out_channels else None

            if strains(value, scope.constants.dtype(name), binding.layout, edit, binding.alpha, bias):
                found.append(edit.name)
    return found


def _rounded_away(edit: Rescale, at: Quantized, scale: npt.NDArray[Any]) -> bool:
    """Whether a new scale of integers leaves the range of its type.

    It may become 0 only where the integers can be set to their zero point; in float16 it must keep its digits too.
    """
    factor = np.ones(at.channels) if edit.p_out is None else np.abs(edit.p_out)
    factor = factor if edit.u_in is None else factor * abs(edit.u_in[0])
    wide = scale.astype(np.float64)
    blocks = wide.ndim > 1 and wide.size > wide.shape[at.axis]
    wide = np.abs(np.moveaxis(wide, at.axis, -1).reshape(-1, at.channels) if blocks else wide.ravel()) * factor
    new = rounded(wide, scale.dtype).astype(np.float64)
    lost = (new == 0) & (wide > 0) & (at.free is None)
    coarse = (new > 0) & (np.abs(new - wide) > 2.0**-11 * wide) & (scale.dtype == np.float16)
    return bool((lost | coarse | ~np.isfinite(new)).any())
