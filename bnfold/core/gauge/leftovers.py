"""In which forms a norm that cannot go may be left: only in those that measure no slower than the norm, by default.

The numbers come from `benchmarks.leftovers` on onnxruntime (docs/benchmarks.md): between layers whose channels fill
its blocked layout the runtime makes a cheap convolution of a batch norm and fuses the Relu, which no Add, Max or Clip
equals. What is left there, and elsewhere, may become that convolution: see `depthwise`.
"""

from __future__ import annotations

from math import prod

from ..graph import Shape

BLOCK = 8
"""Channels in multiples of this may lie in onnxruntime's blocked layout."""
PIXELS = 14 * 14
"""On smaller maps a broadcasting op costs more than a batch norm."""


def allowed(policy: str, form: str, channels: int, shape: Shape | None) -> bool:
    """Whether a norm over a tensor of this shape may be left in a form.

    `policy`: "all"; "none" (norms go without a trace or stay as they are); "fast", where it is no slower than the norm
    on onnxruntime.
    """
    if policy != "fast" or form == "bn":
        return policy == "all" or form == "bn"
    if form == "clip":
        return channels == 1  # other numbers in the same op
    rank = 0 if shape is None else len(shape)
    if form == "add":
        return rank == 2
    if form == "max" and rank in (3, 5):  # no layout is blocked there
        return True
    sizes = () if shape is None else shape[2:]
    small = all(isinstance(size, int) for size in sizes) and prod(s for s in sizes if isinstance(s, int)) < PIXELS
    blocked = channels % BLOCK == 0
    return rank == 4 and not small and blocked == (form == "mul")
