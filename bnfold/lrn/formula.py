"""The formula of LRN over channels, and how to read its numbers off answers.

    y_c = x_c / (k + alpha / size * sum over the window of x^2) ^ beta

The window of channel c goes from `c - floor((size - 1) / 2)` to `c + ceil((size - 1) / 2)`, as in the ONNX operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CLOSE = {"float64": 1e-8, "float32": 2e-4, "float16": 2e-2}
"""How near to the formula answers must be, over the largest of them."""
AMPLITUDES = (1.0, 4.0, 16.0, 64.0)


@dataclass(frozen=True)
class Formula:
    """`size`: channels in the window. `alpha`, `beta`, `k`: see this module."""

    size: int
    alpha: float
    beta: float
    k: float

    def __call__(self, x: Array) -> Array:
        """The answer to (N, C, *space), in float64."""
        wide = x.astype(np.float64)
        before, after = (self.size - 1) // 2, self.size // 2
        edges: list[Any] = [(0, 0)] * x.ndim
        edges[1] = (before, after)
        square = np.pad(wide**2, edges)
        total = sum(square[:, i : i + x.shape[1]] for i in range(self.size))
        answer: Array = wide / (self.k + self.alpha / self.size * total) ** self.beta
        return answer


def identify(answer: Callable[[Array], Array], shape: Sequence[int], dtype: np.dtype[Any]) -> Formula | None:
    """The LRN that a function of (N, C, *space) is, None where it is none.

    The window is read off impulses, the numbers off the answers to one channel at several sizes; then answers to random
    values must be those of the formula.
    """
    channels = shape[1]
    middle = (0, channels // 2, *(size // 2 for size in shape[2:]))
    if channels < 3:
        return None

    def at(size: float) -> Array:
        x = np.zeros(shape)
        x[middle] = size
        return answer(x)

    size = _window(answer, shape, middle)
    if size is None:
        return None
    gains = [float(at(a)[middle]) / a for a in AMPLITUDES]
    weak = float(at(1e-2)[middle]) / 1e-2
    if not all(np.isfinite(g) and g > 0 for g in (*gains, weak)) or not gains[-1] < weak:
        return None
    best = min(np.linspace(0.05, 2.0, 391), key=lambda beta: _misfit(float(beta), gains))
    for step in (5e-3, 5e-4, 5e-5, 5e-6, 5e-7):
        near = np.linspace(best - step, best + step, 21)
        best = min(near[near > 0], key=lambda beta: _misfit(float(beta), gains))
    slope, k = _line(float(best), gains)
    found = Formula(size, slope * size, float(best), k)
    return found if slope > 0 and _agrees(found, answer, shape, dtype) else None


def _window(answer: Callable[[Array], Array], shape: Sequence[int], middle: tuple[int, ...]) -> int | None:
    """How many channels a large value in one channel damps; None where they are not a window around it."""
    x = np.zeros(shape)
    place: Any = (0, slice(None), *middle[2:])
    x[place] = 1.0
    quiet = answer(x)[place]
    x[middle] = 64.0
    loud = answer(x)[place]
    with np.errstate(divide="ignore", invalid="ignore"):
        damped = np.flatnonzero(loud / quiet < 0.999)
    damped = np.union1d(damped, [middle[1]])
    if damped.size < 1 or not np.array_equal(damped, np.arange(damped[0], damped[-1] + 1)):
        return None
    return int(damped.size)


def _line(beta: float, gains: Sequence[float]) -> tuple[float, float]:
    """`gain ^ (-1 / beta) = k + slope * a^2`: slope and k by least squares, each point weighed by its size."""
    a = np.array(AMPLITUDES) ** 2
    y = np.array(gains) ** (-1 / beta)
    weight = 1 / y
    (slope, k), *_ = np.linalg.lstsq(np.stack([a * weight, weight], 1), y * weight, rcond=None)
    return float(slope), float(k)


def _misfit(beta: float, gains: Sequence[float]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        slope, k = _line(beta, gains)
        line = (k + slope * np.array(AMPLITUDES) ** 2) ** -beta
    return float(np.nan_to_num(np.abs(line / np.array(gains) - 1), nan=np.inf).max())


def _agrees(found: Formula, answer: Callable[[Array], Array], shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    rng = np.random.default_rng(0)
    for scale in (0.5, 5.0):
        x = (scale * rng.standard_normal(shape)).astype(dtype)
        wanted, given = found(x), answer(x)
        if given.shape != wanted.shape or not np.abs(given - wanted).max() <= CLOSE[dtype.name] * np.abs(wanted).max():
            return False
    return True
