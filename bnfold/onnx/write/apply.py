"""Carry out a plan's edits on an ONNX model, in place, touching nothing that no edit names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto

from ...core.plan import Merge, Plan, Remove, Replace, Rescale
from ...errors import PlanError
from ..read.bindings import AffineBinding, LinearBinding
from ..read.read import Source
from ..store.external import external_tensors
from ..store.skeleton import constant_tensor
from .editor import Editor, Pending, all_names, fill
from .forms import merge, remove, replace
from .weights import rescale


@dataclass
class Applied:
    """An edited model (the same object as before), in which the tensors `pending` still lack their new values.

    `aside`: it had external data, and large new tensors are to lie beside it too.
    """

    model: ModelProto
    pending: dict[str, Pending] = field(default_factory=dict)
    aside: bool = False

    @property
    def fresh(self) -> dict[str, Callable[[], Any]]:
        """What computes the values that are not there yet, by the tensors' names."""
        return {name: pending.compute for name, pending in self.pending.items()}

    def complete(self) -> ModelProto:
        """The model with all values computed."""
        tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            constant = constant_tensor(node)
            if constant is not None:
                tensors[node.output[0]] = constant
        # those that are computed from themselves come last: others may be computed from them too
        for name in sorted(self.pending, key=lambda name: self.pending[name].source == name):
            fill(tensors[name], self.pending.pop(name).compute(), name)
        return self.model


def apply(model: ModelProto, source: Source, plan: Plan) -> Applied:
    """Edit `model`, which `source` was read from. PlanError where the plan was made for another model."""
    names, aside = all_names(model.graph), bool(external_tensors(model))
    editors: list[Editor] = []
    for scope in source.scopes:
        around = next((editor for editor in editors if editor.scope is scope.parent), None)
        editors.append(Editor(model, scope, names, around))
    for edit in plan.edits:
        binding = source.bindings.get(edit.op)
        editor = editors[source.places.get(edit.op, 0)]
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding):
            rescale(editor, edit, binding)
        elif isinstance(edit, Merge) and binding is not None:
            bindings = [[source.bindings.get(op) for op in group] for group in (edit.layers, edit.drop)]
            merge(editor, edit, binding.node, bindings[0], bindings[1])
        elif isinstance(edit, Remove) and isinstance(binding, AffineBinding):
            remove(editor, edit, binding)
        elif not isinstance(edit, Replace) or not replace(editor, edit, binding):
            raise PlanError(
                f"{edit.name}: op {edit.op} is not what the plan expects; was the plan made for this model?"
            )
    for editor in reversed(editors):  # bodies before what is around them
        editor.finish(set(plan.moved))
    return Applied(model, editors[0].pending, aside)
