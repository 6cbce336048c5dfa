"""From a traced module or program to the neutral graph: the table of readers, one for each ATen op with a gauge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import getitem

import torch
from torch import fx

from ...core.graph import Affine, Graph, Op, Opaque, Reason, Statistics, fault, internal
from ..trace.blocks import kind
from ..trace.capture import SEEN, Capture
from ..trace.constants import Constants, op_name
from ..trace.memory import Key
from . import arithmetic, linear, movement, norms, pointwise
from .bindings import Binding
from .node import Context, Node, Ops, Reading, shape_of
from .norms import Call
from .sharing import LAYERS, RECURRENT, Weights, argument, weight_arguments

Reader = Callable[[Node], Reading | Ops | None]

READERS: dict[str, Reader] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), linear.conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), linear.conv_transpose),
    "convolution": linear.convolution,
    "linear": linear.linear,
    **dict.fromkeys(("addmm", "mm", "matmul"), linear.product),
    **dict.fromkeys(RECURRENT, linear.recurrent),
    **dict.fromkeys(norms.ARITHMETIC, arithmetic.arithmetic),
    "relu": pointwise.relu,
    "leaky_relu": pointwise.leaky_relu,
    "abs": pointwise.absolute,
    **dict.fromkeys(("prelu", "_prelu_kernel"), pointwise.prelu),
    **dict.fromkeys(("clamp", "hardtanh", "clamp_min", "clamp_max", "relu6"), pointwise.clamp),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), pointwise.extremum),
    **dict.fromkeys(("max", "min"), pointwise.greatest),
    "where": pointwise.where,
    "masked_fill": pointwise.masked_fill,
    **{f"{kind}max_pool{n}d{rest}": pointwise.max_pool
       for kind in ("", "adaptive_") for n in (1, 2, 3) for rest in ("", "_with_indices")},
    **{f"avg_pool{n}d": pointwise.average_pool for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": pointwise.adaptive_pool for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": pointwise.adaptive_pool for n in (2, 3)},
    **dict.fromkeys(("mean", "sum", "amax", "amin"), pointwise.reduce),
    "neg": pointwise.negate,
    **dict.fromkeys(
        ("clone", "contiguous", "detach", "alias", "_to_copy", "to", "lift_fresh_copy", "type_as",
         *pointwise.DROPOUTS), pointwise.same),
    **{f"upsample_{kind}": pointwise.resize for kind in (
        "nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d")},
    **{f"_upsample_{kind}": pointwise.resize for kind in (
        "nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "bilinear2d_aa", "bicubic2d_aa")},
    **dict.fromkeys(("pad", "constant_pad_nd"), pointwise.pad),
    **{f"{kind}_pad{n}d": pointwise.copying_pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), movement.reshape),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), movement.permute),
    "cat": movement.concat,
    "stack": movement.stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), movement.split),
    "unbind": movement.unbind,
    **dict.fromkeys(("slice", "narrow", "select", "index_select"), movement.cut),
    "expand": movement.expand,
    "pixel_shuffle": movement.pixel_shuffle,
    "pixel_unshuffle": movement.pixel_unshuffle,
    "channel_shuffle": movement.channel_shuffle,
    **dict.fromkeys(("sym_size", "sym_numel", "sym_stride", "size", "numel"), pointwise.measure),
    "_assert_tensor_metadata": pointwise.measure,
    **dict.fromkeys(norms.NORMS, norms.norm),
}  # fmt: skip
OCTAVES = {torch.float16: 5.0, torch.float64: 400.0}
"""How far tensors may leave their scale, by element type; float32 and bfloat16 share the default."""
NAMED = LAYERS | RECURRENT | norms.NORMS | {"relu", "relu6", "hardtanh", "clamp", "prelu", "leaky_relu"}
"""Ops that go by the path of the module in which they run, where no other such op runs in it."""


@dataclass(frozen=True)
class House:
    """What is known of the module that was traced; nothing for a program, in which everything can be replaced.

    `exchangeable`: whether another module may take the place of the one at a path. `hooked`: for a path, which hook
    sees what its module takes and gives. `statistics`: the running statistics of a module with others' names for them.
    `rivals`: modules that run, and twins of them that do not: what they take and give stays as it is.
    """

    exchangeable: Callable[[str], bool] = lambda path: False
    hooked: Callable[[str], str] = lambda path: ""
    statistics: Callable[[str], Statistics | None] = lambda path: None
    frozen: Collection[Key] = ()
    skipped: Callable[[str], bool] = lambda label: False
    rivals: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Source:
    """A traced network as the planner and the writers need it: the neutral graph, and what its ops are."""

    graph: Graph
    bindings: dict[int, Binding]
    constants: Constants
    capture: Capture
    calls: dict[str, int] = field(default_factory=dict)
    """How often each module that is a norm is called, by path."""


def read(
    capture: Capture,
    name: str,
    house: House | None,
    kept: Mapping[str, Reason] | None = None,
    untapped: Collection[str] = (),
    skipped: Callable[[str], bool] = lambda label: False,
    layers: bool = False,
) -> Source:
    """The neutral graph of a captured module (with its `house`) or program (None).

    `layers`: whether depthwise convolutions may take the place of norms that stay.
    """
    known = house or House(skipped=skipped)
    reader = _Reader(capture, name, known, house is None, kept or {}, frozenset(untapped))
    reader.context.layers = layers
    return reader.read()


class _Reader:
    """Fills a source, node by node."""

    def __init__(self, capture: Capture, name: str, house: House, program: bool, kept: Mapping[str, Reason],
                 untapped: frozenset[str]) -> None:  # fmt: skip
        self.capture, self.house, self.program = capture, house, program
        self.constants = Constants(capture)
        self.nodes = [node for node in capture.program.graph.nodes if node not in self.constants]
        shapes = {node.name: shape_of(node.meta.get("val")) for node in capture.program.graph.nodes}
        weights = Weights(capture.program.graph, self.constants, house.frozen)
        self.kept = kept
        self.context = Context(self.constants, shapes, weights, program, self._kept, untapped, house.exchangeable)
        graph = Graph([], shapes, {}, name, self._octaves())
        self.source = Source(graph, {}, self.constants, capture)
        self.groups = self._groups()
        self.named = {key: sum(op_name(node) in NAMED for node in nodes) for key, nodes in self.groups.items()}
        self.views = {node: self._view(node) for node in self.nodes if node.op == "call_function"}

    def _kept(self, label: str) -> Reason | None:
        if self.house.skipped(label):
            return Reason("skipped", "it was to be left alone (--skip)", label)
        if label in self.house.rivals and label not in self.kept:
            twin = self.house.rivals[label]
            text = f"the examples do not run through {twin}, which the code may choose instead, between the same layers"
            return Reason("untraced", text, label, "give each its own layers, or leave only the one that is used")
        return self.kept.get(label)

    def _octaves(self) -> float:
        dtypes = {t.dtype for t in self.capture.tensors.values() if t.is_floating_point()}
        dtypes |= {v.dtype for n in self.nodes if isinstance(v := n.meta.get("val"), torch.Tensor)}
        for dtype in (torch.float16, torch.float32, torch.bfloat16):
            if dtype in dtypes:
                return OCTAVES.get(dtype, 40.0)
        return OCTAVES[torch.float64] if torch.float64 in dtypes else 40.0

    def _groups(self) -> dict[str, list[fx.Node]]:
        """The nodes of each module call, those of inner modules left out, by the key of the call."""
        groups: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            if node.op == "call_function":
                groups.setdefault(module_call(node)[0], []).append(node)
        return groups

    def _view(self, node: fx.Node) -> Node:
        key, path = module_call(node)
        kind = op_name(node)
        alone = kind in NAMED and self.named[key] == 1
        whole = path if len(self.groups[key]) == 1 else ""
        return Node(node, kind, (path if path and alone else self._owner(node)) or node.name, self.context, whole)

    def _owner(self, node: fx.Node) -> str:
        """The module that holds the weight of a layer or norm, by the name of the weight; "" for other ops."""
        if op_name(node) not in LAYERS | norms.NORMS:
            return ""
        role = weight_arguments(op_name(node))[0] if op_name(node) in LAYERS else "running_mean"
        name = self.constants.weight(argument(node, role))[0]
        return name.rpartition(".")[0] if name.endswith((".weight", ".running_mean")) else ""

    def read(self) -> Source:
        """All ops in order."""
        made_by, inside = {}, set[fx.Node]()
        for call, op, binding in self._affine_calls():
            made_by[call.output] = [op], {0: binding}
            inside.update(call.nodes)
            self.source.calls[call.path] = self.source.calls.get(call.path, 0) + 1
        done: set[fx.Node] = set()
        for node in self.nodes:
            if node in made_by:
                self._add(*made_by[node])
            elif node in inside or node.op != "call_function" or node in done:
                continue
            elif not (node.target is getitem and node.args[0] in done):
                self._add(*self._read_node(node))
                done.add(node)
        self._pin()
        if self.program:
            self.source.graph.ops += _hidden(self.capture.program.graph)
        return self.source

    def _affine_calls(self) -> Iterator[tuple[Call, Op, Binding]]:
        """Module calls that are norms as a whole."""
        for key, nodes in self.groups.items():
            path = module_call(nodes[0])[1]
            if not key or not path or self.program or not self.house.exchangeable(path):
                continue
            call = norms.affine_call(path, nodes, self.views)
            if call is None:
                continue
            known, batch = self.house.statistics(path), any(op_name(node) in norms.NORMS for node in nodes)
            kind = "BatchNormalization" if known is not None or batch else "Mul"
            if known is None and batch:
                known = self._statistics(nodes)
            op = norms.composed(call, self.views, known, kind)
            if op is not None:
                yield call, op, norms.bound(call, self.views)

    def _statistics(self, nodes: list[fx.Node]) -> Statistics | None:
        made = [norms.norm(self.views[node])[0][0] for node in nodes if op_name(node) in norms.NORMS]
        return made[0].statistics if isinstance(made[0], Affine) else None

    def _read_node(self, node: fx.Node) -> Reading:
        view = self.views[node]
        reader = None if _writes(node) else READERS.get(view.type)
        try:
            made = reader(view) if reader else None
        except MemoryError:
            raise
        except Exception as error:  # a fault of ours costs what the op touches, and not the network
            return [self._fault(view, error)], {}
        if made is None:
            return [self._opaque(view)], {}
        ops, bound = made if isinstance(made, tuple) else (made, {})
        return ([self._code(op, view) for op in ops], bound) if view.type in norms.NORMS else (ops, bound)

    def _code(self, op: Op, view: Node) -> Op:
        """A norm as a program has it; in a module, where it is a line of code, it stays."""
        if self.program or isinstance(op, Opaque):
            return op
        hook = self.house.hooked(view.label)
        if hook:
            return _stays(op, Reason("hook", f"{view.label} has a {hook}, which sees what goes in and comes out",
                                     view.label, "remove the hook before folding"))  # fmt: skip
        if view.label in self.capture.mixed:
            text = "it runs under torch.autocast, which computes in other types than the weights have"
            return _stays(op, Reason("autocast", text, view.label, "use torch.autocast around the network, not in it"))
        text = "it is computed by code that does more than that, so no module can be taken out"
        return _stays(op, Reason("in-code", text, view.label, "fold the exported program (torch.export) instead"))

    def _opaque(self, view: Node) -> Opaque:
        inputs = tuple(node.name for node in view.fx.all_input_nodes if node not in self.constants)
        outputs = (view.name, *(user.name for user in view.fx.users if user.target is getitem))
        label = str(view.fx.args[1]) if view.type == SEEN else view.label
        return Opaque(label, inputs, outputs, view.type)

    def _fault(self, view: Node, error: Exception) -> Opaque:
        """An op whose reader failed."""
        found = self.source.graph.faults[view.name] = fault(view.label, view.type, error)
        return replace(self._opaque(view), reason=internal(found) if view.type in norms.NORMS else None)

    def _add(self, made: list[Op], bound: Mapping[int, Binding]) -> None:
        graph = self.source.graph
        for position, binding in bound.items():
            self.source.bindings[len(graph.ops) + position] = binding
        graph.ops += made

    def _pin(self) -> None:
        """Inputs and outputs, and what holds no real numbers: no weight and no constant of those takes a gauge."""
        pinned = self.source.graph.pinned
        for node in self.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                pinned[node.name] = f"it holds {str(value.dtype).removeprefix('torch.')}"
            if node.op == "placeholder":
                pinned[node.name] = "it is an input of the model"
            elif node.op == "output":
                pinned.update((inner.name, "it is an output of the model") for inner in node.all_input_nodes)
            for key, path in calls_of(node).items():
                if path in self.house.rivals:
                    twin = self.house.rivals[path]
                    text = f"{twin}, which the examples do not run through, may take the place of {path}"
                    border = [inner for inner in node.all_input_nodes if key not in calls_of(inner)]
                    border += [] if all(key in calls_of(user) for user in node.users) else [node]
                    pinned.update((inner.name, text) for inner in border if inner not in self.constants)


def _hidden(graph: fx.Graph) -> list[Op]:
    """The norms in graphs of other ops: a branch of torch.cond that data choose, a block in other types."""
    found: list[Op] = []
    for holder in graph.find_nodes(op="get_attr") if graph.owning_module else ():
        inner = getattr(graph.owning_module, str(holder.target), None)
        if not isinstance(inner, fx.GraphModule):
            continue
        found += _hidden(inner.graph)
        outer = next((kind(user) for user in holder.users), "") or "another op"
        why = Reason("in-subgraph", f"it stands in a body of {outer}, whose choice or types are its own", outer)
        for node in inner.graph.nodes:
            if node.op == "call_function" and op_name(node) in norms.NORMS:
                found.append(
                    Opaque(
                        f"{holder.target}.{node.name}",
                        (),
                        (),
                        "BatchNormalization",
                        why,
                        where=(str(node.args[0]), node.name),
                    )
                )
    return found


def _writes(node: fx.Node) -> bool:
    """Whether an op writes into its arguments, `out` say, instead of giving something new."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _stays(op: Op, reason: Reason) -> Opaque:
    assert isinstance(op, Affine)
    return Opaque(op.name, op.inputs, op.outputs, op.type, reason, op.scale.size)


def calls_of(node: fx.Node) -> dict[str, str]:
    """The module calls that a node runs in, by key, outermost first, with the paths of the modules."""
    return {str(key): str(entry[0]) for key, entry in (node.meta.get("nn_module_stack") or {}).items()}


def module_call(node: fx.Node) -> tuple[str, str]:
    """The innermost module call in which a node runs: its key, which tells calls apart, and the module's path."""
    calls = calls_of(node)
    return next(reversed(calls.items())) if calls else ("", "")
