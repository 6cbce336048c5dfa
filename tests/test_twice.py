"""One fold is enough: what is folded again comes out as it went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import bnfold
from tests import random_forms, random_ops
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


@pytest.mark.parametrize("seed", [1272, 1316, 1357, 1414, 1422, 1518])
def test_graphs_that_needed_two_folds(seed: int) -> None:
    assert _nothing_left(RandomGraph(seed).model(), "all")
