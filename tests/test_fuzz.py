"""A few hundred random files through the command (see `tests.fuzz`). Seeds: BNFOLD_SEED, BNFOLD_FILES."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.core import absorb
from tests import fuzz
from tests.fuzz import apart, campaign

FILES = int(os.environ.get("BNFOLD_FILES", "240"))
START = int(os.environ.get("BNFOLD_SEED", "0"))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_random_files_fold_through_the_command(part: int) -> None:
    count = FILES // 4
    problems, tried = campaign(range(START + part * count, START + (part + 1) * count))
    assert not problems
    assert {"plain", "if", "loop", "function", "none", "twice", "ir 3", "external True"} <= set(tried)


@pytest.mark.slow
def test_the_fuzzer_sees_a_wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is off by a thousandth shows, in float64 and in the judge of the command."""
    scale: Callable[..., Any] = absorb.scale_weight
    wrong = "bnfold.onnx.write.weights.scale_weight"
    monkeypatch.setattr(wrong, lambda *arguments: scale(*arguments) * np.float32(1.001))
    problems, _ = campaign(range(30))
    assert len({problem.split(":")[0] for problem in problems}) > 10
    assert any("float64: error" in problem for problem in problems)
    assert any("did not pass" in problem for problem in problems)


def test_apart_finds_what_is_apart() -> None:
    a = [np.array([1.0, 4.0, np.nan])]
    assert apart(a, [np.array([1.0, 4.0, np.nan])]) == 0.0
    assert apart(a, [np.array([1.0, 5.0, np.nan])]) == 0.25
    assert apart(a, [np.array([1.0, 4.0, 3.0])]) == float("inf")
    assert apart(a, [np.array([1.0, 4.0])]) == float("inf")
    assert onnx.__version__
    assert fuzz.TYPES
