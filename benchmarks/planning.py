"""How planning grows: families of networks, each step twice as large as the one before, and the zoo.

python -m benchmarks.planning [--rounds 5] [--family NAME] [--no-zoo]

A family grows in width (channels) or in depth (ops); layers are depthwise wherever that is the same to the planner, so
that weights do not get in the way. Of a dense concatenation the norms' channels are doubled, since they grow with the
square of its depth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import click
import numpy as np
import onnx

from bnfold.core.gauge.planner import plan
from bnfold.core.graph import Graph
from bnfold.core.plan import Plan
from bnfold.onnx.read.read import read
from bnfold.onnx.store.skeleton import skeleton
from tests.nets import Net
from tests.zoo import ZOO

Make = Callable[[int], onnx.ModelProto]
Size = ("N", 0, 6, 6)


class Maker(Net):
    """A net whose layers are numbered."""

    def __init__(self, gamma: str = "positive") -> None:
        super().__init__(seed=1)
        self.gamma = gamma

    def next(self, op: str) -> str:
        """A new name."""
        return f"{op}{len(self.nodes)}"

    def layer(self, x: str, channels: int, k: int = 1) -> str:
        """A depthwise convolution with a bias; a kernel of 3 pads with zeros."""
        return self.conv(x, (1, channels), self.next("conv"), k, k // 2, group=channels)

    def norm(self, x: str, channels: int) -> str:
        """A batch norm."""
        return self.bn(x, channels, self.next("bn"), self.gamma)

    def act(self, x: str, op: str = "Relu") -> str:
        """An activation."""
        return self.node(op, [x], self.next(op))

    def add(self, x: str, y: str) -> str:
        """The sum of two tensors."""
        return self.node("Add", [x, y], self.next("add"))

    def reshape(self, x: str, *shape: int) -> str:
        """Another shape."""
        name = self.next("reshape")
        return self.node("Reshape", [x, self.weight(f"{name}_shape", np.array(shape))], name)

    def made(self, x: str, channels: int) -> onnx.ModelProto:
        """The model, with a layer in front of its output."""
        self.output(self.layer(x, channels), ("N", channels, 6, 6))
        return self.model()


def start(width: int, gamma: str = "positive") -> tuple[Maker, str]:
    """A net that begins with a layer."""
    net = Maker(gamma)
    return net, net.layer(net.input("x", ("N", width, 6, 6)), width)


def attention(width: int) -> onnx.ModelProto:
    """A gate on the channels, which a 1-d convolution computes that slides along them."""
    net, x = start(width)
    for _ in range(2):
        x = net.act(net.norm(x, width))
        pooled = net.reshape(net.node("GlobalAveragePool", [x], net.next("pool")), 0, 1, width)
        name = net.next("slide")
        gate = net.node("Conv", [pooled, net.filter(f"{name}_weight", 1, 1, 3)], name, pads=[1, 1])
        gate = net.reshape(net.act(gate, "Sigmoid"), 0, width, 1, 1)
        x = net.norm(net.layer(net.node("Mul", [x, gate], net.next("mul")), width), width)
    return net.made(x, width)


def neighbours(width: int) -> onnx.ModelProto:
    """Channels that are added to their neighbours."""
    net, x = start(width)
    for k in (1, 2):
        x = net.norm(net.layer(x, width), width)
        name = net.next("turn")
        turned = net.node("Gather", [x, net.weight(f"{name}_index", np.roll(np.arange(width), k))], name, axis=1)
        x = net.layer(net.norm(net.add(x, turned), width), width, 3)
    return net.made(x, width)


def dense(layers: int, growth: int = 8, gamma: str = "positive") -> onnx.ModelProto:
    """Each layer reads what all before it made."""
    net = Maker(gamma)
    parts = [net.conv(net.input("x", ("N", 3, 6, 6)), (3, growth), "stem", 1)]
    for i in range(1, layers + 1):
        x = net.node("Concat", parts, net.next("concat"), axis=1) if i > 1 else parts[0]
        x = net.act(net.norm(x, i * growth))
        parts.append(net.conv(x, (i * growth, growth), net.next("conv"), 1))
    return net.made(net.node("Concat", parts, net.next("concat"), axis=1), (layers + 1) * growth)


def readers(count: int, width: int = 32) -> onnx.ModelProto:
    """One tensor that many branches norm, each in its own way."""
    net, x = start(width)
    ends = [net.layer(net.act(net.norm(x, width)), width) for _ in range(count)]
    return net.made(net.node("Sum", ends, "sum"), width)


def stream(blocks: int, width: int = 32, gamma: str = "positive") -> onnx.ModelProto:
    """Residual blocks of the pre-activation kind."""
    net, x = start(width, gamma)
    for _ in range(blocks):
        x = net.add(x, net.layer(net.act(net.norm(x, width)), width, 3))
    return net.made(net.norm(x, width), width)


def bottlenecks(blocks: int, width: int = 32) -> onnx.ModelProto:
    """Residual blocks that end in a norm, with nothing on the stream that bends."""
    net, x = start(width)
    for _ in range(blocks):
        y = net.act(net.norm(net.layer(x, width), width))
        x = net.add(x, net.norm(net.layer(y, width, 3), width))
    return net.made(x, width)


def behind_curves(blocks: int, width: int = 32) -> onnx.ModelProto:
    """Residual blocks whose norms stay: they stand behind an activation that carries no gauge."""
    net, x = start(width)
    for _ in range(blocks):
        y = net.norm(net.act(net.layer(x, width, 3), "Sigmoid"), width)
        x = net.norm(net.act(net.layer(net.add(x, y), width), "Sigmoid"), width)
    return net.made(x, width)


def constants(blocks: int, width: int = 32) -> onnx.ModelProto:
    """Residual blocks with factors and offsets in place of norms, of which some stay."""
    net, x = start(width)
    for i in range(blocks):
        name = net.next("scale")
        factor = net.weight(f"{name}_factor", net.rng.uniform(0.5, 2.0, (width, 1, 1)))
        offset = net.weight(f"{name}_offset", net.rng.normal(0.3, 0.5, (width, 1, 1)))
        y = net.add(net.node("Mul", [x, factor], name), offset)
        y = net.act(y, "Relu" if i % 2 else "Sigmoid")
        x = net.add(x, net.layer(y, width, 3))
    return net.made(x, width)


def chain(count: int, width: int = 32) -> onnx.ModelProto:
    """Layers and norms in one row."""
    net, x = start(width)
    for _ in range(count):
        x = net.act(net.norm(net.layer(x, width, 3), width))
    return net.made(x, width)


FAMILIES: dict[str, tuple[Make, Sequence[int]]] = {
    "attention over channels, width": (attention, (256, 512, 1024, 2048, 4096)),
    "neighbouring channels, width": (neighbours, (256, 512, 1024, 2048, 4096)),
    "stream of 8 blocks, width": (lambda n: stream(8, n), (256, 512, 1024, 2048, 4096)),
    "dense, 64 layers, growth": (lambda n: dense(64, n), (4, 8, 16, 32)),
    "dense, layers": (dense, (32, 45, 64, 91, 128)),
    "dense with zeros in gamma, layers": (lambda n: dense(n, gamma="zeros"), (16, 23, 32, 45, 64)),
    "readers of one tensor": (readers, (40, 80, 160, 320, 640)),
    "chain, norms": (chain, (40, 80, 160, 320, 640)),
    "stream, blocks": (stream, (32, 64, 128, 256, 500)),
    "stream with zeros in gamma, blocks": (lambda n: stream(n, gamma="zeros"), (32, 64, 128, 256, 500)),
    "linear bottlenecks, blocks": (bottlenecks, (20, 40, 80, 160, 320)),
    "norms behind curves, blocks": (behind_curves, (16, 32, 64, 128, 256)),
    "constants, blocks": (constants, (24, 48, 96, 192, 400)),
}
"""What makes a network of a size, and the sizes."""


def timed(model: onnx.ModelProto, rounds: int) -> tuple[Graph, Plan, float, float]:
    """The graph and the plan of a model, and the median seconds to read the one and to make the other."""
    reading, planning = list[float](), list[float]()
    for _ in range(rounds):
        begin = time.process_time()  # of one thread, whatever else the machine does
        graph = read(model, skeleton(model), "").graph
        middle = time.process_time()
        made = plan(graph)
        reading.append(middle - begin)
        planning.append(time.process_time() - middle)
    return graph, made, statistics.median(reading), statistics.median(planning)


def family(name: str, rounds: int) -> float:
    """Print one family; the largest growth of planning per doubling."""
    make, sizes = FAMILIES[name]
    before, growths = (0.0, 0.0, 0), [0.0]
    for size in sizes:
        graph, made, reading, planning = timed(make(size), rounds)
        entries = sum(bn.channels for bn in made.batch_norms)
        growth = ["", ""]
        if before[2]:
            doublings = np.log2(entries / before[2])
            rates = [(now / then) ** (1 / doublings) for now, then in zip((reading, planning), before, strict=False)]
            growth = [f"{rate:.2f}" for rate in rates]
            growths.append(rates[1])
        before = reading, planning, entries
        counts = made.counts()
        fates = "/".join(str(counts[fate]) for fate in ("folded", "reduced", "kept"))
        print(f"| {name} {size} | {len(graph.ops)} | {entries} | {fates} | {reading:.3f} | {growth[0]} "
              f"| {planning:.3f} | {growth[1]} |", flush=True)  # fmt: skip
    return max(growths)


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--family", "only", help="Only families whose name holds this.")
@click.option("--zoo/--no-zoo", default=True)
def main(rounds: int, only: str | None, zoo: bool) -> None:
    """Print the tables of docs/benchmarks.md."""
    print("| family and size | ops | norm channels | folded/reduced/kept | read s | growth | plan s | growth |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    growths = {name: family(name, rounds) for name in FAMILIES if not only or only in name}
    worst = max(growths, key=lambda name: growths[name])
    print(f"\nLargest growth of planning per doubling: {growths[worst]:.2f} ({worst}).\n")
    if zoo:
        print("| network | ops | norms | plan s |\n|---|--:|--:|--:|")
        for name in sorted(ZOO):
            graph, made, _, planning = timed(ZOO[name](dtype=np.float32), rounds)
            print(f"| {name} | {len(graph.ops)} | {made.counts()['batch_norms']} | {planning:.3f} |", flush=True)


if __name__ == "__main__":
    main()
