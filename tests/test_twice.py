"""One fold is enough: what is folded again comes out as it went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto

import bnfold
from tests import random_forms, random_ops
from tests.evaluate import evaluate
from tests.nets import Net
from tests.random_graphs import MAKERS, RandomGraph
from tests.zoo import ZOO

assert random_forms.pad_forms in MAKERS
assert random_ops.clip in MAKERS


def _nothing_left(model: ModelProto, leftovers: str = "fast") -> bool:
    again = bnfold.inspect(bnfold.fold(model, verify=False, leftovers=leftovers).model, leftovers=leftovers)
    return not again.edits and again.counts()["kept"] == len(again.batch_norms)


@pytest.mark.slow
@pytest.mark.parametrize("some", [{}, {"seed": 3, "signs": "both", "zero_gamma": 0.1}])
@pytest.mark.parametrize("name", ["densenet121", "dpn68", "fastvit", "se_preact_resnet18", "convmixer"])
def test_networks(name: str, some: dict[str, Any]) -> None:
    model = ZOO[name](dtype=np.float32, **some)
    assert _nothing_left(model)
    assert _nothing_left(model, "all")


def test_random_graphs() -> None:
    """Seeds 36, 45, 71 and 84 needed two folds: a number that became a vector, channels that died late."""
    for seed in (*range(30, 50), 71, 84):
        model = RandomGraph(seed).model()
        for leftovers in ("fast", "all"):
            assert _nothing_left(model, leftovers), f"seed {seed}, {leftovers}"


@pytest.mark.parametrize("seed", [1272, 1283, 1316, 1357, 1414, 1422, 1518, 2041, 2143, 2506, 3778])
def test_graphs_that_needed_two_folds(seed: int) -> None:
    assert _nothing_left(RandomGraph(seed).model(), "all")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("muls", [1, 2])
def test_an_add_behind_a_mul_behind_a_product_is_its_bias(muls: int, dtype: npt.DTypeLike) -> None:
    """Relu, Mul, Add, MatMul, Mul, Add: one Add is enough, and the first one goes into it."""
    net = Net(3, dtype)
    rng = np.random.default_rng(5)
    h = net.node("Relu", [net.input("x", (3, 6))], "relu")
    h = net.node("Mul", [h, net.weight("scale", rng.uniform(0.5, 2, 6))], "mul")
    h = net.node("Add", [h, net.weight("offset", rng.normal(size=6))], "add")
    h = net.node("MatMul", [h, net.filter("w", 6, 5)], "product")
    for i in range(muls):
        h = net.node("Mul", [net.weight(f"scale{i}", rng.normal(size=5)), h], f"mul{i}")
    h = net.node("Add", [net.weight("bias", rng.normal(size=(1, 5))), h], "last")
    net.output(net.node("Sigmoid", [h], "end"), (3, 5))
    model = net.model()
    result = bnfold.fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "MatMul", "Add", "Sigmoid"]
    onnx.checker.check_model(result.model, full_check=True)
    assert _nothing_left(model)
    x = rng.normal(size=(3, 6)).astype(dtype)
    np.testing.assert_allclose(evaluate(result.model, x=x)[0], evaluate(model, x=x)[0], rtol=0, atol=1e-6)


def test_what_cannot_be_a_bias_stays_where_it_is() -> None:
    """A factor of 0, another reader between, a constant that runs along another axis."""
    for kind in ("zero", "reader", "rows"):
        net = Net(3)
        h = net.node("MatMul", [net.input("x", (5, 6)), net.filter("w", 6, 5)], "product")
        factor = np.array([0.0, 1, 2, -1, 3])
        h = net.node("Mul", [h, net.weight("scale", factor if kind == "zero" else factor + 0.5)], "mul")
        offset = np.arange(5.0)[:, None] if kind == "rows" else np.arange(5.0)
        net.output(net.node("Sigmoid", [net.node("Add", [h, net.weight("bias", offset)], "add")], "end"), (5, 5))
        if kind == "reader":
            net.output(h, (5, 5))
        model = net.model()
        result = bnfold.fold(model)
        assert "add_out/before" not in {name for node in result.model.graph.node for name in node.output}
        x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
        for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
