"""Layers of one tensor, of one form, whose outputs are put together: one layer with the channels of all."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import Reason
from .algebra import Lazy, stacked
from .cost import of_elements
from .ledger import Ledger
from .program import Join, Layer, Step


@dataclass
class Siblings:
    """Merges what is put together."""

    ledger: Ledger

    def merge(self) -> bool:
        """Merge the first that can be; whether there were any."""
        joins = ((step, start) for step in self.ledger.program.joins() for start in range(len(step.sources)))
        for step, start in joins:
            layers = self._alike(step, start)
            whole = stacked([layer.layer for layer in layers]) if len(layers) > 1 else None
            if isinstance(whole, Lazy):
                self._stack(step, start, layers, whole)
                return True
        return False

    def _alike(self, step: Join, start: int) -> list[Layer]:
        """Layers one behind another among the sources, from `start` on, that are of one form."""
        layers: list[Layer] = []
        for name in step.sources[start:]:
            layer = self.ledger.program.steps.get(name)
            if not isinstance(layer, Layer) or not layer.real or not self.ledger.program.free(name):
                break
            first = layers[0] if layers else layer
            pair = stacked([first.layer, layer.layer])
            if layer.source != first.source or layer.layer.geometry.axis != step.axis or isinstance(pair, Reason):
                break
            layers.append(layer)
        return layers

    def _stack(self, step: Join, start: int, layers: list[Layer], whole: Lazy) -> None:
        program, rest = self.ledger.program, (step.sources[:start], step.sources[start + len(layers) :])
        target = self.ledger.fresh(step.target) if any(rest) else step.target
        moved = program.elements(step.target) * len(layers) // len(step.sources)
        before = self.ledger.before(layers) + of_elements(2 * moved)
        sizes = program.sizes.get(layers[0].target)
        if sizes is not None:
            program.sizes[target] = (*sizes[: step.axis], whole.geometry.outputs, *sizes[step.axis + 1 :])
        source, own = layers[0].source, not any(rest)
        steps: list[Step] = [
            self.ledger.layer("siblings", target, source, whole, layers, [step], own, before)
        ]  # fmt: skip
        if any(rest):
            steps.append(Join(step.name, step.target, (*rest[0], target, *rest[1]), step.nodes, step.axis, True))
        program.replace({s.target for s in (*layers, step)}, steps)
