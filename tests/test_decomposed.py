"""Batch norms written as arithmetic, as frozen TensorFlow graphs, Caffe and hand-written scripts leave them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import bnfold
from tests.evaluate import evaluate
from tests.test_rules import Net

C = 4
Shape = tuple[int, ...]
Form = Callable[[Net, str, Shape, bool], str]


def _pair(n: Net, op: str, x: str, constant: str, swapped: bool) -> str:
    """Constant and data in either order."""
    return str(n.op(op, constant, x) if swapped else n.op(op, x, constant))


def _vectors(n: Net, shape: Shape) -> tuple[str, str, str, str]:
    size = int(np.prod(shape))
    gamma = n.rng.uniform(0.5, 2.0, size) * n.rng.choice([-1.0, 1.0], size)
    values = gamma, n.rng.normal(size=size), n.rng.normal(size=size), n.rng.uniform(0.3, 3.0, size)
    gamma_, beta, mean, var = (n.w(v.reshape(shape)) for v in values)
    return gamma_, beta, mean, var


def sub_div_mul_add(n: Net, x: str, shape: Shape, swapped: bool) -> str:
    gamma, beta, mean, var = _vectors(n, shape)
    root = n.op("Sqrt", n.op("Add", var, n.w(1e-3)))
    y = n.op("Div", n.op("Sub", x, mean), root)
    return _pair(n, "Add", _pair(n, "Mul", y, gamma, swapped), beta, swapped)


def frozen_tensorflow(n: Net, x: str, shape: Shape, swapped: bool) -> str:
    """x * inv + (offset - mean * inv), with inv = rsqrt(var + eps) * gamma."""
    gamma, beta, mean, var = _vectors(n, shape)
    inv = n.op("Mul", n.op("Reciprocal", n.op("Sqrt", n.op("Add", n.w(1e-3), var))), gamma)
    shift = n.op("Sub", beta, n.op("Mul", mean, inv))
    return _pair(n, "Add", _pair(n, "Mul", x, inv, swapped), shift, swapped)


def power(n: Net, x: str, shape: Shape, swapped: bool) -> str:
    """(x - mean) * (var + eps) ** -0.5 * gamma + beta."""
    gamma, beta, mean, var = _vectors(n, shape)
    inv = n.op("Pow", n.op("Add", var, n.w(1e-3)), n.w(-0.5))
    y = _pair(n, "Mul", n.op("Sub", x, mean), inv, swapped)
    return _pair(n, "Add", _pair(n, "Mul", y, gamma, swapped), beta, swapped)


def one_over_root(n: Net, x: str, shape: Shape, swapped: bool) -> str:
    """1 / sqrt(var + eps), and the mean first: (mean - x) * -inv."""
    _, beta, mean, var = _vectors(n, shape)
    inv = n.op("Neg", n.op("Div", n.w(1.0), n.op("Sqrt", n.op("Add", var, n.w(1e-3)))))
    y = n.op("Sub", mean, x) if swapped else n.op("Neg", n.op("Sub", x, mean))
    return str(n.op("Sub", _pair(n, "Mul", y, inv, swapped), beta))


def mul_add(n: Net, x: str, shape: Shape, swapped: bool) -> str:
    """A scale and an offset, as many exporters leave a norm behind a conv."""
    gamma, beta, _, _ = _vectors(n, shape)
    return _pair(n, "Add", _pair(n, "Mul", x, gamma, swapped), beta, swapped)


def caffe(n: Net, x: str, shape: Shape, swapped: bool) -> str:
    """A norm without scale and offset, then Caffe's Scale."""
    _, _, mean, var = _vectors(n, (C,))
    y = n.op("BatchNormalization", x, n.w(np.ones(C)), n.w(np.zeros(C)), mean, var, epsilon=1e-3)
    return mul_add(n, y, shape, swapped)


FORMS: list[Form] = [sub_div_mul_add, frozen_tensorflow, power, one_over_root, mul_add, caffe]
SHAPES: list[Shape] = [(C, 1, 1), (1, C, 1, 1), (1,), ()]


def all_gone(model: onnx.ModelProto) -> None:
    """Nothing is left but the layers, and the function is the same."""
    result = bnfold.fold(model, verify=False)
    assert {bn.verdict for bn in result.plan.batch_norms} <= {"folded"}
    left = {node.op_type for node in result.model.graph.node}
    assert left <= {"Conv", "Relu", "MatMul", "Add", "Gemm", "Mul", "Neg", "Div", "Sub"}
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape)
    for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_behind_a_conv(form: Form, shape: Shape, swapped: bool) -> None:
    n = Net(2, 3, 5, 5)
    y = form(n, n.conv("x", 3, C, k=3, bias=True), shape, swapped)
    model = n.model(n.op("Relu", y))
    all_gone(model)
    if len(shape) > 1:
        folded = bnfold.fold(model, verify=False).model
        assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu"]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("form", [f for f in FORMS if f is not caffe], ids=lambda form: form.__name__)
def test_on_the_last_axis_of_a_product(form: Form, swapped: bool) -> None:
    n = Net(2, 5, 3)
    y = n.op("Add", n.op("MatMul", "x", n.w(n.rng.standard_normal((3, C)))), n.w(n.rng.normal(size=C)))
    model = n.model(n.op("Relu", form(n, y, (C,), swapped)))
    all_gone(model)
    folded = bnfold.fold(model, verify=False).model
    assert [node.op_type for node in folded.graph.node] == ["MatMul", "Add", "Relu"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_before_a_conv(form: Form) -> None:
    n = Net(2, C, 5, 5)
    model = n.model(n.conv(form(n, "x", (C, 1, 1), False), C, 3, k=3))
    all_gone(model)
    assert [node.op_type for node in bnfold.fold(model, verify=False).model.graph.node] == ["Conv"]


@pytest.mark.parametrize(
    ("mode", "value", "pads", "gone"),
    [
        ("reflect", None, [0, 0, 1, 1, 0, 0, 1, 1], True),
        ("edge", None, [0, 0, 2, 0, 0, 0, 1, 1], True),
        ("wrap", None, [0, 0, 1, 1, 0, 0, 1, 1], True),
        ("constant", 0.0, [0, 0, 1, 1, 0, 0, 1, 1], False),
        ("constant", 1.5, [0, 0, 1, 1, 0, 0, 1, 1], False),
    ],
)
def test_a_norm_before_a_pad_of_every_mode(mode: str, value: float | None, pads: list[int], gone: bool) -> None:
    """Copied values carry the offset to the conv behind; a number that is put in does not."""
    n = Net(2, C, 5, 5)
    fill = [] if value is None else [n.w(value)]
    y = n.op("Pad", n.bn("x", C), n.w(pads, np.int64), *fill, mode=mode)
    model = n.model(n.conv(y, C, 3, k=2), opset=19)
    result = bnfold.fold(model, verify=False)
    assert (result.plan.batch_norms[0].verdict == "folded") == gone
    x = np.random.default_rng(0).standard_normal((2, C, 5, 5))
    np.testing.assert_allclose(evaluate(result.model, x=x)[0], evaluate(model, x=x)[0], rtol=0, atol=1e-12)
