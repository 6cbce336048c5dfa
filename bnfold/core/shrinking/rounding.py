"""When a value is lost in the rounding that a network makes anyway."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

PART = 1 / 8
"""Dropping a channel may move what a layer gives by so much of the rounding that the layer makes."""
APART = 2.0**-8
"""How much smaller than the largest channel of a layer those beside which others vanish may be in truth."""
ORDINARY = 2.0**-20
"""What ordinary channels hold at least, where a number is compared with them that stands in no relation to them."""
REACH = {"float16": 2.0**16, "bfloat16": 2.0**40, "float32": 2.0**40, "float64": 2.0**400}
"""How large a value may be, by element type, where it is compared with a number."""


@dataclass(frozen=True)
class Rounding:
    """Of one element type: `share` is the unit roundoff times `PART`, `reach` bounds values that are not known."""

    share: float
    reach: float

    @classmethod
    def of(cls, dtype: str, eps: float, exact: bool = False) -> Rounding:
        """That of a type with the given distance between 1 and the next number; `exact`: nothing counts as lost."""
        return cls(0.0 if exact else eps / 2 * PART, REACH.get(dtype, 2.0**40))

    @property
    def faint(self) -> float:
        """How little of an ordinary channel nobody sees."""
        return self.share * APART


def from_zero(value: Vector, radius: Vector) -> Vector:
    """How far from 0 a value within `radius` lies, as a number and as a share of what ordinary channels hold."""
    return np.asarray(np.abs(value) * np.array([1.0, 1 / ORDINARY]).reshape(2, *[1] * value.ndim) + radius)
