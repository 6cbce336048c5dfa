"""LRNs of ONNX graphs: the operator, and what exporters write in its place; and the convolution that each follows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from ..equivalence.inputs import Array, Feed
from ..equivalence.probes import exposed
from ..equivalence.runners import OrtRunner
from ..graph import Reason
from .formula import Formula, identify

POOLS = frozenset({"MaxPool"})
RELUS = frozenset({"Relu", "LeakyRelu"})
ACTIVATIONS = RELUS | {
    "Sigmoid",
    "Tanh",
    "Elu",
    "Selu",
    "PRelu",
    "Softplus",
    "HardSwish",
    "HardSigmoid",
    "Clip",
    "Gelu",
}
POWERS = frozenset({"Pow", "Sqrt"})


@dataclass(frozen=True)
class OnnxSite:
    """One LRN: the tensor that it takes and gives, the nodes that compute it, and what lies before it.

    `between`: from the convolution `conv` to the LRN, in order; `private`: nothing else reads what lies between.
    """

    name: str
    kind: str
    source: str
    result: str
    nodes: tuple[NodeProto, ...]
    formula: Formula
    conv: NodeProto | None = None
    between: tuple[NodeProto, ...] = ()
    private: bool = True

    @property
    def reason(self) -> Reason | None:
        """Why a norm cannot go before the activation."""
        acts = [node.op_type for node in self.between if node.op_type in ACTIVATIONS]
        if self.conv is None:
            return Reason("no-conv", "no convolution directly before it", self.name)
        if not self.private:
            return Reason("read-elsewhere", "others read what lies between the convolution and the LRN", self.conv.name)
        if any(name not in RELUS for name in acts) or len(acts) > 1:
            return Reason("activation", f"{' and '.join(acts)} between: ReLU or leaky ReLU expected", self.name)
        return None

    @property
    def slope(self) -> float | None:
        """Of the activation below zero, None where there is none."""
        act = next((node for node in self.between if node.op_type in RELUS), None)
        if act is None:
            return None
        return 0.0 if act.op_type == "Relu" else float(next((a.f for a in act.attribute if a.name == "alpha"), 0.01))


@dataclass
class Wires:
    """Who makes and who reads each tensor of a graph."""

    graph: GraphProto
    maker: dict[str, NodeProto] = field(default_factory=dict)
    readers: dict[str, list[NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.node:
            self.maker.update((name, node) for name in node.output if name)
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for attribute in node.attribute:  # a body may read anything
                for body in [attribute.g, *attribute.graphs]:
                    for inner in body.node:
                        for name in inner.input:
                            self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.graph.output}

    def alone(self, tensor: str) -> bool:
        """Whether a tensor has one reader, and is no output."""
        return len(self.readers.get(tensor, [])) == 1 and tensor not in self.outputs


def find(model: ModelProto, path: Path, feed: Callable[[], Feed]) -> list[OnnxSite]:
    """The LRNs of the main graph of a model, in its order. `path`: its file; `feed`: inputs that it takes."""
    wires = Wires(model.graph)
    found = []
    for node in model.graph.node:
        if node.op_type == "LRN":
            values = {a.name: a.i if a.name == "size" else a.f for a in node.attribute}
            formula = Formula(
                int(values["size"]), values.get("alpha", 1e-4), values.get("beta", 0.75), values.get("bias", 1.0)
            )
            name = node.name or node.output[0]
            found.append(_placed(OnnxSite(name, "LRN", node.input[0], node.output[0], (node,), formula), wires))
        elif node.op_type in ("Div", "Mul"):
            site = _written(node, wires, path, feed)
            if site is not None:
                found.append(_placed(site, wires))
    return found


def _placed(site: OnnxSite, wires: Wires) -> OnnxSite:
    """With the convolution before it, through an activation and pooling."""
    between: list[NodeProto] = []
    tensor, own = site.source, {id(node) for node in site.nodes}
    private = all(id(reader) in own for reader in wires.readers.get(tensor, [])) and tensor not in wires.outputs
    node = wires.maker.get(tensor)
    while node is not None and node.op_type in POOLS | ACTIVATIONS | {"Identity", "Dropout"}:
        between.insert(0, node)
        private = private and wires.alone(node.input[0])
        node = wires.maker.get(node.input[0])
    conv = node if node is not None and node.op_type in ("Conv", "ConvTranspose") else None
    return OnnxSite(
        site.name, site.kind, site.source, site.result, site.nodes, site.formula, conv, tuple(between),
        private and (conv is None or wires.alone(conv.output[0])),
    )  # fmt: skip


def _written(node: NodeProto, wires: Wires, path: Path, feed: Callable[[], Feed]) -> OnnxSite | None:
    """`x / (k + alpha * window sum of x^2) ^ beta` in several nodes: guessed by its nodes, known by what it answers."""
    for source, other in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        if node.op_type == "Div" and source != node.input[0]:
            continue
        inner = _from(source, other, wires)
        kinds = {n.op_type for n in inner}
        squares = any((n.op_type == "Mul" and list(n.input) == [source, source]) or n.op_type == "Pow" for n in inner)
        if not squares or not kinds & POWERS or not inner:
            continue
        formula = _asked(source, node.output[0], path, feed)
        if formula is not None:
            nodes = (*inner, node)
            return OnnxSite(node.name or node.output[0], "written out", source, node.output[0], nodes, formula)
    return None


def _from(source: str, target: str, wires: Wires) -> list[NodeProto]:
    """The nodes between two tensors, in the order of the graph; none where the second does not come from the first."""
    above: set[int] = set()
    stack, seen = [target], set()
    while stack:
        name = stack.pop()
        node = wires.maker.get(name)
        if name == source or name in seen or node is None:
            continue
        seen.add(name)
        above.add(id(node))
        stack.extend(node.input)
    reached, inner = {source}, []
    for node in wires.graph.node:
        if id(node) in above and reached & set(node.input):
            reached.update(node.output)
            inner.append(node)
    return inner if target in reached else []


def _asked(source: str, target: str, path: Path, feed: Callable[[], Feed]) -> Formula | None:
    """What a part of a model answers, if that is an LRN."""
    inputs = feed()
    model = onnx.load(path)
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        probe, part = Path(folder) / "probe.onnx", Path(folder) / "part.onnx"
        onnx.save(exposed(model, [source]), probe)
        x = OrtRunner(probe).run(inputs)[source]
        if x.ndim < 3 or x.dtype.kind != "f":
            return None
        onnx.save(_cut(model, source, target, x), part)
        runner = OrtRunner(part)

        def answer(value: Array) -> Array:
            return runner.run({**inputs, source: value.astype(x.dtype)})[target]

        try:
            return identify(answer, x.shape, np.dtype(x.dtype))
        except Exception:  # a part that takes no other values
            return None


def _cut(model: ModelProto, source: str, target: str, x: Array) -> ModelProto:
    """The part of a model behind one tensor, which becomes an input."""
    part = exposed(model, [target])
    keep = [node for node in part.graph.node if source not in node.output]
    wanted, nodes = {target}, list[NodeProto]()
    for node in reversed(keep):
        if wanted & set(node.output):
            nodes.insert(0, node)
            wanted.update(node.input)
    del part.graph.node[:]
    part.graph.node.extend(nodes)
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    part.graph.input.append(helper.make_tensor_value_info(source, element, x.shape))
    del part.graph.value_info[:]
    return part
