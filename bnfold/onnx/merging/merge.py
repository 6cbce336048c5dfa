"""Merges linear layers of an ONNX model, in place, after its norms are folded. See `bnfold.core.merging`."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from ...core.merging.algebra import Array, Linear, regrouped, storable
from ...core.merging.program import JOINT, Cut, Join, Layer, Made, Sum
from ...core.merging.result import Candidate
from ...core.merging.search import search
from ..read.constants import Constants, default_opset
from ..read.scope import Scope, count_uses, pinned
from ..store.external import external_tensors
from ..store.loops import infer_shapes
from ..store.skeleton import skeleton
from ..write.apply import Applied
from ..write.editor import Editor, Pending, all_names, demand_finite, ready, rounded
from .read import program

Weights = npt.NDArray[Any]


OLDEST = 7
"""Before that opset, operators broadcast in a way of their own."""


@dataclass(frozen=True)
class Merged:
    """`applied`: the edited model (the same object as before); `candidates`: what was merged or left, and why."""

    applied: Applied
    candidates: tuple[Candidate, ...]

    @property
    def changed(self) -> bool:
        """Whether anything was merged."""
        return any(candidate.verdict == "merged" for candidate in self.candidates)


def merge(
    applied: Applied | ModelProto,
    folder: Path | None = None,
    kept: Container[str] = (),
    freeze_inputs: bool = False,
    siblings: bool = False,
) -> Merged:
    """Merge what can be merged exactly and is no slower as one. `folder`: where external data lie.

    The graph itself is searched; bodies in it stay as they are. `kept`: the names of nodes that are to be left alone,
    or of the tensors that they give. `siblings`: layers of one tensor and one form, such as those of queries, keys and
    values, become one whose outputs are cut apart; that saves calls, and measures no faster in onnxruntime on CPUs.
    """
    state = applied if isinstance(applied, Applied) else Applied(applied, {}, bool(external_tensors(applied)))
    if not OLDEST <= default_opset(state.model) <= onnx.defs.onnx_opset_version():
        return Merged(state, ())
    scope = _scope(state, folder, freeze_inputs)
    found = program(scope, kept)
    if TensorProto.FLOAT16 in scope.dtypes.values():
        found.misfit = lambda layer: storable(layer, np.dtype(np.float16))
    candidates = search(found, siblings)
    made = found.made()
    if not made:
        return Merged(state, candidates)
    editor = Editor(state.model, scope, all_names(state.model.graph), None)
    Writer(editor).write(made)
    editor.finish(set())
    stored = {tensor.name for tensor in state.model.graph.initializer}
    stored |= {out for node in state.model.graph.node if node.op_type == "Constant" for out in node.output}
    pending = {name: value for name, value in (state.pending | editor.pending).items() if name in stored}
    return Merged(Applied(state.model, pending, state.aside), candidates)


def _scope(state: Applied, folder: Path | None, freeze_inputs: bool) -> Scope:
    """What is known of the graph."""
    model = state.model
    typed = infer_shapes(skeleton(model, folder).model).graph
    values = [v for v in (*typed.input, *typed.value_info, *typed.output) if v.type.HasField("tensor_type")]
    shapes = {v.name: _sizes(v.type.tensor_type) for v in values}
    dtypes = {v.name: v.type.tensor_type.elem_type for v in values}
    constants = Constants(model, shapes, folder, freeze_inputs, dtypes, state.fresh)
    return Scope(model.graph, constants, shapes, dtypes, count_uses(model.graph), pinned(model.graph))


def _sizes(kind: Any) -> tuple[int | str | None, ...] | None:
    if not kind.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None) for d in kind.shape.dim
    )


@dataclass
class Writer:
    """Puts merged layers and sums into a graph."""

    editor: Editor
    fresh: dict[str, str] = field(default_factory=dict)
    """The names of new tensors."""

    def write(self, made: Sequence[Made]) -> None:
        """Each step in the place of the node that gave its tensor; those of new tensors right before the next."""
        graph = self.editor.graph
        places = {out: i for i, node in enumerate(graph.node) for out in node.output if out}
        leads = {step.lead: _copy(graph.node[step.lead]) for step in made if isinstance(step, Layer)}
        groups = _grouped(made, places)
        roots = {place for _, place in groups}
        for index in sorted({node for step in made for node in step.nodes} | roots):
            self.editor.let_go(index, index not in roots)
        for steps, place in groups:
            *before, last = self._written(steps, leads)
            self.editor.inserted.setdefault(place, []).extend(before)
            graph.node[place].CopyFrom(last)

    def _written(self, steps: list[Made], leads: dict[int, NodeProto]) -> Iterator[NodeProto]:
        cuts = [step for step in steps if isinstance(step, Cut)]
        for step in steps:
            if not isinstance(step, Cut):
                yield from self._nodes(step, leads)
        if cuts:
            yield self._split(sorted(cuts, key=lambda cut: cut.start))

    def _split(self, cuts: list[Cut]) -> NodeProto:
        source, names = self._name(cuts[0].sources[0]), [cut.target for cut in cuts]
        sizes, axis = [cut.stop - cut.start for cut in cuts], cuts[0].axis
        if self.editor.constants.opset < 13:
            return helper.make_node("Split", [source], names, f"{source}_split", axis=axis, split=sizes)
        given = self.editor.new(ready(np.array(sizes, np.int64)), f"{source}_sizes")
        return helper.make_node("Split", [source, given], names, f"{source}_split", axis=axis)

    def _nodes(self, step: Layer | Sum | Join, leads: dict[int, NodeProto]) -> list[NodeProto]:
        if isinstance(step, Layer):
            return self._layer(step, leads[step.lead])
        self.editor.uses.update(name for name in step.sources if name in self.editor.constants)  # which are read on
        return self._sum(step) if isinstance(step, Sum) else [self._join(step)]

    def _sum(self, step: Sum) -> list[NodeProto]:
        """Additions two by two; what is subtracted comes last.

        A Sum where a term is a graph output: onnxruntime 1.31 fuses an Add with the Conv before it, and loses that.
        """
        seen = {value.name for value in self.editor.graph.output} & set(step.sources)
        if seen and min(step.factors) > 0 and self.editor.constants.opset >= 8:
            return [helper.make_node("Sum", [self._name(name) for name in step.sources], [step.target], step.name)]
        ranked = sorted(zip(step.factors, step.sources, strict=True), key=lambda pair: pair[0] < 0)
        (_, left), *rest = ranked
        nodes = []
        for i, (factor, name) in enumerate(rest):
            target = step.target if i == len(rest) - 1 else self.editor.free_name(f"{step.target}_{i}")
            label = step.name if i == len(rest) - 1 else target
            nodes.append(
                helper.make_node("Add" if factor > 0 else "Sub", [self._name(left), self._name(name)], [target], label)
            )
            left = target
        return nodes

    def _join(self, step: Join) -> NodeProto:
        names = [self._name(name) for name in step.sources]
        return helper.make_node("Concat", names, [step.target], step.name, axis=step.axis)

    def _name(self, tensor: str) -> str:
        """The name of a tensor in the file."""
        if JOINT not in tensor:
            return tensor
        if tensor not in self.fresh:
            self.fresh[tensor] = self.editor.free_name(tensor.replace(JOINT, "_merged_"))
        return self.fresh[tensor]

    def _layer(self, step: Layer, lead: NodeProto) -> list[NodeProto]:
        match step.layer.geometry.kind:
            case "conv":
                return [self._conv(step, lead)]
            case "transpose":
                return [self._transpose(step, lead)]
            case _:
                return self._dense(step, lead)

    def _node(self, step: Layer, lead: NodeProto, op: str, inputs: list[str]) -> NodeProto:
        node = _copy(lead)
        del node.input[:], node.output[:], node.attribute[:]
        node.op_type, node.name = op, lead.name
        node.input.extend(inputs)
        node.output.append(self._name(step.target))
        return node

    def _conv(self, step: Layer, lead: NodeProto) -> NodeProto:
        g = step.layer.geometry
        weight = self._weight(step, lambda made: made.kernel.reshape(g.outputs, g.inputs // g.groups, *g.taps))
        node = self._node(step, lead, "Conv", [self._name(step.source), weight, *self._bias(step)])
        ends = [axis.end() for axis in g.axes]
        self._attributes(
            node, step, [] if any(axis.auto for axis in g.axes) else [-axis.first for axis in g.axes] + ends
        )
        if any(axis.auto for axis in g.axes):
            node.attribute.append(helper.make_attribute("auto_pad", g.axes[0].auto))
        return node

    def _transpose(self, step: Layer, lead: NodeProto) -> NodeProto:
        g = step.layer.geometry
        shape = (g.inputs, g.outputs // g.groups, *g.taps)
        weight = self._weight(step, lambda made: np.swapaxes(made.kernel, 1, 2).reshape(shape))
        node = self._node(step, lead, "ConvTranspose", [self._name(step.source), weight, *self._bias(step)])
        ends = [axis.end(transposed=True) for axis in g.axes]
        self._attributes(node, step, [-axis.first for axis in g.axes] + [max(0, end) for end in ends])
        if min(ends) < 0:
            node.attribute.append(helper.make_attribute("output_padding", [max(0, -end) for end in ends]))
        return node

    def _attributes(self, node: NodeProto, step: Layer, pads: list[int]) -> None:
        g = step.layer.geometry
        found: dict[str, Any] = {
            "kernel_shape": list(g.taps), "strides": [axis.stride for axis in g.axes],
            "dilations": [axis.step for axis in g.axes], "group": g.groups,
        }  # fmt: skip
        if pads:
            found["pads"] = pads
        node.attribute.extend(helper.make_attribute(name, value) for name, value in found.items())

    def _dense(self, step: Layer, lead: NodeProto) -> list[NodeProto]:
        """A Gemm, or a MatMul with an Add where the data have more axes than two."""
        g = step.layer.geometry
        weight = self._weight(step, lambda made: _matrix(made))
        source, bias = self._name(step.source), self._bias(step)
        if g.axis == 1 and (bias or (lead.op_type == "Gemm" and self.editor.constants.opset >= 11)):
            return [self._node(step, lead, "Gemm", [source, weight, *bias])]
        node = self._node(step, lead, "MatMul", [source, weight])
        if not bias:
            return [node]
        inner = self.editor.free_name(f"{node.output[0]}_product")
        add = helper.make_node("Add", [inner, *bias], [node.output[0]], f"{lead.name or inner}_bias")
        node.output[0] = inner
        return [node, add]

    def _bias(self, step: Layer) -> list[str]:
        if not step.layer.geometry.biased:
            return []
        value = Pending(
            self._dtype(step), (step.layer.geometry.outputs,), lambda: self._rounded(step, step.layer.load().bias)
        )
        return [self.editor.new(value, f"{step.name}_bias")]

    def _weight(self, step: Layer, stored: Callable[[Linear], Array]) -> str:
        g = step.layer.geometry
        full = (g.inputs, g.outputs)
        conv = (g.outputs, g.inputs // g.groups, *g.taps)
        shape = full if g.kind == "dense" else (g.inputs, g.outputs // g.groups, *g.taps) if g.transposed else conv
        value = Pending(self._dtype(step), shape, lambda: self._rounded(step, stored(step.layer.load())))
        return self.editor.new(value, f"{step.name}_weight")

    def _rounded(self, step: Layer, value: Array) -> Weights:
        made = rounded(value, self._dtype(step))
        demand_finite(made, value, step.name)
        return made

    def _dtype(self, step: Layer) -> np.dtype[Any]:
        scope = self.editor.scope
        known = scope.dtype(step.source)
        if known:
            return np.dtype(helper.tensor_dtype_to_np_dtype(known))
        lead = scope.graph.node[step.lead]
        return next(scope.constants.dtype(name) for name in lead.input if name in scope.constants)


def _grouped(made: Sequence[Made], places: dict[str, int]) -> list[tuple[list[Made], int]]:
    """Steps that are written together, and the place of the node that the last of them takes the place of."""
    groups: list[tuple[list[Made], int]] = []
    waiting: list[Made] = []
    for i, step in enumerate(made):
        waiting.append(step)
        after = made[i + 1] if i + 1 < len(made) else None
        unfinished = isinstance(step, Cut) and isinstance(after, Cut) and after.sources == step.sources
        if step.target in places and not unfinished:
            groups.append((waiting, min(places[s.target] for s in waiting if s.target in places)))
            waiting = []
    return groups


def _matrix(made: Linear) -> Array:
    """(groups, out, in) -> (in, out)."""
    return np.asarray(regrouped(made.kernel, 1)[0].T, np.float64)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
