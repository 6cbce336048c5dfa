"""Norms as the precision guard sees them: batch norms, and runs of constants that scale and shift."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..graph import Graph, Op
from .equations import AffinePort, Equations, Vector


@dataclass(frozen=True, eq=False)
class Chain:
    """One norm: `ports`, the first of which reads the tensor that it norms; `scale * x + offset` is 0 +- 1 by channel.

    Of a batch norm that is known. Of constants that scale and shift, what comes out of the last is taken for 0 +- 1.
    """

    ports: tuple[AffinePort, ...]
    scale: Vector
    offset: Vector

    @property
    def known(self) -> bool:
        """Whether a batch norm tells of it."""
        return self.ports[-1].op.statistics is not None


def chains_of(graph: Graph, equations: Equations) -> dict[Op, Chain]:
    """The norms by their first op: batch norms, and runs of constants that scale and shift."""
    readers = Counter(name for op in graph.ops for name in op.inputs)
    alone = {
        port.op.inputs[0]: port
        for port in equations.affines
        if readers[port.op.inputs[0]] == 1 and port.op.inputs[0] not in graph.pinned
    }
    found: dict[Op, Chain] = {}
    for port in equations.affines:
        ports = [port]
        while ports[-1].op.statistics is None and (after := alone.get(ports[-1].op.outputs[0])) is not None:
            if after.x.size != port.x.size:
                break
            ports.append(after)
        chain = _chain(ports)
        if chain is not None:
            found[port.op] = chain
    return found


def _chain(ports: list[AffinePort]) -> Chain | None:
    """What a run of affines says of its input; None where it is no norm."""
    scale, offset = np.ones(ports[0].x.size), np.zeros(ports[0].x.size)
    for port in ports:
        known = port.op.statistics
        if known is not None:
            inv = 1.0 / np.sqrt(known.var + known.eps)
            return Chain(tuple(ports), scale * inv, (offset - known.mean) * inv)
        scale, offset = scale * port.scale, offset * port.scale + port.offset
    varies = any(port.op.listed and port.op.kind == "mul" for port in ports)
    return Chain(tuple(ports), scale, offset) if varies and offset.any() else None
