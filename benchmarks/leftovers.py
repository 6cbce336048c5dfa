"""What the forms that a norm can be left in cost on onnxruntime, next to keeping the norm, between real layers.

    python -m benchmarks.leftovers [--rounds 200]

Each row times two networks of one block, concat -> form -> conv (as in a dense network), in turn. More tables: other
readers, other ranks, and matrices.
"""

from __future__ import annotations

from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.latency import medians

SIZES = (
    ((64, 56), (256, 28), (512, 14), (1024, 7)),
    ((60, 56), (252, 28), (508, 14), (1020, 7)),
    ((12, 56), (20, 56), (90, 14), (250, 8)),
)
"""Channels and pixels: in multiples of what onnxruntime's blocked layout takes, not in such, few, and not in fours."""
FORMS = {
    "BN -> Add": (["BN"], ["Add"]),
    "BN -> Mul": (["BN"], ["Mul"]),
    "BN, Relu -> Add, Relu": (["BN", "Relu"], ["Add", "Relu"]),
    "BN, Relu -> Max": (["BN", "Relu"], ["Max"]),
    "BN, Clip -> Max, Min": (["BN", "Clip"], ["Max", "Min"]),
    "BN -> depthwise Conv": (["BN"], ["Depthwise"]),
    "BN, Relu -> depthwise Conv, Relu": (["BN", "Relu"], ["Depthwise", "Relu"]),
    "BN, Clip -> depthwise Conv, Clip": (["BN", "Clip"], ["Depthwise", "Clip"]),
    "BN, padded Conv -> padded Conv, Add of a border map": (["BN", "Conv"], ["Conv", "Map"]),
    "Conv + BN of its input -> Conv": (["Conv+BN"], ["Conv"]),
}


ENDS = ("Conv", "GlobalAveragePool", "MaxPool", "Sigmoid", "output")
"""What reads the norm, or the Relu behind it."""


class Block:
    """relu(conv(x)) twice, concatenated; the ops of a form; a 1x1 conv, or another op of `ENDS`. `axes`: of space."""

    def __init__(self, channels: int, size: int, ops: list[str], end: str = "Conv", axes: int = 2) -> None:
        self.rng, self.c, self.size, self.axes = np.random.default_rng(0), channels, size, axes
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        halves = [self.op("Relu", self.conv("x", 16, channels // 2, 1)) for _ in range(2)]
        y = self.op("Concat", *halves, axis=1)
        for op in ops:
            y = self.form(op, y)
        if end == "Conv":
            y = self.conv(y, channels, 32, 1)
        elif end != "output":
            y = self.op(end, y, **({"kernel_shape": [3, 3], "strides": [2, 2]} if end == "MaxPool" else {}))
        self.last = y

    def w(self, *shape: int) -> str:
        """A new weight."""
        value = np.abs(self.rng.standard_normal(shape)).astype(np.float32) + 0.5
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """A new node; its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [f"t{len(self.nodes)}"], **attrs))
        return str(self.nodes[-1].output[0])

    def conv(self, x: str, c: int, out: int, k: int, groups: int = 1) -> str:
        """A conv that keeps the size."""
        weight = self.w(out, c // groups, *[k] * self.axes)
        return self.op("Conv", x, weight, self.w(out), pads=[k // 2] * 2 * self.axes, group=groups)

    def form(self, op: str, x: str) -> str:
        """One op of a form; the padded conv is depthwise, so that it does not hide what is measured."""
        c = self.c
        if op == "Conv":
            return self.conv(x, c, c, 3, c)
        if op == "Depthwise":
            return self.conv(x, c, c, 1, c)
        if op == "Conv+BN":
            return self.op("Add", self.conv(x, c, c, 3, c), self.form("BN", x))
        if op == "BN":
            return self.op("BatchNormalization", x, *(self.w(c) for _ in range(4)))
        if op == "Map":
            return self.op("Add", x, self.w(1, c, self.size, self.size))
        if op == "Clip":
            bounds = [numpy_helper.from_array(np.array(v, np.float32), f"b{v}") for v in (0, 6)]
            self.weights += bounds
            return self.op("Clip", x, *(b.name for b in bounds))
        return self.op(op, x) if op == "Relu" else self.op(op, x, self.w(c, *[1] * self.axes))

    def model(self) -> onnx.ModelProto:
        """The block."""
        ends = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, *[self.size] * self.axes]),
            helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph(self.nodes, "block", ends[:1], ends[1:], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@click.command()
@click.option("--rounds", default=200, show_default=True)
def main(rounds: int) -> None:
    """Microseconds of the block as it was and with the form, and the ratio, for each size and 1 and 2 threads."""
    print(f"onnxruntime {ort.__version__}, CPU, optimisations on, medians of runs in turn\n")
    for sizes in SIZES:
        print("| form | " + " | ".join(f"{c}x{s}x{s}, {t} thr." for c, s in sizes for t in (1, 2)) + " |")
        print("|---|" + "---|" * 2 * len(sizes))
        for name, (before, after) in FORMS.items():
            cells = [cell for c, size in sizes for cell in compare(c, size, before, after, rounds)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print()
    surroundings(rounds)
    matrices(rounds)


DEPTHWISE = {"BN": (["BN"], ["Depthwise"]), "BN, Relu": (["BN", "Relu"], ["Depthwise", "Relu"])}
RANKS = ((1, 64, 3000), (1, 250, 200), (3, 64, 14), (3, 252, 7))
"""Axes of space, channels, size along each."""


def surroundings(rounds: int) -> None:
    """Ratios of the depthwise Conv to the norm before other readers, and in other ranks."""
    print("| norm | read by | " + " | ".join(f"{c}x{s}x{s}" for sizes in SIZES[:2] for c, s in sizes[:3:2]) + " |")
    print("|---|---|" + "---|" * 4)
    for name, (before, after) in DEPTHWISE.items():
        for end in ENDS:
            found = [compare(c, s, before, after, rounds, end) for sizes in SIZES[:2] for c, s in sizes[:3:2]]
            print(f"| {name} | {end} | {' | '.join(cells[0] for cells in found)} |", flush=True)
    print("\n| form | " + " | ".join(f"{c}x{'x'.join([str(s)] * axes)}" for axes, c, s in RANKS) + " |")
    print("|---|" + "---|" * len(RANKS))
    forms = {**{f"{k} -> depthwise": v for k, v in DEPTHWISE.items()}, "BN, Relu -> Max": (["BN", "Relu"], ["Max"])}
    for name, (before, after) in forms.items():
        found = [compare(c, s, before, after, rounds, axes=axes) for axes, c, s in RANKS]
        print(f"| {name} | {' | '.join(cells[0] for cells in found)} |", flush=True)
    print()


MATRICES = ((196, 384), (784, 128), (16, 1000))


def matrix(rows: int, channels: int, op: str) -> onnx.ModelProto:
    """MatMul -> op -> Relu -> MatMul over (rows, channels)."""
    rng, weights = np.random.default_rng(0), list[onnx.TensorProto]()

    def w(*shape: int) -> str:
        value = np.abs(rng.standard_normal(shape)).astype(np.float32) + 0.5
        weights.append(numpy_helper.from_array(value, f"w{len(weights)}"))
        return weights[-1].name

    vectors = [w(channels) for _ in range(4 if op == "BatchNormalization" else 1)]
    nodes = [
        helper.make_node("MatMul", ["x", w(32, channels)], ["a"]),
        helper.make_node(op, ["a", *vectors], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", w(channels, 8)], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, c]) for name, c in (("x", 32), ("y", 8))]
    graph = helper.make_graph(nodes, "matrix", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def matrices(rounds: int) -> None:
    """Microseconds with each op between two MatMuls."""
    ops = ("BatchNormalization", "Add", "Mul")
    print(f"| matrix | threads | {' | '.join(ops)} |")
    print("|---|--:|" + "--:|" * len(ops))
    for rows, channels in MATRICES:
        models = {op: matrix(rows, channels, op) for op in ops}
        for threads in (1, 2):
            cells = [f"{1e6 * t:.0f}" for t in medians(models, threads, rounds).values()]
            print(f"| {rows}x{channels} | {threads} | {' | '.join(cells)} |")


def compare(
    channels: int, size: int, before: list[str], after: list[str], rounds: int, end: str = "Conv", axes: int = 2
) -> list[str]:
    """Microseconds and ratio, for 1 and 2 threads."""
    models = {key: Block(channels, size, ops, end, axes).model() for key, ops in (("a", before), ("b", after))}
    cells = []
    for threads in (1, 2):
        times = medians(models, threads, rounds)
        a, b = times["a"] * 1e6, times["b"] * 1e6
        cells.append(f"{a:.0f} -> {b:.0f} ({b / a:.2f})")
    return cells


if __name__ == "__main__":
    main()
