"""What became of the channels that hold nothing, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from ...core.graph import Reason
from ...core.shrinking.channels import Network, Port
from ...core.shrinking.decide import Cell, Decision
from ..read.read import Source
from ..write.apply import Applied
from .branches import Branch

TINY = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
"""The smallest normal numbers; what is smaller slows CPUs down."""
Costs = tuple[int, int, int, int]
"""Multiplications before and after, bytes of weights before and after."""


@dataclass(frozen=True)
class Group:
    """Channels that hold nothing, in the same tensors. `verdict`: "dropped", or "left" with its reason.

    `tensor`: where they are made; `layers`: those whose weights hold them. Of `channels`, `empty` hold a constant or
    are not read, and `dropped` are gone. `reason`: why others of the empty ones are not. `multiplications`, `bytes`: of
    the weights of these layers, before and after all groups.
    """

    tensor: str
    layers: tuple[str, ...]
    channels: int
    empty: int
    dropped: int
    verdict: str
    reason: Reason | None
    multiplications: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class Shrunk:
    """A model without its empty channels; the one that was given where none could go.

    `branches`: tensors that were computed, and are constants now, or nothing where they were added zeros; with their
    channels.
    `denormal`: layers with weights so small that CPUs compute slowly with them, and how many the result holds.
    `multiplications`, `bytes`: of all layers with weights, before and after; sizes that are not known count as 1.
    """

    applied: Applied
    groups: tuple[Group, ...]
    branches: tuple[tuple[str, int], ...]
    denormal: tuple[tuple[str, int], ...]
    multiplications: tuple[int, int]
    bytes: tuple[int, int]
    note: str = ""
    """What went wrong, where the model was left as it was for that."""

    @property
    def model(self) -> ModelProto:
        """The model."""
        return self.applied.model

    @property
    def changed(self) -> bool:
        """Whether any channel or branch is gone."""
        return bool(self.branches) or any(group.dropped for group in self.groups)


def told(state: Applied, net: Network, decision: Decision, cost: dict[int, Costs], constant: list[Branch]) -> Shrunk:
    """What is known before anything is written; `cost`: of each layer, by its place."""
    totals = [sum(each[i] for each in cost.values()) for i in range(4)]
    small = [(port.name, _denormal(port, decision)) for port in net.ports]
    return Shrunk(
        state,
        tuple(_groups(net, decision, cost)),
        tuple((branch.name, branch.value.size) for branch in constant),
        tuple((name, count) for name, count in small if count),
        (totals[0], totals[1]),
        (totals[2], totals[3]),
        "; ".join(f"{fault.type} {fault.name}: {fault.error}" for fault in net.faults),
    )


def costs(source: Source, net: Network, decision: Decision, gone: set[int]) -> dict[int, Costs]:
    """For each layer its multiplications before and after, and the bytes of its weights before and after.

    `gone`: nodes that are no longer there.
    """
    found = {}
    for port in net.ports:
        shape = source.graph.shape(source.graph.ops[port.place].outputs[0]) or ()
        if source.graph.ops[port.place] is not port.layer.op:
            shape = ()
        pixels = prod(d for axis, d in enumerate(shape) if isinstance(d, int) and axis not in (0, port.y.axis))
        taps, item = port.layer.weight.shape[3], port.layer.weight.dtype.itemsize
        left = 0 if source.bindings[port.place].node in gone else _left(port, decision) * taps
        weights = [prod(port.layer.weight.shape), left]
        found[port.place] = (weights[0] * pixels, weights[1] * pixels, weights[0] * item, weights[1] * item)
    return found


def _left(port: Port, decision: Decision) -> int:
    """How many weights without the taps a layer keeps."""
    sizes = []
    for track, count in ((port.x, port.layer.op.in_channels), (port.y, port.layer.op.out_channels)):
        kept = None if track is None else decision.keeps(track)
        sizes.append(count if kept is None else int(kept.size))
    return sizes[0] * sizes[1] if port.layer.groups == 1 else sizes[1] * port.layer.weight.shape[2]


def _groups(net: Network, decision: Decision, cost: dict[int, Costs]) -> Iterator[Group]:
    """The groups of channels that hold something empty, in the order of the graph."""
    for cell, ports in zip(decision.cells, _touching(net, decision), strict=True):
        if not ports:
            continue
        makers = [port for port in ports if np.isin(decision.roots[port.y.ids], cell.members).any()]
        track = makers[0].y if makers else ports[0].x
        counts = [0, 0, 0] if track is None else _counts(decision.roots[track.ids], cell)
        total = [sum(cost[port.place][i] for port in ports) for i in range(4)]
        yield Group(
            makers[0].layer.op.outputs[0] if makers else ports[0].layer.op.inputs[0],
            tuple(port.name for port in ports),
            counts[0],
            counts[1],
            counts[2],
            "dropped" if counts[2] else "left",
            cell.reason,
            (total[0], total[1]),
            (total[2], total[3]),
        )


def _counts(roots: npt.NDArray[np.int64], cell: Cell) -> list[int]:
    """How many channels of a tensor are of a cell, how many of these are empty, and how many go."""
    parts = (cell.members, cell.members[cell.empty], cell.members[cell.gone])
    return [int(np.isin(roots, part).sum()) for part in parts]


def _touching(net: Network, decision: Decision) -> list[list[Port]]:
    """For each cell the layers whose weights hold channels of it."""
    which = np.full(decision.roots.size, -1, np.int64)
    for i, cell in enumerate(decision.cells):
        which[cell.members] = i
    found: list[list[Port]] = [[] for _ in decision.cells]
    for port in net.ports:
        ids = [track.ids for track in (port.x, port.y) if track is not None]
        for i in np.unique(which[decision.roots[np.concatenate(ids)]]).tolist():
            if i >= 0:
                found[i].append(port)
    return found


def _denormal(port: Port, decision: Decision) -> int:
    """How many weights of a layer are smaller than any normal number, and not 0, in the channels that stay."""
    tiny = TINY.get(port.layer.weight.dtype.name, 2.0**-126)
    sizes = np.abs(port.layer.weight)
    small = (sizes < tiny) & (sizes > 0)
    if not small.any():
        return 0
    if port.layer.groups == 1:
        keep_in = None if port.x is None else decision.keeps(port.x)
        keep_out = decision.keeps(port.y)
        small = small[0] if keep_out is None else small[0][keep_out]
        small = small if keep_in is None else small[:, keep_in]
    elif (kept := decision.keeps(port.y)) is not None:
        small = small.reshape(-1, *small.shape[2:])[kept]
    return int(small.sum())
