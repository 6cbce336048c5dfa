"""What a reshape does to gauge variables, against numpy's own reshape."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bnfold.core.gauge.reshape import reshape_ids
from bnfold.core.graph import Dim

relaxed = settings(deadline=None, max_examples=200)


@st.composite
def splits(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same number of elements."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        shape, current = [], 1
        for p in primes:
            current *= p
            if draw(st.booleans()):
                shape.append(current)
                current = 1
        return (*shape, current) if current > 1 or draw(st.booleans()) else tuple(shape)

    return grouped(), grouped()


def _ids(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    own = tuple(size if rng.random() < 0.6 else 1 for size in shape)
    return rng.permutation(prod(own)).reshape(own).astype(np.int64)


@relaxed
@given(splits(), st.integers(0, 2**32 - 1))
def test_static_shapes_follow_numpy(shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    source, target = shapes
    assume(prod(source) == prod(target))
    ids = _ids(np.random.default_rng(seed), source)
    found = reshape_ids(ids, source, target)
    assert found is not None
    assert found.ndim == len(target)
    np.testing.assert_array_equal(np.broadcast_to(found, target), np.broadcast_to(ids, source).reshape(target))


@relaxed
@given(splits(), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_a_dynamic_batch_never_gives_a_wrong_map(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int, batch: int
) -> None:
    source, target = shapes
    assume(prod(source) == prod(target))
    ids = _ids(np.random.default_rng(seed), source)[None]
    named: tuple[Dim, ...] = ("N", *source)
    for first in ("N", None):
        found = reshape_ids(ids, named, (first, *target))
        if found is not None:
            expected = np.broadcast_to(ids, (batch, *source)).reshape(batch, *target)
            np.testing.assert_array_equal(np.broadcast_to(found, (batch, *target)), expected)
    assert reshape_ids(ids, named, ("N", *target)) is not None


def test_flatten_repeats_channels() -> None:
    ids = np.array([[[[4]], [[7]]]])
    found = reshape_ids(ids, ("N", 2, 2, 2), ("N", 8))
    assert found is not None
    assert found.tolist() == [[4] * 4 + [7] * 4]


def test_flatten_of_an_unknown_size_is_not_guessed() -> None:
    assert reshape_ids(np.array([[[[4]], [[7]]]]), ("N", 2, "H", "W"), ("N", None)) is None


def test_dynamic_space_may_be_joined() -> None:
    found = reshape_ids(np.array([[[[4]], [[7]]]]), ("N", 2, "H", "W"), ("N", 2, None))
    assert found is not None
    assert found.tolist() == [[[4], [7]]]
