"""The law of absorbing gauges: the new layer on the new input is the gauge of the old layer on the old input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.core.absorb import Layout, new_bias, scale_weight
from bnfold.core.plan import Rescale
from tests.strategies import ConvCase, Vector, conv_cases, gammas, scales, vectors

Array = npt.NDArray[Any]
relaxed = settings(deadline=None, max_examples=80)
CONVS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _along(vector: Vector, rank: int) -> Vector:
    return vector.reshape((1, -1) + (1,) * rank)


def _run(case: ConvCase, functions: tuple[Any, ...], x: Array, weight: Array, bias: Array | None) -> Array:
    function, tensors = functions[case.rank - 1], [torch.from_numpy(v) for v in (x, weight)]
    b = None if bias is None else torch.from_numpy(bias)
    return np.asarray(function(*tensors, b, stride=case.stride, dilation=case.dilation, groups=case.groups))


def _check(case: ConvCase, functions: tuple[Any, ...], axes: str, t_in: Vector | None) -> None:
    edit = Rescale(0, "layer", case.p_out, case.q_out, case.u_in, t_in)
    layout = Layout(axes, case.groups)
    before = case.weight.copy()
    weight = scale_weight(case.weight, layout, edit)
    bias = new_bias(case.bias, case.weight, layout, edit, case.p_out.size)
    old_input = _along(case.u_in, case.rank) * case.x + (0 if t_in is None else _along(t_in, case.rank))
    old = _run(case, functions, old_input, case.weight, case.bias)
    expected = _along(case.p_out, case.rank) * old + _along(case.q_out, case.rank)
    found = _run(case, functions, case.x, weight, bias)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * (1 + np.abs(expected).max() + np.abs(old).max()))
    np.testing.assert_array_equal(case.weight, before)


@relaxed
@given(conv_cases(transposed=False))
def test_convolution(case: ConvCase) -> None:
    _check(case, CONVS, "oi", case.t_in)


@relaxed
@given(conv_cases(transposed=True))
def test_transposed_convolution(case: ConvCase) -> None:
    _check(case, TRANSPOSED, "io", None)


@relaxed
@given(conv_cases(transposed=True).filter(lambda case: case.weight[0, 0].size == 1 and case.stride == 1))
def test_transposed_convolution_of_one_tap_takes_a_shift(case: ConvCase) -> None:
    _check(case, TRANSPOSED, "io", case.t_in)


@relaxed
@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["oi", "io"]))
def test_matrices(data: st.DataObject, i: int, o: int, axes: str) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    matrix, bias, x = rng.standard_normal((i, o)), rng.standard_normal(o), rng.standard_normal((3, i))
    p, q, u, t = (data.draw(s) for s in (gammas(o), vectors(o), scales(i), vectors(i)))
    stored = matrix if axes == "io" else matrix.T.copy()
    edit = Rescale(0, "layer", p, q, u, t)
    new = scale_weight(stored, Layout(axes), edit)
    found = x @ (new if axes == "io" else new.T) + new_bias(bias, stored, Layout(axes), edit, o)
    expected = p * ((u * x + t) @ matrix + bias) + q
    np.testing.assert_allclose(found, expected, atol=1e-10 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_are_rounded_once(dtype: npt.DTypeLike) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((6, 4, 3, 3)).astype(dtype)
    p, u = rng.standard_normal(6), rng.standard_normal(4)
    new = scale_weight(weight, Layout("oi"), Rescale(0, "layer", p, None, u, None))
    exact = weight.astype(np.float64) * (p[:, None, None, None] * u[None, :, None, None])
    assert new.dtype == dtype
    np.testing.assert_array_equal(new, exact.astype(dtype))


def test_nothing_to_do_gives_the_weight_itself() -> None:
    weight = np.ones((2, 2))
    assert scale_weight(weight, Layout("oi"), Rescale(0, "layer")) is weight


def test_eps_does_not_underflow_in_float16() -> None:
    """A fold in half precision loses eps (6e-8 is its smallest number); float64 keeps it."""
    from bnfold.core.affine import ChannelAffine

    tiny = np.array([1e-7], np.float16)
    affine = ChannelAffine.from_batch_norm(np.zeros(1, np.float16), tiny, np.ones(1, np.float16), None, 1e-5)
    np.testing.assert_allclose(affine.inv, 1 / np.sqrt(float(tiny[0]) + 1e-5), rtol=1e-12)
