"""Constants of an ONNX graph: initializers, Constant nodes, and what small constant subgraphs compute. All lazy.

Exporters hide weights behind ConstantOfShape, Cast, CastLike, Shape, Expand, Transpose, Identity and some arithmetic
(torch's dynamo exporter makes every bias that way). Whether a tensor is constant and which shape it has is known
without computing it; its value is computed when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import ModelError
from .skeleton import constant_tensor

Array = npt.NDArray[Any]
LARGE = 4096
"""Constants of more elements are not kept once read, and not computed anew before they are written."""
Attributes = Mapping[str, Any]
MOVES = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Cast", "CastLike"})


class Constants:
    """The constants of a model by tensor name. `folder` is where external data lie.

    `shapes` and `dtypes` (ONNX element types) are what is known of the tensors: Shape and CastLike read nothing else.
    """

    def __init__(
        self,
        model: ModelProto,
        shapes: Mapping[str, tuple[int | str | None, ...] | None],
        folder: Path | None = None,
        freeze_inputs: bool = False,
        dtypes: Mapping[str, int] | None = None,
    ) -> None:
        self.opset = default_opset(model)
        self.ir_version = model.ir_version
        self.freeze_inputs = freeze_inputs
        self._fill(model.graph, shapes, folder, dtypes or {}, None)

    def inside(
        self, body: GraphProto, shapes: Mapping[str, tuple[int | str | None, ...] | None], dtypes: Mapping[str, int]
    ) -> Constants:
        """The constants that a body in this graph sees: its own, and those around it."""
        inner = copy(self)
        inner._fill(body, shapes, self.folder, dtypes, self)
        return inner

    def _fill(
        self,
        graph: GraphProto,
        shapes: Mapping[str, tuple[int | str | None, ...] | None],
        folder: Path | None,
        dtypes: Mapping[str, int],
        outer: Constants | None,
    ) -> None:
        self.outer, self.shapes, self.folder, self.dtypes = outer, shapes, folder, dtypes
        self.graph = graph
        inputs = {value.name for value in graph.input}
        named = {t.name for t in graph.initializer}
        modern = self.ir_version >= 4
        self.overridable = named & inputs if modern and not self.freeze_inputs else set()
        self.tensors = {t.name: t for t in graph.initializer if t.name not in self.overridable}
        self.frozen = named & inputs if modern and self.freeze_inputs else set()
        """Graph inputs with a default that are constants from now on."""
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.local = inputs | named | set(self.producers)
        self._constant: dict[str, bool] = {}
        self._cache: dict[str, Array] = {}

    def _around(self, name: str) -> Constants | None:
        """The constants around a body, where the name is none of its own."""
        return self.outer if name not in self.local else None

    def __contains__(self, name: object) -> bool:
        """Whether a tensor is constant."""
        if not isinstance(name, str) or not name:
            return False
        if name not in self._constant:
            self._constant[name] = self._decide(name)
        return self._constant[name]

    def _decide(self, name: str) -> bool:
        around = self._around(name)
        if around is not None:
            return name in around
        if name in self.tensors:
            return True
        node = self.producers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "Constant":
            return True
        if node.op_type == "Shape":
            return self._shape_of(node) is not None
        if node.op_type == "CastLike":
            return node.input[0] in self and (node.input[1] in self or bool(self.dtypes.get(node.input[1])))
        if node.op_type not in EVALUATORS:
            return False
        return all(i in self for i in node.input if i)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant; computed only where nothing says it."""
        around, tensor = self._around(name), self.tensor(name)
        if around is not None:
            return around.shape(name)
        if tensor is not None:
            return tuple(tensor.dims)
        known = self.shapes.get(name)
        if known is not None and all(isinstance(dim, int) for dim in known):
            return tuple(dim for dim in known if isinstance(dim, int))
        return self.value(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The element type of a constant; computed only where it is not stored."""
        around, tensor = self._around(name), self.tensor(name)
        if around is not None:
            return around.dtype(name)
        if tensor is not None:
            return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        return self.value(name).dtype

    def tensor(self, name: str) -> TensorProto | None:
        """The stored tensor behind a name, of an initializer or of a Constant node."""
        around = self._around(name)
        if around is not None:
            return around.tensor(name)
        if name in self.tensors:
            stored: TensorProto = self.tensors[name]
            return stored
        node = self.producers.get(name)
        return None if node is None else constant_tensor(node)

    def chain(self, name: str) -> list[NodeProto]:
        """The nodes that move a constant about, back from its reader; last the one that made it, if any."""
        found: list[NodeProto] = []
        while (node := self.producers.get(name)) is not None:
            found.append(node)
            if node.op_type not in MOVES:
                break
            name = node.input[0]
        return found

    def position(self, node: NodeProto) -> int | None:
        """Where a node stands in its graph; None where it is not in this one."""
        return next((i for i, other in enumerate(self.graph.node) if other is node), None)

    def value(self, name: str) -> Array:
        """The value of a constant, in its own dtype. ModelError where its data cannot be read."""
        around = self._around(name)
        if around is not None:
            return around.value(name)
        if name in self._cache:
            return self._cache[name]
        tensor = self.tensor(name)
        value = self._compute(name) if tensor is None else self._load(tensor)
        if value.size <= LARGE:
            self._cache[name] = value
        return value

    def _load(self, tensor: TensorProto) -> Array:
        try:
            return numpy_helper.to_array(tensor, str(self.folder) if self.folder else "")
        except Exception as error:  # onnx raises many kinds here, each for damaged data
            raise ModelError(f"tensor {tensor.name!r}: its data cannot be read ({error})") from error

    def _compute(self, name: str) -> Array:
        with np.errstate(all="ignore"):  # what is not finite is found by those who use it
            return self._evaluate(self.producers[name], name)

    def _evaluate(self, node: NodeProto, name: str) -> Array:
        if node.op_type == "Shape":
            return np.array(self._shape_of(node), np.int64)
        if node.op_type == "CastLike":
            return self.value(node.input[0]).astype(self._dtype_of(node.input[1]))
        inputs = [self.value(i) if i else None for i in node.input]
        try:
            return np.asarray(EVALUATORS[node.op_type](inputs, attributes(node), self.opset))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ModelError(
                f"node {node.name or node.op_type!r}: constant {name!r} cannot be computed ({error})"
            ) from error

    def _shape_of(self, node: NodeProto) -> list[int] | None:
        """What a Shape node gives, or None where one of the sizes that it asks for is not known."""
        name, attrs = node.input[0], attributes(node)
        shape = self.shape(name) if name in self else self.shapes.get(name)
        asked = None if shape is None else shape[attrs.get("start", 0) : attrs.get("end")]
        sizes = [dim for dim in asked or () if isinstance(dim, int)]
        return sizes if asked is not None and len(sizes) == len(asked) else None

    def _dtype_of(self, name: str) -> np.dtype[Any]:
        return self.dtype(name) if name in self else np.dtype(helper.tensor_dtype_to_np_dtype(self.dtypes[name]))


def default_opset(model: ModelProto) -> int:
    """The version of the default operator set that a model imports; 1 when it says nothing."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


Inputs = Sequence[Any]


def _constant(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    for key, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if key in attrs:
            return np.array(attrs[key], dtype)
    raise ValueError("no numeric value")


def _constant_of_shape(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    value = numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, np.float32)
    return np.full(tuple(inputs[0]), value.item() if value.dtype.kind in "fiub" else value.reshape(()), value.dtype)


def _cast(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    return np.asarray(inputs[0]).astype(helper.tensor_dtype_to_np_dtype(attrs["to"]))


def _axes(inputs: Inputs, attrs: Attributes) -> tuple[int, ...] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(int(a) for a in inputs[1])
    return tuple(attrs["axes"]) if "axes" in attrs else None


def _reshape(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    data = np.asarray(inputs[0])
    target = [int(d) for d in (inputs[1] if len(inputs) > 1 else attrs["shape"])]
    if not attrs.get("allowzero", 0):
        target = [data.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return data.reshape(target)


def _slice(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    data = np.asarray(inputs[0])
    starts, ends = (inputs[1], inputs[2]) if len(inputs) > 2 else (attrs["starts"], attrs["ends"])
    axes = inputs[3] if len(inputs) > 3 and inputs[3] is not None else attrs.get("axes", range(len(starts)))
    steps = inputs[4] if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[int(axis)] = axis_slice(int(start), int(end), int(step))
    return data[tuple(cut)]


def axis_slice(start: int, end: int, step: int) -> slice:
    """ONNX Slice on one axis as a Python slice: an end before the front of the axis means "through to the front"."""
    return slice(start, None if step < 0 and end < -(2**30) else end, step)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Inputs, Attributes, int], Array]:
    def evaluate(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
        a, b = inputs
        if opset < 7 and "axis" in attrs and np.ndim(b) < np.ndim(a):
            b = np.reshape(b, np.shape(b) + (1,) * (np.ndim(a) - attrs["axis"] - np.ndim(b)))
        return np.asarray(function(a, b)).astype(np.asarray(a).dtype)

    return evaluate


def _unary(function: Callable[[Any], Any]) -> Callable[[Inputs, Attributes, int], Array]:
    return lambda inputs, attrs, opset: np.asarray(function(inputs[0])).astype(np.asarray(inputs[0]).dtype)


def _divide(a: Array, b: Array) -> Array:
    """Division as ONNX has it: integers towards zero."""
    if np.asarray(a).dtype.kind in "iu":
        return np.asarray(np.trunc(np.divide(a, b)))
    return np.asarray(np.divide(a, b))


def _dequantize(inputs: Inputs, attrs: Attributes, opset: int) -> Array:
    """`(x - zero point) * scale`, in the type of the scale."""
    x, scale = np.asarray(inputs[0]), np.asarray(inputs[1])
    if attrs.get("block_size", 0):
        raise ValueError("scales for blocks of weights")
    zero = np.asarray(inputs[2] if len(inputs) > 2 and inputs[2] is not None else 0)
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[attrs.get("axis", 1)] = scale.size
    offset = zero.reshape(shape if zero.size > 1 else -1) if zero.ndim else zero
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    value = (x.astype(wide) - offset.astype(wide)) * scale.reshape(shape).astype(wide)
    return np.asarray(value.reshape(x.shape)).astype(scale.dtype)


EVALUATORS: dict[str, Callable[[Inputs, Attributes, int], Array]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "Identity": lambda i, a, o: np.asarray(i[0]),
    "Expand": lambda i, a, o: np.broadcast_to(i[0], np.broadcast_shapes(np.shape(i[0]), tuple(int(d) for d in i[1]))),
    "Transpose": lambda i, a, o: np.transpose(i[0], a.get("perm")),
    "Reshape": _reshape,
    "Flatten": lambda i, a, o: np.reshape(i[0], (int(np.prod(np.shape(i[0])[: a.get("axis", 1)])), -1)),
    "Unsqueeze": lambda i, a, o: np.expand_dims(i[0], _axes(i, a) or ()),
    "Squeeze": lambda i, a, o: np.squeeze(i[0], _axes(i, a)),
    "Concat": lambda i, a, o: np.concatenate(list(i), a["axis"]),
    "Gather": lambda i, a, o: np.take(i[0], np.asarray(i[1]), a.get("axis", 0)),
    "Slice": _slice,
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Pow": _binary(np.power),
    "Max": lambda i, a, o: np.asarray(reduce(np.maximum, i)),
    "Min": lambda i, a, o: np.asarray(reduce(np.minimum, i)),
    "Sum": lambda i, a, o: np.asarray(reduce(np.add, i)),
    "Tile": lambda i, a, o: np.tile(i[0], tuple(int(n) for n in i[1])),
    "Abs": _unary(np.abs),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Neg": _unary(np.negative),
}
