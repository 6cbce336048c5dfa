"""Layers in a row: `B (A x + a) + b = (B A) x + (B a + b)`, where the product costs less than the two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..graph import Reason
from .algebra import Lazy
from .cost import Cost, leaner
from .ledger import Ledger
from .links import Link, links
from .program import Layer
from .reasons import COSTS
from .result import Candidate


@dataclass
class Rows:
    """Merges what stands in a row."""

    ledger: Ledger

    def merge(self) -> bool:
        """Merge the pair that saves most; whether there was any."""
        best = self._affine() or max(self._better(), key=lambda found: found[0], default=None)
        if best is None:
            return False
        _, step, link = best
        assert isinstance(link.layer, Lazy)
        before, used = self.ledger.before(link.steps), tuple(reversed(link.steps))
        made = self.ledger.layer("chain", step.target, link.base, link.layer, used, (), True, before)
        self.ledger.program.replace({s.target for s in used}, [made])
        return True

    def left(self) -> Iterator[Candidate]:
        """Layers right behind layers that stay two."""
        for step, link in self._all():
            yield self.ledger.stays("chain", tuple(reversed(link.steps)), self._why(step, link))

    def _why(self, step: Layer, link: Link) -> Reason:
        if isinstance(link.layer, Reason):
            return link.layer
        if not leaner(*self._costs(step, link)):
            return COSTS
        return link.held or self.ledger.program.misfit(link.layer) or COSTS

    def _all(self) -> Iterator[tuple[Layer, Link]]:
        """Layers right behind layers, and how the later one is a layer of what the earlier one reads."""
        for step in self.ledger.program.layers():
            back = next((link for link in links(self.ledger.program, step.source) if link.real), None)
            if step.real and back is not None:
                layer = step.layer.behind(back.layer) if isinstance(back.layer, Lazy) else back.layer
                yield step, replace(back, layer=layer, steps=(step, *back.steps))

    def _better(self) -> Iterator[tuple[float, Layer, Link]]:
        for step, link in self._all():
            if link.held is None and isinstance(link.layer, Lazy):
                after, before = self._costs(step, link)
                if leaner(after, before) and self.ledger.program.misfit(link.layer) is None:
                    yield before.seconds - after.seconds, step, link

    def _affine(self) -> tuple[float, Layer, Link] | None:
        """A map of each channel right behind a layer that was merged."""
        program = self.ledger.program
        for step in program.layers():
            inner = program.steps.get(step.source)
            if not step.real and isinstance(inner, Layer) and inner.made and program.free(step.source):
                layer = step.layer.behind(inner.layer)
                if isinstance(layer, Lazy) and program.misfit(layer) is None:
                    return 0.0, step, Link(inner.source, layer, (step, inner))
        return None

    def _costs(self, step: Layer, link: Link) -> tuple[Cost, Cost]:
        """After and before."""
        assert isinstance(link.layer, Lazy)
        return self.ledger.program.cost_of(link.layer, link.base, step.target), self.ledger.cost(link.steps)
