"""The scale solver against systems whose solution is known."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.core.gauge.scale import Scale

relaxed = settings(deadline=None, max_examples=150)


def _state(scale: Scale) -> list[bytes]:
    arrays = (
        scale.parent,
        scale.ratio,
        scale.size,
        scale.sign,
        scale.readers,
        scale.sources,
        scale.killed,
        scale.constant,
    )
    return [array.tobytes() for array in arrays]


def _values(scale: Scale, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[list[int], list[float]]:
    root, factor = scale.find(ids)
    return root.tolist(), factor.tolist()


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 60))
def test_equations_of_a_hidden_solution_all_fit(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    hidden = np.exp(rng.uniform(-2, 2, n)) * rng.choice([-1, 1], n)
    hidden[0] = 1.0
    a, b = rng.integers(0, n, m), rng.integers(0, n, m)
    scale = Scale(n)
    cut = int(rng.integers(0, m + 1))
    for part in (slice(0, cut), slice(cut, m)):
        assert scale.join(a[part], b[part], hidden[a[part]] / hidden[b[part]]) is None
    everything = np.arange(n)
    root, factor = scale.find(everything)
    np.testing.assert_allclose(factor * hidden[root], hidden, rtol=1e-9)
    for i, j in zip(a, b, strict=True):
        assert root[i] == root[j]
    assert set(root[root == 0]) <= {0}


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(2, 20))
def test_a_circle_with_another_product_conflicts_and_is_undone(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    ratio = np.exp(rng.uniform(-1, 1, n))
    scale = Scale(n)
    assert scale.join(order[:-1], order[1:], ratio[:-1]) is None
    before, mark = _state(scale), scale.mark()
    closing = 1 / np.prod(ratio[:-1])
    conflict = scale.join(order[-1:], order[:1], np.array([1.5 * closing]))
    assert conflict is not None
    assert (conflict.kind, conflict.row) == ("scale", 0)
    scale.undo(mark)
    assert _state(scale) == before
    assert scale.join(order[-1:], order[:1], np.array([closing])) is None


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(3, 25), st.integers(1, 40))
def test_undo_restores_everything(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    scale = Scale(n)
    scale.join(rng.integers(0, n, n // 2), rng.integers(0, n, n // 2))
    before, mark = _state(scale), scale.mark()
    scale.positive(rng.integers(0, n, 3))
    scale.add_readers(rng.integers(0, n, 4))
    scale.join(rng.integers(0, n, m), rng.integers(0, n, m), np.exp(rng.uniform(-1, 1, m)))
    scale.add_sources(rng.integers(0, n, 4))
    scale.fix(rng.integers(1, n, 2), np.array([0.5, 2.0]))
    scale.undo(mark)
    assert _state(scale) == before


def test_a_star_onto_the_pinned_variable_in_one_call() -> None:
    scale = Scale(1000)
    ids = np.arange(1, 1000)
    ratio = np.linspace(0.5, 2, 999)
    assert scale.join(ids, np.zeros_like(ids), ratio) is None
    assert scale.pinned(ids).all()
    np.testing.assert_allclose(scale.find(ids)[1], ratio)


def test_rows_that_name_a_variable_again() -> None:
    scale = Scale(5)
    a, b = np.array([1, 1, 1, 2]), np.array([2, 3, 4, 4])
    assert scale.join(a, b, np.array([2.0, 4.0, 8.0, 4.0])) is None
    assert scale.join(np.array([3]), np.array([4]), np.array([2.0])) is None
    conflict = scale.join(np.array([1, 3]), np.array([2, 4]), np.array([2.0, 2.5]))
    assert conflict is not None
    assert conflict.row == 1


def test_signs_travel_with_ratios() -> None:
    scale = Scale(4)
    assert scale.positive(np.array([1, 2])) is None
    assert scale.join(np.array([3]), np.array([1]), -2.0) is None
    conflict = scale.join(np.array([3]), np.array([2]), 0.5)  # 1 and 2 would have opposite signs
    assert conflict is not None
    assert conflict.kind == "sign"


def test_the_pinned_variable_is_positive() -> None:
    scale = Scale(2)
    assert scale.positive(np.array([1])) is None
    conflict = scale.join(np.array([1]), np.array([0]), -1.0)
    assert conflict is not None
    assert conflict.kind == "sign"


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(0, 30))
def test_counts_add_up_over_joins(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    scale = Scale(n)
    readers = rng.integers(0, n, 15)
    scale.add_readers(readers)
    scale.join(rng.integers(0, n, m), rng.integers(0, n, m))
    root = scale.find(np.arange(n))[0]
    for r in np.unique(root):
        assert scale.readers[r] == (root[readers] == r).sum()


def test_a_killed_component_takes_no_more_equations() -> None:
    scale = Scale(4)
    assert scale.kill(np.array([1]), np.array([2])).all()
    conflict = scale.join(np.array([1]), np.array([3]))
    assert conflict is not None
    assert conflict.kind == "constant"


def test_a_component_with_readers_is_not_killed() -> None:
    scale = Scale(4)
    scale.add_readers(np.array([1]))
    assert not scale.kill(np.array([1]), np.array([2])).any()
    assert not scale.killed.any()
