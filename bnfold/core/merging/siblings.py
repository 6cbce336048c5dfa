"""Layers of one tensor, of one form: one layer with the channels of all."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import Reason
from .algebra import Lazy, stacked
from .cost import of_elements
from .ledger import Ledger
from .program import JOINT, Cut, Join, Layer, Step


@dataclass
class Siblings:
    """Merges layers whose outputs are put together."""

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


@dataclass
class Apart:
    """Merges layers whose outputs go different ways: one layer, and its outputs cut apart again.

    That saves calls and nothing else.
    """

    ledger: Ledger

    def merge(self) -> None:
        """Merge all groups of layers that read one tensor and have one form."""
        groups: dict[object, list[Layer]] = {}
        for layer in self.ledger.program.layers():
            g = layer.layer.geometry
            if layer.real and layer.op != "AveragePool" and JOINT not in layer.target:
                groups.setdefault((layer.source, g.kind, g.inputs, g.groups, g.axes, g.axis), []).append(layer)
        for layers in groups.values():
            whole = stacked([layer.layer for layer in layers]) if len(layers) > 1 else None
            if isinstance(whole, Lazy):
                self._join(layers, whole)

    def _join(self, layers: list[Layer], whole: Lazy) -> None:
        program, axis, first = self.ledger.program, whole.geometry.axis, layers[0]
        target, before = self.ledger.fresh(first.target), self.ledger.before(layers)
        sizes = program.sizes.get(first.target)
        if sizes is not None:
            program.sizes[target] = (*sizes[:axis], whole.geometry.outputs, *sizes[axis + 1 :])
        made = self.ledger.layer("siblings", target, first.source, whole, layers, (), True, before)
        cuts, start = [], 0
        for layer in layers:
            stop = start + layer.layer.geometry.outputs
            cuts.append(Cut(layer.name, layer.target, (target,), (), start, stop, axis))
            start = stop
        # the last of the new steps says where all of them stand: where the first layer stood
        program.replace({layer.target for layer in layers}, [made, *cuts[1:], cuts[0]])
