"""Why layers that look as if they were one stay several. docs/reasons.md explains each."""

from __future__ import annotations

from ..graph import Reason

STRIDE = Reason("merge-stride", "their strides differ")
PADDING = Reason("merge-padding", "their paddings do not line up: one sees other pixels, or gives another size")
UNKNOWN = Reason("merge-unknown-padding", "its padding follows from sizes that are not known")
BORDER = Reason("merge-border", "at the border the second sees zeros of its padding where the first would give more")
POOLING = Reason("merge-pooling", "at the border it averages fewer pixels, which no kernel does")
KINDS = Reason("merge-kinds", "no single layer is a sum or product of such kinds")
CHANNELS = Reason("merge-channels", "they have other numbers of channels, or other channel axes")
QUANTIZED = Reason("merge-quantized", "its weights are whole numbers with a scale")
RANGE = Reason("merge-range", "together their weights are beyond what float16 holds")
READ = Reason("merge-second-reader", "something else reads a tensor between them")
COSTS = Reason("merge-cost", "one layer in their place would cost more")
