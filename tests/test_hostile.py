"""Hostile statistics that are true of the data: the folded model stays as exact as the original, in its own type.

Variances run from 1e-12 to 1e6, gammas from 1e-8 to 1e3 with both signs, means lie up to 100 deviations from zero, and
some channels are pruned (gamma 0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.evaluate import evaluate
from tests.test_rules import Net

pytestmark = pytest.mark.slow

Array = npt.NDArray[Any]
C = 8


def chain(n: Net) -> str:
    y = n.conv("x", 3, C, k=3, bias=True, pads=[1] * 4)
    for _ in range(4):
        y = n.conv(n.op("Relu", n.bn(y, C)), C, C, k=3, bias=True, pads=[1] * 4)
    return n.conv(n.op("Relu", n.bn(y, C)), C, 4)


def stream(n: Net) -> str:
    """Pre-activation: norms of one stream, whose channels have very different sizes."""
    y = n.conv("x", 3, C, k=3, bias=True, pads=[1] * 4)
    for _ in range(4):
        inner = n.conv(n.op("Relu", n.bn(y, C)), C, C, k=3, bias=True, pads=[1] * 4)
        y = n.op("Add", y, n.conv(n.op("Relu", n.bn(inner, C)), C, C, bias=True))
    return n.conv(n.op("Relu", n.bn(y, C)), C, 4)


def dense(n: Net) -> str:
    parts, width = [n.conv("x", 3, C, bias=True)], C
    for _ in range(3):
        y = parts[0] if len(parts) == 1 else n.op("Concat", *parts, axis=1)
        inner = n.conv(n.op("Relu", n.bn(y, width)), width, C, bias=True)
        parts.append(n.conv(n.op("Relu", n.bn(inner, C)), C, 4, k=3, pads=[1] * 4))
        width += 4
    return n.conv(n.op("Relu", n.bn(n.op("Concat", *parts, axis=1), width)), width, 4)


def branches(n: Net) -> str:
    """Identity branches beside convs."""
    y = n.op("Relu", n.bn(n.conv("x", 3, C, bias=True), C))
    for _ in range(3):
        three = n.bn(n.conv(y, C, C, k=3, pads=[1] * 4), C)
        y = n.op("Relu", n.op("Add", three, n.op("Add", n.bn(n.conv(y, C, C), C), n.bn(y, C))))
    return n.conv(y, C, 4)


def forward(n: Net) -> str:
    """Norms behind activations, before convs without padding."""
    y = n.op("Relu", n.conv("x", 3, C, bias=True))
    for _ in range(3):
        y = n.op("Relu", n.conv(n.bn(y, C), C, C, k=2, bias=True))
    return n.conv(y, C, 4)


def hostile(build: Callable[[Net], str], seed: int, dtype: int, small: float, large: float) -> onnx.ModelProto:
    """A network with calibrated hostile statistics; deviations run from `small` to `large`."""
    n = Net(4, 3, 12, 12)
    n.rng = np.random.default_rng(seed)
    model = n.model(build(n))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    x = np.random.default_rng(1000 + seed).standard_normal(n.shape)
    for node in model.graph.node:
        if node.op_type == "Conv" and node.output[0] != model.graph.output[0].name:
            size = 10.0 ** n.rng.uniform(np.log10(small), np.log10(large), tensors[node.input[1]].dims[0])
            _scale_rows(model, tensors, node, size, n)
        if node.op_type == "BatchNormalization":
            _calibrate(model, tensors, node, x, n, large)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(dtype))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = dtype
    return model


def spelled_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with every norm as a Mul and an Add, as frozen graphs have them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        gamma, beta, mean, var = (values[name].astype(np.float64) for name in node.input[1:])
        inv = gamma / np.sqrt(var + next(a.f for a in node.attribute if a.name == "epsilon"))
        out = node.output[0]
        for name, value in ((f"{out}_inv", inv), (f"{out}_shift", beta - mean * inv)):
            array = value.reshape(-1, 1, 1).astype(values[node.input[1]].dtype)
            copy.graph.initializer.append(numpy_helper.from_array(array, name))
        nodes += [
            helper.make_node("Mul", [node.input[0], f"{out}_inv"], [f"{out}_scaled"], f"{node.name}_mul"),
            helper.make_node("Add", [f"{out}_scaled", f"{out}_shift"], [out], f"{node.name}_add"),
        ]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _scale_rows(model: onnx.ModelProto, tensors: Any, node: onnx.NodeProto, size: Array, n: Net) -> None:
    """Output channels of other sizes, with means far from zero."""
    weight, out = numpy_helper.to_array(tensors[node.input[1]]), _values(model, node.output[0], n)
    unit = out.std((0, 2, 3)) + 1e-300
    factor = size / unit
    _set(tensors, node.input[1], weight * factor.reshape(-1, 1, 1, 1))
    if len(node.input) > 2:
        _set(tensors, node.input[2], n.rng.uniform(-1, 1, size.size) * 10.0 ** n.rng.uniform(-1, 2, size.size) * size)


def _calibrate(model: onnx.ModelProto, tensors: Any, node: onnx.NodeProto, x: Array, n: Net, large: float) -> None:
    values = _values(model, node.input[0], n)
    gamma = 10.0 ** n.rng.uniform(-8 if large > 100 else -3, 3 if large > 100 else 1, values.shape[1])
    gamma *= n.rng.choice([-1.0, 1.0, 1.0], gamma.size)
    gamma[n.rng.random(gamma.size) < 0.12] = 0.0
    beta = n.rng.normal(0.2, 1.0, gamma.size) * np.maximum(np.abs(gamma), 0.1)
    for i, value in enumerate((gamma, beta, values.mean((0, 2, 3)), values.var((0, 2, 3))), 1):
        _set(tensors, node.input[i], value)
    for i, attribute in enumerate(node.attribute):
        if attribute.name == "epsilon":
            node.attribute[i].f = 1e-12 if large > 100 else 1e-5


def _values(model: onnx.ModelProto, name: str, n: Net) -> Array:
    """A tensor of the float64 model on the calibration data."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None))
    x = np.random.default_rng(1).standard_normal(n.shape)
    return evaluate(part, x=x)[0]


def _set(tensors: Any, name: str, value: Array) -> None:
    tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(value, np.float64), name))


def run(model: onnx.ModelProto, x: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def wide(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers in float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for info in (*copy.graph.input, *copy.graph.output):
        info.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


def errors(model: onnx.ModelProto, folded: onnx.ModelProto, seed: int) -> tuple[float, float]:
    """Root mean square errors against float64, of the original and of the folded model, on inputs of several kinds."""
    rng, dtype = np.random.default_rng([seed, 2]), numpy_helper.to_array(model.graph.initializer[0]).dtype
    own = new = 0.0
    for x in (rng.standard_normal((4, 3, 12, 12)), rng.uniform(-1, 1, (4, 3, 12, 12))):
        given = x.astype(dtype)
        truth = evaluate(wide(model), x=given.astype(np.float64))[0]
        # onnxruntime would run float16 in float32: the evaluator rounds every tensor, as hardware does
        compute = run if dtype == np.float32 else lambda m, x: evaluate(m, x=x)[0]
        own, new = (
            total + float(np.mean((compute(m, given).astype(np.float64) - truth) ** 2))
            for total, m in ((own, model), (new, folded))
        )
    return float(np.sqrt(own)), float(np.sqrt(new))


BUILDS = [chain, stream, dense, branches, forward]


@pytest.mark.parametrize("leftovers", ["fast", "all"])
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_float32_stays_within_three_times_the_originals_error(build: Any, leftovers: str) -> None:
    ratios, folded = [], 0
    for seed in range(6):
        model = hostile(build, seed, TensorProto.FLOAT, 1e-6, 1e3)
        result = bnfold.fold(model, verify=False, leftovers=leftovers)
        assert all(bn.reason for bn in result.plan.batch_norms if bn.verdict != "folded")
        own, new = errors(model, result.model, seed)
        assert np.isfinite(own)
        ratios.append(new / own)
        folded += result.plan.counts()["folded"]
    assert max(ratios) <= 3.0, ratios
    assert folded > 0


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_float16_overflows_and_underflows_no_more_than_before(build: Any) -> None:
    folded = 0
    for seed in range(6):
        model = hostile(build, seed, TensorProto.FLOAT16, 0.05, 5.0)
        result = bnfold.fold(model, verify=False, leftovers="all")
        before, after = (_stored(m) for m in (model, result.model))
        assert np.isfinite(after).all()
        assert np.abs(after[after != 0]).min() >= min(np.abs(before[before != 0]).min(), 2.0**-24)
        own, new = errors(model, result.model, seed)
        assert np.isfinite(own)
        assert new <= 3.0 * own, (seed, new / own)
        folded += result.plan.counts()["folded"]
    assert folded > 0


def _stored(model: onnx.ModelProto) -> Array:
    return np.concatenate([numpy_helper.to_array(t).ravel().astype(np.float64) for t in model.graph.initializer])


@pytest.mark.parametrize("build", [stream, dense], ids=lambda build: build.__name__)
def test_norms_written_as_arithmetic_meet_the_guard_too(build: Any) -> None:
    folded = 0
    for seed in range(4):
        model = spelled_out(hostile(build, seed, TensorProto.FLOAT, 1e-6, 1e3))
        result = bnfold.fold(model, verify=False)
        own, new = errors(model, result.model, seed)
        assert new <= 3.0 * own, (seed, new / own)
        folded += result.plan.counts()["folded"]
    assert folded > 0


@pytest.mark.parametrize(
    ("dtype", "seed"), [(TensorProto.FLOAT, 15), (TensorProto.FLOAT16, 9), (TensorProto.FLOAT16, 15)]
)
def test_identity_branches_whose_mean_is_far_from_zero(dtype: int, seed: int) -> None:
    """The centre tap would have to be as exact as the mean is large: those norms stay."""
    sizes = (1e-6, 1e3) if dtype == TensorProto.FLOAT else (0.05, 5.0)
    model = hostile(branches, seed, dtype, *sizes)
    for leftovers in ("fast", "all"):
        result = bnfold.fold(model, verify=False, leftovers=leftovers)
        own, new = errors(model, result.model, seed)
        assert new <= 3.0 * own, (leftovers, new / own)
        stays = [bn for bn in result.plan.batch_norms if bn.verdict != "folded"]
        assert {bn.reason.code for bn in stays if bn.reason} == {"precision"}
