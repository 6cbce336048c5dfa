"""LRNs of ONNX graphs: the operator, and what exporters write in its place; and the convolution that each follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from ..calibration.onnx_run import Looking
from ..core.graph import Reason
from ..judge.criteria.inputs import Array, Feed
from ..judge.subjects.widen import widen, widened_feed
from .response import Response, identify

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
MOST = 100
"""Nodes of which an LRN that was written out is made at most; the older exporter of PyTorch takes about 60."""
WRITTEN, WITHIN = "written out", "within-channel"
"""Kinds of LRN that are no operator; the second has its window in space, so that no batch norm takes its place."""


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
    response: Response
    conv: NodeProto | None = None
    between: tuple[NodeProto, ...] = ()
    private: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        r = self.response
        return {"name": self.name, "kind": self.kind, "size": r.size, "alpha": r.alpha, "beta": r.beta, "k": r.k,
                "input": self.source, "output": self.result}  # fmt: skip

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


def reads(node: NodeProto) -> Iterator[str]:
    """What a node reads, with all that its bodies name."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from reads(inner)


@dataclass
class Wires:
    """Who makes and who reads each tensor of a graph."""

    graph: GraphProto
    maker: dict[str, NodeProto] = field(default_factory=dict)
    readers: dict[str, list[NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.node:
            self.maker.update((name, node) for name in node.output if name)
            for name in reads(node):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.graph.output}

    def alone(self, tensor: str) -> bool:
        """Whether a tensor has one reader, and is no output."""
        return len(self.readers.get(tensor, [])) == 1 and tensor not in self.outputs


def find(model: ModelProto, feed: Callable[[], Feed]) -> list[OnnxSite]:
    """The LRNs of the main graph of a model with its weights, in its order.

    `feed`: inputs that the model takes; asked for only where some nodes may be an LRN that was written out.
    """
    wires = Wires(model.graph)
    guessed = guesses(model.graph)
    sources = sorted({guess.source for found in guessed.values() for guess in found})
    inputs = feed() if sources else {}
    values = Looking(model, sources)(inputs) if sources else {}
    found = []
    for node in model.graph.node:
        if node.op_type == "LRN":
            found.append(_placed(_operator(node), wires))
        for guess in guessed.get(id(node), []):
            response = _asked(model, guess, values[guess.source], inputs)
            if response is not None:
                kind, name = WITHIN if response.within else WRITTEN, node.name or node.output[0]
                site = OnnxSite(name, kind, guess.source, guess.result, guess.nodes, response)
                found.append(_placed(site, wires))
                break
    return found


def _operator(node: NodeProto) -> OnnxSite:
    given = {a.name: a.i if a.name == "size" else a.f for a in node.attribute}
    response = Response.of_onnx(
        int(given["size"]), given.get("alpha", 1e-4), given.get("beta", 0.75), given.get("bias", 1.0)
    )
    return OnnxSite(node.name or node.output[0], "LRN", node.input[0], node.output[0], (node,), response)


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
        site.name, site.kind, site.source, site.result, site.nodes, site.response, conv, tuple(between),
        private and (conv is None or wires.alone(conv.output[0])),
    )  # fmt: skip


@dataclass(frozen=True)
class Guess:
    """Nodes that may be an LRN, and the tensors that they take and give."""

    source: str
    result: str
    nodes: tuple[NodeProto, ...]


def guesses(graph: GraphProto) -> dict[int, list[Guess]]:
    """What the quotients and products of a graph may be, by the id of the node; those that may be something."""
    wires = Wires(graph)
    found = ((id(node), _guessed(node, wires)) for node in graph.node)
    return {key: guess for key, guess in found if guess}


def _guessed(node: NodeProto, wires: Wires) -> list[Guess]:
    """What a quotient or a product may be: `x / (k + alpha * window sum of x^2) ^ beta` in several nodes."""
    if node.op_type not in ("Div", "Mul") or len(node.input) != 2:
        return []
    found = []
    for source, other in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        if node.op_type == "Div" and source != node.input[0]:
            continue
        inner = _from(source, other, wires)
        kinds = {n.op_type for n in inner}
        squares = any((n.op_type == "Mul" and list(n.input) == [source, source]) or n.op_type == "Pow" for n in inner)
        if squares and kinds & POWERS:
            found.append(Guess(source, node.output[0], (*inner, node)))
    return found


def _from(source: str, target: str, wires: Wires) -> list[NodeProto]:
    """The nodes between two tensors, in the order of the graph; none where the second does not come from the first, or
    comes from more than an LRN has.
    """
    above: set[int] = set()
    stack, seen = [target], set[str]()
    while stack:
        name = stack.pop()
        node = wires.maker.get(name)
        if name == source or name in seen or node is None:
            continue
        if len(seen) > MOST:
            return []
        seen.add(name)
        above.add(id(node))
        stack.extend(reads(node) if node.op_type != "Shape" else ())
    reached, inner = {source}, []
    for node in wires.graph.node:
        if id(node) in above and reached & set(reads(node)):
            reached.update(node.output)
            inner.append(node)
    return inner if target in reached else []


def _asked(model: ModelProto, guess: Guess, x: Array, inputs: Feed) -> Response | None:
    """What a part of a model answers, if that is an LRN. `x`: what it is given with these inputs."""
    if x.ndim < 3 or x.dtype.kind != "f":
        return None
    part, kind = _cut(model, guess, x), np.dtype(x.dtype)
    if kind == np.float16:  # squares of the magnitudes that are tried overflow
        widen(part)
        kind, inputs = np.dtype(np.float64), widened_feed(inputs)
    try:
        look = Looking(part, [guess.result])
    except Exception:  # a part that does not stand alone
        return None
    return identify(lambda v: look({**inputs, guess.source: v.astype(kind)})[guess.result], x.shape, kind)


def _cut(model: ModelProto, guess: Guess, x: Array) -> ModelProto:
    """The part of a model behind one tensor, which becomes an input; the inputs of the model stay."""
    wanted, nodes = {guess.result}, list[NodeProto]()
    for node in reversed(model.graph.node):
        if wanted & set(node.output) and guess.source not in node.output:
            nodes.insert(0, node)
            wanted.update(reads(node))
    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    part.graph.input.extend(model.graph.input)
    if guess.source not in {value.name for value in model.graph.input}:
        element = helper.np_dtype_to_tensor_dtype(x.dtype)
        part.graph.input.append(helper.make_tensor_value_info(guess.source, element, x.shape))
    return part
