"""Fixed bounds in the place of the default: each passes what it should, and fails at its edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.errors import UsageError
from bnfold.judge.criteria.check import Measure, OutputError
from bnfold.judge.criteria.criterion import Criterion, facts


def judged(a: Any, b: Any, **bounds: Any) -> OutputError:
    x, y = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return Criterion(**bounds).measure(x, y, facts("y", "normal", x, y))


@pytest.mark.parametrize(
    ("bounds", "passing", "failing"),
    [
        ({"atol": 0.1}, [1.09, 10.09], [1.0, 10.11]),
        ({"rtol": 0.01}, [1.009, 10.09], [1.011, 10.0]),
        ({"atol": 0.1, "rtol": 0.01}, [1.1, 10.19], [1.0, 10.21]),
        ({"limit": 0.01}, [1.099, 10.0], [1.101, 10.0]),
        ({"atol": 0.0}, [1.0, 10.0], [1.0, 10.000001]),
    ],
)
def test_tolerances_hold_element_by_element(bounds: Any, passing: Any, failing: Any) -> None:
    assert judged([1.0, 10.0], passing, **bounds).passed
    entry = judged([1.0, 10.0], failing, **bounds)
    assert not entry.passed
    assert entry.strain > 1


def test_a_tolerance_of_nothing_passes_equal_zeros_only() -> None:
    assert judged([0.0, 1.0], [0.0, 1.0], rtol=1e-3).passed
    assert not judged([0.0, 1.0], [1e-30, 1.0], rtol=1e-3).passed


def test_cosine_is_taken_for_each_sample() -> None:
    a = np.eye(4) + 0.1
    assert judged(a, 3 * a, cosine=0.999999).passed  # a factor is no angle
    turned = a.copy()
    turned[2] = a[2, ::-1]
    entry = judged(a, turned, cosine=0.9)
    assert not entry.passed
    expected = 1 - float(a[2] @ turned[2] / (a[2] @ a[2]))
    assert entry.measure("cosine distance") == pytest.approx(expected, rel=1e-6)
    assert judged(a, turned, cosine=1 - expected - 1e-6).passed
    assert not judged([[0.0, 0.0]], [[0.0, 1.0]], cosine=0.5).passed
    assert judged([[0.0, 0.0]], [[0.0, 0.0]], cosine=1.0).passed


def test_cosine_sees_small_angles() -> None:
    a = np.random.default_rng(0).standard_normal((2, 1000))
    b = a + 1e-3 * np.random.default_rng(1).standard_normal((2, 1000))
    entry = judged(a, b, cosine=0.9)
    assert entry.measure("cosine distance") == pytest.approx(5e-7, rel=0.2)


def test_top_k_counts_samples() -> None:
    scores = np.array([[5.0, 4.0, 1.0, 0.0], [0.0, 1.0, 4.0, 5.0], [9.0, 0.0, 8.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    swapped = scores.copy()
    swapped[0] = [4.0, 5.0, 1.0, 0.0]
    assert judged(scores, swapped, top_k=2).passed  # the same two, in another order
    entry = judged(scores, swapped, top_k=1)
    assert entry.measure("top-1 disagreement") == 0.25
    assert not entry.passed
    assert judged(scores, swapped, top_k=1, agreement=0.75).passed
    assert not judged(scores, swapped, top_k=1, agreement=0.76).passed
    tied = np.array([[1.0, 1.0, 0.0, 0.0]])
    assert judged(tied, [[0.9, 1.1, 0.0, 0.0]], top_k=1).passed
    for place in range(4):  # one number everywhere chooses nothing, wherever the best entry is
        assert not judged(np.eye(4)[[place]], np.zeros((1, 4)), top_k=1).passed
    with pytest.raises(UsageError, match="top-k 5: an output has 4"):
        judged(scores, swapped, top_k=5)


def test_all_bounds_that_are_given_must_hold() -> None:
    a, b = [[1.0, 2.0, 4.0]], [[1.0, 2.0, 4.1]]
    assert judged(a, b, top_k=1, cosine=0.99).passed
    assert not judged(a, b, top_k=1, cosine=0.99, atol=1e-3).passed
    assert [m.name for m in judged(a, b, top_k=1, atol=1e-3).measures] == ["tolerance", "top-1 disagreement"]


@pytest.mark.parametrize("bounds", [{"atol": 1e9}, {"limit": 1e9}, {"cosine": -1.0}, {"top_k": 1}, {}])
def test_nan_never_passes(bounds: Any) -> None:
    x, y = np.array([[1.0, 2.0]], np.float32), np.array([[1.0, np.nan]], np.float32)
    entry = facts("y", "normal", x, y)
    assert entry.note == "NaN or infinity where the reference is finite"
    assert not entry.passed
    assert not Measure("any", float("nan"), 1.0).passed
    assert Measure("any", float("nan"), 1.0).strain == float("inf")


@pytest.mark.parametrize(
    "bounds",
    [{"atol": -1.0}, {"rtol": float("nan")}, {"limit": float("inf")}, {"cosine": 1.5}, {"top_k": 0},
     {"agreement": 0.0}, {"multiple": 0.5}, {"multiple": float("nan")}],
)  # fmt: skip
def test_bounds_that_bound_nothing_are_refused(bounds: Any) -> None:
    with pytest.raises(UsageError, match=next(iter(bounds)).replace("_", "-")):
        Criterion(**bounds)


def test_a_criterion_says_what_it_is() -> None:
    assert str(Criterion()) == "error against float64 at most 8 times the reference's own"
    said = str(Criterion(atol=1e-3, top_k=5, agreement=0.99))
    assert "0.001 + 0 * |reference|" in said
    assert "the same top 5 for 0.99 of the samples" in said


def test_large_outputs_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import bnfold.judge.criteria.criterion as criterion

    monkeypatch.setattr(criterion, "BLOCK", 7)
    a = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    for place in (0, 6, 7, 50, 99):
        b = a.copy()
        b[place] += 0.5
        entry = facts("y", "normal", a, b)
        assert entry.error == pytest.approx(0.5, rel=1e-5)
        assert criterion.Errors.of(b, a).rms == pytest.approx(0.05, rel=1e-5)
