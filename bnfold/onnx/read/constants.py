"""Constants of an ONNX graph: initializers, Constant nodes, and what small constant subgraphs compute. All lazy.

Exporters hide weights behind ConstantOfShape, Cast, CastLike, Shape, Expand, Transpose, Identity and some arithmetic
(torch's dynamo exporter makes every bias that way). Whether a tensor is constant and which shape it has is known
without computing it; its value is computed when somebody asks. What cannot be computed here (sparse tensors, scales for
blocks of weights) is no constant: it stays as it is, and pins what reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import ModelError
from ..store.places import filled
from ..store.skeleton import constant_tensor, sparse_names
from .evaluators import EVALUATORS, evaluable

Array = npt.NDArray[Any]
LARGE = 4096
"""Constants of more elements are not kept once read, and not computed anew before they are written."""
MEMO = 1 << 24
"""Of computed constants of up to so many elements the last is kept: layers in a row share a mask."""
FLOATING = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
MOVES = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Cast", "CastLike"})


class Constants:
    """The constants of a model by tensor name. `folder` is where external data lie.

    `shapes` and `dtypes` (ONNX element types) are what is known of the tensors: Shape and CastLike read nothing else.
    `fresh`: what computes tensors of the model's graph whose values are still to be written.
    """

    def __init__(
        self,
        model: ModelProto,
        shapes: Mapping[str, tuple[int | str | None, ...] | None],
        folder: Path | None = None,
        freeze_inputs: bool = False,
        dtypes: Mapping[str, int] | None = None,
        fresh: Mapping[str, Callable[[], Array]] | None = None,
    ) -> None:
        self.fresh = fresh or {}
        self.opset = default_opset(model)
        self.ir_version = model.ir_version
        self.freeze_inputs = freeze_inputs
        self._fill(model.graph, shapes, folder, dtypes or {}, None)

    def inside(
        self, body: GraphProto, shapes: Mapping[str, tuple[int | str | None, ...] | None], dtypes: Mapping[str, int]
    ) -> Constants:
        """The constants that a body in this graph sees: its own, and those around it."""
        inner = copy(self)
        inner.fresh = {}
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
        # runtimes do not agree on what a name means that a body and a graph around it give to two tensors
        unclear = self.overridable | {name for name in named if outer is not None and outer._known(name)}
        self.tensors = {t.name: _as_read(t) for t in graph.initializer if t.name not in unclear}
        for node in graph.node:
            constant = constant_tensor(node)
            if constant is not None:
                self.tensors[node.output[0]] = _as_read(constant)
        self.frozen = named & inputs if modern and self.freeze_inputs else set()
        """Graph inputs with a default that are constants from now on."""
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.local = inputs | named | set(self.producers) | sparse_names(graph)
        self._constant: dict[str, bool] = {}
        self._cache: dict[str, Array] = {}
        self._last: dict[str, Array] = {}

    def _known(self, name: str) -> bool:
        """Whether a name is that of a tensor of this graph or of one around it."""
        return name in self.local or (self.outer is not None and self.outer._known(name))

    def _around(self, name: str) -> Constants | None:
        """The constants around a body, where the name is none of its own."""
        return self.outer if name not in self.local else None

    def may_be_overridden(self, name: str) -> bool:
        """Whether a tensor is a graph input with a default, which a caller may override."""
        around = self._around(name)
        return name in self.overridable if around is None else around.may_be_overridden(name)

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
        if node.op_type == "Shape":
            return self._shape_of(node) is not None
        if node.op_type == "CastLike":
            return node.input[0] in self and (node.input[1] in self or bool(self.dtypes.get(node.input[1])))
        return evaluable(node.op_type, attributes(node), self.opset) and all(i in self for i in node.input if i)

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
        return self.tensors.get(name)

    def chain(self, name: str) -> list[NodeProto]:
        """The nodes that move a constant about, back from its reader; last the one that made it, if any.

        They may stand in the graphs around this one.
        """
        around, node = self._around(name), self.producers.get(name)
        if around is not None:
            return around.chain(name)
        if node is None:
            return []
        return [node, *(self.chain(node.input[0]) if node.op_type in MOVES else [])]

    def producer(self, name: str) -> NodeProto | None:
        """The node that gives a tensor, of the standard's operators only."""
        around, node = self._around(name), self.producers.get(name)
        if around is not None:
            return around.producer(name)
        return node if node is not None and node.domain in ("", "ai.onnx") else None

    def position(self, node: NodeProto) -> int | None:
        """Where a node stands in its graph; None where it is not in this one."""
        return next((i for i, other in enumerate(self.graph.node) if other is node), None)

    def value(self, name: str) -> Array:
        """The value of a constant, in its own dtype. ModelError where its data cannot be read."""
        around = self._around(name)
        if around is not None:
            return around.value(name)
        if name in self._cache or name in self._last:
            return self._cache[name] if name in self._cache else self._last[name]
        tensor = self.tensor(name)
        if name in self.fresh:
            value: Array = self.fresh[name]()
        else:
            value = self._compute(name) if tensor is None else self._load(tensor)
        if value.size <= LARGE:
            self._cache[name] = value
        elif tensor is None and value.size <= MEMO:
            self._last = {name: value}
        return value

    def _load(self, tensor: TensorProto) -> Array:
        try:
            return numpy_helper.to_array(filled(tensor, self.folder))
        except ModelError:
            raise
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
            made = EVALUATORS[node.op_type](inputs, attributes(node) | {"outputs": len(node.output)}, self.opset)
            return made[list(node.output).index(name)] if isinstance(made, list) else np.asarray(made)
        except MemoryError:
            raise
        except Exception as error:
            wrong = ModelError(f"node {node.name or node.op_type!r}: constant {name!r} cannot be computed ({error})")
            wrong.local = True
            raise wrong from error

    def _shape_of(self, node: NodeProto) -> list[int] | None:
        """What a Shape node gives, or None where one of the sizes that it asks for is not known."""
        name, attrs = node.input[0], attributes(node)
        shape = self.shape(name) if name in self else self.shapes.get(name)
        asked = None if shape is None else shape[attrs.get("start", 0) : attrs.get("end")]
        sizes = [dim for dim in asked or () if isinstance(dim, int)]
        return sizes if asked is not None and len(sizes) == len(asked) else None

    def _dtype_of(self, name: str) -> np.dtype[Any]:
        return self.dtype(name) if name in self else np.dtype(helper.tensor_dtype_to_np_dtype(self.dtypes[name]))


def lists_weights(model: ModelProto) -> bool:
    """Whether a file lists all of its weights as graph inputs, as old exporters did: nobody feeds those.

    Weights are floating initializers that are no single numbers. Where some are listed and some are not, those that are
    were meant for callers.
    """
    inputs = {value.name for value in model.graph.input}
    weights = [t.name for t in model.graph.initializer if t.data_type in FLOATING and prod(t.dims) > 1]
    return bool(weights) and inputs.issuperset(weights)


def _as_read(tensor: TensorProto) -> TensorProto:
    """A tensor that still says where its external data lie when the model has been written with others."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    kept = TensorProto()
    kept.CopyFrom(tensor)
    return kept


def default_opset(model: ModelProto) -> int:
    """The version of the default operator set that a model imports; 1 when it says nothing."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
