"""Small networks whose folds are sound: few output numbers, several types, ends that saturate or choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
ENDS = ("", "Sigmoid", "Softmax", "ArgMax", "Tanh")
KINDS_OF_NUMBERS = ("float", "int8", "fp16")
BODIES = ("conv", "preactivation", "gemm", "gan", "offset")
"""Conv-BN-Relu; BN-Relu-Conv; Gemm-Relu-BN-Gemm; ConvTranspose-BN-Relu; Conv-BN-Relu whose means lie far from 0."""


@dataclass(frozen=True)
class Small:
    """What one network is. `saturated`: how far its last layer is scaled, and moved to the left."""

    seed: int
    numbers: str
    body: str
    end: str
    outputs: int
    batch: int | str
    saturated: tuple[float, float]

    @classmethod
    def of(cls, seed: int) -> Small:
        """The network of that number: all combinations in turn, the rest by chance."""
        rng = np.random.default_rng([seed, 7])
        i = seed
        i, numbers = divmod(i, len(KINDS_OF_NUMBERS))
        i, end = divmod(i, len(ENDS))
        i, body = divmod(i, len(BODIES))
        i, outputs = divmod(i, 4)
        saturated = [(1.0, 0.0), (1.0, 0.0), (6.0, 0.0), (1.0, -14.0), (4.0, 9.0)][rng.integers(5)]
        batch = "N" if i % 2 else 1
        return cls(seed, KINDS_OF_NUMBERS[numbers], BODIES[body], ENDS[end], outputs + 1, batch, saturated)

    def __str__(self) -> str:
        parts = self.seed, self.numbers, self.body, self.end or "no end", self.outputs, self.batch, self.saturated
        return " ".join(map(str, parts))

    def model(self, dtype: npt.DTypeLike | None = None) -> ModelProto:
        """The network; `dtype`: with the same numbers in another type, for the proof that its fold is right."""
        return _Builder(self, dtype).model()


@dataclass
class _Builder:
    small: Small
    dtype: Any = None
    nodes: list[Any] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.small.seed)
        self.own = np.dtype(np.float16 if self.small.numbers == "fp16" else np.float32)
        self.dtype = self.own if self.dtype is None else np.dtype(self.dtype)
        self.quantised = self.small.numbers == "int8"
        self.whole = self.quantised and self.small.seed % 2 == 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        name = f"c{len(self.tensors)}"
        array = np.asarray(value)
        array = array.astype(self.own).astype(self.dtype) if dtype is None else array.astype(dtype)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def grid(self, x: str, step: float, signed: bool = True) -> str:
        """`x` brought to whole numbers and back, in a quantised network."""
        if not self.quantised:
            return x
        around = self.constant(step), self.constant(3 if signed else 0, np.int8 if signed else np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *around), *around)

    def filter(self, shape: tuple[int, ...], fan: int, factor: float = 1.0, axis: int = 0) -> str:
        """Weights; of every other quantised network whole numbers, with a step for each entry of `axis`."""
        value = self.rng.normal(size=shape) * fan**-0.5
        if not self.whole:
            return self.constant(value * factor)
        step = np.abs(value).max(tuple(i for i in range(len(shape)) if i != axis), keepdims=True) / 127
        inputs = self.constant(np.round(value / step), np.int8), self.constant(step.ravel() * factor)
        return self.op("DequantizeLinear", *inputs, self.constant(np.zeros(step.size), np.int8), axis=axis)

    def bn(self, x: str, count: int, mean: float = 0.0, var: float = 1.0, eps: float = 1e-5) -> str:
        gamma = self.rng.uniform(0.5, 1.5, count)
        if not self.whole:  # the steps of weights are positive
            gamma *= self.rng.choice([1, 1, 1, -1, 0], count)
        values = (
            gamma,
            self.rng.normal(size=count) * 0.3,
            mean + self.rng.normal(size=count) * 0.3 * var**0.5,
            (var * self.rng.uniform(0.3, 2, count)),
        )
        return self.op("BatchNormalization", x, *map(self.constant, values), epsilon=eps)

    def conv(self, x: str, c: int, o: int, offset: float = 0.0, factor: float = 1.0) -> str:
        bias = self.constant(self.rng.normal(size=o) * 0.1 * factor + offset)
        return self.op("Conv", x, self.filter((o, c, 3, 3), c * 9, factor), bias, pads=[1] * 4)

    def body(self) -> tuple[str, int]:
        c, widths = 3, [int(w) for w in self.rng.integers(4, 9, 2)]
        x = self.grid("x", 0.02)
        for place, o in enumerate(widths):
            match self.small.body:
                case "conv":
                    x = self.op("Relu", self.bn(self.conv(x, c, o), o))
                case "preactivation":
                    x = self.op("Relu", self.bn(x, c)) if place else x
                    x = self.conv(x, c, o)
                case "gemm":
                    w, b = self.filter((c, o), c, axis=1), self.constant(self.rng.normal(size=o) * 0.3)
                    x = self.op("Gemm", x, w, b)
                    # what stands between a norm and a grid stays
                    x = self.op("Relu", self.bn(x, o)) if self.quantised else self.bn(self.op("Relu", x), o)
                case "gan":
                    w = self.filter((c, o, 3, 3), c * 4, axis=1)
                    x = self.op("Relu", self.bn(self.op("ConvTranspose", x, w, strides=[2, 2]), o))
                case "offset" if self.small.numbers != "fp16":
                    x = self.bn(self.conv(x, c, o, 1e3, 1e-5), o, 1e3, 1e-10, 1e-12)
                    x = self.op("Relu", x)
                case _:
                    x = self.op("Relu", self.bn(self.conv(x, c, o, 50.0, 0.1), o, 50.0, 1e-2))
            x, c = self.grid(x, 0.03, False) if self.small.body != "preactivation" else x, o
        return x, c

    def model(self) -> ModelProto:
        small, (x, c) = self.small, self.body()
        factor, bias = small.saturated
        n = small.outputs
        if small.body == "gan":
            y = self.op("ConvTranspose", x, self.filter((c, n, 2, 2), c, factor, 1))
            y = self.op("Add", y, self.constant(self.rng.normal(size=(n, 1, 1)) + bias))
        else:
            if small.body != "gemm":
                x = self.op("Flatten", self.op("GlobalAveragePool", x))
            y = self.op("Gemm", x, self.filter((c, n), c, factor, 1), self.constant(self.rng.normal(size=n) + bias))
        axis: dict[str, Any] = {"axis": 1} if small.end in ("Softmax", "ArgMax") else {}
        y = self.op(small.end, y, **axis) if small.end else y
        self.nodes[-1].output[0] = "y"
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        size = {"gemm": [], "gan": [2, 2]}.get(small.body, [8, 8])
        out = TensorProto.INT64 if small.end == "ArgMax" else element
        rank = 4 if small.body == "gan" else 2
        graph = helper.make_graph(
            self.nodes, "small", [helper.make_tensor_value_info("x", element, [small.batch, 3, *size])],
            [helper.make_tensor_value_info("y", out, [None] * rank)], self.tensors,
        )  # fmt: skip
        opset = 19 if self.quantised and self.dtype != np.float32 else 17
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
