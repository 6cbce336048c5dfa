"""Edits one graph of an ONNX model in place: constants that take the place of others, names, and what nobody reads.

The edits go into the protobuf itself and not through an export: so metadata, value_info, quantisation annotations, doc
strings and whatever a newer ONNX may add stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import PlanError
from ..read.constants import LARGE
from ..read.scope import Scope, count_uses
from ..store.skeleton import nested_graphs, sparse_names
from .names import Renaming

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pending:
    """A tensor still to be computed."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    compute: Callable[[], Array]
    source: str = ""
    """The tensor that it is computed from, which must keep its old values until then."""


class Editor:
    """Edits one graph; `around` edits the graph that a body stands in. `names`: those of the whole model."""

    def __init__(self, model: ModelProto, scope: Scope, names: set[str], around: Editor | None) -> None:
        self.model, self.graph, self.scope, self.around = model, scope.graph, scope, around
        self.constants = scope.constants
        self.uses = Counter(scope.uses)
        self.initializers = {t.name: i for i, t in enumerate(self.graph.initializer)}
        self.names = names
        fixed = {v.name for v in (*self.graph.input, *self.graph.output)} | set(scope.pinned) | set(self.initializers)
        self.renaming = Renaming(fixed | (set(self.uses) - scope.local))
        self.dropped: set[int] = set()
        self.refilled: set[str] = set()
        """Tensors that have new values under their old names."""
        self.released: set[str] = set()
        self.reshaped: set[str] = set()
        """Tensors that have another shape."""
        self.constant_nodes: list[NodeProto] = []
        self.inserted: dict[int, list[NodeProto]] = {}
        """New nodes by the position of the node that they come before."""
        self.pending: dict[str, Pending] = {}

    def let_go(self, index: int, drop: bool) -> None:
        """Let a node's constants go, and `drop` the node itself."""
        node = self.graph.node[index]
        for name in node.input:
            if name in self.constants:
                self.release(name)
        if drop:
            self.dropped.add(index)
            self.vanish(node.output)

    def vanish(self, names: Iterable[str]) -> None:
        """Note that nothing has these names any more."""
        for name in names:
            self.uses[name] = 0
            self.released.add(name)

    def value(self, name: str) -> Array:
        """The value of a constant, as it was before the edits."""
        return self.constants.value(name)

    def release_constants(self, node: NodeProto, data: int) -> None:
        """Note that a node reads its constants no more, all inputs but `data`."""
        for i, name in enumerate(node.input):
            if i != data and name:
                self.release(name)

    def release(self, name: str) -> None:
        """Note that a tensor has one reader less."""
        self.uses[name] -= 1
        self.released.add(name)
        if self.around is not None and name not in self.scope.local:
            self.around.release(name)

    def put(self, node: NodeProto, position: int, value: Pending, wish: str) -> None:
        """Let an input of a node be a new constant: in place where nobody else reads the old one."""
        old = node.input[position] if position < len(node.input) else ""
        if old in self.initializers and self.uses[old] == 1:
            tensor = self.graph.initializer[self.initializers[old]]
            if tuple(tensor.dims) == value.shape:
                self.refilled.add(old)
                self._store(tensor, value, old)
                return
        if old:
            self.release(old)
        while len(node.input) <= position:
            node.input.append("")
        node.input[position] = self.new(value, wish)

    def _store(self, tensor: TensorProto, value: Pending, name: str) -> None:
        """Put a value into a tensor now, or note that it is to be computed when it is written."""
        if prod(value.shape) <= LARGE or self.around is not None:
            fill(tensor, value.compute(), name)
        else:
            self.pending[name] = value

    def new(self, value: Pending, wish: str) -> str:
        """A new constant: an initializer, or before IR 4, where every initializer is a graph input, a Constant node."""
        name = self.free_name(wish)
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = TensorProto(name=name, data_type=dtype, dims=value.shape)
        self._store(tensor, value, name)
        if self.model.ir_version >= 4:
            self.graph.initializer.append(tensor)
        else:
            self.constant_nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def free_name(self, wish: str) -> str:
        """A tensor name that nobody has."""
        name, count = wish, 1
        while name in self.names:
            count += 1
            name = f"{wish}_{count}"
        self.names.add(name)
        return name

    # --- clean up

    def finish(self, moved: set[str]) -> None:
        """Rename, take out what nobody reads any more because of the edits, put new constants in front.

        `moved`: tensors, by their names in the neutral graph, whose annotations no longer hold.
        """
        frozen = self.constants.frozen
        _delete(self.graph.input, (i for i, v in enumerate(self.graph.input) if v.name in frozen))
        drop_nodes = self.dropped | self._unread_nodes()
        kept = [node for i, node in enumerate(self.graph.node) if i not in drop_nodes]
        self.renaming.apply([*kept, *(node for nodes in self.inserted.values() for node in nodes)])
        for i in sorted(drop_nodes | set(self.inserted), reverse=True):
            if i in drop_nodes:
                del self.graph.node[i]
            else:
                for node in reversed(self.inserted[i]):
                    self.graph.node.insert(i, node)
        for node in reversed(self.constant_nodes):
            self.graph.node.insert(0, node)
        self._drop_tensors()
        stale = self.refilled | {raw for raw, name in self.scope.alias.items() if name in moved}
        _delete(
            self.graph.quantization_annotation,
            (i for i, q in enumerate(self.graph.quantization_annotation) if q.tensor_name in stale),
        )

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
                    self.release(inner)
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
        gone = touched - alive
        _delete(
            self.graph.value_info,
            (i for i, v in enumerate(self.graph.value_info) if v.name in gone | self.reshaped),
        )
        _delete(
            self.graph.quantization_annotation,
            (i for i, q in enumerate(self.graph.quantization_annotation) if q.tensor_name in gone),
        )


def all_names(graph: GraphProto) -> set[str]:
    """Every name of a tensor in a graph and in the bodies in it."""
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    names = {value.name for value in values} | set(count_uses(graph)) | sparse_names(graph)
    for node in graph.node:
        names.update(node.output)
        for body in nested_graphs(node):
            names |= all_names(body)
    return names


def _delete(repeated: Any, positions: Iterable[int]) -> None:
    for i in sorted(positions, reverse=True):
        del repeated[i]


def rewrite(node: NodeProto, op_type: str, inputs: list[str]) -> None:
    """Another op under the same name, with the same first output."""
    node.op_type = op_type
    del node.input[:]
    node.input.extend(inputs)
    del node.output[1:]
    del node.attribute[:]


def set_float(node: NodeProto, name: str, value: float) -> None:
    """Another value for an attribute."""
    set_attribute(node, name, float(value))


def set_attribute(node: NodeProto, name: str, value: float) -> None:
    """Another value for an attribute, whole or real by the type of the value."""
    for i, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[i]
            break
    node.attribute.append(helper.make_attribute(name, value))


def rounded(value: Array, dtype: np.dtype[Any]) -> Array:
    """To a dtype, in one rounding."""
    with np.errstate(over="ignore"):
        result: Array = value.astype(dtype)
        return result


def ready(value: Array) -> Pending:
    """A tensor that is computed already."""
    return Pending(value.dtype, value.shape, lambda: value)


def fill(tensor: TensorProto, value: Array, name: str) -> None:
    """Write an array into a tensor; its doc string and metadata stay."""
    fresh = numpy_helper.from_array(np.asarray(value, order="C"), name)
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


def demand_finite(new: Array, old: Array, name: str) -> None:
    """A fold must not overflow the dtype of a weight."""
    if not _finite(new) and _finite(old):
        raise PlanError(
            f"{name}: the folded weights exceed the range of {new.dtype.name}; "
            "leave the norm next to it alone (--skip NAME)"
        )
