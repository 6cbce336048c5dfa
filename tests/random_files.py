"""Random graphs as the files that users bring: types, opsets, storages of weights, bodies, local functions, names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests.random_graphs import RandomGraph

Array = npt.NDArray[Any]
DOUBLE = TensorProto.DOUBLE


class RandomFile:
    """A random graph in a random dress; the same numbers in float64 and in every other type.

    `model(dtype)` builds it, `save` writes it, with external data now and then. `traits` says what was chosen.
    """

    def __init__(self, seed: int, ops: int = 10) -> None:
        self.graph = RandomGraph(seed, ops)
        self.rng = np.random.default_rng([seed, 1])
        self.shape = self.graph.input_shape
        self.opset = int(self.rng.integers(13, 23))
        self.form = str(self.rng.choice(["plain", "if", "loop", "function"], p=[0.55, 0.2, 0.1, 0.15]))
        self.names = str(self.rng.choice(["unique", "none", "twice"], p=[0.7, 0.15, 0.15]))
        self.ir = 3 if self.form == "plain" and self.rng.random() < 0.15 else 8
        self.external = bool(self.ir > 3 and self.rng.random() < 0.15)
        self.traits = (self.form, self.names, f"opset {self.opset}", f"ir {self.ir}", f"external {self.external}")
        for name, value in self.graph.weights.items():
            if value.dtype == np.float64:  # what every type can hold
                self.graph.weights[name] = value.astype(np.float16).astype(np.float64)
        self.nodes: list[NodeProto] = [self._modern(node) for node in self.graph.nodes]
        self.made = self._wrapped()

    # --- the pieces

    def _modern(self, node: NodeProto) -> NodeProto:
        """Axes as an input from opset 18 on."""
        for i, attribute in enumerate(node.attribute):
            if node.op_type.startswith("Reduce") and attribute.name == "axes" and self.opset >= 18:
                node.input.append(self.graph.constant(list(attribute.ints), np.int64))
                del node.attribute[i]
                break
        return node

    def _stored(self, weights: dict[str, Array]) -> tuple[list[NodeProto], list[TensorProto]]:
        """Weights as initializers, Constant nodes, or behind nodes that move or compute them."""
        nodes: list[NodeProto] = []
        tensors: list[TensorProto] = []
        for name, value in weights.items():
            kind = str(self.rng.choice(["plain", "typed", "node", "moved", "quantized"], p=[0.5, 0.1, 0.15, 0.2, 0.05]))
            if kind == "node":
                nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name)))
            elif kind == "moved" and value.ndim and value.size:
                nodes += self._moved(name, value, tensors)
            elif kind == "quantized" and value.dtype == np.float64 and value.ndim >= 2 and value.size:
                nodes += self._quantized(name, value, tensors)
            elif kind == "typed":
                tensors.append(helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape,
                                                  value.ravel().tolist()))  # fmt: skip
            else:
                tensors.append(numpy_helper.from_array(value, name))
        return nodes, tensors

    def _moved(self, name: str, value: Array, tensors: list[TensorProto]) -> list[NodeProto]:
        """Behind Identity, Transpose, Reshape, Unsqueeze and Squeeze, or a Cast."""
        raw = f"{name}_raw"
        kind = str(self.rng.choice(["Identity", "Transpose", "Reshape", "Unsqueeze", "Cast"]))
        if kind == "Cast" and value.dtype == np.float64:
            tensors.append(numpy_helper.from_array(value.astype(np.float16), raw))
            return [helper.make_node("Cast", [raw], [name], to=DOUBLE)]
        if kind == "Transpose":
            perm = self.rng.permutation(value.ndim)
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(value.transpose(np.argsort(perm))), raw))
            return [helper.make_node("Transpose", [raw], [name], perm=perm.tolist())]
        if kind == "Reshape":
            tensors += [numpy_helper.from_array(value.ravel(), raw),
                        numpy_helper.from_array(np.array(value.shape, np.int64), f"{name}_shape")]  # fmt: skip
            return [helper.make_node("Reshape", [raw, f"{name}_shape"], [name])]
        if kind == "Unsqueeze" and value.shape[0] == 1:
            tensors += [numpy_helper.from_array(value[0], raw),
                        numpy_helper.from_array(np.array([0], np.int64), f"{name}_axes")]  # fmt: skip
            return [helper.make_node("Unsqueeze", [raw, f"{name}_axes"], [name])]
        tensors.append(numpy_helper.from_array(value, raw))
        return [helper.make_node("Identity", [raw], [name])]

    def _quantized(self, name: str, value: Array, tensors: list[TensorProto]) -> list[NodeProto]:
        """Other numbers, int8 behind a DequantizeLinear (whose result is float32, so a Cast follows)."""
        scale = np.float32(max(np.abs(value).max(), 0.1) / 127)
        whole = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
        tensors += [numpy_helper.from_array(whole, f"{name}_int8"),
                    numpy_helper.from_array(np.array(scale), f"{name}_scale")]  # fmt: skip
        dequantize = helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [f"{name}_f32"])
        return [dequantize, helper.make_node("Cast", [f"{name}_f32"], [name], to=DOUBLE)]

    # --- the whole

    def _wrapped(self) -> ModelProto:
        make = {"plain": self._plain, "if": self._if, "loop": self._loop, "function": self._function}
        graph, functions = make[self.form]()
        domains = [helper.make_opsetid("", self.opset)] + ([helper.make_opsetid("local", 1)] if functions else [])
        model = helper.make_model(graph, opset_imports=domains, ir_version=self.ir, functions=functions)
        for i, node in enumerate(_nodes(model.graph)):
            node.name = {"unique": node.name or f"n{i}", "none": "", "twice": f"n{i // 2}"}[self.names]
        if self.ir == 3:
            model.graph.input.extend(_infos(model.graph.initializer))
        return model

    def _plain(self) -> tuple[GraphProto, list[onnx.FunctionProto]]:
        nodes, tensors = self._stored(self.graph.weights)
        outputs = [info(name, shape) for name, shape in self.graph.outputs]
        return helper.make_graph([*nodes, *self.nodes], "g", [info("x", self.shape)], outputs, tensors), []

    def _if(self) -> tuple[GraphProto, list[onnx.FunctionProto]]:
        """Two branches of the same structure with other weights; some of them lie in the main graph."""
        outer: dict[str, Array] = {}
        branches = []
        for side in ("then", "else"):
            flipped = {k: np.flip(v, 0).copy() if v.ndim and v.dtype == np.float64 and side == "else" else v
                       for k, v in self.graph.weights.items()}  # fmt: skip
            renames = {k: f"{side}_{k}" for k in flipped if self.rng.random() < 0.5}
            outer.update({new: flipped[old] for old, new in renames.items()})
            nodes, tensors = self._stored({k: v for k, v in flipped.items() if k not in renames})
            copies = [_renamed(node, renames) for node in self.nodes]
            outputs = [info(name, shape) for name, shape in self.graph.outputs]
            branches.append(helper.make_graph([*nodes, *copies], side, [], outputs, tensors))
        nodes, tensors = self._stored(outer)
        zero = numpy_helper.from_array(np.zeros(()), "zero")
        flag = [helper.make_node("ReduceMean", ["x"], ["middle"], keepdims=0),
                helper.make_node("Greater", ["middle", "zero"], ["flag"])]  # fmt: skip
        names = [f"out{i}" for i in range(len(self.graph.outputs))]
        choice = helper.make_node("If", ["flag"], names, then_branch=branches[0], else_branch=branches[1])
        outputs = [info(name, shape) for name, (_, shape) in zip(names, self.graph.outputs, strict=True)]
        graph = helper.make_graph([*nodes, *flag, choice], "g", [info("x", self.shape)], outputs, [*tensors, zero])
        return graph, []

    def _loop(self) -> tuple[GraphProto, list[onnx.FunctionProto]]:
        """Twice the same; the outputs are stacked."""
        nodes, tensors = self._stored(self.graph.weights)
        still = helper.make_node("Identity", ["going"], ["still"])
        inputs = [info("i", (), TensorProto.INT64), info("going", (), TensorProto.BOOL)]
        outputs = [info("still", (), TensorProto.BOOL), *(info(name, shape) for name, shape in self.graph.outputs)]
        body = helper.make_graph([*nodes, *self.nodes, still], "body", inputs, outputs, tensors)
        names = [f"out{i}" for i in range(len(self.graph.outputs))]
        node = helper.make_node("Loop", ["count", ""], names, body=body)
        count = numpy_helper.from_array(np.array(2, np.int64), "count")
        stacked = [info(name, (2, *shape)) for name, (_, shape) in zip(names, self.graph.outputs, strict=True)]
        # without a condition the body still gets one
        node.input[1] = "yes"
        yes = numpy_helper.from_array(np.array(True), "yes")
        return helper.make_graph([node], "g", [info("x", self.shape)], stacked, [count, yes]), []

    def _function(self) -> tuple[GraphProto, list[onnx.FunctionProto]]:
        nodes, tensors = self._stored(self.graph.weights)
        inputs = ["x", *self.graph.weights]
        function = helper.make_function(
            "local", "Net", inputs, [name for name, _ in self.graph.outputs], self.nodes,
            [helper.make_opsetid("", self.opset)],
        )  # fmt: skip
        names = [f"out{i}" for i in range(len(self.graph.outputs))]
        call = helper.make_node("Net", inputs, names, domain="local")
        outputs = [info(name, shape) for name, (_, shape) in zip(names, self.graph.outputs, strict=True)]
        return helper.make_graph([*nodes, call], "g", [info("x", self.shape)], outputs, tensors), [function]

    def model(self, dtype: int = DOUBLE) -> ModelProto:
        """The model in another type."""
        model = ModelProto()
        model.CopyFrom(self.made)
        for function in model.functions:
            for node in function.node:
                _retype_node(node, dtype)
        if self.names == "twice" and dtype != DOUBLE:  # onnxruntime refuses such files
            for i, node in enumerate(_nodes(model.graph)):
                node.name = f"n{i}"
        _retype(model.graph, dtype)
        return model

    def save(self, path: Path, dtype: int = DOUBLE) -> ModelProto:
        """Write it; the model as it was before its weights went into another file."""
        model = self.model(dtype)
        copy = ModelProto()
        copy.CopyFrom(model)
        if self.external:
            _inline_integers(copy.graph)
            onnx.save(copy, path, save_as_external_data=True, location=f"{path.name}.bin", size_threshold=16)
        else:
            onnx.save(copy, path)
        return model


def _inline_integers(graph: GraphProto) -> None:
    """Typed data for what shapes come from, and for no data, which keeps it in the file.

    onnxruntime infers no shapes from another file, and reads no tensor of no bytes there.
    """
    for tensor in graph.initializer:
        scales = tensor.data_type == TensorProto.FLOAT and list(tensor.dims) == [4]
        if tensor.data_type == TensorProto.INT64 or scales or 0 in tensor.dims:
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, value.shape, value.ravel().tolist()))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _inline_integers(attribute.g)


def info(name: str, shape: tuple[int | str, ...], dtype: int = DOUBLE) -> ValueInfoProto:
    """A typed name."""
    return helper.make_tensor_value_info(name, dtype, shape)


def _infos(tensors: Any) -> Iterator[ValueInfoProto]:
    for tensor in tensors:
        yield helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    return copy


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _retype(graph: GraphProto, dtype: int) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == DOUBLE:
            value.type.tensor_type.elem_type = dtype
    for tensor in graph.initializer:
        _retype_tensor(tensor, dtype)
    for node in graph.node:
        _retype_node(node, dtype)


def _retype_node(node: NodeProto, dtype: int) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            _retype(attribute.g, dtype)
        elif attribute.type == onnx.AttributeProto.TENSOR:
            _retype_tensor(attribute.t, dtype)
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == DOUBLE:
            attribute.i = dtype


def _retype_tensor(tensor: TensorProto, dtype: int) -> None:
    if tensor.data_type == DOUBLE:
        value = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(dtype))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
