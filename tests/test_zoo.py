"""Real architectures with non-trivial statistics: how many norms go, and that the function stays the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

import bnfold
from tests.evaluate import evaluate
from tests.zoo import EXPECTED_BN, ZOO

ALL_GONE = {name: (count, 0, 0) for name, count in EXPECTED_BN.items()}
COUNTS = {
    **ALL_GONE,
    "densenet121": (62, 59, 0),  # each feature map has many readers that want different offsets: one Add each
    "dpn68": (49, 23, 0),
    "se_preact_resnet18": (12, 5, 0),  # the SE gate stands between the stream and the conv that could shift it
    "convmixer": (9, 0, 8),  # BN behind GELU, added to a stream that padded convs read
}
"""Norms folded, reduced to one Add, kept; for statistics whose gammas are all positive."""


def _random_input(model: onnx.ModelProto) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    value = model.graph.input[0]
    shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(1).standard_normal(shape)}


def _batch_norms(plan: bnfold.Plan) -> tuple[int, int, int]:
    verdicts = Counter(bn.verdict for bn in plan.batch_norms if bn.op_type == "BatchNormalization")
    return verdicts["folded"], verdicts["reduced"], verdicts["kept"]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo_reaches_its_counts_and_keeps_its_function(name: str) -> None:
    model = ZOO[name](dtype=np.float64)
    result = bnfold.fold(model, verify=False, leftovers="all")
    assert _batch_norms(result.plan) == COUNTS[name]
    left = sum(node.op_type == "BatchNormalization" for node in result.model.graph.node)
    assert left == COUNTS[name][2]
    feed = _random_input(model)
    for before, after in zip(evaluate(model, **feed), evaluate(result.model, **feed), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())


@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo_with_gammas_of_both_signs_and_zeros_keeps_its_function(name: str) -> None:
    model = ZOO[name](dtype=np.float64, seed=3, signs="both", zero_gamma=0.1)
    result = bnfold.fold(model, verify=False, leftovers="all")
    assert all(bn.reason is not None for bn in result.plan.batch_norms if bn.verdict != "folded")
    feed = _random_input(model)
    for before, after in zip(evaluate(model, **feed), evaluate(result.model, **feed), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-10 * np.abs(before).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo_in_float32_is_as_accurate_as_the_original(name: str) -> None:
    """Against float64, the folded float32 model errs at most 3 times as much as the original float32 model does."""
    model = ZOO[name](dtype=np.float32, seed=5)
    exact = ZOO[name](dtype=np.float64, seed=5)
    for tensor, single in zip(exact.graph.initializer, model.graph.initializer, strict=True):
        if tensor.data_type == onnx.TensorProto.DOUBLE:  # the float32 weights are the truth
            wide = onnx.numpy_helper.to_array(single).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    folded = bnfold.fold(model, verify=False, leftovers="all").model
    feed = _random_input(model)
    single_feed = {name: value.astype(np.float32) for name, value in feed.items()}
    wide_feed = {name: value.astype(np.float64) for name, value in single_feed.items()}
    for truth, before, after in zip(
        evaluate(exact, **wide_feed), evaluate(model, **single_feed), evaluate(folded, **single_feed), strict=True
    ):
        own = np.sqrt(np.mean((before - truth) ** 2))
        assert np.sqrt(np.mean((after - truth) ** 2)) <= 3 * own


def test_a_wrong_fold_would_be_noticed() -> None:
    """The comparison above fails when one folded weight is off by a thousandth."""
    model = ZOO["preact_resnet18"](dtype=np.float64)
    folded = bnfold.fold(model, verify=False, leftovers="all").model
    tensor = next(t for t in folded.graph.initializer if len(t.dims) == 4)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.001, tensor.name))
    feed = _random_input(model)
    before, after = evaluate(model, **feed)[0], evaluate(folded, **feed)[0]
    assert np.abs(after - before).max() > 1e-12 * np.abs(before).max()


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet", "fastvit", "repvit"])
def test_identity_branches_go_whatever_the_signs(name: str) -> None:
    """Networks in their training form end with no batch norm at all, by the default options."""
    model = ZOO[name](dtype=np.float64, seed=5, signs="both", zero_gamma=0.1)
    result = bnfold.fold(model, verify=False)
    assert result.plan.counts()["folded"] == len(result.plan.batch_norms) >= EXPECTED_BN[name]
    assert "BatchNormalization" not in {node.op_type for node in result.model.graph.node}
    feed = _random_input(model)
    for before, after in zip(evaluate(model, **feed), evaluate(result.model, **feed), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-11 * np.abs(before).max())
