"""Carry out a plan's edits on an ONNX model, in place, touching nothing that no edit names.

The edits go into the protobuf itself and not through an export: so metadata, value_info, quantisation annotations, doc
strings and whatever a newer ONNX may add stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...absorb import moves_bias, new_bias, scale_weight, tapped
from ...errors import PlanError
from ...plan import Merge, Plan, Remove, Replace, Rescale
from .bindings import AffineBinding, Binding, BoundBinding, ClipBinding, LinearBinding, NodeBinding, Quantized
from .constants import LARGE
from .names import Renaming
from .read import Source
from .scope import Scope, count_uses
from .skeleton import constant_tensor, nested_graphs

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pending:
    """A tensor still to be computed."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    compute: Callable[[], Array]
    source: str = ""
    """The tensor that it is computed from, which must keep its old values until then."""


@dataclass
class Applied:
    """An edited model (the same object as before), in which the tensors `pending` still lack their new values."""

    model: ModelProto
    pending: dict[str, Pending] = field(default_factory=dict)

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
    names = all_names(model.graph)
    editors: list[_Editor] = []
    for scope in source.scopes:
        around = next((editor for editor in editors if editor.scope is scope.parent), None)
        editors.append(_Editor(model, scope, names, around))
    for edit in plan.edits:
        binding = source.bindings.get(edit.op)
        editor = editors[source.places.get(edit.op, 0)]
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding):
            editor.rescale(edit, binding)
        elif isinstance(edit, Merge) and binding is not None:
            bindings = [[source.bindings.get(op) for op in group] for group in (edit.layers, edit.drop)]
            editor.merge(edit, binding.node, bindings[0], bindings[1])
        elif isinstance(edit, Remove) and isinstance(binding, AffineBinding):
            editor.remove(edit, binding)
        elif not isinstance(edit, Replace) or not editor.replace(edit, binding):
            raise PlanError(
                f"{edit.name}: op {edit.op} is not what the plan expects; was the plan made for this model?"
            )
    for editor in reversed(editors):  # bodies before what is around them
        editor.finish()
    return Applied(model, editors[0].pending)


class _Editor:
    """Edits one graph; `around` edits the graph that a body stands in. `names`: those of the whole model."""

    def __init__(self, model: ModelProto, scope: Scope, names: set[str], around: _Editor | None) -> None:
        self.model, self.graph, self.scope, self.around = model, scope.graph, scope, around
        self.constants = scope.constants
        self.uses = Counter(scope.uses)
        self.initializers = {t.name: i for i, t in enumerate(self.graph.initializer)}
        self.names = names
        fixed = {v.name for v in (*self.graph.input, *self.graph.output)} | set(scope.pinned) | set(self.initializers)
        self.renaming = Renaming(fixed | (set(self.uses) - scope.local))
        self.dropped: set[int] = set()
        self.released: set[str] = set()
        self.constant_nodes: list[NodeProto] = []
        self.inserted: dict[int, NodeProto] = {}
        """New nodes by the position of the node that each comes before."""
        self.pending: dict[str, Pending] = {}

    # --- weights

    def rescale(self, edit: Rescale, at: LinearBinding) -> None:
        """New weight and bias for a linear op."""
        node = self.graph.node[at.node]
        label = edit.name
        name = node.input[at.weight]
        scales_bias = edit.p_out is not None or edit.mix is not None
        if moves_bias(edit) or (scales_bias and self._has(at)):
            self._rebias(edit, at, name)
        if at.quantized is not None:
            self._requantize(edit, at.quantized)
        elif edit.p_out is not None or edit.u_in is not None or edit.mix is not None:
            constants = self.constants
            weight = Pending(
                constants.dtype(name),
                constants.shape(name),
                lambda: _scaled(constants.value(name), at, edit),
                name,
            )
            self._put(node, at.weight, weight, f"{label}_weight")

    def _requantize(self, edit: Rescale, at: Quantized) -> None:
        """Other scales behind weights that stay: one for each output channel, the zero points with them."""
        factor = np.ones(at.channels) if edit.p_out is None else edit.p_out.copy()
        if edit.u_in is not None:
            factor *= edit.u_in[0]
        if (factor == 1).all():
            return
        node = self.graph.node[at.node]
        old = self._value(node.input[1])
        new = _round(old.astype(np.float64).ravel() * factor, old.dtype)
        _demand_finite(new, old, edit.name)
        uniform = bool((factor == factor[0]).all()) and old.size == 1
        self._put(node, 1, _ready(new[:1].reshape(old.shape) if uniform else new), f"{edit.name}_weight_scale")
        if uniform or old.size > 1:
            return
        if len(node.input) > 2 and node.input[2]:
            zero = self._value(node.input[2])
            self._put(node, 2, _ready(np.broadcast_to(zero.ravel(), factor.shape).copy()), f"{edit.name}_zero_point")
        _set(node, "axis", at.axis)

    def _has(self, at: LinearBinding) -> bool:
        inputs = self.graph.node[at.bias_node].input
        return at.bias is not None and at.bias < len(inputs) and bool(inputs[at.bias])

    def _rebias(self, edit: Rescale, at: LinearBinding, weight_name: str) -> None:
        if at.bias is None:
            raise PlanError(f"{edit.name}: has no bias to put an offset into")
        weight = self._value(weight_name) if edit.t_in is not None else np.zeros(0)
        weight = weight.reshape(at.matrix) if at.matrix and weight.size else weight
        weight = tapped(weight, at.layout, edit, at.alpha) if weight.size else weight
        node = self.graph.node[at.bias_node]
        old = self._value(node.input[at.bias]) if self._has(at) else None
        if at.halves:
            new = self._recurrent_bias(edit, at, weight, old)
        elif old is not None and old.ndim == 2 and old.shape[0] > 1 and not at.column_bias:
            new = self._matrix_bias(edit, at, weight, old)
        else:
            new = self._vector_bias(edit, at, weight, old)
        dtype = self.constants.dtype(weight_name) if old is None else old.dtype
        rounded = _round(new, dtype)
        _demand_finite(rounded, new, edit.name)
        if at.beta == 0.0 or (old is None and at.beta != 1.0):
            _set_float(node, "beta", 1.0)
        self._put(node, at.bias, _ready(rounded), f"{edit.name}_bias")

    def _vector_bias(self, edit: Rescale, at: LinearBinding, weight: Array, old: Array | None) -> Array:
        """(out,), or (out, 1) for a bias that runs along the rows."""
        beta = 1.0 if old is None or at.beta == 0.0 else at.beta
        start = (
            None
            if old is None or at.beta == 0.0
            else np.broadcast_to(beta * old.astype(np.float64).ravel(), at.out_channels)
        )
        total = new_bias(start, self._effective(weight, at), at.layout, edit, at.out_channels) / beta
        return total[:, None] if at.column_bias else total

    def _matrix_bias(self, edit: Rescale, at: LinearBinding, weight: Array, old: Array) -> Array:
        """Gemm's C as a matrix, (rows, out): the offset joins every row."""
        moved = new_bias(None, self._effective(weight, at), at.layout, edit, at.out_channels)
        if at.beta == 0.0:
            return moved
        scaled = old.astype(np.float64) * (1.0 if edit.p_out is None else edit.p_out)
        scaled = scaled if edit.mix is None else scaled * edit.mix
        return scaled + moved / at.beta

    def _recurrent_bias(self, edit: Rescale, at: LinearBinding, weight: Array, old: Array | None) -> Array:
        """(directions, 2 * halves): that of the input changes, that of the state does not."""
        whole = np.zeros((at.out_channels // at.halves, 2 * at.halves)) if old is None else old.astype(np.float64)
        mine = new_bias(whole[:, : at.halves].ravel(), weight, at.layout, edit, at.out_channels)
        return np.concatenate([mine.reshape(-1, at.halves), whole[:, at.halves :]], 1)

    @staticmethod
    def _effective(weight: Array, at: LinearBinding) -> Array:
        return weight if at.alpha == 1.0 else weight.astype(np.float64) * at.alpha

    # --- norms

    def merge(self, edit: Merge, last: int, layers: list[Binding | None], drop: list[Binding | None]) -> None:
        """Let layers alone compute what a whole expression did: the node `last` becomes their sum, or goes."""
        if not all(isinstance(at, LinearBinding) for at in layers) or None in drop:
            raise PlanError(f"{edit.name}: the plan's ops are not in the model; was the plan made for it?")
        ends = [self.graph.node[at.bias_node] for at in layers if isinstance(at, LinearBinding)]
        node = self.graph.node[last]
        for at in (*drop, NodeBinding(last)):
            if at is not None:
                self._let_go(at.node, at.node != last)
        if len(ends) == 1:
            self._vanish(ends[0].output)
            ends[0].output[0] = node.output[0]
            self.dropped.add(last)
        else:
            _rewrite(node, "Add" if len(ends) == 2 else "Sum", [end.output[0] for end in ends])

    def _let_go(self, index: int, drop: bool) -> None:
        """Let a node's constants go, and `drop` the node itself."""
        node = self.graph.node[index]
        for name in node.input:
            if name in self.constants:
                self._release(name)
        if drop:
            self.dropped.add(index)
            self._vanish(node.output)

    def _vanish(self, names: Iterable[str]) -> None:
        """Note that nothing has these names any more."""
        for name in names:
            self.uses[name] = 0
            self.released.add(name)

    def remove(self, edit: Remove, at: AffineBinding) -> None:
        """Let the readers of a norm's output read its input: two names become one."""
        node = self.graph.node[at.node]
        source, target = node.input[at.data], node.output[0]
        self._release_constants(node, at.data)
        if self.renaming.merge(source, target, edit.keep == "input"):
            self.dropped.add(at.node)
        else:  # both names must stay, as graph input and output for instance
            _rewrite(node, "Identity", [source])

    def replace(self, edit: Replace, at: Binding | None) -> bool:
        """Give an op another form; False where the edit does not fit the op."""
        if isinstance(at, ClipBinding) and edit.form == "clip":
            self._clip(edit, at)
        elif isinstance(at, BoundBinding) and edit.form == "constant":
            self._bound(edit, at)
        elif isinstance(at, AffineBinding) and edit.form in ("add", "mul", "max", "bn"):
            self._affine(edit, at)
        else:
            return False
        return True

    def _clip(self, edit: Replace, at: ClipBinding) -> None:
        """Other bounds: the same Clip where they are two numbers, else a Max and a Min."""
        node = self.graph.node[at.node]
        source = node.input[0]
        dtype = self._dtype(node, AffineBinding(at.node))
        bounds = [edit.scale * bound + edit.offset for bound in (at.low, at.high)]
        self._release_constants(node, 0)
        if all((bound == bound[0]).all() for bound in bounds):
            self._numbers(node, edit, source, [_round(bound[0], dtype) for bound in bounds])
            return
        forms = [(op, bound) for op, bound in zip(("Max", "Min"), bounds, strict=True) if np.isfinite(bound).all()]
        for op, bound in forms[:-1]:
            inner = self._free_name(f"{node.output[0]}_{op.lower()}")
            value = self._along(edit, source, bound, dtype, op.lower())
            self.inserted[at.node] = helper.make_node(op, [source, value], [inner], f"{node.name or op}_{op.lower()}")
            source = inner
        op, bound = forms[-1]
        _rewrite(node, op, [source, self._along(edit, node.input[0], bound, dtype, op.lower())])

    def _numbers(self, node: NodeProto, edit: Replace, source: str, bounds: list[Array]) -> None:
        """The two bounds of a Clip, which are attributes before opset 11."""
        if self.constants.opset < 11:
            for name, bound in zip(("min", "max"), bounds, strict=True):
                if np.isfinite(bound):
                    _set_float(node, name, float(bound))
            return
        names = [
            self._new(_ready(np.asarray(bound)), f"{edit.name}_{part}") if np.isfinite(bound) else ""
            for bound, part in zip(bounds, ("min", "max"), strict=True)
        ]
        _rewrite(node, "Clip", [source, *(names if names[1] else names[:1])])

    def _bound(self, edit: Replace, at: BoundBinding) -> None:
        """The constant c becomes `scale * c + offset`."""
        node = self.graph.node[at.node]
        old = self._value(node.input[at.constant])
        shape = [1] * (self.scope.rank(node.input[at.data]) or old.ndim)
        shape[edit.axis] = -1
        scale, offset = edit.scale.reshape(shape), edit.offset.reshape(shape)
        new = _round(scale * old.astype(np.float64) + offset, old.dtype)
        _demand_finite(new, old, edit.name)
        self._put(node, at.constant, _ready(new), f"{edit.name}_constant")

    def _affine(self, edit: Replace, at: AffineBinding) -> None:
        """Add, Mul or Max with one vector, or a BatchNormalization with var 1 and eps 0."""
        node = self.graph.node[at.node]
        source = node.input[at.data]
        dtype = self._dtype(node, at)
        self._release_constants(node, at.data)
        if edit.form == "bn":
            centre = np.zeros_like(edit.scale) if edit.centre is None else edit.centre
            mean = _round(centre, self.constants.value(node.input[3]).dtype).astype(np.float64)
            bias = edit.offset + mean * edit.scale
            self._as_batch_norm(node, edit, [edit.scale, bias, mean, np.ones_like(mean)], source)
            return
        vector = edit.scale if edit.form == "mul" else edit.offset
        value = self._along(edit, source, vector, dtype, edit.form)
        if edit.form == "add" and (edit.scale < 0).all():
            _rewrite(node, "Sub", [value, source])
        else:
            _rewrite(node, edit.form.capitalize(), [source, value])
        if self.constants.opset < 7:
            node.attribute.extend([helper.make_attribute("broadcast", 1), helper.make_attribute("axis", edit.axis)])

    def _along(self, edit: Replace, source: str, vector: Array, dtype: np.dtype[Any], part: str) -> str:
        """A constant that runs along the edit's axis of the tensor `source`; before opset 7 an attribute says so."""
        shape = [1] * (self.scope.rank(source) or vector.size)
        shape[edit.axis] = vector.size
        shape = shape[edit.axis :]  # (C, 1, .., 1): broadcasts from the right
        value = vector.reshape(-1 if self.constants.opset < 7 else shape)
        return self._new(_ready(_round(value, dtype)), f"{edit.name}_{part}")

    def _as_batch_norm(self, node: NodeProto, edit: Replace, vectors: list[Array], source: str) -> None:
        dtypes = [self.constants.value(name).dtype for name in node.input[1:5]]
        names = [
            self._new(_ready(_round(vector, dtype)), f"{edit.name}_{part}")
            for vector, dtype, part in zip(vectors, dtypes, ("scale", "bias", "mean", "var"), strict=True)
        ]
        del node.input[:]
        node.input.extend([source, *names])
        del node.output[1:]
        _set_float(node, "epsilon", 0.0)

    def _dtype(self, node: NodeProto, at: AffineBinding) -> np.dtype[Any]:
        """The element type of the data: as inferred, else that of the constant."""
        known = self.scope.dtype(node.input[at.data]) or self.scope.dtype(node.output[0])
        if known:
            return np.dtype(helper.tensor_dtype_to_np_dtype(known))
        constant = next(name for i, name in enumerate(node.input) if i != at.data)
        return self.constants.value(constant).dtype

    # --- tensors

    def _value(self, name: str) -> Array:
        return self.constants.value(name)

    def _release_constants(self, node: NodeProto, data: int) -> None:
        for i, name in enumerate(node.input):
            if i != data and name:
                self._release(name)

    def _release(self, name: str) -> None:
        self.uses[name] -= 1
        self.released.add(name)
        if self.around is not None and name not in self.scope.local:
            self.around._release(name)

    def _put(self, node: NodeProto, position: int, value: Pending, wish: str) -> None:
        """Let an input of a node be a new constant: in place where nobody else reads the old one."""
        old = node.input[position] if position < len(node.input) else ""
        if old in self.initializers and self.uses[old] == 1:
            tensor = self.graph.initializer[self.initializers[old]]
            if tuple(tensor.dims) == value.shape:
                self._store(tensor, value, old)
                return
        if old:
            self._release(old)
        while len(node.input) <= position:
            node.input.append("")
        node.input[position] = self._new(value, wish)

    def _store(self, tensor: TensorProto, value: Pending, name: str) -> None:
        """Put a value into a tensor now, or note that it is to be computed when it is written."""
        if prod(value.shape) <= LARGE or self.around is not None:
            fill(tensor, value.compute(), name)
        else:
            self.pending[name] = value

    def _new(self, value: Pending, wish: str) -> str:
        """A new constant: an initializer, or before IR 4, where every initializer is a graph input, a Constant node."""
        name = self._free_name(wish)
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = TensorProto(name=name, data_type=dtype, dims=value.shape)
        self._store(tensor, value, name)
        if self.model.ir_version >= 4:
            self.graph.initializer.append(tensor)
        else:
            self.constant_nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def _free_name(self, wish: str) -> str:
        """A tensor name that nobody has."""
        name, count = wish, 1
        while name in self.names:
            count += 1
            name = f"{wish}_{count}"
        self.names.add(name)
        return name

    # --- clean up

    def finish(self) -> None:
        """Rename, take out what nobody reads any more because of the edits, put new constants in front."""
        frozen = self.constants.frozen
        _delete(self.graph.input, (i for i, v in enumerate(self.graph.input) if v.name in frozen))
        drop_nodes = self.dropped | self._unread_nodes()
        kept = [node for i, node in enumerate(self.graph.node) if i not in drop_nodes]
        self.renaming.apply([*kept, *self.inserted.values()])
        for i in sorted(drop_nodes | set(self.inserted), reverse=True):
            if i in drop_nodes:
                del self.graph.node[i]
            else:
                self.graph.node.insert(i, self.inserted[i])
        for node in reversed(self.constant_nodes):
            self.graph.node.insert(0, node)
        self._drop_tensors()

    def _unread_nodes(self) -> set[int]:
        """Nodes that computed constants for what was edited, and that nobody else reads."""
        producers = {out: i for i, node in enumerate(self.graph.node) for out in node.output if out}
        unread: set[int] = set()
        queue = [name for name in self.released if self.uses[name] == 0]
        while queue:
            name = queue.pop()
            i = producers.get(name)
            if i is None or i in unread or i in self.dropped:
                continue
            if any(out and self.uses[out] for out in self.graph.node[i].output):
                continue
            unread.add(i)
            for inner in self.graph.node[i].input:
                if inner:
                    self._release(inner)
                    if self.uses[inner] == 0:
                        queue.append(inner)
        return unread

    def _drop_tensors(self) -> None:
        dead = {name for name in self.released if self.uses[name] == 0}
        initial = dead & set(self.initializers)
        _delete(self.graph.initializer, (i for i, t in enumerate(self.graph.initializer) if t.name in initial))
        _delete(self.graph.input, (i for i, v in enumerate(self.graph.input) if v.name in initial))
        alive = set(count_uses(self.graph)) | {out for node in self.graph.node for out in node.output}
        alive |= {v.name for v in self.graph.input}
        touched = dead | self.renaming.vanished()
        _delete(
            self.graph.value_info,
            (i for i, v in enumerate(self.graph.value_info) if v.name in touched and v.name not in alive),
        )
        _delete(
            self.graph.quantization_annotation,
            (
                i
                for i, q in enumerate(self.graph.quantization_annotation)
                if q.tensor_name in touched and q.tensor_name not in alive
            ),
        )


def all_names(graph: GraphProto) -> set[str]:
    """Every name of a tensor in a graph and in the bodies in it."""
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    names = {value.name for value in values} | set(count_uses(graph))
    for node in graph.node:
        names.update(node.output)
        for body in nested_graphs(node):
            names |= all_names(body)
    return names


def _delete(repeated: Any, positions: Iterable[int]) -> None:
    for i in sorted(positions, reverse=True):
        del repeated[i]


def _rewrite(node: NodeProto, op_type: str, inputs: list[str]) -> None:
    """Another op under the same name, with the same first output."""
    node.op_type = op_type
    del node.input[:]
    node.input.extend(inputs)
    del node.output[1:]
    del node.attribute[:]


def _set_float(node: NodeProto, name: str, value: float) -> None:
    _set(node, name, float(value))


def _set(node: NodeProto, name: str, value: float) -> None:
    for i, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[i]
            break
    node.attribute.append(helper.make_attribute(name, value))


def _round(value: Array, dtype: np.dtype[Any]) -> Array:
    """To a dtype, in one rounding."""
    with np.errstate(over="ignore"):
        rounded: Array = value.astype(dtype)
        return rounded


def _ready(value: Array) -> Pending:
    return Pending(value.dtype, value.shape, lambda: value)


def _scaled(weight: Array, at: LinearBinding, edit: Rescale) -> Array:
    whole = tapped(weight.reshape(at.matrix or weight.shape), at.layout, edit, at.alpha)
    scaled = _round(scale_weight(whole, at.layout, edit).reshape(weight.shape), weight.dtype)
    _demand_finite(scaled, weight, edit.name)
    return scaled


def fill(tensor: TensorProto, value: Array, name: str) -> None:
    """Write an array into a tensor; its doc string and metadata stay."""
    fresh = numpy_helper.from_array(np.ascontiguousarray(value), name)
    for part in (
        "float_data",
        "int32_data",
        "string_data",
        "int64_data",
        "double_data",
        "uint64_data",
        "external_data",
    ):
        tensor.ClearField(part)
    tensor.ClearField("data_location")
    tensor.ClearField("dims")
    tensor.MergeFrom(fresh)


def _finite(array: Array) -> bool:
    """Whether all is finite."""
    return bool(np.isfinite(array).all())


def _demand_finite(new: Array, old: Array, name: str) -> None:
    """A fold must not overflow the dtype of a weight."""
    if not _finite(new) and _finite(old):
        raise PlanError(
            f"{name}: the folded weights exceed the range of {new.dtype.name}; "
            "leave the norm next to it alone (--skip NAME)"
        )
