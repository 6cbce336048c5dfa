"""Layers of ONNX models whose new weights would not fit their type."""

from __future__ import annotations

from typing import Any

from ...plan import Plan, Rescale
from ...strain import strains
from .bindings import LinearBinding
from .read import Source


def strained(source: Source, plan: Plan) -> list[str]:
    """Their names. Few weights are read: those of float16, and others where a factor is extreme."""
    found = []
    for edit in plan.edits:
        binding = source.bindings.get(edit.op)
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding) and binding.quantized is None:
            scope = source.scopes[source.places.get(edit.op, 0)]
            name = scope.graph.node[binding.node].input[binding.weight]

            def value(at: LinearBinding = binding, name: str = name, constants: Any = scope.constants) -> Any:
                weight = constants.value(name)
                return weight.reshape(at.matrix or weight.shape)

            if strains(value, scope.constants.dtype(name), binding.layout, edit, binding.alpha):
                found.append(edit.name)
    return found
