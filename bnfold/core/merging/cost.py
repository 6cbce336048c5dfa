"""What a layer costs at run time: multiplications, elements moved, calls. `benchmarks/merging.py` checks it.

The constants are those of onnxruntime on one core of a server; what is decided are ratios, which move less than these.
"""

from __future__ import annotations

from dataclasses import dataclass

from .geometry import Geometry

DENSE = 0.03e-9
"""Seconds of a multiplication where each input is used for many outputs: a matrix product."""
DEPTHWISE = 0.12e-9
"""The same where each input is used for one output channel."""
MOVED = 0.15e-9
"""Seconds of an element that is read or written."""
CALL = 3e-6
"""Seconds of an operator beside what it computes."""
TYPICAL = 28
"""The size of an axis that is not known."""
WIDE = 8
"""Inputs and outputs for each group from which on a grouped convolution runs as a matrix product."""


@dataclass(frozen=True)
class Cost:
    """`multiplications`, `elements` read and written, `calls`; `weights`: how many numbers are stored; `seconds`."""

    multiplications: int = 0
    elements: int = 0
    calls: int = 0
    weights: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiplications + other.multiplications,
            self.elements + other.elements,
            self.calls + other.calls,
            self.weights + other.weights,
            self.seconds + other.seconds,
        )


def of_layer(layer: Geometry, read: int, written: int) -> Cost:
    """One layer that reads and writes so many elements."""
    if layer.kind == "diag":
        return of_elements(read + written, layer.weights, read)
    dense = layer.kind == "dense"
    weights = layer.inputs * layer.outputs if dense else layer.weights
    per_pixel = weights // max(1, layer.inputs if layer.transposed else layer.outputs)
    multiplications = per_pixel * (read if layer.transposed else written)
    narrow = not dense and min(layer.shape[1:3]) < WIDE and layer.groups > 1
    rate = DEPTHWISE if narrow else DENSE
    moved = read + written + weights
    bias = layer.outputs if layer.biased else 0
    return Cost(multiplications, moved, 1, weights + bias, rate * multiplications + MOVED * moved + CALL)


def of_elements(moved: int, weights: int = 0, multiplications: int = 0) -> Cost:
    """An operator that does little but move elements."""
    return Cost(multiplications, moved, 1, weights, MOVED * moved + CALL)


def of_sum(parts: int, written: int) -> Cost:
    """The additions of so many tensors, two by two."""
    added = Cost()
    for _ in range(parts - 1):
        added += of_elements(3 * written)
    return added


def better(after: Cost, before: Cost) -> bool:
    """Whether a sum of layers is better as one: less time by the model, clearly less where it multiplies more."""
    margin = 1.0 if after.multiplications <= before.multiplications else 0.9
    return after.seconds < margin * before.seconds


def leaner(after: Cost, before: Cost) -> bool:
    """Whether two layers in a row are better as one: fewer multiplications, no more memory, less time."""
    fewer = after.multiplications < before.multiplications and after.weights <= before.weights
    return fewer and after.seconds < before.seconds
