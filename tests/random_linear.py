"""Random graphs of linear layers side by side and in a row: much of them can be merged, much must not be.

    python -m tests.random_linear START END      prints what is wrong and how much was merged; exit 1 where any was

Each seed is merged in float64, where the outputs must agree to 1e-11, and in float32, where onnxruntime must be as near
to the original, with its optimisations and without. Every second seed merges siblings, too.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from bnfold.onnx.merging.merge import merge
from tests.evaluate import evaluate

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Entry = tuple[str, Shape]


class RandomLinear:
    """Blocks of branches that are added, rows of layers, and what bends between them.

    `dtype`: of weights and data. `dynamic`: the sizes of the input are not stated.
    """

    def __init__(self, seed: int, dtype: npt.DTypeLike = np.float64) -> None:
        self.rng, self.dtype = np.random.default_rng(seed), np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.read: set[str] = set()
        self.shapes: dict[str, Shape] = {}
        self.rank = int(self.rng.choice([1, 2, 2, 2, 3]))
        self.dense = self.rng.random() < 0.15
        self.dynamic = self.rng.random() < 0.25
        channels = int(self.rng.choice([1, 2, 4, 4, 6, 8]))
        inner = (3,) * int(self.rng.integers(0, 2)) if self.dense else ()
        sizes = tuple(int(s) for s in self.rng.integers(4, 8, self.rank))
        self.shape: Shape = (2, *inner, channels) if self.dense else (2, channels, *sizes)
        self.outputs: list[Entry] = []
        entry: Entry = ("x", self.shape)
        for _ in range(int(self.rng.integers(1, 4))):
            entry = self.grown(entry)
            if self.chance(0.5):
                entry = self.node("Relu", [entry[0]], entry[1]), entry[1]
        self.outputs.append(entry)

    # --- pieces

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(0, len(options)))]

    def constant(self, value: npt.ArrayLike) -> str:
        array = np.asarray(value, self.dtype)
        if self.chance(0.1):  # a weight of two layers
            for name, other in self.weights.items():
                if other.shape == array.shape and array.ndim > 1:
                    return name
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def node(self, op: str, inputs: list[str], shape: Shape, **attrs: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attrs))
        self.read.update(inputs)
        self.shapes[name] = shape
        if self.chance(0.02):
            self.outputs.append((name, shape))
        return name

    def normal(self, *shape: int) -> Array:
        return np.asarray(self.rng.normal(size=shape) * self.pick(1.0, 1.0, 0.5))

    # --- branches

    def grown(self, entry: Entry) -> Entry:
        kind = self.rng.random()
        return self.block(entry) if kind < 0.6 else self.row(entry) if kind < 0.85 else self.siblings(entry)

    def siblings(self, entry: Entry) -> Entry:
        """Layers of one tensor, mostly, put together; some of the same form."""
        first = self.layer(entry)
        if first is None:
            return entry
        parts = [first]
        for _ in range(int(self.rng.integers(1, 4))):
            made = self.again(entry) if self.chance(0.7) else self.layer(entry)
            if made is not None and made[1][2:] == first[1][2:]:
                parts.append(made)
        names, axis = [name for name, _ in parts], len(first[1]) - 1 if self.dense else 1
        if self.dense and any(shape[:-1] != first[1][:-1] for _, shape in parts):
            return first
        shape = list(first[1])
        shape[axis] = sum(part[axis] for _, part in parts)
        return self.node("Concat", names, tuple(shape), axis=axis - len(shape) * int(self.chance(0.3))), tuple(shape)

    def again(self, entry: Entry) -> Entry | None:
        """A layer like the last one, with other weights."""
        last = self.nodes[-1]
        if last.op_type not in ("Conv", "Gemm", "MatMul") or last.input[0] != entry[0]:
            return self.layer(entry)
        shapes = [self.weights[name].shape for name in last.input[1:]]
        made = [self.constant(self.normal(*shape)) for shape in shapes]
        attrs = {a.name: helper.get_attribute_value(a) for a in last.attribute}
        known = self.shapes[last.output[0]]
        return self.node(last.op_type, [entry[0], *made], known, **attrs), known

    def row(self, entry: Entry) -> Entry:
        for _ in range(int(self.rng.integers(2, 4))):
            made = self.layer(entry)
            entry = made or entry
        return entry

    def block(self, entry: Entry) -> Entry:
        """Branches of one tensor, added in a tree of any form."""
        first = self.branch(entry, None)
        if first is None:
            return entry
        branches = [first]
        for _ in range(int(self.rng.integers(1, 5))):
            made = self.branch(entry, first[1])
            if made is not None and made[1] == first[1]:
                branches.append(made)
        return self.added([name for name, _ in branches], first[1]), first[1]

    def added(self, names: list[str], shape: Shape) -> str:
        order = [names[int(i)] for i in self.rng.permutation(len(names))]
        if len(order) > 1 and self.chance(0.2):
            extra = [self.constant(self.along(shape))] if self.chance(0.3) else []
            order = [self.node("Sum", [*order, *extra], shape)]
        while len(order) > 1:
            i = int(self.rng.integers(0, len(order) - 1))
            pair = order[i : i + 2]
            order[i : i + 2] = [self.node(self.pick("Add", "Add", "Add", "Add", "Sub"), pair, shape)]
            if self.chance(0.15):
                order[i] = self.affine((order[i], shape))[0]
        if self.chance(0.1):  # a second reader of the sum, or of what goes into it
            self.outputs.append((self.node("Relu", [self.pick(*names)], shape), shape))
        return order[0]

    def branch(self, entry: Entry, target: Shape | None) -> Entry | None:
        kind = self.rng.random()
        if target is not None and entry[1] == target and kind < 0.3:
            return entry if self.chance(0.4) else self.affine(entry)
        made: Entry | None = entry
        if kind < 0.45:
            made = self.layer(entry, None, True) if self.chance(0.7) else self.affine(entry)
        return self.layer(made, target) if made is not None else None

    def along(self, shape: Shape) -> Array:
        """Numbers along the channels, or one for all."""
        if self.dense:
            return self.normal(shape[-1])
        if self.chance(0.15):
            return self.normal(*self.pick((), (1,)))
        return self.normal(*self.pick((1,), ()), shape[1], *[1] * self.rank)

    def affine(self, entry: Entry) -> Entry:
        name, shape = entry
        kind = self.rng.random()
        if kind < 0.2 and not self.dense:
            c = shape[1]
            stats = [
                self.normal(c) * self.rng.choice([1, 1, 0], c),
                self.normal(c),
                self.normal(c),
                self.rng.uniform(0.1, 3, c),
            ]
            return self.node("BatchNormalization", [name, *map(self.constant, stats)], shape, epsilon=1e-3), shape
        if kind < 0.3:
            return self.node("Identity", [name], shape), shape
        op = self.pick("Add", "Mul", "Sub", "Div")
        value = self.along(shape)
        value = value + np.where(value < 0, -0.5, 0.5)
        pair = [name, self.constant(value)]
        swap = op != "Div" and self.chance(0.4)
        return self.node(op, pair[::-1] if swap else pair, shape), shape

    def layer(self, entry: Entry, target: Shape | None = None, small: bool = False) -> Entry | None:
        if self.dense:
            return self.product(entry, target)
        if self.transposed(target):
            return self.conv_transpose(entry, target)
        if self.chance(0.12):
            return self.pool(entry)
        return self.conv(entry, target, small)

    def transposed(self, target: Shape | None) -> bool:
        return self.chance(0.15)

    def product(self, entry: Entry, target: Shape | None) -> Entry:
        name, shape = entry
        out = target[-1] if target else int(self.pick(1, 2, 4, 8, shape[-1]))
        into = shape[-1]
        made = (*shape[:-1], out)
        if len(shape) == 2 and self.chance(0.7):
            across, alpha, beta = int(self.chance(0.5)), self.pick(1.0, 1.0, 0.7), self.pick(1.0, 1.0, 0.3, 0.0)
            weight = self.constant(self.normal(*((out, into) if across else (into, out))))
            bias = [self.constant(self.normal(*self.pick((out,), (1, out), (1,))))] if self.chance(0.7) else []
            return self.node("Gemm", [name, weight, *bias], made, alpha=alpha, beta=beta, transB=across), made
        y = self.node("MatMul", [name, self.constant(self.normal(into, out))], made)
        if self.chance(0.6):
            pair = [y, self.constant(self.normal(out))]
            y = self.node("Add", pair if self.chance(0.5) else pair[::-1], made)
        return y, made

    def groups(self, c: int, out: int) -> int:
        return int(self.pick(1, 1, *[d for d in range(1, c + 1) if c % d == 0 and out % d == 0]))

    def geometry(self, sizes: Shape, small: bool) -> tuple[list[int], list[int], list[int]]:
        """Kernel, strides, dilations."""
        kernel = [int(self.pick(1, 1, 2) if small else self.pick(1, 1, 3, 3, 3, 5, 2)) for _ in sizes]
        if self.chance(0.7):
            kernel = kernel[:1] * len(sizes)
        stride = 1 if small or self.chance(0.8) else 2
        strides = [int(self.pick(1, 2)) if self.chance(0.1) else stride for _ in sizes]
        dilations = [int(self.pick(2, 3)) if self.chance(0.15) else 1 for _ in sizes]
        return kernel, strides, dilations

    def conv(self, entry: Entry, target: Shape | None, small: bool) -> Entry | None:
        name, shape = entry
        c, sizes = shape[1], shape[2:]
        out = target[1] if target else int(self.pick(c, c, 1, 2, 4, 6, 8))
        kernel, strides, dilations = self.geometry(sizes, small)
        reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        groups = self.groups(c, out)
        attrs: dict[str, Any] = {"group": groups, "dilations": dilations, "strides": strides}
        auto = self.pick("SAME_UPPER", "SAME_LOWER", "VALID") if self.chance(0.15) else ""
        if auto.startswith("SAME"):
            attrs["dilations"] = [1] * len(sizes)
            made = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        else:
            front, back = self.pads(reach, sizes, strides, target, bool(auto))
            made = [
                (n + a + b - r - 1) // s + 1 for n, a, b, r, s in zip(sizes, front, back, reach, strides, strict=True)
            ]
            if not auto:
                attrs["pads"] = front + back
        if auto:
            attrs["auto_pad"] = auto
        if min(made) < 1 or any(n + 2 < r for n, r in zip(sizes, reach, strict=True)):
            return None
        weight = self.constant(self.normal(out, c // groups, *kernel))
        bias = [self.constant(self.normal(out) * self.pick(0, 1, 1))] if self.chance(0.6) else []
        shape = (shape[0], out, *made)
        return self.node("Conv", [name, weight, *bias], shape, **attrs), shape

    def pads(
        self, reach: list[int], sizes: Shape, strides: list[int], target: Shape | None, none: bool
    ) -> tuple[list[int], list[int]]:
        """Mostly such that the size stays, or fits the target."""
        front, back = [], []
        for axis, (r, n, s) in enumerate(zip(reach, sizes, strides, strict=True)):
            whole = r if target is None else max(0, (target[2 + axis] - 1) * s + 1 + r - n)
            a = whole // 2 if self.chance(0.85) else int(self.rng.integers(0, whole + 1))
            front.append(0 if none else a)
            back.append(0 if none else whole - a + int(self.chance(0.1)))
        return front, back

    def conv_transpose(self, entry: Entry, target: Shape | None) -> Entry | None:
        name, shape = entry
        c, sizes = shape[1], shape[2:]
        out = target[1] if target else int(self.pick(c, 1, 2, 4))
        kernel, strides, dilations = self.geometry(sizes, self.chance(0.3))
        groups = self.groups(c, out)
        attrs: dict[str, Any] = {"group": groups, "dilations": dilations, "strides": strides}
        whole = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(sizes, strides, dilations, kernel, strict=True)]
        front, back, more = [], [], []
        for axis, (w, k, s) in enumerate(zip(whole, kernel, strides, strict=True)):
            cut = w - target[2 + axis] if target else k - 1
            extra = int(s > 1 and self.chance(0.3))
            cut = max(0, cut + extra)
            front.append(cut // 2)
            back.append(cut - cut // 2)
            more.append(extra)
        made = [w - a - b + e for w, a, b, e in zip(whole, front, back, more, strict=True)]
        if min(made) < 1 or max(made) > 16:
            return None
        attrs |= {"pads": front + back, "output_padding": more}
        weight = self.constant(self.normal(c, out // groups, *kernel))
        bias = [self.constant(self.normal(out))] if self.chance(0.5) else []
        shape = (shape[0], out, *made)
        return self.node("ConvTranspose", [name, weight, *bias], shape, **attrs), shape

    def pool(self, entry: Entry) -> Entry | None:
        name, shape = entry
        if min(shape[2:]) < 3:
            return None
        kernel = [3] * self.rank
        attrs: dict[str, Any] = {"kernel_shape": kernel, "count_include_pad": int(self.chance(0.7))}
        stride, pad = int(self.pick(1, 1, 2)), int(self.chance(0.8))
        attrs |= {"strides": [stride] * self.rank, "pads": [pad] * 2 * self.rank}
        shape = (*shape[:2], *((n + 2 * pad - 3) // stride + 1 for n in shape[2:]))
        return self.node("AveragePool", [name], shape, **attrs), shape

    # --- the model

    def model(self, opset: int = 17) -> onnx.ModelProto:
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        outputs = dict(self.outputs)
        if "x" in outputs:
            outputs[self.node("Identity", ["x"], self.shape)] = outputs.pop("x")
        sizes: list[Any] = ["N", *self.shape[1:]]
        if self.dynamic and not self.dense:
            sizes[2:] = [f"d{i}" for i in range(self.rank)]
        graph = helper.make_graph(
            self.nodes, "linear", [helper.make_tensor_value_info("x", element, sizes)],
            [helper.make_tensor_value_info(name, element, [None] * len(shape)) for name, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    def feed(self) -> Array:
        return self.rng.normal(size=self.shape).astype(self.dtype)


def apart(a: list[Array], b: list[Array]) -> float:
    """The largest difference, relative to the largest magnitude."""
    worst = 0.0
    for p, q in zip(a, b, strict=True):
        if p.shape != q.shape or not np.isfinite(q).all():
            return float("inf")
        worst = max(worst, float(np.abs(p - q).max() / max(np.abs(p).max(), 1.0)))
    return worst


def problems(seed: int, merged: Counter[str]) -> Iterator[str]:
    """What is wrong with the merges of one seed."""
    drawn = RandomLinear(seed)
    model, x = drawn.model(), drawn.feed()
    made = joined(model, seed, merged)
    error = apart(evaluate(model, x=x), evaluate(made, x=x))
    if not error < 1e-11:
        yield f"float64: error {error:.1e}"
    drawn = RandomLinear(seed, np.float32)
    model, x = drawn.model(), drawn.feed()
    made, truth = joined(model, seed, Counter()), served(model, x, False)
    for optimised in (False, True):
        try:
            usual = apart(truth, served(model, x, optimised))
        except Exception:  # onnxruntime cannot load some originals when it optimises them
            continue
        error = apart(truth, served(made, x, optimised))
        if not error <= 20 * usual + 2e-5:
            yield f"float32: error {error:.1e}, the original's {usual:.1e}"


def joined(model: onnx.ModelProto, seed: int, merged: Counter[str]) -> onnx.ModelProto:
    """A copy, merged and checked."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    found = merge(copy, siblings=seed % 2 == 1)
    made = found.applied.complete()
    onnx.checker.check_model(made, full_check=True)
    merged.update(candidate.kind for candidate in found.candidates if candidate.verdict == "merged")
    return made


def served(model: onnx.ModelProto, x: Array, optimised: bool) -> list[Array]:
    """The outputs in onnxruntime."""
    options, levels = ort.SessionOptions(), ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


if __name__ == "__main__":
    wrong, counts = 0, Counter[str]()
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        try:
            found = list(problems(number, counts))
        except Exception as failure:
            found = [f"{type(failure).__name__}: {failure}"[:300]]
        wrong += bool(found)
        for problem in found:
            print(f"seed {number}: {problem}", flush=True)
    print(f"{wrong} wrong of {int(sys.argv[2]) - int(sys.argv[1])}; merged: {dict(counts)}")
    sys.exit(bool(wrong))
