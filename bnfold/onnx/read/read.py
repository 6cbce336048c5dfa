"""From an ONNX model to the neutral graph: the table of readers, one for each operator that carries a gauge.

The structure is imported by onnx-graphsurgeon from the skeleton, so that no weight is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from ...core.graph import Affine, Graph, Homogeneous, Linear, Op, Opaque, Reason, Shape, Sum, fault, internal
from ...errors import BnfoldError, ModelError, UsageError
from ...process.private import copied_module
from ..store.loops import infer_shapes
from ..store.skeleton import Skeleton, nested_graphs
from . import arithmetic, linear, movement, pointwise, quantized
from .bindings import Binding, LinearBinding, NodeBinding, Reading
from .constants import Constants
from .node import Context, Node, Ops
from .scope import BODIES, Scope, count_uses, pinned

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Reader = Callable[[Node], Reading | Ops | None]

READERS: dict[str, Reader] = {
    "Conv": linear.conv,
    "ConvTranspose": linear.conv_transpose,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "Einsum": linear.matmul,
    "com.microsoft.FusedConv": linear.fused,
    "com.microsoft.FusedGemm": linear.fused,
    "com.microsoft.FusedMatMul": linear.fused_matmul,
    "com.microsoft.NhwcConv": linear.nhwc_conv,
    "LSTM": linear.recurrent,
    "GRU": linear.recurrent,
    "RNN": linear.recurrent,
    "LayerNormalization": linear.normalization,
    "RMSNormalization": linear.normalization,
    "InstanceNormalization": linear.normalization,
    "GroupNormalization": linear.normalization,
    "DequantizeLinear": quantized.dequantize,
    "BatchNormalization": arithmetic.batch_norm,
    "Add": arithmetic.arithmetic,
    "Sub": arithmetic.arithmetic,
    "Mul": arithmetic.arithmetic,
    "Div": arithmetic.arithmetic,
    "Relu": pointwise.activation,
    "LeakyRelu": pointwise.activation,
    "PRelu": pointwise.activation,
    "Abs": pointwise.activation,
    "Clip": pointwise.clip,
    "Max": pointwise.extremum,
    "Min": pointwise.extremum,
    "Where": pointwise.where,
    "MaxPool": pointwise.max_pool,
    "GlobalMaxPool": pointwise.max_pool,
    "AveragePool": pointwise.average_pool,
    "GlobalAveragePool": pointwise.average_pool,
    "ReduceMean": pointwise.reduce,
    "ReduceSum": pointwise.reduce,
    "ReduceMax": pointwise.reduce,
    "ReduceMin": pointwise.reduce,
    "Sum": pointwise.add_all,
    "Mean": pointwise.add_all,
    "Neg": pointwise.negate,
    "Identity": pointwise.same,
    "Dropout": pointwise.same,
    "Cast": pointwise.same,
    "CastLike": pointwise.cast_like,
    "Shape": pointwise.measure,
    "Size": pointwise.measure,
    "Resize": pointwise.resize,
    "Upsample": pointwise.resize,
    "Pad": pointwise.pad,
    "GridSample": pointwise.grid_sample,
    "RoiAlign": pointwise.roi_align,
    "Reshape": movement.reshape,
    "Flatten": movement.reshape,
    "Squeeze": movement.reshape,
    "Unsqueeze": movement.reshape,
    "Transpose": movement.transpose,
    "Concat": movement.concat,
    "Split": movement.split,
    "Slice": movement.cut,
    "Gather": movement.gather,
    "Expand": movement.expand,
    "Tile": movement.tile,
    "DepthToSpace": movement.depth_to_space,
    "SpaceToDepth": movement.space_to_depth,
}


SKIPPABLE = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div", "Sum"})
"""The operators that may be norms."""


@dataclass(frozen=True)
class Source:
    """A model as the planner and the writer need it: the neutral graph, and what its ops are in the file.

    `scopes`: the model's graph, and the bodies in it. `places`: the scope of each op that has a binding.
    """

    graph: Graph
    bindings: dict[int, Binding]
    places: dict[int, int]
    scopes: list[Scope]
    nodes: list[tuple[int, int]] = field(default_factory=list)
    """For each op the scope and the node that it was read from; the norms that are out of reach come last, without."""

    @property
    def constants(self) -> Constants:
        """Those of the model's graph."""
        return self.scopes[0].constants


def read(
    model: ModelProto,
    bare: Skeleton,
    name: str,
    folder: Path | None = None,
    freeze_inputs: bool = False,
    skip: Callable[[str], bool] = lambda label: False,
    fresh: Mapping[str, Callable[[], Any]] | None = None,
) -> Source:
    """The neutral graph of a model, whose skeleton is `bare`; norms whose name `skip` accepts are left alone.

    `fresh`: see `Constants`.
    """
    inferred = infer_shapes(bare.model)
    imported = _import(inferred)
    shapes, dtypes = _shapes(imported), _dtypes(inferred.graph)
    constants = Constants(model, shapes, folder, freeze_inputs, dtypes, fresh)
    scope = Scope(model.graph, constants, shapes, dtypes, count_uses(model.graph), pinned(model.graph))
    graph = Graph([], {}, {}, name, OCTAVES.get(_narrowest(model, dtypes), 40.0))
    source = Source(graph, {}, {}, [scope])
    _Reader(source, skip).read(scope, imported.nodes, inferred.graph.node, bare.nodes)
    if constants.opset >= 7:  # from there on an Add broadcasts
        _offer_biases(source)
    graph.ops += _hidden(model)
    return source


BARE = frozenset({"MatMul", "Einsum", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Layers that have no room for a bias, behind which people write an Add."""


def _offer_biases(source: Source) -> None:
    """Let layers that have no room for a bias get one in an addition of its own."""
    for i, binding in source.bindings.items():
        op = source.graph.ops[i]
        if not isinstance(op, Linear) or not isinstance(binding, LinearBinding) or binding.bias is not None:
            continue
        if source.scopes[source.places[i]].graph.node[binding.node].op_type in BARE:
            source.graph.ops[i] = replace(op, grows=True)
            source.bindings[i] = replace(binding, growing=op.rank - op.out_axis - 1)


class _Reader:
    """Fills a source, graph by graph."""

    def __init__(self, source: Source, skip: Callable[[str], bool]) -> None:
        self.source, self.skip = source, skip

    def read(self, scope: Scope, nodes: list[Any], typed: Sequence[NodeProto], positions: Iterable[int]) -> None:
        """The ops of one graph: `nodes` as imported, `typed` with types, `positions` in the file."""
        context = Context(scope.constants, scope.shapes, scope.constants.opset, scope.uses, scope.pinned, scope.dtypes)
        views = [_view(node, i, context, scope.label) for node, i in zip(nodes, positions, strict=True)]
        _complete_ranks(views, scope.shapes)
        _pair_biases(views, context, self.skip)
        context.makers.update((name, view.type) for view in views for name in view.outputs)
        context.readers.update((name, view.type) for view in views for name in view.inputs)
        context.products.update(name for view in views if _of_data(view) for name in (*view.inputs, *view.outputs))
        place = len(self.source.scopes) - 1
        for view, node in zip(views, typed, strict=True):
            if view.type in BODIES:
                self._bodies(scope, view, node)
            try:
                if view.outputs and all(out in scope.constants for out in view.outputs if out):
                    continue
                made, bound = _read_node(view, self.skip)
                _complete_shapes(made, scope.shapes)
            except Exception as error:  # a fault of ours costs what the node touches, and not the file
                if isinstance(error, BnfoldError | MemoryError) and not getattr(error, "local", False):
                    raise
                made, bound = [self._fault(view, error)], {}
            self.source.nodes.extend([(place, view.index)] * len(made))
            self._add(scope, place, made, bound)
        self._watch(scope)
        taken = self.source.graph.shapes
        told = (q.tensor_name for q in scope.graph.quantization_annotation if q.tensor_name in scope.local)
        self.source.graph.annotated.update(scope.neutral(name, taken) for name in told)
        self.source.graph.pinned.update((scope.neutral(name, taken), why) for name, why in scope.pinned.items())

    def _fault(self, view: Node, error: Exception) -> Opaque:
        """What stands for a node that its reader tripped over."""
        found = self.source.graph.faults["".join(view.outputs[:1])] = fault(view.label, view.type, error)
        norm = view.type == "BatchNormalization"
        product = view.context.bias_adds.get(view.index)  # is read with its bias, and nowhere else
        inputs = view.inputs[:1] if norm else tuple(filter(None, (*view.inputs, *(product.inputs if product else ()))))
        return Opaque(view.label, inputs, view.outputs, view.type, internal(found) if norm else None)

    def _add(self, scope: Scope, place: int, made: Ops, bound: dict[int, Binding]) -> None:
        """Ops under the names of the neutral graph."""
        graph = self.source.graph
        for position, binding in bound.items():
            self.source.bindings[len(graph.ops) + position] = binding
            self.source.places[len(graph.ops) + position] = place
        for op in made:
            names = [[scope.neutral(name, graph.shapes) for name in side] for side in (op.inputs, op.outputs)]
            for raw, name in zip((*op.inputs, *op.outputs), (*names[0], *names[1]), strict=True):
                graph.shapes.setdefault(name, scope.shapes.get(raw))
            graph.ops.append(replace(op, inputs=tuple(names[0]), outputs=tuple(names[1])))

    def _watch(self, scope: Scope) -> None:
        """Note the tensors that are read more often than the ops of the neutral graph do."""
        graph = self.source.graph
        reads = Counter(name for op in graph.ops for name in op.inputs)
        for name, count in scope.uses.items():
            if name in scope.local and count > reads[scope.neutral(name, graph.shapes)]:
                graph.watched.add(scope.neutral(name, graph.shapes))

    def _bodies(self, outer: Scope, view: Node, node: NodeProto) -> None:
        """The ops of the bodies of a control flow node, which come before it."""
        for attribute, original in zip(node.attribute, outer.graph.node[view.index].attribute, strict=True):
            if attribute.type != AttributeProto.GRAPH:
                continue
            imported = view.attrs[attribute.name]
            shapes, dtypes = _shapes(imported), _dtypes(attribute.g)
            constants = outer.constants.inside(original.g, shapes, dtypes)
            label = f"{view.label}.{attribute.name}"
            body = Scope(original.g, constants, shapes, dtypes, count_uses(original.g), pinned(original.g, view.label),
                         label, outer)  # fmt: skip
            self.source.scopes.append(body)
            self.read(body, imported.nodes, attribute.g.node, range(len(original.g.node)))


OCTAVES: dict[int, float] = {TensorProto.FLOAT16: 5.0, TensorProto.DOUBLE: 400.0}
"""How far tensors may leave their scale, by element type; float32 and bfloat16 share the default."""


def _narrowest(model: ModelProto, dtypes: dict[str, int]) -> int:
    """float16 where anything is, else double where the inputs are."""
    kinds = {dtypes.get(value.name, 0) for value in model.graph.input} | {t.data_type for t in model.graph.initializer}
    for kind in (TensorProto.FLOAT16, TensorProto.FLOAT):
        if kind in kinds:
            return int(kind)
    return int(TensorProto.DOUBLE) if TensorProto.DOUBLE in kinds else 0


ALIKE = frozenset({
    "Identity", "Cast", "Dropout", "BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Sigmoid",
    "Tanh", "HardSigmoid", "HardSwish", "Softplus", "Mish", "Gelu", "Erf", "Abs", "Neg", "LRN", "InstanceNormalization",
})  # fmt: skip
"""Operators whose first input has the shape of the output."""
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})


def _complete_ranks(views: Sequence[Node], shapes: dict[str, Shape | None]) -> None:
    """Ranks and channels that nothing says but the layers that read a tensor, by way of what keeps its shape."""
    # from the front: what is constant follows from what is before it, and a long chain is not asked from its end
    fixed = {name for view in views for name in view.outputs if name in view.context.constants}
    for view in reversed(views):
        source = view.input(0)
        if not source or shapes.get(source) is not None or source in fixed or source in view.context.constants:
            continue
        weight, out = view.shape(view.input(1)) or (), shapes.get(view.outputs[0]) if view.outputs else None
        if view.type in ("Conv", "ConvTranspose") and len(weight) > 2:
            groups = view.attrs.get("group", 1) if view.type == "Conv" else 1
            channels = weight[0] if groups == 1 and view.type == "ConvTranspose" else weight[1]
            known = channels * groups if isinstance(channels, int) else None
            shapes[source] = (None, known, *[None] * (len(weight) - 2))
        elif view.type in ALIKE and out is not None:
            shapes[source] = out
        elif view.type in POOLS and out is not None:
            shapes[source] = (*out[:2], *[None] * (len(out) - 2))


def _complete_shapes(ops: list[Op], shapes: dict[str, Shape | None]) -> None:
    """Ranks that shape inference lost behind an op it does not know, where a layer with weights gives them back."""
    for op in ops:
        out = op.outputs[0] if op.outputs else ""
        if shapes.get(out) is not None:
            continue
        if isinstance(op, Linear):
            shapes[out] = tuple(op.out_channels if axis == op.out_axis else None for axis in range(op.rank))
        elif isinstance(op, Affine | Homogeneous):
            shapes[out] = shapes.get(op.inputs[0])


@cache
def _importer() -> ModuleType:
    """The reader of onnx-graphsurgeon, which says nothing but errors."""
    from onnx_graphsurgeon.logger.logger import Logger

    made = copied_module("onnx_graphsurgeon.importers.onnx_importer", {})
    vars(made)["G_LOGGER"] = Logger(Logger.ERROR)
    return made


def _import(model: ModelProto) -> gs.Graph:
    """The structure of a model, as onnx-graphsurgeon reads it, which modules of PyTorch do without."""
    try:
        import onnx_graphsurgeon as gs  # noqa: F401

        importer = _importer()
    except ImportError as error:
        raise UsageError(
            "ONNX files are read by the package onnx-graphsurgeon: pip install onnx-graphsurgeon"
        ) from error
    try:
        graph: gs.Graph = importer.import_onnx(model)
        return graph
    except Exception as error:  # whatever it trips over, the caller needs to know which file and why
        raise ModelError(f"onnx-graphsurgeon cannot import the model ({error})") from error


def _shapes(graph: gs.Graph) -> dict[str, Shape | None]:
    return {name: None if t.shape is None else _dims(t.shape) for name, t in graph.tensors().items()}


def _dtypes(graph: GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}


def _dims(shape: Iterable[Any]) -> Shape:
    """Sizes as int, names of dynamic sizes as str, unknown ones (also the empty name and negative sizes) as None."""
    return tuple((d if d >= 0 else None) if isinstance(d, int) else (d or None) for d in shape)


def _hidden(model: ModelProto) -> list[Op]:
    """The norms that are out of reach: in the bodies of operators that are not known, and in local functions."""
    found = [
        (inner, Reason("in-subgraph", f"it stands in a body of {outer}, an operator that is not known", outer))
        for node in _all_nodes(model.graph)
        if node.op_type not in BODIES or node.domain not in ("", "ai.onnx")
        for outer in [node.name or node.op_type]
        for body in nested_graphs(node)
        for inner in body.node
    ]
    called = {(node.domain, node.op_type) for node in _all_nodes(model.graph)}
    for function in model.functions:
        name = f"{function.domain}.{function.name}"
        why = f"it stands in the local function {name}, which cannot be inlined"
        if (function.domain, function.name) in called:
            found += [(inner, Reason("in-function", why, name)) for inner in function.node]
    return [
        Opaque(node.name or node.op_type, (), (), node.op_type, reason, where=(node.input[0], node.output[0]))
        for node, reason in found
        if node.op_type == "BatchNormalization"
    ]


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for body in nested_graphs(node):
            yield from _all_nodes(body)


def _view(node: gs.Node, index: int, context: Context, where: str) -> Node:
    return Node(
        index,
        node.op if (node.domain or "") in ("", "ai.onnx") else f"{node.domain}.{node.op}",
        node.name or f"{where}{'/' if where else ''}{node.op}_{index}",
        tuple(t.name for t in node.inputs),
        tuple(t.name for t in node.outputs),
        node.attrs,
        context,
    )


def _of_data(view: Node) -> bool:
    """Whether it multiplies two things that were computed."""
    return view.type == "Mul" and not any(view.constant(i) for i in range(len(view.inputs)))


def _pair_biases(views: list[Node], context: Context, skip: Callable[[str], bool]) -> None:
    """Find the Adds that are biases of products, or of the scale of one of integers, and are not to be left alone."""
    products = {view.outputs[0]: view for view in views if view.type in ("MatMul", "Einsum")}
    for view in views:
        scaled = quantized.rescaled(view, view.outputs[0], False)
        if scaled is not None and not skip(view.label):
            products[view.outputs[0]] = view
            context.scales |= {scaled[1].node} - {view.index}
    for view in views:
        if view.type != "Add" or len(view.inputs) != 2 or skip(view.label):
            continue
        for name in view.inputs:
            product = products.get(name)
            with suppress(Exception):  # whatever it is, the reader of one of the two meets it again
                if product is not None and linear.bias_of(view, product):
                    context.bias_adds[view.index] = product


def _read_node(node: Node, skip: Callable[[str], bool]) -> Reading:
    """The ops of one node: what its reader makes of it, or an op that pins everything."""
    newest = onnx.defs.onnx_opset_version()
    made = None
    if node.opset > newest:
        reason = Reason("unknown-opset", f"opset {node.opset} is newer than {newest}, the newest that is known here")
        if node.type == "BatchNormalization":
            return [Opaque(node.label, node.inputs[:1], node.outputs, node.type, reason)], {}
    elif node.type in READERS and not (node.type in SKIPPABLE and skip(node.label)):
        made = READERS[node.type](node)
    elif node.type == "BatchNormalization":
        reason = Reason("skipped", "it was to be left alone (--skip)")
        return [Opaque(node.label, node.inputs[:1], node.outputs, node.type, reason)], {}
    if made is None:
        return [_opaque(node)], {}
    ops, bindings = made if isinstance(made, tuple) else (made, {})
    if len(ops) == 1 and not bindings:
        bindings = {0: NodeBinding(node.index)}
    ops = [replace(op, whole=False) if isinstance(op, Sum) and i not in bindings else op for i, op in enumerate(ops)]
    return _named(ops, node), bindings


def _opaque(node: Node) -> Opaque:
    data = tuple(name for name in node.inputs if name and name not in node.context.constants)
    return Opaque(node.label, data, node.outputs, node.type)


def _named(ops: Ops, node: Node) -> Ops:
    """The ops, or one that pins everything where an optional output would be left without a gauge."""
    covered = {out for op in ops for out in op.outputs}
    if ops and any(out and node.context.uses[out] and out not in covered for out in node.outputs):
        return [_opaque(node)]
    return ops
