"""BN -> Gemm -> BN and BN -> MatMul -> BN through the whole fold, whatever the attributes and the shape of C."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import bnfold
from tests.evaluate import evaluate
from tests.strategies import gammas, scales
from tests.test_rules import Net


@settings(deadline=None, max_examples=60)
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1.0, 0.5, -2.0]),
    st.sampled_from([1.0, 0.0, 0.25]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "scalar", "one", "vector", "row", "column", "matrix"]),
)
def test_gemm(
    data: st.DataObject, i: int, o: int, rows: int, alpha: float, beta: float, a: bool, b: bool, c: str
) -> None:
    n = Net(i, rows) if a else Net(rows, i)
    y = "x" if a else n.bn("x", i, data.draw(scales(i)).tolist())
    weight = n.w(n.rng.standard_normal((o, i) if b else (i, o)))
    shapes = {"scalar": (), "one": (1,), "vector": (o,), "row": (1, o), "column": (rows, 1), "matrix": (rows, o)}
    inputs = [y, weight] + ([n.w(n.rng.standard_normal(shapes[c]))] if c != "none" else [])
    y = n.op("Gemm", *inputs, alpha=alpha, beta=beta, transA=int(a), transB=int(b))
    model = n.model(n.bn(y, o, data.draw(gammas(o)).tolist()))
    result = bnfold.fold(model, verify=False)
    assert result.plan.counts()["kept"] == 0
    x = np.random.default_rng(0).standard_normal(n.shape)
    before, after = evaluate(model, x=x)[0], evaluate(result.model, x=x)[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-11 * max(1.0, np.abs(before).max()))


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
def test_matmul(data: st.DataObject, i: int, o: int, bias: bool, left: bool, deep: bool) -> None:
    """2-D and 3-D; the weight on either side; with a bias behind it or without. BN stands where its axis fits."""
    n = Net(2, i, 3) if left else Net(2, 3, i) if deep else Net(3, i)
    x = n.bn("x", i, data.draw(scales(i)).tolist()) if left or not deep else "x"
    weight = n.w(n.rng.standard_normal((o, i) if left else (i, o)))
    y = n.op("MatMul", *([weight, x] if left else [x, weight]))
    if bias:
        y = n.op("Add", y, n.w(n.rng.standard_normal((o, 1) if left else (o,))))
    if left or not deep:
        y = n.bn(y, o, data.draw(gammas(o)).tolist())
    model = n.model(y)
    result = bnfold.fold(model, verify=False)
    x_value = np.random.default_rng(0).standard_normal(n.shape)
    before, after = evaluate(model, x=x_value)[0], evaluate(result.model, x=x_value)[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-11 * max(1.0, np.abs(before).max()))
    if bias and (left or not deep):
        assert result.plan.counts()["folded"] == 2
