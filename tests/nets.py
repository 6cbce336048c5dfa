"""Small ONNX models for tests, put together node by node, with batch norms that change every number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Dims = tuple[int | str | None, ...]


class Net:
    """Collects nodes and weights; each method returns the name of the tensor that it makes.

    A node NAME has the output NAME_out and the weights NAME_weight, NAME_bias, NAME_gamma and so on. All numbers come
    from `seed`, and are of type `dtype` unless a method is told otherwise.
    """

    def __init__(self, seed: int = 0, dtype: npt.DTypeLike = np.float32, opset: int = 17, ir: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.opset, self.ir = opset, ir
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.domains: dict[str, int] = {}

    # --- tensors

    def input(self, name: str = "x", shape: Dims = ("N", 3, 8, 8), dtype: npt.DTypeLike | None = None) -> str:
        self.inputs.append(self._value(name, shape, dtype))
        return name

    def output(self, name: str, shape: Dims = ("N", None, None, None), dtype: npt.DTypeLike | None = None) -> str:
        self.outputs.append(self._value(name, shape, dtype))
        return name

    def _value(self, name: str, shape: Dims, dtype: npt.DTypeLike | None) -> onnx.ValueInfoProto:
        element = helper.np_dtype_to_tensor_dtype(self.dtype if dtype is None else np.dtype(dtype))
        return helper.make_tensor_value_info(name, element, shape)

    def weight(self, name: str, value: npt.ArrayLike) -> str:
        """An initializer: floats in the type of the net, integers as int64."""
        array = np.asarray(value)
        self.weights[name] = array.astype(np.int64 if array.dtype.kind in "iu" else self.dtype)
        return name

    def filter(self, name: str, *shape: int) -> str:
        """Normal numbers, scaled so that a layer keeps the magnitude of its input; shape (out, in, *kernel)."""
        return self.weight(name, self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1))

    # --- layers

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node with one output; `domain` and `doc_string` are understood as by onnx.helper.make_node."""
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        name: str,
        k: int = 3,
        pad: int = 0,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        """A square convolution from channels[0] to channels[1] channels."""
        inputs = [x, self.filter(f"{name}_weight", channels[1], channels[0], k, k)]
        if bias:
            inputs.append(self.weight(f"{name}_bias", self.rng.normal(0.2, 0.5, channels[1])))
        return self.node("Conv", inputs, name, kernel_shape=[k, k], pads=[pad] * 4, **attributes)

    def bn(self, x: str, channels: int, name: str, gamma: str = "positive", **attributes: Any) -> str:
        """A batch norm with means off 0, variances off 1; `gamma`: "positive", "both" (signs) or "zeros" (some)."""
        scale = self.rng.uniform(0.5, 1.8, channels)
        if gamma == "both":
            scale *= np.where(np.arange(channels) % 2, -1.0, 1.0)
        if gamma == "zeros":
            scale[::3] = 0.0
        values = {
            "gamma": scale,
            "beta": self.rng.normal(0.2, 0.6, channels),
            "mean": self.rng.normal(0.3, 0.5, channels),
            "var": self.rng.uniform(0.3, 3.0, channels),
        }
        inputs = [x, *(self.weight(f"{name}_{part}", value) for part, value in values.items())]
        return self.node("BatchNormalization", inputs, name, **attributes)

    def relu(self, x: str, name: str) -> str:
        return self.node("Relu", [x], name)

    # --- the whole

    def graph(self) -> onnx.GraphProto:
        tensors = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        return helper.make_graph(self.nodes, "net", self.inputs, self.outputs, tensors)

    def model(self) -> ModelProto:
        """Not checked: tests need broken models as well."""
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, v) for d, v in self.domains.items())]
        return helper.make_model(self.graph(), opset_imports=opsets, ir_version=self.ir)

    def save(self, path: Path) -> Path:
        path.write_bytes(self.model().SerializeToString())
        return path


def conv_bn(seed: int = 0, dtype: npt.DTypeLike = np.float32, opset: int = 17, ir: int = 8) -> Net:
    """Conv, BN, Relu, Conv, BN: both norms fold."""
    net = Net(seed, dtype, opset, ir)
    x = net.input("x", ("N", 3, 8, 8))
    x = net.relu(net.bn(net.conv(x, (3, 6), "conv1", pad=1), 6, "bn1"), "relu1")
    net.output(net.bn(net.conv(x, (6, 4), "conv2", bias=False), 4, "bn2", gamma="both"), ("N", 4, 6, 6))
    return net


def input_bn(seed: int = 0) -> Net:
    """A BN between the graph's input and its output, which nothing can take up."""
    net = Net(seed)
    net.output(net.bn(net.input("x", ("N", 3, 8, 8)), 3, "bn1"), ("N", 3, 8, 8))
    return net


def initializer(model: ModelProto, name: str) -> Array:
    """The value of an initializer."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def op_types(model: ModelProto) -> list[str]:
    """The types of the nodes in their order."""
    return [node.op_type for node in model.graph.node]


def node_named(model: ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def elem_type(dtype: npt.DTypeLike) -> int:
    """ONNX's number of a numpy type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


FLOAT = TensorProto.FLOAT
