"""What the law tests draw from: statistics that are never trivial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from bnfold.core.affine import ChannelAffine

Vector = npt.NDArray[np.float64]


def vectors(n: int, low: float = -3.0, high: float = 3.0) -> st.SearchStrategy[Vector]:
    """(n,) float64 between two bounds."""
    number = st.floats(low, high, allow_nan=False, allow_subnormal=False)
    return st.lists(number, min_size=n, max_size=n).map(lambda v: np.array(v, np.float64))


def gammas(n: int) -> st.SearchStrategy[Vector]:
    """(n,) of both signs, from a hundredth to ten, some exactly 0."""
    size = st.floats(-2.0, 1.0).map(lambda e: 10.0**e)
    one = st.tuples(size, st.sampled_from([1.0, -1.0, 1.0, 0.0])).map(lambda pair: pair[0] * pair[1])
    return st.lists(one, min_size=n, max_size=n).map(lambda v: np.array(v, np.float64))


def scales(n: int) -> st.SearchStrategy[Vector]:
    """(n,) of both signs, never 0."""
    return gammas(n).map(lambda v: np.where(v == 0, 0.7, v))


def variances(n: int) -> st.SearchStrategy[Vector]:
    """(n,) from a thousandth to a hundred."""
    return vectors(n, -3.0, 2.0).map(lambda e: 10.0**e)


def affines(n: int) -> st.SearchStrategy[ChannelAffine]:
    """Maps of n channels."""
    return st.builds(ChannelAffine, gammas(n), vectors(n))


@st.composite
def statistics(draw: st.DrawFn) -> tuple[Vector, Vector, Vector, Vector, float]:
    """gamma, beta, mean, var and eps of a batch norm."""
    n = draw(st.integers(1, 6))
    eps = draw(st.sampled_from([0.0, 1e-5, 1e-3]))
    return draw(gammas(n)), draw(vectors(n)), draw(vectors(n)), draw(variances(n)), eps


@dataclass(frozen=True)
class ConvCase:
    """A convolution and the gauges on its two sides."""

    rank: int
    groups: int
    weight: Vector
    bias: Vector | None
    stride: int
    dilation: int
    x: Vector
    p_out: Vector
    q_out: Vector
    u_in: Vector
    t_in: Vector


@st.composite
def conv_cases(draw: st.DrawFn, transposed: bool) -> ConvCase:
    """Convolutions of rank 1 to 3, grouped and depthwise, with a bias or without."""
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    i, o = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (i, o // groups, *kernel) if transposed else (o, i // groups, *kernel)
    dilation = draw(st.integers(1, 2))
    size = tuple(dilation * (k - 1) + 1 + int(rng.integers(0, 3)) for k in kernel)
    bias = rng.standard_normal(o) if draw(st.booleans()) else None
    return ConvCase(
        rank, groups, rng.standard_normal(shape), bias, draw(st.integers(1, 2)), dilation,
        rng.standard_normal((2, i, *size)), draw(gammas(o)), draw(vectors(o)), draw(scales(i)), draw(vectors(i)),
    )  # fmt: skip
