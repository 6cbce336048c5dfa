"""LRN to batch norm in ONNX models: placed, calibrated, and fitted to what the LRN answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ..calibration.moments import Moments, check_fits
from ..calibration.onnx_run import Batches, Looking, batches, made_up
from ..data.samples import Pixels
from ..errors import DataError, ModelError, UsageError
from ..judge.criteria.inputs import Array
from .affine_fit import RISING, Fit, fit, quality
from .onnx_find import POOLS, WITHIN, OnnxSite, Wires, find
from .onnx_merge import sweep
from .report import SwapReport, SwapResult, SwapSite

Progress = Callable[[str], None]
EPSILON = 1e-5
KEPT = 1_000_000
"""Numbers that are kept of each side for a fit: values of a channel, times channels."""


@dataclass
class _Swap:
    """A model that is being changed, beside the one that it was."""

    old: ModelProto
    new: ModelProto
    data: Batches | None
    foldable: bool
    init: str
    rng: np.random.Generator
    sites: list[SwapSite] = field(default_factory=list)


def swap_onnx(
    model: ModelProto, path: Path, data: Any, placement: str, init: str, drop_dropout: bool, batch_size: int,
    samples: int | None, pixels: Pixels | None, seed: int, progress: Progress,
) -> SwapResult:  # fmt: skip
    """The model with batch norms, a new ModelProto. `path`: its file. Arguments and errors: see `bnfold.swap_lrn`."""
    given = None if data is None else batches(model, data, batch_size, samples, pixels)
    if given is None and init == "fit":
        raise UsageError("init='fit' needs data, on which the norms are fitted; give data, or take init='standard'")
    found = find(model, lambda: next(iter(given)) if given is not None else made_up(model))
    chosen = [site for site in found if site.kind != WITHIN]
    if not chosen:
        other = f"; {found[0].name} normalises within channels" if found else ""
        raise ModelError(f"{path}: no LRN over channels in it{other}")
    new = ModelProto()
    new.CopyFrom(model)
    job = _Swap(model, new, given, placement == "foldable", init, np.random.default_rng(seed))
    for site in chosen:
        progress(f"exchanging {site.name}")
        _exchange(job, site)
    dropped = _without_dropout(new) if drop_dropout else ()
    sweep(new, {name for site in chosen for node in site.nodes for name in node.output})
    error = None if given is None else _output_error(model, new, given, str(path))
    left = tuple(site for site in found if site not in chosen)
    report = SwapReport(tuple(job.sites), left, dropped, None, 0 if given is None else len(given), error)
    return SwapResult(new, report)


def _exchange(job: _Swap, site: OnnxSite) -> None:
    """Place one norm, give it its statistics, gamma and beta, and report."""
    reason = site.reason if job.foldable else None
    before = job.foldable and reason is None and site.conv is not None
    at = _current(job.new, site.conv.output[0]) if before and site.conv is not None else site.source
    pools = [node for node in site.between if node.op_type in POOLS] if before else []
    slope = (site.slope if site.slope is not None else RISING if pools else None) if before else None
    (channels, dtype), count, fitted = _channels(job, site), 0, None
    values = np.ones(channels), np.zeros(channels), np.zeros(channels), np.ones(channels)
    warnings = ["no data: mean 0 and variance 1, so that the network is of no use before it is retrained"]
    if job.data is not None:
        moments, inputs, targets = _gathered(job, site, at, pools)
        count = moments.count
        fitted, values = _filled(site, moments, inputs, targets, slope, job.init)
        warnings = fitted.warnings(count)
    for value in values:
        check_fits(site.name, value, dtype.name)
    _place(job.new, site, at, tuple(value.astype(dtype) for value in values), before)
    job.sites.append(SwapSite(
        site.name, site.kind, "foldable" if before else "in-place", {}, channels, count,
        None if fitted is None else fitted.r2, None if fitted is None else fitted.worst, reason, tuple(warnings),
    ))  # fmt: skip


def _current(model: ModelProto, tensor: str) -> str:
    """The name under which a tensor is computed."""
    if any(tensor in node.output for node in model.graph.node):
        return tensor
    raise ModelError(f"{tensor}: no node computes it")


def _channels(job: _Swap, site: OnnxSite) -> tuple[int, np.dtype[Any]]:
    """How many channels an LRN has, and the type of its values."""
    try:
        found = Looking(job.old, [site.source])(next(iter(job.data)) if job.data is not None else made_up(job.old))
    except DataError as error:
        if job.data is not None:
            raise
        raise UsageError(f"{site.name}: how many channels it has shows with data only; give data") from error
    value = found[site.source]
    return int(value.shape[1]), value.dtype


def _gathered(job: _Swap, site: OnnxSite, at: str, pools: list[NodeProto]) -> tuple[Moments, Array, Array]:
    """Moments of what the norm will be given; and samples of that behind the pooling, and of the LRN's answers."""
    assert job.data is not None
    more, name = [], at
    for i, pool in enumerate(pools):
        copy = NodeProto()
        copy.CopyFrom(pool)
        copy.input[0], copy.output[0] = name, f"{at}::pooled{i}"
        copy.name, name = f"{pool.name}::copy", f"{at}::pooled{i}"
        more.append(copy)
    student, teacher = Looking(job.new, [at, name], more), Looking(job.old, [site.result])
    moments: Moments | None = None
    inputs, targets, share = list[Array](), list[Array](), 1.0
    for feed in job.data:
        found, answer = student(feed), teacher(feed)[site.result]
        try:
            part = Moments.of_array(found[at])
        except DataError as error:
            raise DataError(f"{site.name}: of what goes into the norm on these data, {error}") from error
        if moments is None:
            moments = part
            share = min(1.0, KEPT / max(1.0, found[name].size / len(answer) * len(job.data)))
        else:
            moments.add(part)
        x, y = _rows(found[name]), _rows(answer)
        chosen = job.rng.permutation(len(x))[: max(1, math.ceil(share * len(x)))]
        inputs.append(x[chosen])
        targets.append(y[chosen])
    assert moments is not None
    both = np.concatenate(inputs), np.concatenate(targets)
    if not np.isfinite(both[1]).all():
        raise DataError(f"{site.name}: the LRN answers the data with NaN or infinity")
    return moments, *both


def _rows(x: Array) -> Array:
    """(N, C, *space) -> (N * space, C), in float64."""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]).astype(np.float64)


def _filled(
    site: OnnxSite, moments: Moments, inputs: Array, targets: Array, slope: float | None, init: str
) -> tuple[Fit, tuple[Array, Array, Array, Array]]:
    """The quality of the answer, and gamma, beta, mean and variance."""
    try:
        mean, var = moments.mean, moments.variance()
    except DataError as error:
        raise DataError(f"{site.name}: {error}") from error
    root = np.sqrt(var + EPSILON)
    xhat = (inputs - mean) / root
    if init == "standard":
        found = quality(xhat, targets, np.ones_like(mean), np.zeros_like(mean), slope)
    else:
        weak = site.response.weak
        found = fit(xhat, targets, (root * weak, mean * weak), slope)
    return found, (found.gamma, found.beta, mean, var)


def _place(model: ModelProto, site: OnnxSite, at: str, values: tuple[Array, ...], before: bool) -> None:
    """A norm behind the convolution, and nothing in place of the LRN; or a norm in its place."""
    graph = model.graph
    wires = Wires(graph)
    node = next(n for n in graph.node if site.result in n.output)
    name = _fresh(graph, f"{site.name}_norm")
    if before:
        out = _fresh(graph, f"{at}_normalised")
        norm = _norm(model, name, at, out, values)
        for reader in wires.readers.get(at, []):
            reader.input[:] = [out if i == at else i for i in reader.input]
        graph.node.insert(1 + next(i for i, n in enumerate(graph.node) if at in n.output), norm)
        source = out if site.source == at else site.source
        if site.result in wires.outputs:
            node.CopyFrom(helper.make_node("Identity", [source], [site.result], name=node.name))
        else:
            for reader in wires.readers.get(site.result, []):
                reader.input[:] = [source if i == site.result else i for i in reader.input]
            graph.node.remove(node)
    else:
        node.CopyFrom(_norm(model, name, site.source, site.result, values))


def _norm(model: ModelProto, name: str, source: str, out: str, values: tuple[Array, ...]) -> NodeProto:
    """A BatchNormalization node, its vectors as initializers."""
    graph = model.graph
    names = [_fresh(graph, f"{name}_{part}") for part in ("gamma", "beta", "mean", "var")]
    for label, value in zip(names, values, strict=True):
        graph.initializer.append(numpy_helper.from_array(value, label))
        if model.ir_version < 4:  # where initializers are inputs too
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(helper.make_tensor_value_info(label, kind, value.shape))
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    more: dict[str, Any] = {"is_test": 1} if opset < 7 else {}
    if opset < 6:
        more["consumed_inputs"] = [0, 0, 0, 1, 1]
    return helper.make_node("BatchNormalization", [source, *names], [out], name=name, epsilon=EPSILON, **more)


def _fresh(graph: Any, wish: str) -> str:
    """A name that nothing has yet."""
    taken = {t.name for t in graph.initializer} | {v.name for v in (*graph.input, *graph.output)}
    for node in graph.node:
        taken |= {node.name, *node.input, *node.output}
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}_{count}"
    return name


def _without_dropout(model: ModelProto) -> tuple[str, ...]:
    """Dropout nodes go; their names. One whose mask is used, or whose output is the graph's, stays."""
    graph, gone = model.graph, []
    wires = Wires(graph)
    for node in [n for n in graph.node if n.op_type == "Dropout"]:
        mask = len(node.output) > 1 and (wires.readers.get(node.output[1]) or node.output[1] in wires.outputs)
        if mask or node.output[0] in wires.outputs:
            continue
        for reader in graph.node:
            reader.input[:] = [node.input[0] if i == node.output[0] else i for i in reader.input]
        graph.node.remove(node)
        gone.append(node.name or node.output[0])
    return tuple(gone)


def _output_error(old: ModelProto, new: ModelProto, data: Batches, name: str) -> float:
    """The root of the squared differences of all outputs over the data, over that of the old outputs' squares.

    ModelError where onnxruntime takes the old model and not the new one.
    """
    names = [value.name for value in old.graph.output]
    first, second = Looking(old, names), Looking(new, names)
    if not first.refused and second.refused:
        raise ModelError(f"{name}: onnxruntime does not take the new model: {second.refused}")
    difference = total = 0.0
    for feed in data:
        a, b = first(feed), second(feed)
        for name in names:
            if a[name].dtype.kind == "f":
                difference += float(((a[name].astype(np.float64) - b[name]) ** 2).sum())
                total += float((a[name].astype(np.float64) ** 2).sum())
    return math.sqrt(difference / max(total, 1e-300))
