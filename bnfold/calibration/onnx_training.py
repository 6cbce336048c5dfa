"""Batch norms of ONNX models as in training: each normalises with the mean and variance of its batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..judge.criteria.inputs import Array

WIDE = (TensorProto.FLOAT, TensorProto.DOUBLE)
"""Types in which a batch's statistics are computed: squares of half floats overflow."""


def training(model: ModelProto, norms: list[NodeProto], seen: Mapping[str, Array]) -> ModelProto:
    """A copy in which these norms take the statistics of the batch. `seen`: their inputs, of any batch.

    The mean and the variance (without m / (m - 1), as in training) become inputs that are computed: this needs no
    broadcasting, whose rules differ between opsets, and leaves gamma and beta as they are.
    """
    new = ModelProto()
    new.CopyFrom(model)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    outputs = {node.output[0] for node in norms}
    nodes: list[NodeProto] = []
    for node in new.graph.node:
        if node.output[0] in outputs:
            nodes += _statistics(node, seen[node.input[0]], _type(new, node.input[3]), opset)
            node.input[3:5] = [f"{node.output[0]}//mean", f"{node.output[0]}//var"]
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del new.graph.node[:]
    new.graph.node.extend(copies)
    return new


def _type(model: ModelProto, name: str) -> int:
    return next(int(t.data_type) for t in model.graph.initializer if t.name == name)


def _statistics(norm: NodeProto, x: Array, kind: int, opset: int) -> list[NodeProto]:
    """Nodes that compute the mean and the variance over all but channels, of type `kind`."""
    at = norm.output[0]
    wide = kind if kind in WIDE else TensorProto.FLOAT
    dtype = helper.tensor_dtype_to_np_dtype(wide)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    ones, zeros = np.ones(x.shape[1], dtype), np.zeros(x.shape[1], dtype)
    nodes = [_constant(f"{at}//ones", ones), _constant(f"{at}//zeros", zeros)]

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, [f"{at}//{i}" for i in inputs], [f"{at}//{name}"], **attributes))
        return name

    def mean_of(inner: str, name: str) -> str:
        if opset < 18:
            return node("ReduceMean", [inner], name, axes=axes, keepdims=0)
        if inner == "wide":
            nodes.append(_constant(f"{at}//axes", np.asarray(axes, np.int64)))
        return node("ReduceMean", [inner, "axes"], name, keepdims=0)

    to: Any = TensorProto.DataType.Name(wide) if opset < 6 else wide
    nodes.append(helper.make_node("Cast", [norm.input[0]], [f"{at}//wide"], to=to))
    mean = mean_of("wide", "wide mean")
    more: dict[str, Any] = {"is_test": 1} if opset < 7 else {}
    if opset < 6:
        more["consumed_inputs"] = [0, 0, 0, 1, 1]
    centred = node("BatchNormalization", ["wide", "ones", "zeros", mean, "ones"], "centred", epsilon=0.0, **more)
    squares = node("Mul", [centred, centred], "squares")
    var = mean_of(squares, "wide var")
    to = TensorProto.DataType.Name(kind) if opset < 6 else kind
    node("Cast", [mean], "mean", to=to)
    node("Cast", [var], "var", to=to)
    return nodes


def _constant(name: str, value: Array) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))
