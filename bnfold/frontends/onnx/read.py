"""From an ONNX model to the neutral graph: the table of readers, one for each operator that carries a gauge.

The structure is imported by onnx-graphsurgeon from the skeleton, so that no weight is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx_graphsurgeon.logger import G_LOGGER

from ...errors import ModelError
from ...graph import Affine, Graph, Homogeneous, Linear, Op, Opaque, Reason, Shape
from . import layers, structure
from .bindings import Binding
from .constants import Constants, default_opset
from .node import Context, Node, Ops
from .skeleton import Skeleton, infer_shapes, nested_graphs

G_LOGGER.severity = G_LOGGER.ERROR

Reader = Callable[[Node], tuple[Ops, dict[int, Binding]] | Ops | None]

READERS: dict[str, Reader] = {
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "BatchNormalization": layers.batch_norm,
    "Add": layers.arithmetic,
    "Sub": layers.arithmetic,
    "Mul": layers.arithmetic,
    "Div": layers.arithmetic,
    "Relu": structure.activation,
    "LeakyRelu": structure.activation,
    "PRelu": structure.activation,
    "Abs": structure.activation,
    "Clip": structure.clip,
    "Max": structure.extremum,
    "Min": structure.extremum,
    "Where": structure.where,
    "MaxPool": structure.max_pool,
    "GlobalMaxPool": structure.max_pool,
    "AveragePool": structure.average_pool,
    "GlobalAveragePool": structure.average_pool,
    "ReduceMean": structure.reduce,
    "ReduceSum": structure.reduce,
    "ReduceMax": structure.reduce,
    "ReduceMin": structure.reduce,
    "Sum": structure.add_all,
    "Mean": structure.add_all,
    "Neg": structure.negate,
    "Identity": structure.same,
    "Dropout": structure.same,
    "Cast": structure.same,
    "CastLike": structure.cast_like,
    "Shape": structure.measure,
    "Size": structure.measure,
    "Resize": structure.resize,
    "Upsample": structure.resize,
    "Pad": structure.pad,
    "Reshape": structure.reshape,
    "Flatten": structure.reshape,
    "Squeeze": structure.reshape,
    "Unsqueeze": structure.reshape,
    "Transpose": structure.transpose,
    "Concat": structure.concat,
    "Split": structure.split,
    "Slice": structure.cut,
    "Gather": structure.gather,
    "Expand": structure.expand,
    "DepthToSpace": structure.depth_to_space,
    "SpaceToDepth": structure.space_to_depth,
}


@dataclass(frozen=True)
class Source:
    """A model as the planner and the writer need it: the neutral graph, and what its ops are in the file."""

    graph: Graph
    bindings: dict[int, Binding]
    constants: Constants
    dtypes: dict[str, int]
    uses: Counter[str]


def read(
    model: ModelProto,
    bare: Skeleton,
    name: str,
    folder: Path | None = None,
    freeze_inputs: bool = False,
    skip: Callable[[str], bool] = lambda label: False,
) -> Source:
    """The neutral graph of a model, whose skeleton is `bare`; norms whose name `skip` accepts are left alone."""
    inferred = infer_shapes(bare.model)
    nodes, shapes, dtypes = _import(inferred)
    constants = Constants(model, shapes, folder, freeze_inputs, dtypes)
    uses = count_uses(model.graph)
    pinned = _pinned(model.graph)
    context = Context(constants, shapes, default_opset(model), uses, pinned, dtypes)
    views = [_view(node, i, context) for node, i in zip(nodes, bare.nodes, strict=True)]
    _pair_biases(views, context)
    ops: list[Op] = []
    bindings: dict[int, Binding] = {}
    for view in views:
        if view.outputs and all(out in constants for out in view.outputs if out):
            continue
        made, bound = _read_node(view, skip)
        _complete_shapes(made, shapes)
        for position, binding in bound.items():
            bindings[len(ops) + position] = binding
        ops += made
    ops += _hidden(model)
    octaves = OCTAVES.get(_narrowest(model, dtypes), 40.0)
    return Source(Graph(ops, shapes, pinned, name, octaves), bindings, constants, dtypes, uses)


OCTAVES: dict[int, float] = {TensorProto.FLOAT16: 5.0, TensorProto.DOUBLE: 400.0}
"""How far tensors may leave their scale, by element type; float32 and bfloat16 share the default."""


def _narrowest(model: ModelProto, dtypes: dict[str, int]) -> int:
    """float16 where anything is, else double where the inputs are."""
    kinds = {dtypes.get(value.name, 0) for value in model.graph.input} | {t.data_type for t in model.graph.initializer}
    for kind in (TensorProto.FLOAT16, TensorProto.FLOAT):
        if kind in kinds:
            return int(kind)
    return int(TensorProto.DOUBLE) if TensorProto.DOUBLE in kinds else 0


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


def _import(model: ModelProto) -> tuple[list[Any], dict[str, Shape | None], dict[str, int]]:
    """Nodes, shapes and element types as onnx-graphsurgeon reads them."""
    try:
        graph = gs.import_onnx(model)
    except Exception as error:  # whatever it trips over, the caller needs to know which file and why
        raise ModelError(f"onnx-graphsurgeon cannot import the model ({error})") from error
    shapes = {n: None if t.shape is None else _dims(t.shape) for n, t in graph.tensors().items()}
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    dtypes = {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    return graph.nodes, shapes, dtypes


def _dims(shape: Iterable[Any]) -> Shape:
    """Sizes as int, names of dynamic sizes as str, unknown ones (also the empty name and negative sizes) as None."""
    return tuple((d if d >= 0 else None) if isinstance(d, int) else (d or None) for d in shape)


def count_uses(graph: GraphProto) -> Counter[str]:
    """How often each tensor is read: by nodes, in the bodies of nodes too, and as graph output."""
    uses: Counter[str] = Counter(value.name for value in graph.output)
    for node in graph.node:
        uses.update(name for name in node.input if name)
        for body in nested_graphs(node):
            uses.update(count_uses(body))
    return uses


def _pinned(graph: GraphProto) -> dict[str, str]:
    """Tensors that keep their values whatever happens, and why."""
    pinned = {value.name: "is a graph output" for value in graph.output}
    for node in graph.node:
        for body in nested_graphs(node):
            pinned.update(
                (name, f"is read inside the body of {node.name or node.op_type}") for name in count_uses(body)
            )
    pinned.update((value.name, "is a graph input") for value in graph.input)
    return pinned


def _hidden(model: ModelProto) -> list[Op]:
    """The norms that are out of reach: in the bodies of control flow nodes, and in local functions."""
    found = [
        (inner, Reason("in-subgraph", f"it stands in the body of {outer}, which is left as it is", outer))
        for node in model.graph.node
        for outer in [node.name or node.op_type]
        for body in nested_graphs(node)
        for inner in _all_nodes(body)
    ]
    called = {(node.domain, node.op_type) for node in model.graph.node}
    for function in model.functions:
        name = f"{function.domain}.{function.name}"
        why = f"it stands in the local function {name}, which is left as it is"
        if (function.domain, function.name) in called:
            found += [(inner, Reason("in-function", why, name, "inline the function first")) for inner in function.node]
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


def _view(node: gs.Node, index: int, context: Context) -> Node:
    return Node(
        index,
        node.op if (node.domain or "") in ("", "ai.onnx") else f"{node.domain}.{node.op}",
        node.name or f"{node.op}_{index}",
        tuple(t.name for t in node.inputs),
        tuple(t.name for t in node.outputs),
        node.attrs,
        context,
    )


def _pair_biases(views: list[Node], context: Context) -> None:
    """Find the Adds that are biases of MatMuls."""
    products = {view.outputs[0]: view for view in views if view.type == "MatMul"}
    for view in views:
        if view.type != "Add" or len(view.inputs) != 2:
            continue
        for name in view.inputs:
            product = products.get(name)
            if product is not None and layers.bias_of(view, product):
                context.bias_adds[view.index] = product


def _read_node(node: Node, skip: Callable[[str], bool]) -> tuple[Ops, dict[int, Binding]]:
    """The ops of one node: what its reader makes of it, or an op that pins everything."""
    newest = onnx.defs.onnx_opset_version()
    made = None
    if node.opset > newest:
        reason = Reason("unknown-opset", f"opset {node.opset} is newer than {newest}, the newest that is known here")
        if node.type == "BatchNormalization":
            return [Opaque(node.label, node.inputs[:1], node.outputs, node.type, reason)], {}
    elif node.type in READERS and not (
        skip(node.label) and node.type in ("BatchNormalization", "Mul", "Add", "Sub", "Div")
    ):
        made = READERS[node.type](node)
    elif node.type == "BatchNormalization":
        reason = Reason("skipped", "it was to be left alone (--skip)")
        return [Opaque(node.label, node.inputs[:1], node.outputs, node.type, reason)], {}
    if made is None:
        return [_opaque(node)], {}
    ops, bindings = made if isinstance(made, tuple) else (made, {})
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
