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
OCTAVES = {"float16": 16, "bfloat16": 40, "float32": 40, "float64": 400}
"""Signals are taken to lie between 2^-n and 2^n, by element type: 1e-12 to 1e12 for float32. For float16, whose numbers
end at 2^16, that lets no channel pass but those without any weight.
"""


@dataclass(frozen=True)
class Rounding:
    """Of one element type: `share` is the unit roundoff times `PART`, `floor` and `reach` bound a signal's size."""

    share: float
    floor: float
    reach: float

    @classmethod
    def of(cls, dtype: str, eps: float, exact: bool = False) -> Rounding:
        """That of a type with the given distance between 1 and the next number; `exact`: nothing counts as lost."""
        octaves = OCTAVES.get(dtype, 40)
        return cls(0.0 if exact else eps / 2 * PART, 2.0**-octaves, 2.0**octaves)

    @property
    def faint(self) -> float:
        """How little of an ordinary channel nobody sees."""
        return self.share * APART

    def hidden(self, held: Vector) -> Vector:
        """How much beside a value nobody sees."""
        result: Vector = self.share * np.maximum(np.abs(held), self.floor)
        return result
