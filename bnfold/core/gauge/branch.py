"""Identity branches: per-channel affine copies of a layer's own input that are added to its output.

`a * conv(x) + d * x + e` is one conv of x, when it has stride 1 and keeps the size: d goes into the centre tap, e into
the bias. Norms on such branches (RepVGG, MobileOne, FastViT) are then gone even where no gauge removes them, because
both sides of the norm meet again. Here such expressions are found and cut out of the graph before it is solved anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Affine, Graph, Linear, Op, Sum
from .equations import Vector


@dataclass(frozen=True, eq=False)
class Form:
    """A tensor as `sum_k mix_k * layer_k(base) + own * base + add`, each vector along `axis`, or one number.

    `ops`: what computes it from the layers and the base.
    """

    base: str
    mix: dict[Linear, Vector]
    own: Vector
    add: Vector
    ops: tuple[Op, ...] = ()
    axis: int | None = None


@dataclass(frozen=True, eq=False)
class Branch:
    """A form that is to be computed by its layers alone; the first of them takes the copy of its input."""

    form: Form
    root: Op
    layers: tuple[Linear, ...]

    @property
    def norms(self) -> list[Affine]:
        """The norms that go with it."""
        return [op for op in self.form.ops if isinstance(op, Affine) and op.candidate and op.listed]


def find(graph: Graph) -> list[Branch]:
    """All such expressions, each as large as it can be, in the order of the graph."""
    readers = Counter(name for op in graph.ops for name in op.inputs)
    inner = {name for name, count in readers.items() if count == 1} - set(graph.pinned) - graph.watched
    forms: dict[str, tuple[Form, Op]] = {}
    for op in graph.ops:
        form = _form(op, forms, inner)
        if form is not None:
            forms[op.outputs[0]] = form, op
    used = {op for form, _ in forms.values() for op in form.ops[:-1]}
    return [
        Branch(form, root, layers)
        for form, root in forms.values()
        if root not in used and form.own.any() and (layers := _layers(form))
    ]


def _form(op: Op, forms: dict[str, tuple[Form, Op]], inner: set[str]) -> Form | None:
    one, zero = np.ones(1), np.zeros(1)
    if isinstance(op, Linear):
        return Form(op.inputs[0], {op: one}, zero, zero) if op.taps else None
    if not isinstance(op, Affine | Sum):
        return None
    if isinstance(op, Sum) and (len(op.inputs) != len(op.factors) or not op.whole):
        return None
    whole = [forms[name][0] if name in forms and name in inner else None for name in op.inputs]
    bases = [{name} | ({form.base} if form else set()) for name, form in zip(op.inputs, whole, strict=True)]
    common = set.intersection(*bases)
    base = next((form.base for form in whole if form and form.base in common), None) or next(iter(common), None)
    if base is None:
        return None
    parts = [form if form is not None and form.base == base else Form(base, {}, one, zero) for form in whole]
    if isinstance(op, Affine):
        return _scaled(parts[0], op)
    return _summed(parts, op)


def _scaled(part: Form, op: Affine) -> Form | None:
    axis = op.axis if op.scale.size > 1 else part.axis
    if part.axis not in (None, axis) or any(v.size not in (1, op.scale.size) for v in _vectors(part)):
        return None
    mix = {layer: factor * op.scale for layer, factor in part.mix.items()}
    return Form(part.base, mix, part.own * op.scale, part.add * op.scale + op.offset, (*part.ops, op), axis)


def _vectors(form: Form) -> list[Vector]:
    return [form.own, form.add, *form.mix.values()]


def _summed(parts: list[Form], op: Sum) -> Form | None:
    axes = {part.axis for part in parts} - {None}
    sizes = {vector.size for part in parts for vector in _vectors(part)} - {1}
    if len(axes) > 1 or len(sizes) > 1:
        return None
    mix: dict[Linear, Vector] = {}
    own, add = np.zeros(1), np.zeros(1)
    for part, factor in zip(parts, op.factors, strict=True):
        for layer, weight in part.mix.items():
            mix[layer] = mix.get(layer, np.zeros(1)) + factor * weight
        own, add = own + factor * part.own, add + factor * part.add
    ops = tuple(dict.fromkeys(inner for part in parts for inner in part.ops))
    return Form(parts[0].base, mix, own, add, (*ops, op), axes.pop() if axes else None)


def _layers(form: Form) -> tuple[Linear, ...]:
    """The layers, that which takes the copy first; none where no layer can, or the copy runs along another axis."""
    able = [layer for layer in form.mix if layer.takes_bias or not form.add.any()]
    if not able or any(form.axis not in (None, layer.out_axis) for layer in form.mix):
        return ()
    if any(vector.size not in (1, able[0].out_channels) for vector in _vectors(form)):
        return ()
    return (able[0], *(layer for layer in form.mix if layer is not able[0]))


@dataclass(frozen=True, eq=False)
class Cut:
    """A graph without the branches; `origin` maps its new ops to those that they stand for."""

    graph: Graph
    origin: dict[Op, Op]
    branches: list[Branch]


def cut(graph: Graph, branches: list[Branch]) -> Cut:
    """The graph with each branch computed by its layers alone."""
    gone = {op for branch in branches for op in branch.form.ops}
    new: dict[Op, Op] = {}
    for branch in branches:
        outputs = branch.root.outputs
        if len(branch.layers) == 1:
            new[branch.layers[0]] = replace(branch.layers[0], outputs=outputs)
        else:
            inputs = tuple(layer.outputs[0] for layer in branch.layers)
            new[branch.root] = Sum(branch.root.name, inputs, outputs, (1.0,) * len(inputs))
    ops = [new.get(op, op) for op in graph.ops if op in new or op not in gone]
    return Cut(replace(graph, ops=ops), {made: op for op, made in new.items()}, branches)


def taps(branch: Branch) -> Iterator[tuple[Linear, Vector, Vector, Vector]]:
    """For each layer what becomes of it: `mix * layer(x) + own * x + add`, each of shape (channels,)."""
    for i, layer in enumerate(branch.layers):
        zero = np.zeros(1)
        vectors = branch.form.mix[layer], *((branch.form.own, branch.form.add) if i == 0 else (zero, zero))
        mix, own, add = (np.broadcast_to(vector, layer.out_channels).copy() for vector in vectors)
        yield layer, mix, own, add
