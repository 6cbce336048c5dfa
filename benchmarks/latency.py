"""What folding gains at run time, on onnxruntime with its own optimisations on: single ops, and whole networks.

python -m benchmarks.latency [--rounds 60]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.zoo import ZOO

FORMS = {
    "BN": ["BatchNormalization"],
    "Add": ["Add"],
    "Mul": ["Mul"],
    "BN, Relu": ["BatchNormalization", "Relu"],
    "Add, Relu": ["Add", "Relu"],
    "Max": ["Max"],
}
NETWORKS = {"resnet50": 32, "resnetv2_50": 32, "densenet121": 24, "repvgg_a0": 24, "dpn68": 64, "mobilenetv2": 32}
"""Networks of the zoo and the width at which they are timed."""


def op_model(ops: list[str], channels: int, size: int) -> onnx.ModelProto:
    """A model of a few elementwise ops over (1, channels, size, size)."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i, op in enumerate(ops):
        shapes = [(channels,)] * 4 if op == "BatchNormalization" else [] if op == "Relu" else [(channels, 1, 1)]
        names = [f"w{i}_{k}" for k in range(len(shapes))]
        values = [(np.abs(rng.standard_normal(shape)) + 0.5).astype(np.float32) for shape in shapes]
        weights += [numpy_helper.from_array(v, n) for v, n in zip(values, names, strict=True)]
        nodes.append(helper.make_node(op, [x, *names], [f"y{i}"]))
        x = f"y{i}"
    shape = [1, channels, size, size]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x)]
    graph = helper.make_graph(nodes, "ops", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def medians(models: Mapping[str, onnx.ModelProto], threads: int, rounds: int) -> dict[str, float]:
    """Median seconds of a run of each model, run in turn."""
    sessions = {}
    for name, model in models.items():
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # the idle threads of one session must not keep the cores from the next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions[name] = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    value = next(iter(models.values())).graph.input[0]
    shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    feed = {value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(rounds + 3):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            if i >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def forms(rounds: int) -> None:
    """Microseconds of each form that a norm can be left in."""
    print("| tensor | threads | " + " | ".join(FORMS) + " |")
    print("|---|--:|" + "--:|" * len(FORMS))
    for channels, size in ((64, 56), (256, 28), (512, 14), (1024, 7)):
        for threads in (1, 2):
            models = {name: op_model(ops, channels, size) for name, ops in FORMS.items()}
            cells = " | ".join(f"{1e6 * t:.0f}" for t in medians(models, threads, 5 * rounds).values())
            print(f"| {channels}x{size}x{size} | {threads} | {cells} |")


def networks(rounds: int) -> None:
    """Milliseconds of whole networks before and after."""
    print("\n| network (width) | threads | original ms | folded ms | ratio | folded, Max, Add, Conv, kept |")
    print("|---|--:|--:|--:|--:|---|")
    for name, width in NETWORKS.items():
        model = ZOO[name](dtype=np.float32, width=width)
        result = bnfold.fold(model, verify=False)
        norms = result.plan.batch_norms
        fates = [
            sum(bn.verdict == "folded" for bn in norms),
            *(sum(bn.form == f for bn in norms) for f in ("max", "add", "conv")),
        ]
        fates.append(sum(bn.verdict == "kept" for bn in norms))
        for threads in (1, 2):
            times = medians({"original": model, "folded": result.model}, threads, rounds)
            a, b = 1e3 * times["original"], 1e3 * times["folded"]
            print(f"| {name} ({width}) | {threads} | {a:.2f} | {b:.2f} | {b / a:.2f} | {', '.join(map(str, fates))} |")


@click.command()
@click.option("--rounds", default=60, show_default=True)
def main(rounds: int) -> None:
    """Print the latency tables of docs/benchmarks.md."""
    print(f"onnxruntime {ort.__version__}, CPU, optimisations on, medians of runs in turn\n")
    forms(rounds)
    networks(rounds)


if __name__ == "__main__":
    main()
