"""Random valid ONNX graphs from the table of rules, in float64, small enough for the reference evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


class RandomGraph:
    """Grows a graph op by op; `pool` holds the tensors made so far with their shapes.

    `kinds`: how many of the makers to use, in the order in which they are registered.
    """

    def __init__(self, seed: int, ops: int = 14, kinds: int | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.pool: list[tuple[str, Shape]] = [("x", (2, int(self.rng.choice([2, 4, 6])), 6, 6))]
        self.input_shape = self.pool[0][1]
        self.read: set[str] = set()
        makers = list(MAKERS)[:kinds]
        chances = np.array([MAKERS[m] for m in makers], float)
        for _ in range(ops):
            maker = makers[int(self.rng.choice(len(makers), p=chances / chances.sum()))]
            maker(self)
        for name, shape in list(self.pool):
            if name not in self.read and self.rng.random() < 0.7:
                self._close(name, shape)
        self._fix_constant_outputs()

    # --- pieces

    def pick(self, want: Callable[[Shape], bool] = lambda shape: True) -> tuple[str, Shape] | None:
        """A tensor of the pool, recent ones more likely."""
        fitting = [entry for entry in self.pool if want(entry[1])]
        if not fitting:
            return None
        return fitting[max(0, len(fitting) - 1 - int(self.rng.geometric(0.45) - 1))]

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float64, share: bool = True) -> str:
        """A new initializer; now and then, where one of the same shape exists, that one is shared."""
        array = np.asarray(value, dtype)
        if share and array.dtype == np.float64 and array.ndim >= 2 and self.rng.random() < 0.15:
            for name, other in self.weights.items():
                if other.shape == array.shape and other.dtype == array.dtype:
                    return name
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def node(self, op: str, inputs: list[str], shapes: list[Shape], **attrs: Any) -> list[str]:
        """A node; its outputs join the pool."""
        outputs = [f"t{len(self.nodes)}_{i}" for i in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attrs))
        self.read.update(inputs)
        self.pool += zip(outputs, shapes, strict=True)
        return outputs

    def vector(self, n: int) -> Array:
        return self.rng.normal(0.3, 0.8, n)

    def gamma(self, n: int) -> Array:
        """Magnitudes around one; all positive, or of both signs, with zeros now and then."""
        values = np.exp(self.rng.uniform(-0.9, 0.7, n))
        if self.rng.random() < 0.35:
            values *= self.rng.choice([-1.0, 1.0], n)
        if self.rng.random() < 0.25:
            values[self.rng.random(n) < 0.4] = 0.0
        return values

    def _close(self, name: str, shape: Shape) -> None:
        """A layer with weights between a leaf and the output, which would pin it."""
        c = shape[1]
        if len(shape) == 2:
            self.node("Gemm", [name, self.constant(self.rng.standard_normal((c, 2)))], [(shape[0], 2)])
        elif len(shape) == 4:
            weight = self.constant(self.rng.standard_normal((2, c, 1, 1)) / np.sqrt(c))
            self.node("Conv", [name, weight], [(shape[0], 2, *shape[2:])])

    def _fix_constant_outputs(self) -> None:
        self.outputs = [(name, shape) for name, shape in self.pool if name not in self.read and name != "x"]
        extra = self.pick()
        if extra and extra[0] != "x" and extra not in self.outputs and self.rng.random() < 0.3:
            self.outputs.append(extra)

    def model(self) -> onnx.ModelProto:
        """The graph as a model of opset 17, IR 8."""
        f64 = TensorProto.DOUBLE
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", f64, ["N", *self.input_shape[1:]])],
            [helper.make_tensor_value_info(name, f64, ["N", *shape[1:]]) for name, shape in self.outputs],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


Maker = Callable[[RandomGraph], None]
MAKERS: dict[Maker, float] = {}


def maker(chance: float) -> Callable[[Maker], Maker]:
    """Register a maker with its relative chance."""

    def register(function: Maker) -> Maker:
        MAKERS[function] = chance
        return function

    return register


def image(shape: Shape) -> bool:
    return len(shape) == 4 and shape[2] >= 2 and shape[3] >= 2


def four(shape: Shape) -> bool:
    return len(shape) == 4


@maker(5)
def conv(g: RandomGraph) -> None:
    entry = g.pick(image)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    k = int(g.rng.choice([1, 1, 3])) if min(h, w) >= 3 else 1
    groups = int(g.rng.choice([d for d in (1, 1, 2, c) if c % d == 0]))
    out = groups * int(g.rng.integers(1, 4))
    pad, stride = int(g.rng.integers(0, 2)) if k == 3 else 0, int(g.rng.choice([1, 1, 2]))
    weight = g.constant(g.rng.standard_normal((out, c // groups, k, k)) / np.sqrt(c // groups * k * k))
    inputs = [x, weight] + ([g.constant(g.vector(out))] if g.rng.random() < 0.5 else [])
    attrs: dict[str, Any] = {"group": groups, "strides": [stride, stride], "kernel_shape": [k, k]}
    if k == 3 and g.rng.random() < 0.2:
        attrs["auto_pad"], size = "SAME_UPPER", (-(-h // stride), -(-w // stride))
    else:
        attrs["pads"] = [pad] * 4
        size = ((h + 2 * pad - k) // stride + 1, (w + 2 * pad - k) // stride + 1)
    g.node("Conv", inputs, [(n, out, *size)], **attrs)


@maker(1)
def conv_transpose(g: RandomGraph) -> None:
    entry = g.pick(image)
    if entry is None or entry[1][2] > 12:
        return
    x, (n, c, h, w) = entry
    k, groups = int(g.rng.choice([1, 2, 3])), int(g.rng.choice([d for d in (1, 2, c) if c % d == 0]))
    per = int(g.rng.integers(1, 3))
    weight = g.constant(g.rng.standard_normal((c, per, k, k)) / np.sqrt(c // groups * k))
    inputs = [x, weight] + ([g.constant(g.vector(per * groups))] if g.rng.random() < 0.5 else [])
    g.node("ConvTranspose", inputs, [(n, per * groups, h + k - 1, w + k - 1)], group=groups, kernel_shape=[k, k])


@maker(7)
def batch_norm(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: len(shape) in (2, 4))
    if entry is None:
        return
    x, shape = entry
    c = shape[1]
    values = [g.gamma(c), g.vector(c), g.vector(c), np.exp(g.rng.uniform(-1.2, 1.0, c))]
    g.node("BatchNormalization", [x, *map(g.constant, values)], [shape], epsilon=float(g.rng.choice([1e-5, 1e-3])))


@maker(4)
def activation(g: RandomGraph) -> None:
    entry = g.pick()
    if entry is None:
        return
    x, shape = entry
    op = str(g.rng.choice(["Relu", "Relu", "LeakyRelu", "PRelu", "Abs"]))
    slope = [g.constant(g.rng.uniform(0.1, 0.5, (shape[1],) + (1,) * (len(shape) - 2)))] if op == "PRelu" else []
    g.node(op, [x, *slope], [shape], **({"alpha": 0.2} if op == "LeakyRelu" else {}))


@maker(0.7)
def opaque(g: RandomGraph) -> None:
    entry = g.pick()
    if entry:
        g.node(str(g.rng.choice(["Sigmoid", "Tanh", "Softplus"])), [entry[0]], [entry[1]])


@maker(1.5)
def pool(g: RandomGraph) -> None:
    entry = g.pick(image)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    pad = int(g.rng.integers(0, 2))
    attrs: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [pad, pad, 0, 0]}
    op = str(g.rng.choice(["MaxPool", "AveragePool"]))
    if op == "AveragePool":
        attrs["count_include_pad"] = int(g.rng.integers(0, 2))
    g.node(op, [x], [(n, c, h + pad - 1, w + pad - 1)], **attrs)


@maker(0.8)
def whole_pool(g: RandomGraph) -> None:
    entry = g.pick(four)
    if entry is None:
        return
    x, (n, c, _, _) = entry
    op = str(g.rng.choice(["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"]))
    attrs: dict[str, Any] = {"axes": [2, 3], "keepdims": 1} if op.startswith("Reduce") else {}
    g.node(op, [x], [(n, c, 1, 1)], **attrs)


@maker(3)
def combine(g: RandomGraph) -> None:
    entry = g.pick()
    other = g.pick(lambda shape: entry is not None and shape == entry[1])
    if entry is None or other is None:
        return
    op = str(g.rng.choice(["Add", "Add", "Add", "Sub", "Sum", "Max", "Mean"]))
    g.node(op, [entry[0], other[0]], [entry[1]])


@maker(1)
def residual(g: RandomGraph) -> None:
    """x + conv(relu(bn(x))): the pre-activation block."""
    entry = g.pick(image)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    values = [np.abs(g.gamma(c)) + 0.1, g.vector(c), g.vector(c), np.exp(g.rng.uniform(-1, 1, c))]
    (y,) = g.node("BatchNormalization", [x, *map(g.constant, values)], [(n, c, h, w)])
    (y,) = g.node("Relu", [y], [(n, c, h, w)])
    weight = g.constant(g.rng.standard_normal((c, c, 1, 1)) / np.sqrt(c))
    (y,) = g.node("Conv", [y, weight], [(n, c, h, w)])
    g.node("Add", [x, y], [(n, c, h, w)])


@maker(2)
def concat(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: shape[1] <= 8)
    other = g.pick(lambda shape: entry is not None and shape[2:] == entry[1][2:] and len(shape) == len(entry[1]))
    if entry is None or other is None:
        return
    n, c, *rest = entry[1]
    g.node("Concat", [entry[0], other[0]], [(n, c + other[1][1], *rest)], axis=1)


@maker(1)
def split(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: shape[1] >= 2)
    if entry is None:
        return
    n, c, *rest = entry[1]
    first = int(g.rng.integers(1, c))
    sizes = g.constant([first, c - first], np.int64)
    g.node("Split", [entry[0], sizes], [(n, first, *rest), (n, c - first, *rest)], axis=1)


@maker(1)
def take(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: shape[1] >= 2)
    if entry is None:
        return
    x, (n, c, *rest) = entry
    if g.rng.random() < 0.5:
        index = g.rng.permutation(c)[: int(g.rng.integers(1, c + 1))]
        g.node("Gather", [x, g.constant(index, np.int64)], [(n, len(index), *rest)], axis=1)
    else:
        bounds = [g.constant([v], np.int64) for v in (c - 1, -c - 1, 1, -1)]
        g.node("Slice", [x, *bounds], [(n, c, *rest)])


@maker(1)
def shuffle(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: len(shape) == 4 and shape[1] % 2 == 0)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    (y,) = g.node("Reshape", [x, g.constant([0, 2, c // 2, h, w], np.int64)], [(n, 2, c // 2, h, w)])
    (y,) = g.node("Transpose", [y], [(n, c // 2, 2, h, w)], perm=[0, 2, 1, 3, 4])
    g.pool = [entry for entry in g.pool if len(entry[1]) != 5]
    g.node("Reshape", [y, g.constant([0, -1, h, w], np.int64)], [(n, c, h, w)])


@maker(0.5)
def depth_to_space(g: RandomGraph) -> None:
    entry = g.pick(lambda shape: len(shape) == 4 and shape[1] % 4 == 0 and shape[2] < 8)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    g.node("DepthToSpace", [x], [(n, c // 4, 2 * h, 2 * w)], blocksize=2, mode=str(g.rng.choice(["DCR", "CRD"])))


@maker(1.5)
def dense(g: RandomGraph) -> None:
    """Flatten, then Gemm or MatMul, with every attribute that can move a number."""
    entry = g.pick()
    if entry is None:
        return
    x, shape = entry
    k = int(np.prod(shape[1:]))
    if len(shape) > 2:
        (x,) = g.node("Flatten", [x], [(shape[0], k)], axis=1)
    out = int(g.rng.integers(1, 5))
    weight = g.rng.standard_normal((k, out)) / np.sqrt(k)
    if g.rng.random() < 0.6:
        swapped = bool(g.rng.integers(0, 2))
        bias: list[str] = []
        if g.rng.random() < 0.8:
            size = [(out,), (1,), (1, out), (shape[0], out)][int(g.rng.integers(0, 4))]
            bias = [g.constant(g.rng.standard_normal(size))]
        alpha, beta = float(g.rng.choice([1.0, 0.5])), float(g.rng.choice([1.0, 2.0, 0.0]))
        inputs = [x, g.constant(weight.T if swapped else weight), *bias]
        g.node("Gemm", inputs, [(shape[0], out)], transB=int(swapped), alpha=alpha, beta=beta)
        return
    (y,) = g.node("MatMul", [x, g.constant(weight)], [(shape[0], out)])
    if g.rng.random() < 0.7:
        g.node("Add", [y, g.constant(g.vector(out))], [(shape[0], out)])


@maker(1)
def gate(g: RandomGraph) -> None:
    entry = g.pick(four)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    (s,) = g.node("GlobalAveragePool", [x], [(n, c, 1, 1)])
    (s,) = g.node("Sigmoid", [s], [(n, c, 1, 1)])
    g.node("Mul", [x, s] if g.rng.random() < 0.5 else [s, x], [(n, c, h, w)])


@maker(2.5)
def constant_op(g: RandomGraph) -> None:
    """Mul, Add, Sub, Div with a constant along the channels, a single number, or along another axis."""
    entry = g.pick()
    if entry is None:
        return
    x, shape = entry
    c = shape[1]
    kinds: list[Shape] = [(c,) + (1,) * (len(shape) - 2)] * 4 + [(1,)]
    if len(shape) == 4:
        kinds += [(1, c, 1, 1), (shape[3],)]
    value = np.abs(g.rng.standard_normal(kinds[int(g.rng.integers(0, len(kinds)))])) + 0.3
    if g.rng.random() < 0.4:
        value *= g.rng.choice([-1.0, 1.0], value.shape)
    op = str(g.rng.choice(["Mul", "Add", "Sub", "Div"]))
    name = g.constant(value)
    g.node(op, [name, x] if op in ("Mul", "Add") and g.rng.random() < 0.3 else [x, name], [shape])


@maker(0.8)
def pad(g: RandomGraph) -> None:
    entry = g.pick(image)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    mode = str(g.rng.choice(["constant", "reflect", "edge"]))
    g.node("Pad", [x, g.constant([0, 0, 1, 1, 0, 0, 1, 0], np.int64)], [(n, c, h + 2, w + 1)], mode=mode)


@maker(0.8)
def identity(g: RandomGraph) -> None:
    entry = g.pick()
    if entry:
        g.node(str(g.rng.choice(["Identity", "Dropout", "Neg"])), [entry[0]], [entry[1]])


@maker(0.5)
def transpose_pair(g: RandomGraph) -> None:
    """An NHWC island with a constant along the last axis."""
    entry = g.pick(four)
    if entry is None:
        return
    x, (n, c, h, w) = entry
    (y,) = g.node("Transpose", [x], [(n, h, w, c)], perm=[0, 2, 3, 1])
    (y,) = g.node("Mul", [y, g.constant(np.abs(g.vector(c)) + 0.2)], [(n, h, w, c)])
    g.pool = g.pool[:-2]
    g.node("Transpose", [y], [(n, c, h, w)], perm=[0, 3, 1, 2])


FIRST = len(MAKERS)
"""How many makers there were when the oldest seeds were noted."""
