"""Laws of the per-channel affine map."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.core.affine import ChannelAffine
from tests.strategies import Vector, affines, statistics

relaxed = settings(deadline=None, max_examples=60)


@relaxed
@given(statistics())
def test_it_is_the_formula_of_batch_norm(parts: tuple[Vector, Vector, Vector, Vector, float]) -> None:
    gamma, beta, mean, var, eps = parts
    x = np.linspace(-3, 3, 5)[:, None] + mean
    expected = gamma * (x - mean) / np.sqrt(var + eps) + beta
    found = ChannelAffine.from_batch_norm(mean, var, gamma, beta, eps)(x)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * (1 + np.abs(expected).max()))


@relaxed
@given(st.integers(1, 5).flatmap(lambda n: st.tuples(affines(n), affines(n), affines(n))))
def test_composition_is_associative_and_applies_in_turn(
    maps: tuple[ChannelAffine, ChannelAffine, ChannelAffine],
) -> None:
    a, b, c = maps
    x = np.linspace(-2, 2, 4)[:, None] * np.ones(a.inv.size)
    left, right = a.then(b).then(c), a.then(b.then(c))
    np.testing.assert_allclose(left.inv, right.inv, rtol=1e-12)
    np.testing.assert_allclose(left(x), c(b(a(x))), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(right(x), left(x), rtol=1e-9, atol=1e-9)


@relaxed
@given(st.integers(1, 5).flatmap(affines))
def test_identity_and_inverse(a: ChannelAffine) -> None:
    same = ChannelAffine.identity(a.inv.size)
    assert np.array_equal(a.then(same).shift, a.shift)
    assert np.array_equal(same.then(a).inv, a.inv)
    live = a.inv != 0
    back = a.then(a.inverse())
    np.testing.assert_allclose(back.inv[live], 1.0, rtol=1e-12)
    np.testing.assert_allclose(back.shift[live], 0.0, atol=1e-9 * (1 + np.abs(a.inverse().shift[live]).max(initial=0)))
    assert a.inverse().finite == bool(live.all())


def test_a_variance_that_is_not_positive_is_not_finite() -> None:
    assert not ChannelAffine.from_batch_norm([0.5], [-1.0], [2.0], [0.1], 1e-5).finite
    assert not ChannelAffine.from_batch_norm([0.5], [0.0], [2.0], [0.1], 0.0).finite
    assert ChannelAffine.from_batch_norm([0.5], [0.0], [2.0], [0.1], 1e-5).finite


def test_any_axis_may_hold_the_channels() -> None:
    a = ChannelAffine(np.array([2.0, -1.0]), np.array([0.5, 3.0]))
    x = np.arange(24.0).reshape(3, 2, 4)
    np.testing.assert_array_equal(a(x, axis=1), np.moveaxis(a(np.moveaxis(x, 1, 2), axis=2), 2, 1))
