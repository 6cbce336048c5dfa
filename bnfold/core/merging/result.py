"""What merging did, and what it left: plain values for reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..graph import Reason
from ..plan import LayerMerge


@dataclass(frozen=True)
class Candidate:
    """Layers that are added, or that stand in a row: `nodes`, with the additions between them.

    `kind`: "sum", "chain", or "siblings": layers of one tensor whose outputs are put together. `verdict`: "merged", and
    `into` names the layer that is left; or "left", and `reason` says why. `multiplications` of a run, `bytes` of
    weights, and `seconds` by the model of costs: before and after; the same where nothing changed.
    """

    kind: str
    nodes: tuple[str, ...]
    into: str
    verdict: str
    reason: Reason | None
    multiplications: tuple[int, int]
    bytes: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def plain(self) -> LayerMerge:
        """As plans have it."""
        return LayerMerge(self.kind, self.nodes, self.verdict, self.into, self.reason, self.multiplications, self.bytes)


def merged_of(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that were merged."""
    return tuple(c for c in candidates if c.verdict == "merged")
