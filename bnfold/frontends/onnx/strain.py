"""Layers of ONNX models whose new weights would not fit their type."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...plan import Plan, Rescale
from ...strain import strains
from .bindings import LinearBinding
from .read import Source
from .weights import spread


def strained(source: Source, plan: Plan) -> list[str]:
    """Their names. Few weights are read: those of float16, and others where a factor is extreme."""
    found = []
    for edit in plan.edits:
        binding = source.bindings.get(edit.op)
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding) and binding.quantized is None:
            scope = source.scopes[source.places.get(edit.op, 0)]
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
