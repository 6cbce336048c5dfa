"""What merging linear layers gains at run time, and whether the costs that decide it are those that are measured.

python -m benchmarks.merging [--rounds 30]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import bnfold
from benchmarks.training_forms import FORMS
from bnfold.core.merging import rows, sums
from bnfold.core.merging.cost import Cost
from bnfold.core.merging.result import merged_of
from bnfold.onnx.merging.merge import Merged, merge


def _merged(model: onnx.ModelProto) -> Merged:
    """A copy of a model, merged."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return merge(copy)


def _always(after: Cost, before: Cost) -> bool:
    return True


def layers(model: onnx.ModelProto) -> int:
    """How many convolutions and products a model has."""
    return sum(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in model.graph.node)


def seconds(models: Mapping[str, onnx.ModelProto], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each run of each model, in turn, on one thread."""
    sessions = {}
    for name, model in models.items():
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        sessions[name] = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    value = next(iter(models.values())).graph.input[0]
    shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    feed = {value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(rounds + 3):
        for name, session in sessions.items():
            start = time.thread_time()
            session.run(None, feed)
            times[name] += [time.thread_time() - start] * (i >= 3)
    return times


def networks(rounds: int) -> None:
    """Milliseconds, layers, nodes and megabytes of whole networks before and after."""
    print("| network | original ms | folded | merged | Convs and products | nodes | MB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, build in FORMS.items():
        model = build()
        folded = bnfold.fold(model, verify=False).model
        small = _merged(folded).applied.complete()
        times = seconds({"original": model, "folded": folded, "merged": small}, rounds)
        base = np.array(times["original"])
        ratios = " | ".join(f"{np.median(np.array(times[key]) / base):.3f}" for key in ("folded", "merged"))
        counts = f"{layers(model)} -> {layers(small)} | {len(model.graph.node)} -> {len(small.graph.node)}"
        sizes = f"{model.ByteSize() / 1e6:.1f} -> {small.ByteSize() / 1e6:.1f}"
        print(f"| {name} | {1e3 * np.median(base):.2f} | {ratios} | {counts} | {sizes} |", flush=True)


class Net:
    """A graph of a few layers over (1, channels, size, size)."""

    def __init__(self, channels: int, size: int) -> None:
        self.rng, self.c, self.size = np.random.default_rng(0), channels, size
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """A node; its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attrs))
        return name

    def weight(self, *shape: int) -> str:
        """A new constant."""
        name = f"w{len(self.tensors)}"
        value = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        self.tensors.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(
        self, x: str, k: int | tuple[int, int], out: int = 0, into: int = 0, group: int = 1, dilation: int = 1
    ) -> str:
        """A Conv of stride 1 that keeps the size; group 0: depthwise."""
        kernel = (k, k) if isinstance(k, int) else k
        into = into or self.c
        group = group or into
        pads = [dilation * (n - 1) // 2 for n in kernel]
        weight = self.weight(out or self.c, into // group, *kernel)
        return self.op("Conv", x, weight, pads=pads * 2, group=group, dilations=[dilation] * 2)

    def add(self, *names: str) -> str:
        """Their sum, two by two."""
        first, *rest = names
        for name in rest:
            first = self.op("Add", first, name)
        return first

    def model(self, y: str) -> onnx.ModelProto:
        """A layer on either side: runtimes keep blocks of channels between layers, and so do networks."""
        first = helper.make_node("Conv", ["input", self.weight(self.c, self.c, 1, 1)], ["before"], "first")
        relu = helper.make_node("Relu", ["before"], ["x"], "relu")
        self.op("Relu", y)
        last = self.op("Conv", self.nodes[-1].output[0], self.weight(self.c, self.c, 1, 1))
        shape = [1, self.c, self.size, self.size]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", last)]
        graph = helper.make_graph([first, relu, *self.nodes], "net", ends[:1], ends[1:], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FORMS_OF_SUMS: dict[str, Callable[[Net], str]] = {
    "3x3 + 1x1": lambda n: n.add(n.conv("x", 3), n.conv("x", 1)),
    "3x3 + x": lambda n: n.add(n.conv("x", 3), "x"),
    "1x1 + x": lambda n: n.add(n.conv("x", 1), "x"),
    "1x3 + 3x1": lambda n: n.add(n.conv("x", (1, 3)), n.conv("x", (3, 1))),
    "1x7 + 7x1": lambda n: n.add(n.conv("x", (1, 7)), n.conv("x", (7, 1))),
    "dw 3x3 + dw 1x1 + x": lambda n: n.add(n.conv("x", 3, group=0), n.conv("x", 1, group=0), "x"),
    "dw 7x7 + dw 3x3": lambda n: n.add(n.conv("x", 7, group=0), n.conv("x", 3, group=0)),
    "dw 1x7 + dw 7x1": lambda n: n.add(n.conv("x", (1, 7), group=0), n.conv("x", (7, 1), group=0)),
    "dw 3x3 + dw 3x3 dilated 3": lambda n: n.add(n.conv("x", 3, group=0), n.conv("x", 3, group=0, dilation=3)),
    "3x3 + 3x3 dilated 2": lambda n: n.add(n.conv("x", 3), n.conv("x", 3, dilation=2)),
    "1x1 + dw 3x3": lambda n: n.add(n.conv("x", 1), n.conv("x", 3, group=0)),
    "1x1 + dw 1x1": lambda n: n.add(n.conv("x", 1), n.conv("x", 1, group=0)),
    "3x3 in 4 groups + dw 3x3": lambda n: n.add(n.conv("x", 3, group=4), n.conv("x", 3, group=0)),
    "3x3 in 4 groups + 1x1": lambda n: n.add(n.conv("x", 3, group=4), n.conv("x", 1)),
    "pool 3x3 - x": lambda n: n.op(
        "Sub", n.op("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), "x"
    ),
    "3x3 + pool 3x3": lambda n: n.add(
        n.conv("x", 3), n.op("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    ),
    "1x1, 3x3": lambda n: n.conv(n.conv("x", 1), 3),
    "3x3, 1x1": lambda n: n.conv(n.conv("x", 3), 1),
    "1x1 to a quarter, 1x1 back": lambda n: n.conv(n.conv("x", 1, n.c // 4), 1, into=n.c // 4),
    "1x1, dw 3x3": lambda n: n.conv(n.conv("x", 1), 3, group=0),
    "dw 3x3, 1x1": lambda n: n.conv(n.conv("x", 3, group=0), 1),
    "1x1 beside 1x1": lambda n: n.op("Concat", n.conv("x", 1, n.c // 2), n.conv("x", 1, n.c // 2), axis=1),
    "3x3 beside 3x3": lambda n: n.op("Concat", n.conv("x", 3, n.c // 2), n.conv("x", 3, n.c // 2), axis=1),
    "3x3, 1x1 to a quarter": lambda n: n.conv(n.conv(n.conv("x", 3), 1, n.c // 4), 1, into=n.c // 4),
}
SIZES = ((16, 112), (64, 56), (128, 28), (256, 14), (512, 7))


def costs(rounds: int) -> None:
    """What is measured beside what the costs say, for layers that are merged in any case."""
    print("\n| layers | channels x size | measured | by the costs | merged |")
    print("|---|--:|--:|--:|---|")
    wrong = 0
    for name, form in FORMS_OF_SUMS.items():
        for channels, size in SIZES:
            net, alone = Net(channels, size), Net(channels, size)
            model = net.model(form(net))
            chosen = _merged(model)
            with patch.object(sums, "better", _always), patch.object(rows, "leaner", _always):
                forced = _merged(model)
            models = {"before": model, "after": forced.applied.complete(), "alone": alone.model("x")}
            took = {key: float(np.median(found)) for key, found in seconds(models, rounds).items()}
            measured = (took["after"] - took["alone"]) / (took["before"] - took["alone"])
            before, after = (sum(c.seconds[i] for c in merged_of(forced.candidates)) for i in (0, 1))
            wrong += chosen.changed and measured > 1.05
            mark = "yes" if chosen.changed else "no"
            print(f"| {name} | {channels} x {size} | {measured:.2f} | {after / before:.2f} | {mark} |", flush=True)
    print(f"\nmerged and slower by more than 5 %: {wrong}")


@click.command()
@click.option("--rounds", default=30, show_default=True)
def main(rounds: int) -> None:
    """Print the tables of docs/benchmarks.md on merging."""
    print(f"onnxruntime {ort.__version__}, CPU, optimisations on, medians of runs in turn, as shares of the original\n")
    networks(rounds)
    costs(rounds)


if __name__ == "__main__":
    main()
