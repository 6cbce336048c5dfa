"""The bookkeeping under the layers: tensors, weights, batch-norm statistics, the finished model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from .moments import Array, Moments, aim

Signs = Literal["positive", "both"]
IR_VERSION = 8


class GraphBuilder:
    """Collects nodes and weights; knows for each tensor its shape without the batch axis and its moments."""

    def __init__(
        self,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int = 0,
        signs: Signs = "positive",
        zero_gamma: float = 0.0,
        opset: int = 17,
        eps: float = 1e-5,
    ) -> None:
        if opset < 14:
            raise ValueError(f"opset {opset}: the zoo writes opset 14 and later")
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.signs, self.zero_gamma, self.opset, self.eps = signs, zero_gamma, opset, eps
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.moments: dict[str, Moments] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._counts: Counter[str] = Counter()

    def input(self, shape: Sequence[int], name: str = "input") -> str:
        """Declare a graph input of shape (N, *shape) that is standard normal."""
        self._inputs.append(self._value_info(name, shape))
        self.shapes[name], self.moments[name] = tuple(shape), Moments.standard(shape[0])
        return name

    def channels(self, x: str) -> int:
        """Return the size of axis 1."""
        return self.shapes[x][0]

    def spatial(self, x: str) -> tuple[int, ...]:
        """Return the sizes of the axes after the channel axis."""
        return self.shapes[x][1:]

    def fresh(self, stem: str) -> str:
        """Return a new node name such as `conv_3`."""
        self._counts[stem] += 1
        return f"{stem}_{self._counts[stem]}"

    def weight(self, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """Store an initializer as raw data, in the model's own dtype unless another is named."""
        array = np.ascontiguousarray(np.asarray(values), dtype=self.dtype if dtype is None else np.dtype(dtype))
        self._weights.append(numpy_helper.from_array(array.reshape(np.shape(values)), name))
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """Store an int64 initializer: a shape, axes, split sizes."""
        return self.weight(name, list(values), np.int64)

    def scalar(self, value: float) -> str:
        """Write a scalar as a Constant node, as exporters do inside decomposed functions."""
        name = self.fresh("constant")
        tensor = numpy_helper.from_array(np.asarray(value, dtype=self.dtype), name)
        self._nodes.append(helper.make_node("Constant", [], [f"{name}.out"], name=name, value=tensor))
        return f"{name}.out"

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        results: Sequence[tuple[Sequence[int], Moments]],
        *,
        name: str | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Append a node with one output per (shape, moments) and return their names."""
        name = name or self.fresh(op.lower())
        outputs = [f"{name}.out"] if len(results) == 1 else [f"{name}.out{i}" for i in range(len(results))]
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        for output, (shape, moments) in zip(outputs, results, strict=True):
            self.shapes[output], self.moments[output] = tuple(shape), moments
        return outputs

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        shape: Sequence[int],
        moments: Moments,
        *,
        name: str | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node with a single output and return its name."""
        return self.emit(op, inputs, [(shape, moments)], name=name, **attributes)[0]

    def random_weight(self, x: str, out: int, taps: int = 1, groups: int = 1) -> tuple[Array, Moments]:
        """Draw weights (out, in / groups, taps) for x and say what they give: order one, nowhere centred."""
        raw = self.rng.normal(0.0, 1.0, (out, self.channels(x) // groups, taps))
        target = Moments(self.rng.normal(0.0, 0.3, out), self.log_uniform(0.3, 3.0, out))
        return aim(raw, self.moments[x], target)

    def random_bias(self, size: int) -> Array:
        """Draw a small bias."""
        return self.rng.normal(0.0, 0.2, size)

    def log_uniform(self, low: float, high: float, size: int) -> Array:
        """Draw numbers whose logarithm is uniform between the two limits."""
        return np.asarray(np.exp(self.rng.uniform(np.log(low), np.log(high), size)))

    def random_gamma(self, size: int) -> Array:
        """Draw BN scales, a third of them negative if signs are "both", then some exactly zero if asked for."""
        gamma = self.log_uniform(0.4, 2.0, size)
        if self.signs == "both":
            gamma[self.rng.permutation(size)[: max(1, size // 3)]] *= -1.0
        gamma[self.rng.permutation(size)[: round(self.zero_gamma * size)]] = 0.0
        return gamma

    def finish(self, outputs: str | Sequence[str], name: str = "net") -> onnx.ModelProto:
        """Close the graph over the given outputs."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        results = [self._value_info(output, self.shapes[output]) for output in names]
        graph = helper.make_graph(self._nodes, name, self._inputs, results, self._weights)
        return helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", self.opset)],
            producer_name="bnfold-zoo",
        )

    def _value_info(self, name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
        element = TensorProto.DOUBLE if self.dtype == np.float64 else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, element, ["N", *shape])
