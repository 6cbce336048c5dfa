"""Small plots in text."""

from __future__ import annotations

import math
from itertools import pairwise

from rich.text import Text

from ..judge.criteria.check import Where

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 72


def profile(where: Where, width: int = WIDTH) -> Text:
    """Errors along the network, from the first tensor to the last, by powers of ten; the reference's own below.

    Each column is the largest of a few tensors; a mark shows where the models part.
    """
    points = where.profile
    count = min(width, len(points))
    edges = [len(points) * i // count for i in range(count + 1)]
    groups = [points[a:b] for a, b in pairwise(edges)]
    rows = [[max(getattr(point, name) for point in group) for group in groups] for name in ("found", "own")]
    finite = [math.log10(value) for row in rows for value in row if 0 < value < math.inf]
    low, high = (min(finite), max(finite)) if finite else (-8.0, 0.0)
    names = [point.tensor for point in points]
    text = Text()
    place = names.index(where.tensor) if where.tensor in names else -1
    mark = next((i for i, (a, b) in enumerate(pairwise(edges)) if a <= place < b), None)
    for label, row in zip(("candidate", "reference"), rows, strict=True):
        bars = "".join(_bar(value, low, high) for value in row)
        text.append(f"{label:>10} ", "bold")
        text.append(bars[: len(bars) if mark is None else mark], "green")
        text.append("" if mark is None else bars[mark:], "red" if label == "candidate" else "green")
        text.append("\n")
    if mark is not None:
        text.append(" " * (11 + mark) + "^ " + where.tensor + "\n")
    text.append(f"{'':>10} error over value, from 1e{low:.0f} ({BARS[0]}) to 1e{high:.0f} ({BARS[-1]})", "dim")
    return text


def _bar(value: float, low: float, high: float) -> str:
    if not value > 0:
        return " "
    if value == math.inf or high <= low:
        return BARS[-1] if value == math.inf else BARS[0]
    return BARS[min(len(BARS) - 1, int((math.log10(value) - low) / (high - low) * len(BARS)))]
