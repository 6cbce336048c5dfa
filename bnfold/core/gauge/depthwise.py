"""Norms that stay, written as depthwise convolutions with a kernel of 1: `y = inv * x + shift`, and no norm is left.

onnxruntime makes such a convolution of a norm where the data lie in its blocked layout, and fuses the activation
behind either. Elsewhere a norm is cheaper, unless convolutions are all that reads it. The measurement is in
docs/benchmarks.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from ..graph import Affine, Bound, Carry, Clipped, Concat, Gate, Graph, Homogeneous, Linear, Op, Opaque, Select, Sum
from .guard import far
from .solve import Outcome, Solution

BLOCK = 16
"""Channels in multiples of this lie in onnxruntime's blocked layout on every processor that has one."""
ALIGNED = 4
"""onnxruntime reads a plain tensor into its blocked layout in fours of channels; others go a slower way."""
LAYOUT = Concat | Sum | Homogeneous | Clipped | Affine | Select | Carry
"""Ops that give blocked what they are given blocked."""
IN_PLACE = Affine | Homogeneous | Clipped | Bound | Gate
"""Ops that work element by element."""
CURVES = frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Mish", "Softplus", "Swish"})
"""Those among the ops that carry no gauge."""


def with_layers(graph: Graph, solution: Solution, leftovers: str, limit: float) -> Solution:
    """The solution, in which norms that stay are depthwise convolutions as far as `leftovers` allows.

    `limit`: norms whose input lies further than that many deviations from zero stay as they are, since a norm takes
    the mean off before it multiplies, and a convolution does not.
    """
    stay = [] if leftovers == "none" else [o for o in solution.outcomes if _fits(o, solution, limit)]
    if not stay:
        return solution
    flow = _Flow(graph)
    layers = {o.port.op for o in stay if leftovers == "all" or flow.fast(o.port.op)}
    outcomes = [replace(o, form="conv") if o.port.op in layers else o for o in solution.outcomes]
    return replace(solution, outcomes=outcomes)


def _fits(outcome: Outcome, solution: Solution, limit: float) -> bool:
    """Whether a norm that stays can be a convolution without loss."""
    op = outcome.port.op
    if outcome.form != "stays" or outcome.conflict is None or not op.layer:
        return False
    return not far(outcome.port, solution, limit)


class _Flow:
    """Walks from a norm to what makes its input and what reads its output."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = {name: op for op in graph.ops for name in op.outputs}
        self.readers: dict[str, list[Op]] = defaultdict(list)
        self._feeds, self._made = _Walk(self._behind), _Walk(self._before)
        for op in graph.ops:
            for name in dict.fromkeys(op.inputs):
                self.readers[name].append(op)

    def fast(self, op: Affine) -> bool:
        """Whether a depthwise convolution is no slower than the norm."""
        blocked = op.scale.size % BLOCK == 0
        fuses = all(isinstance(reader, Homogeneous | Clipped) for reader in self.readers[op.outputs[0]])
        enough = op.scale.size >= (BLOCK if fuses or blocked else 2 * BLOCK)
        if self.graph.rank(op.inputs[0]) != 4 or not enough or op.scale.size % ALIGNED:
            return False
        return self._feeds(op.outputs[0]) or (blocked and self._made(op.inputs[0]))

    def _behind(self, name: str) -> list[str] | None:
        """Where to look on behind a tensor that convolutions should read, or what works element by element."""
        readers = [op for op in self.readers[name] if not (isinstance(op, Linear) and op.conv)]
        passed = all(isinstance(op, IN_PLACE) or (isinstance(op, Opaque) and op.type in CURVES) for op in readers)
        read = self.readers[name] and name not in self.graph.pinned
        return [out for op in readers for out in op.outputs] if read and passed else None

    def _before(self, name: str) -> list[str] | None:
        """Where to look on before a tensor of whole blocks that convolutions make, or ops that keep the layout."""
        op, shape = self.maker.get(name), self.graph.shape(name)
        blocks = shape is not None and len(shape) == 4 and isinstance(shape[1], int) and shape[1] % BLOCK == 0
        if op is None or not blocks:
            return None
        if isinstance(op, Linear):
            return [] if op.conv else None
        return list(op.inputs) if isinstance(op, LAYOUT) else None


class _Walk:
    """Whether a walk from a tensor, `step` by step, ends nowhere with None; remembered, since walks meet."""

    def __init__(self, step: Callable[[str], list[str] | None]) -> None:
        self.step = step
        self.known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        wanted, steps = [name][: name not in self.known], dict[str, list[str] | None]()
        while wanted:
            at = wanted[-1]
            if at not in steps:
                steps[at] = self.step(at)
                wanted += [other for other in steps[at] or () if other not in self.known]
            else:
                ahead = steps[at]
                self.known[at] = ahead is not None and all(self.known[other] for other in ahead)
                wanted.pop()
        return self.known[name]
