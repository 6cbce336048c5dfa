"""Layers of PyTorch networks whose new weights would not fit their type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx

from ...core.plan import Plan, Rescale
from ...core.strain import strains
from ..read.bindings import LinearBinding
from ..read.read import Source
from ..read.sharing import argument

TYPES: dict[torch.dtype, Any] = {torch.float16: np.float16, torch.float32: np.float32, torch.bfloat16: np.float32}
"""What numpy has for them; bfloat16 has the range of float32, and rounds what is small as it does what is large."""


def strained(source: Source, plan: Plan) -> list[str]:
    """Their names. Few weights are read: those of float16, and others where a factor is extreme."""
    nodes = {node.name: node for node in source.capture.program.graph.nodes}
    found = []
    for edit in plan.edits:
        at = source.bindings.get(edit.op)
        if isinstance(edit, Rescale) and isinstance(at, LinearBinding) and at.weight:
            dtype, value = _weight(source, at, nodes)
            kept = at.bias in source.constants.tensors and at.bias not in source.capture.added
            bias = partial(source.constants.of, at.bias) if kept else (lambda: None)
            if dtype in TYPES and strains(value, TYPES[dtype], at.layout, edit, bias=bias):
                found.append(edit.name)
    return found


def _weight(source: Source, at: LinearBinding, nodes: dict[str, fx.Node]) -> tuple[torch.dtype, Callable[[], Any]]:
    """The type of a weight, and what reads it: a module's parameter by its name, or an argument of a program's op."""
    constants = source.constants
    if at.weight in constants.tensors:
        value = partial(constants.of, at.weight)
        return constants.tensors[at.weight].dtype, (lambda: value().T) if at.turned else value
    node = argument(nodes[at.node], at.weight)
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype, partial(constants.value, node)
