"""Norms that go, and the forms of those that stay: what `Remove`, `Replace` and `Merge` ask for, in an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from ...core.plan import Merge, Remove, Replace
from ...errors import PlanError
from ..read.bindings import AffineBinding, Binding, BoundBinding, ClipBinding, LinearBinding, NodeBinding
from .editor import Editor, demand_finite, ready, rewrite, rounded, set_float

Array = npt.NDArray[Any]


def merge(editor: Editor, edit: Merge, last: int, layers: list[Binding | None], drop: list[Binding | None]) -> None:
    """Let layers alone compute what a whole expression did: the node `last` becomes their sum, or goes."""
    if not all(isinstance(at, LinearBinding) for at in layers) or None in drop:
        raise PlanError(f"{edit.name}: the plan's ops are not in the model; was the plan made for it?")
    ends = [editor.graph.node[at.bias_node] for at in layers if isinstance(at, LinearBinding)]
    node = editor.graph.node[last]
    for at in (*drop, NodeBinding(last)):
        if at is not None:
            editor.let_go(at.node, at.node != last)
    if len(ends) == 1:
        editor.vanish(ends[0].output)
        ends[0].output[0] = node.output[0]
        editor.dropped.add(last)
    else:
        rewrite(node, "Add" if len(ends) == 2 else "Sum", [end.output[0] for end in ends])


def remove(editor: Editor, edit: Remove, at: AffineBinding) -> None:
    """Let the readers of a norm's output read its input: two names become one."""
    node = editor.graph.node[at.node]
    source, target = node.input[at.data], node.output[0]
    editor.release_constants(node, at.data)
    if editor.renaming.merge(source, target, edit.keep == "input"):
        editor.dropped.add(at.node)
    else:  # both names must stay, as graph input and output for instance
        rewrite(node, "Identity", [source])


def replace(editor: Editor, edit: Replace, at: Binding | None) -> bool:
    """Give an op another form; False where the edit does not fit the op."""
    if isinstance(at, ClipBinding) and edit.form == "clip":
        _clip(editor, edit, at)
    elif isinstance(at, BoundBinding) and edit.form == "constant":
        _bound(editor, edit, at)
    elif isinstance(at, AffineBinding) and edit.form in ("add", "mul", "max", "bn", "conv"):
        _affine(editor, edit, at)
    else:
        return False
    return True


def _clip(editor: Editor, edit: Replace, at: ClipBinding) -> None:
    """Other bounds: the same Clip where they are two numbers, else a Max and a Min."""
    node = editor.graph.node[at.node]
    source = node.input[0]
    dtype = _dtype(editor, node, AffineBinding(at.node))
    bounds = [edit.scale * bound + edit.offset for bound in (at.low, at.high)]
    editor.release_constants(node, 0)
    if all((bound == bound[0]).all() for bound in bounds):
        _numbers(editor, node, edit, source, [rounded(bound[0], dtype) for bound in bounds])
        return
    forms = [(op, bound) for op, bound in zip(("Max", "Min"), bounds, strict=True) if np.isfinite(bound).all()]
    for op, bound in forms[:-1]:
        inner = editor.free_name(f"{node.output[0]}_{op.lower()}")
        value = _along(editor, edit, source, bound, dtype, op.lower())
        new = helper.make_node(op, [source, value], [inner], f"{node.name or op}_{op.lower()}")
        editor.inserted.setdefault(at.node, []).append(new)
        source = inner
    op, bound = forms[-1]
    rewrite(node, op, [source, _along(editor, edit, node.input[0], bound, dtype, op.lower())])


def _numbers(editor: Editor, node: NodeProto, edit: Replace, source: str, bounds: list[Array]) -> None:
    """The two bounds of a Clip, which are attributes before opset 11."""
    if editor.constants.opset < 11:
        for name, bound in zip(("min", "max"), bounds, strict=True):
            if np.isfinite(bound):
                set_float(node, name, float(bound))
        return
    names = [
        editor.new(ready(np.asarray(bound)), f"{edit.name}_{part}") if np.isfinite(bound) else ""
        for bound, part in zip(bounds, ("min", "max"), strict=True)
    ]
    rewrite(node, "Clip", [source, *(names if names[1] else names[:1])])


def _bound(editor: Editor, edit: Replace, at: BoundBinding) -> None:
    """The constant c becomes `scale * c + offset`."""
    node = editor.graph.node[at.node]
    old = editor.value(node.input[at.constant])
    rank = editor.scope.rank(node.input[at.data])
    shape = [1] * (old.ndim if rank is None else rank)
    shape[edit.axis : edit.axis + 1] = [-1] * bool(shape)
    scale, offset = edit.scale.reshape(shape), edit.offset.reshape(shape)
    new = rounded(scale * old.astype(np.float64) + at.sign * offset, old.dtype)
    if new.size == old.size:
        new = new.reshape(old.shape)  # a Pad takes a scalar only
    demand_finite(new, old, edit.name)
    editor.put(node, at.constant, ready(new), f"{edit.name}_constant")


def _affine(editor: Editor, edit: Replace, at: AffineBinding) -> None:
    """Add, Mul or Max with one vector, a depthwise Conv, or a BatchNormalization with var 1 and eps 0."""
    node = editor.graph.node[at.node]
    source = node.input[at.data]
    dtype = _dtype(editor, node, at)
    editor.release_constants(node, at.data)
    if edit.form == "bn":
        centre = np.zeros_like(edit.scale) if edit.centre is None else edit.centre
        mean = rounded(centre, editor.constants.value(node.input[3]).dtype).astype(np.float64)
        bias = edit.offset + mean * edit.scale
        _as_batch_norm(editor, node, edit, [edit.scale, bias, mean, np.ones_like(mean)], source)
        return
    if edit.form == "conv":
        _as_conv(editor, node, edit, source, dtype)
        return
    vector = edit.scale if edit.form == "mul" else edit.offset
    value = _along(editor, edit, source, vector, dtype, edit.form)
    if edit.form == "add" and (edit.scale < 0).all():
        rewrite(node, "Sub", [value, source])
    else:
        rewrite(node, edit.form.capitalize(), [source, value])
    if editor.constants.opset < 7:
        node.attribute.extend([helper.make_attribute("broadcast", 1), helper.make_attribute("axis", edit.axis)])


def _along(editor: Editor, edit: Replace, source: str, vector: Array, dtype: np.dtype[Any], part: str) -> str:
    """A constant that runs along the edit's axis of the tensor `source`; before opset 7 an attribute says so."""
    rank = editor.scope.rank(source)
    behind = 0 if rank is None else rank - edit.axis - 1
    shape = [] if rank == 0 else [vector.size, *[1] * behind]  # (C, 1, .., 1): broadcasts from the right
    value = vector.reshape(shape[:1] if editor.constants.opset < 7 else shape)
    return editor.new(ready(rounded(value, dtype)), f"{edit.name}_{part}")


def _as_batch_norm(editor: Editor, node: NodeProto, edit: Replace, vectors: list[Array], source: str) -> None:
    dtypes = [editor.constants.value(name).dtype for name in node.input[1:5]]
    names = [
        editor.new(ready(rounded(vector, dtype)), f"{edit.name}_{part}")
        for vector, dtype, part in zip(vectors, dtypes, ("scale", "bias", "mean", "var"), strict=True)
    ]
    del node.input[:]
    node.input.extend([source, *names])
    del node.output[1:]
    set_float(node, "epsilon", 0.0)


def _as_conv(editor: Editor, node: NodeProto, edit: Replace, source: str, dtype: np.dtype[Any]) -> None:
    """A depthwise Conv with a kernel of 1: the weight has the shape (C, 1, *ones), the bias (C,)."""
    ones = [1] * ((editor.scope.rank(source) or 4) - 2)
    weight = editor.new(ready(rounded(edit.scale.reshape(-1, 1, *ones), dtype)), f"{edit.name}_weight")
    bias = editor.new(ready(rounded(edit.offset, dtype)), f"{edit.name}_bias")
    rewrite(node, "Conv", [source, weight, bias])
    node.attribute.extend(
        [helper.make_attribute("group", edit.scale.size), helper.make_attribute("kernel_shape", ones)]
    )


def _dtype(editor: Editor, node: NodeProto, at: AffineBinding) -> np.dtype[Any]:
    """The element type of the data: as inferred, else that of the constant."""
    known = editor.scope.dtype(node.input[at.data]) or editor.scope.dtype(node.output[0])
    if known:
        return np.dtype(helper.tensor_dtype_to_np_dtype(known))
    constant = next(name for i, name in enumerate(node.input) if i != at.data)
    return editor.constants.value(constant).dtype
