"""Merges linear layers of an exported program, after its norms are folded. See `bnfold.core.merging`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from ...core.graph import Affine, Graph, Op, Reason, Shape
from ...core.graph import Linear as LinearOp
from ...core.graph import Sum as SumOp
from ...core.merging.algebra import Array, Lazy, Linear, average, diagonal, regrouped, storable
from ...core.merging.geometry import Axis, Geometry
from ...core.merging.program import IDENTITY, Cut, Join, Layer, Made, Program, Step, Stop, Sum
from ...core.merging.reasons import PADDING, POOLING, UNKNOWN
from ...core.merging.result import Candidate
from ...core.merging.search import search
from ..read.bindings import AffineBinding
from ..read.linear import _amounts
from ..read.pointwise import DROPOUTS
from ..read.read import Source, read
from ..read.sharing import argument, weight_arguments
from ..trace.capture import Capture, capture_program
from ..trace.constants import Constants, op_name
from .program import _Work

aten = torch.ops.aten
SAME = frozenset({"clone", "alias", "detach", "contiguous", *DROPOUTS})
TRANSPOSED = frozenset({f"conv_transpose{n}d" for n in (1, 2, 3)})


@dataclass(frozen=True)
class Merged:
    """A program, the one that was given where nothing was merged; `candidates`: what was merged or left, and why."""

    program: ExportedProgram
    candidates: tuple[Candidate, ...]

    @property
    def changed(self) -> bool:
        """Whether anything was merged."""
        return any(candidate.verdict == "merged" for candidate in self.candidates)


def merge(program: ExportedProgram, kept: Container[str] = (), siblings: bool = False) -> Merged:
    """A program in which is merged what can be merged exactly and is no slower as one; the one given is left alone.

    `kept`: the names of layers and norms that are to be left alone, as plans have them, or of what they give.
    `siblings`: layers of one tensor and one form become one, too, whose outputs are cut apart.
    """
    capture = capture_program(program)
    source = read(capture, "program", None)
    found = _Reader(capture, source, kept).read()
    candidates = search(found, siblings)
    made = found.made()
    return Merged(Writer(capture, source.constants).write(made) if made else program, candidates)


def mergeable(capture: Capture, source: Source) -> int:
    """How many groups of layers of a traced network could become one each; norms count as what they are."""
    return sum(candidate.verdict == "merged" for candidate in search(_Reader(capture, source, ()).read()))


class _Reader:
    """An exported program as a program of layers and sums."""

    def __init__(self, capture: Capture, source: Source, kept: Container[str]) -> None:
        self.kept, self.source, self.constants = kept, source, source.constants
        self.fx = {node.name: node for node in capture.program.graph.nodes}
        self.ids = {name: i for i, name in enumerate(self.fx)}
        labels = {op.outputs[0]: op.name for op in source.graph.ops if op.outputs}
        names = {i: labels.get(name, name) for name, i in self.ids.items()}
        sizes: dict[str, Shape | None] = {
            name: source.graph.shapes.get(name) for name in self.fx if name in source.graph.shapes
        }
        floats = {t.dtype for t in capture.tensors.values() if t.is_floating_point()}
        self.half = torch.float16 in floats
        self.program = Program({}, self._uses(), dict(source.graph.pinned), sizes, names)
        self.program.itemsize = min((dtype.itemsize for dtype in floats), default=4)
        self.program.misfit = self._misfit

    def _uses(self) -> Counter[str]:
        uses: Counter[str] = Counter()
        for node in self.fx.values():
            fx.map_arg((node.args, node.kwargs), lambda inner: uses.update([inner.name]))
        return uses

    def read(self) -> Program:
        """All steps, in the order of the graph."""
        made: dict[str, Step] = {}
        for i, op in enumerate(self.source.graph.ops):
            step = self._of_op(op, i) if op.outputs and all(name in self.fx for name in op.inputs) else None
            if step is not None:
                made[step.target] = step
        for name, node in self.fx.items():
            step = self._of_node(node) if node.op == "call_function" and node not in self.constants else None
            if step is not None:
                made[name] = step
        self.program.steps = {name: made[name] for name in self.fx if name in made and self._free(made[name])}
        return self.program

    def _free(self, step: Step) -> bool:
        """Whether it may be merged: data of one floating type go in and come out."""
        if step.name in self.kept or step.target in self.kept:
            return False
        kinds = {getattr(self.fx[name].meta.get("val"), "dtype", None) for name in (step.target, *step.sources)}
        return len(kinds) == 1 and all(kind is not None and kind.is_floating_point for kind in kinds)

    def _of_op(self, op: Op, index: int) -> Step | None:
        target, node = op.outputs[0], self.fx.get(op.outputs[0])
        if node is None or node in self.constants:
            return None
        if isinstance(op, SumOp) and len(op.inputs) == len(op.factors) > 1:
            return Sum(op.name, target, op.inputs, (self.ids[target],), op.factors)
        if isinstance(op, Affine) or (isinstance(op, SumOp) and len(op.inputs) == len(op.factors) == 1):
            scale, shift = (op.scale, op.offset) if isinstance(op, Affine) else (np.array(op.factors), np.zeros(1))
            made = diagonal(scale, shift, op.axis if isinstance(op, Affine) else 1)
            binding = self.source.bindings.get(index)
            nodes = binding.nodes if isinstance(binding, AffineBinding) else (target,)
            ids = tuple(self.ids[name] for name in nodes if name in self.ids)
            return Layer(op.name, target, op.inputs, ids, Lazy(made.geometry, lambda: made), "Mul", lead=ids[-1])
        return self._layer(node, op) if isinstance(op, LinearOp) else None

    def _step(self, node: fx.Node, source: fx.Node, name: str, layer: Lazy | Reason, op: str) -> Step:
        here = self.ids[node.name]
        if isinstance(layer, Reason):
            return Stop(name, node.name, (source.name,), (here,), layer)
        return Layer(name, node.name, (source.name,), (here,), layer, op, lead=here)

    def _of_node(self, node: fx.Node) -> Step | None:
        """What the neutral graph says less of than is needed here."""
        kind = op_name(node)
        source = node.args[0] if node.args else None
        if kind == "cat":
            return self._join(node)
        if not isinstance(source, fx.Node):
            return None
        if kind in SAME and isinstance(node.meta.get("val"), torch.Tensor) and not argument(node, "train"):
            return self._step(node, source, node.name, IDENTITY, "Identity")
        pools = kind.startswith("avg_pool") and not argument(node, "divisor_override")
        pool = self._pool(node, source) if pools else None
        return None if pool is None else self._step(node, source, node.name, pool, "AveragePool")

    def _join(self, node: fx.Node) -> Step | None:
        parts, axis, shape = argument(node, "tensors"), int(argument(node, "dim")), self.program.sizes.get(node.name)
        if shape is None or any(part in self.constants for part in parts):
            return None
        names = tuple(part.name for part in parts)
        return Join(node.name, node.name, names, (self.ids[node.name],), axis % len(shape))

    def _layer(self, node: fx.Node, op: LinearOp) -> Step | None:
        weight_role, bias_role = weight_arguments(op_name(node))
        weight, bias = argument(node, weight_role), argument(node, bias_role) if bias_role else None
        source = self.fx[op.inputs[0]]
        kernel = self.constants.value
        shift = np.zeros(op.out_channels) if bias is None else kernel(bias).ravel()
        if shift.size not in (1, op.out_channels):
            return None
        shift = np.broadcast_to(shift, op.out_channels)
        geometry = self._geometry(node, op, weight, bool(shift.any()))
        if isinstance(geometry, Reason):
            return self._step(node, source, op.name, geometry, "")
        turned = geometry.transposed or op_name(node) in ("addmm", "mm", "matmul")

        def load() -> Linear:
            stored = kernel(weight)
            if geometry.kind == "dense":
                return Linear(geometry, (stored.T if turned else stored)[None], shift)
            blocks = stored.reshape(geometry.groups, -1, *stored.shape[1:])  # (g * a, b, *taps) -> (g, a, b, *taps)
            return Linear(geometry, np.swapaxes(blocks, 1, 2) if turned else blocks, shift)

        step = self._step(node, source, op.name, Lazy(geometry, load), "Conv" if geometry.axes else "MatMul")
        return replace(step, shared=len(weight.users) > 1) if isinstance(step, Layer) else step

    def _geometry(self, node: fx.Node, op: LinearOp, weight: fx.Node, biased: bool) -> Geometry | Reason:
        kind = op_name(node)
        if not kind.startswith("conv"):
            return Geometry("dense", op.in_channels, op.out_channels, 1, (), op.in_axis, biased)
        kernel = tuple(int(size) for size in weight.meta["val"].shape[2:])
        across = kind in TRANSPOSED or bool(argument(node, "transposed"))
        axes = self._axes(node, kernel, across)
        groups = int(argument(node, "groups"))
        name = "transpose" if across else "conv"
        return axes if isinstance(axes, Reason) else Geometry(
            name, op.in_channels, op.out_channels, groups, axes, 1, biased
        )  # fmt: skip

    def _axes(self, node: fx.Node, kernel: tuple[int, ...], across: bool = False) -> tuple[Axis, ...] | Reason:
        count = len(kernel)
        strides, steps = (_spread(argument(node, name) or 1, count) for name in ("stride", "dilation"))
        padding = argument(node, "padding")
        if padding == "same" and any(d * (k - 1) % 2 for k, d in zip(kernel, steps, strict=True)):
            return UNKNOWN  # one more behind than in front
        pads = _amounts(padding, kernel, steps) if isinstance(padding, str) else _spread(padding, count)
        more = _spread(argument(node, "output_padding") or 0, count)
        source: Any = node.args[0]
        shape = self.program.sizes.get(source.name) or ()
        sizes = [size if isinstance(size, int) else None for size in shape[-count:]]
        return tuple(
            _axis(k, s, d if k > 1 else 1, p, e, n, across)
            for k, s, d, p, e, n in zip(kernel, strides, steps, pads, more, sizes, strict=True)
        )

    def _pool(self, node: fx.Node, source: fx.Node) -> Lazy | Reason | None:
        shape = self.program.sizes.get(source.name) or ()
        count = int(op_name(node)[len("avg_pool")])
        if len(shape) != count + 2 or not isinstance(shape[1], int):
            return None
        kernel = tuple(_spread(argument(node, "kernel_size"), count))
        strides = tuple(_spread(argument(node, "stride") or list(kernel), count))
        pads = _spread(argument(node, "padding") or 0, count)
        sizes = [size if isinstance(size, int) else None for size in shape[2:]]
        axes = tuple(_axis(k, s, 1, p, 0, n, False) for k, s, p, n in zip(kernel, strides, pads, sizes, strict=True))
        if any(pads) and not argument(node, "count_include_pad"):
            return POOLING
        if argument(node, "ceil_mode") and any(axis.stride > 1 for axis in axes):
            return POOLING
        channels = shape[1]
        return Lazy(average(channels, axes).geometry, lambda: average(channels, axes))

    def _misfit(self, layer: Lazy) -> Reason | None:
        """Torch pads alike on both sides; float16 reaches to 65,504."""
        if any(_sides(axis, layer.geometry.transposed) is None for axis in layer.geometry.axes):
            return PADDING
        return storable(layer, np.dtype(np.float16)) if self.half else None


def _spread(value: Any, count: int) -> list[int]:
    found = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return found * count if len(found) == 1 else found


def _axis(taps: int, stride: int, step: int, pad: int, more: int, size: int | None, across: bool) -> Axis:
    room = 2 * pad - step * (taps - 1)
    return Axis(-pad, step, taps, stride, more - room if across else room, size)


def _sides(axis: Axis, transposed: bool) -> tuple[int, int] | None:
    """The padding on either side, and the output padding; None where the sides would differ."""
    front, end = -axis.first, axis.end(transposed)
    if transposed:
        return (front, front - end) if 0 <= front - end < max(axis.stride, axis.step, 1) else None
    return (front, 0) if front == end else None


@dataclass
class Writer:
    """Puts merged layers and sums into a copy of a program."""

    capture: Capture
    constants: Constants
    fresh: dict[str, fx.Node] = field(default_factory=dict)

    def write(self, made: list[Made]) -> ExportedProgram:
        """Each step before the node that gave its tensor; those of new tensors before the next that is not."""
        self.work = _Work(Source(Graph([], {}, {}, "program", 40.0), {}, self.constants, self.capture))
        order = {name: i for i, name in enumerate(self.work.nodes)}
        waiting: list[Made] = []
        for step in made:
            waiting.append(step)
            cuts = [other.target for other in made if isinstance(other, Cut) and other.sources[0] == waiting[0].target]
            if step.target in self.work.nodes:
                like = self.work.nodes[min(cuts or [step.target], key=order.__getitem__)]
                for inner in waiting:
                    self.fresh[inner.target] = self._node(inner, like)
                self.work._become(step.target, self.fresh[step.target])
                waiting = []
        return self.work.finish()

    def _value(self, name: str) -> fx.Node:
        return self.fresh[name] if name in self.fresh else self.work._now(name)

    def _call(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        with self.work.graph.inserting_before(like):
            node: fx.Node = self.work.graph.call_function(target, args)
        node.meta = {key: value for key, value in like.meta.items() if key != "val"}
        node.meta["val"] = target(*fx.map_arg(args, lambda inner: inner.meta["val"]))
        return node

    def _node(self, step: Made, like: fx.Node) -> fx.Node:
        if isinstance(step, Layer):
            return self._layer(step, like)
        if isinstance(step, Sum):
            return self._sum(step, like)
        if isinstance(step, Cut):
            return self._call(aten.slice.Tensor, (self._value(step.sources[0]), step.axis, step.start, step.stop), like)
        return self._call(aten.cat.default, ([self._value(name) for name in step.sources], step.axis), like)

    def _sum(self, step: Sum, like: fx.Node) -> fx.Node:
        """Additions two by two; what is subtracted comes last."""
        (_, first), *rest = sorted(zip(step.factors, step.sources, strict=True), key=lambda pair: pair[0] < 0)
        total = self._value(first)
        for factor, name in rest:
            call = aten.add.Tensor if factor > 0 else aten.sub.Tensor
            total = self._call(call, (total, self._value(name)), like)
        return total

    def _layer(self, step: Layer, like: fx.Node) -> fx.Node:
        made, geometry, source = step.layer.load(), step.layer.geometry, self._value(step.source)
        if geometry.kind == "dense":
            kernel = regrouped(made.kernel, 1)[0]
        elif geometry.transposed:
            kernel = np.swapaxes(made.kernel, 1, 2).reshape(geometry.inputs, -1, *geometry.taps)
        else:
            kernel = made.kernel.reshape(geometry.outputs, -1, *geometry.taps)
        weight = self._tensor(kernel, source, f"{step.name}.weight")
        bias = self._tensor(made.bias, source, f"{step.name}.bias") if geometry.biased else None
        if geometry.kind == "dense":
            return self._call(aten.linear.default, (source, weight, bias), like)
        sides = [_sides(axis, geometry.transposed) or (0, 0) for axis in geometry.axes]
        strides, steps = [axis.stride for axis in geometry.axes], [axis.step for axis in geometry.axes]
        pads, more = [side[0] for side in sides], [side[1] for side in sides]
        rest = (strides, pads, steps, geometry.transposed, more, geometry.groups)
        return self._call(aten.convolution.default, (source, weight, bias, *rest), like)

    def _tensor(self, value: Array, source: fx.Node, wish: str) -> fx.Node:
        like = source.meta["val"]
        return self.work._constant(value, like.dtype, like, wish)
