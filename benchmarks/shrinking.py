"""What dropping empty channels gains at run time: a network with many dead channels, as trained ones have them.

The network is built like face landmark models for phones: depthwise separable bottlenecks with residual sums, and Relu
or PRelu.
onnxruntime's PRelu branches on each number, so that channels of zeros cost it little: there dropping them gains less.
Of every norm a share of the channels is dead, as weight decay leaves them: gamma near 1e-41, variance 6e-45.

python -m benchmarks.shrinking [--rounds 30] [--dead 0.4]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from benchmarks.latency import medians
from bnfold.onnx.shrinking import shrink

Mask = npt.NDArray[np.bool_]


@dataclass
class Landmark:
    """Grows the network. `widths`: channels of the stages, each of `depth` blocks; `dead`: share of dead channels."""

    widths: tuple[int, ...] = (48, 96, 192, 288, 288)
    depth: int = 4
    size: int = 256
    dead: float = 0.4
    bent: str = "PRelu"
    seed: int = 0
    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node, and its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"{kind}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """An initializer."""
        name = f"c{len(self.tensors)}"
        self.tensors[name] = np.asarray(value, dtype)
        return name

    def some_dead(self, channels: int) -> Mask:
        """Which channels are dead."""
        return self.rng.permutation(channels) < round(self.dead * channels)

    def conv(self, x: str, source: int, out: int, dead: Mask, kernel: int = 1, stride: int = 1, groups: int = 1) -> str:
        """Conv and norm. What feeds a dead channel of the norm has decayed too."""
        shape = (out, source // groups, kernel, kernel)
        weight = self.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        weight[dead] *= 1e-24
        x = self.op("Conv", x, self.constant(weight), strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups)
        gamma = self.rng.uniform(0.4, 1.3, out) * self.rng.choice([1, 1, -1], out)
        beta, mean, var = self.rng.normal(0, 0.3, out), self.rng.normal(0, 0.3, out), self.rng.uniform(0.3, 2, out)
        gamma[dead], var[dead], mean[dead] = self.rng.normal(0, 1e-41, dead.sum()), 6e-45, 0.0
        beta[dead] = self.rng.normal(0, 1e-41, dead.sum())
        return self.op("BatchNormalization", x, *(self.constant(v) for v in (gamma, beta, mean, var)), epsilon=1e-3)

    def bend(self, x: str, channels: int) -> str:
        """PRelu with a slope for each channel, or Relu."""
        if self.bent == "Relu":
            return self.op("Relu", x)
        return self.op("PRelu", x, self.constant(self.rng.uniform(0.05, 0.5, (channels, 1, 1))))

    def block(self, x: str, channels: int, dead: Mask) -> str:
        """`bend(x + expand(depthwise(reduce(x))))`."""
        half, gone = channels // 2, self.some_dead(channels // 2)
        y = self.bend(self.conv(x, channels, half, gone), half)
        y = self.conv(y, half, half, gone, 3, 1, half)
        y = self.conv(y, half, channels, dead)
        return self.bend(self.op("Add", x, y), channels)

    def down(self, x: str, before: int, channels: int, dead_before: Mask, dead: Mask) -> str:
        """Half the size; the shortcut is pooled, and gets channels of zeros."""
        y = self.conv(x, before, before, dead_before, 3, 2, before)
        y = self.conv(y, before, channels, dead)
        x = self.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        if channels > before:
            x = self.op("Pad", x, self.constant([0, 0, 0, 0, 0, channels - before, 0, 0], np.int64))
        return self.bend(self.op("Add", x, y), channels)

    def model(self) -> ModelProto:
        """The network with its norms."""
        dead = self.some_dead(self.widths[0])
        x = self.bend(self.conv("x", 3, self.widths[0], dead, 3, 2), self.widths[0])
        before = self.widths[0]
        for width in self.widths:
            grown = np.concatenate([dead, self.some_dead(width - before)]) if width > before else dead
            x = self.down(x, before, width, dead, grown)
            dead, before = grown, width
            for _ in range(self.depth):
                x = self.block(x, width, dead)
        left = self.size // 2 ** (len(self.widths) + 1)
        weight = self.rng.standard_normal((96, before, left, left)) / np.sqrt(before * left * left)
        x = self.op("Conv", x, self.constant(weight), self.constant(self.rng.normal(0, 1, 96)))
        self.nodes.append(helper.make_node("Flatten", [x], ["y"]))
        ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, self.size, self.size]),
                helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 96])]  # fmt: skip
        tensors = [numpy_helper.from_array(value, name) for name, value in self.tensors.items()]
        graph = helper.make_graph(self.nodes, "landmark", ends[:1], ends[1:], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@click.command(help=__doc__)
@click.option("--rounds", default=30)
@click.option("--dead", default=0.4)
def main(rounds: int, dead: float) -> None:
    """Median times of the networks as trained, folded, and shrunk, in one run on one thread."""
    print("| network | model | ms | of trained | multiplications | MB |")
    print("|---|---|--:|--:|--:|--:|")
    for bent in ("Relu", "PRelu"):
        model = Landmark(dead=dead, bent=bent).model()
        folded = bnfold.fold(model, verify=False).model
        results = {f"in blocks of {block}": shrink(folded, block=block) for block in (1, 8, 16)}
        models = {"trained": model, "folded": folded} | {name: result.model for name, result in results.items()}
        times = medians(models, 1, rounds)
        for name, seconds in times.items():
            before, after = results[name].multiplications if name in results else (1, 1)
            cells = f"{seconds * 1e3:.2f} | {seconds / times['trained']:.2f} | {after / before:.2f}"
            print(f"| {bent} | {name} | {cells} | {models[name].ByteSize() / 1e6:.2f} |")


if __name__ == "__main__":
    main()
