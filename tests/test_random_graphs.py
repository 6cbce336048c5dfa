"""Random graphs from the table of rules fold to the same function in float64. Seeds: BNFOLD_SEED, BNFOLD_GRAPHS."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest

import bnfold
from tests import random_forms, random_ops
from tests.evaluate import evaluate
from tests.random_graphs import FIRST, MAKERS, RandomGraph

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "250"))
START = int(os.environ.get("BNFOLD_SEED", "0"))


def _fold_exactly(graph: RandomGraph, seed: int) -> int:
    """Fold the graph, compare on normal inputs, and count the norms that are gone."""
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    result = bnfold.fold(model, verify=False, leftovers="all")
    onnx.checker.check_model(result.model, full_check=True)
    assert all(bn.reason or bn.verdict == "folded" for bn in result.plan.batch_norms)
    x = np.random.default_rng(seed).standard_normal(graph.input_shape)
    for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
        limit = 1e-12 * max(1.0, float(np.abs(before).max(initial=0.0)))
        np.testing.assert_allclose(after, before, rtol=0, atol=limit)
    return result.plan.counts()["folded"]


def test_random_graphs_fold_exactly() -> None:
    folded = 0
    for seed in range(START, START + GRAPHS):
        print(f"seed {seed}")  # pytest shows it when the graph fails
        folded += _fold_exactly(RandomGraph(seed), seed)
    assert folded > GRAPHS, "the graphs hardly had anything to fold"


@pytest.mark.parametrize(
    ("seed", "ops"),
    [
        (103319, 14),  # channels of one component held to two scales were killed as one
        (107568, 14),  # a shift of 1e-16 that should be zero asked for a bias where there is none
        (201910, 30),  # the same, in a larger graph
    ],
)
def test_graphs_that_were_wrong_once(seed: int, ops: int) -> None:
    _fold_exactly(RandomGraph(seed, ops, FIRST), seed)


def test_all_makers_are_registered() -> None:
    assert random_ops.clip in MAKERS
    assert random_forms.pad_forms in MAKERS
    assert len(MAKERS) > FIRST
