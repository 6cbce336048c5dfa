"""Why a norm stays, in words: walk from its two sides to the nearest op that is in the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..graph import Graph, Linear, Op, Opaque, Reason, Select, Sum
from .equations import AffinePort, Demand, Ids
from .guard import WEIGHTS
from .shift import ranges
from .solve import Outcome, Solution

Edge = tuple[int, Op | None]
LEFTOVER = "--leftovers all leaves a single Add or Max in its place"
BORDER = f"a bias for each pixel, which the border needs, measures slower than the norm; {LEFTOVER}"


class Explainer:
    """Explains the outcomes of one solution. The walks are made on demand, for one channel of each norm."""

    def __init__(self, graph: Graph, solution: Solution) -> None:
        self.graph, self.solution = graph, solution
        self.eqs = solution.equations
        self.producer = {t: op for op in graph.ops for t in op.outputs}
        self._edges: tuple[Ids, Ids, Ids, list[Op]] | None = None
        self._owners: dict[int, Ids] = {}
        self._norms: Ids | None = None
        self._ends: dict[int, tuple[Ids, Ids]] = {}
        self._crossed: set[Op] = set()

    def reason(self, outcome: Outcome) -> Reason | None:
        """The reason of an affine that is not gone; None for one that is."""
        if outcome.form == "gone" or outcome.conflict is None:
            return None
        port, row = outcome.port, outcome.conflict.row
        return getattr(self, f"_{outcome.conflict.kind}")(port, row)  # type: ignore[no-any-return]

    def _scale(self, port: AffinePort, row: int) -> Reason:
        x, y = int(port.x[row]), int(port.y[row])
        for side, ids in ((port.op.inputs[0], port.x), (port.op.outputs[0], port.y)):
            labels = self.solution.base[ids]
            if (labels == labels[row]).sum() > 1 and labels[row] != 0:
                return Reason(
                    "channels-tied",
                    f"an op next to it lets {side} have one scale only for several of its channels",
                    "",
                    "is the channel axis of the norm the one that the layer next to it works on?",
                )
        before, after = self._holder(x, port), self._holder(y, port)
        if before and after:
            return Reason(
                "scale-fixed",
                f"its scale can go nowhere: {before}, and {after}",
                after.split(" ")[0],
                "a layer with constant weights before or behind it, with no other op between, could take it",
            )
        meeting = self._meeting(x, y, port)
        return Reason(
            "scale-cycle",
            f"its input and its output meet again at {meeting.name if meeting else 'another op'}, "
            "where both need the same scale",
            meeting.name if meeting else "",
            "no exact fold exists unless one of the branches has weights of its own",
        )

    def _sign(self, port: AffinePort, row: int) -> Reason:
        found = [self._nearest(int(ids[row]), self.eqs.positive, port) for ids in (port.x, port.y)]
        demands = list({demand.op: demand for demand in found if demand}.values())
        said = ", and ".join(f"{demand.op.name} {demand.why}" for demand in demands) or "an activation is in the way"
        text = f"gamma of channel {row} has a sign that can go nowhere: {said}"
        return Reason("sign", text, demands[0].op.name if demands else "")

    def _shift(self, port: AffinePort, row: int) -> Reason:
        for side in (int(port.y[row]), int(port.x[row])):
            demand = self._nearest(side, self.eqs.still, port)
            if demand and demand.zeros:
                text = f"its offset cannot pass {demand.op.name}, which {demand.why}"
                return Reason("zero-padding", text, demand.op.name, BORDER)
        demand = self._nearest(int(port.y[row]), self.eqs.still, port)
        other = self.producer.get(port.op.inputs[0])
        if demand and self._shared(port, row):
            return Reason(
                "shift-taken",
                f"{port.op.inputs[0]} has other readers that need another offset, and {demand.op.name} {demand.why}",
                demand.op.name,
                LEFTOVER,
            )
        text = f"{demand.op.name} {demand.why}" if demand else "an op behind it fixes the values"
        source = f"; {other.name} before it cannot take one" if other else "; it stands at a graph input"
        where = demand.op.name if demand else ""
        return Reason("shift-fixed", f"its offset can go nowhere: {text}{source}", where, LEFTOVER)

    def _dead(self, port: AffinePort, row: int) -> Reason:
        source = port.op.inputs[0]
        positive = self._nearest(int(port.x[row]), self.eqs.positive, port)
        if positive is not None and isinstance(positive.op, Linear):
            why = f"{positive.op.name} {positive.why}"
        elif self._shared(port, row) or sum(source in op.inputs for op in self.graph.ops) > 1:
            why = f"{source} has other readers"
        else:
            why = f"{source} must keep its values there"
        text = (
            f"gamma of channel {row} is 0, {why}, and the constant that comes out cannot move into all layers behind it"
        )
        return Reason("dead-channel", text, positive.op.name if positive else "")

    def _precision(self, port: AffinePort, row: int) -> Reason:
        return Reason(
            "precision",
            f"moving channel {row} of {port.op.inputs[0]} by the offset that it asks for would cost the other readers "
            "of that tensor their precision",
            "",
            "--precision-limit sets how much is allowed",
        )

    def _centre(self, port: AffinePort, row: int) -> Reason:
        return Reason(
            "precision",
            f"channel {row} of {port.op.inputs[0]} has a mean of very many deviations, which the layer that takes the "
            "norm up would have to take out by adding values that nearly cancel",
            "",
            "--precision-limit sets how much is allowed",
        )

    def _range(self, port: AffinePort, row: int) -> Reason:
        if row == WEIGHTS:
            return Reason("range", "the weights that would take it up would overflow or underflow their element type")
        return Reason(
            "range",
            f"channel {row} would leave its scale so far that the element type could overflow or underflow",
        )

    def _constant(self, port: AffinePort, row: int) -> Reason:
        return Reason(
            "dead-channel",
            f"channel {row} is constant behind another norm whose gamma is 0 there, and was already replaced",
        )

    def _shared(self, port: AffinePort, row: int) -> bool:
        """Whether another norm reads the channel too, on its own or as a part of another tensor."""
        label = self.solution.base[port.x[row]]
        if self._norms is None:
            self._norms = np.zeros(self.eqs.count, np.int64)
            for other in self.eqs.affines:
                if other.op.candidate:
                    self._norms[self.solution.base[other.x]] += 1  # once for each norm
        return bool(self._norms[label] > int(port.op.candidate))

    def _holder(self, start: int, port: AffinePort) -> str:
        """What pins the scale on one side of a norm, walking from `start` without crossing the norm; "" if nothing."""
        end = self._first(start, self.eqs.pins, port, (0,))
        if end is None:
            return ""
        (i, via), owner = end, self._owner(self.eqs.pins)
        if owner[i] >= 0:
            demand = self.eqs.pins[owner[i]]
            return f"{demand.op.name} {demand.why}"
        return self._born(port) if via is None else f"{via.name} joins it with a tensor that must stay as it is"

    def _owner(self, listed: list[Demand]) -> Ids:
        """For each variable the position of the first demand on it, or -1."""
        if id(listed) not in self._owners:
            owner = np.full(self.eqs.count, -1, np.int64)
            for k in reversed(range(len(listed))):
                owner[listed[k].ids] = k
            self._owners[id(listed)] = owner
        return self._owners[id(listed)]

    def _born(self, port: AffinePort) -> str:
        op = self.producer.get(port.op.inputs[0])
        while op is not None and not isinstance(op, Opaque) and op.inputs:
            op = self.producer.get(op.inputs[0])
        return f"{op.name} ({op.type}) computes its input" if isinstance(op, Opaque) else "it reads a graph input"

    def _nearest(self, start: int, listed: list[Demand], port: AffinePort) -> Demand | None:
        end = self._first(start, listed, port)
        return None if end is None else listed[self._owner(listed)[end[0]]]

    def _first(self, start: int, listed: list[Demand], port: AffinePort, more: tuple[int, ...] = ()) -> Edge | None:
        """Where a walk from `start` first meets a demand, or a variable of `more`, and the op that led there."""
        self._adjacency()
        if port.op in self._crossed:  # it must go another way
            owner = self._owner(listed)
            return next(((i, via) for i, via in self._walk(start, port) if owner[i] >= 0 or i in more), None)
        if id(listed) not in self._ends:
            ends = self._owner(listed) >= 0
            ends[list(more)] = True
            self._ends[id(listed)] = self._nearest_ends(ends)
        last, edge = self._ends[id(listed)]
        if last[start] < 0:
            return None
        _, targets, via, ops = self._adjacency()
        k = edge[last[start]]
        return (start, None) if k < 0 else (int(targets[k]), ops[via[k]])

    def _nearest_ends(self, ends: npt.NDArray[np.bool_]) -> tuple[Ids, Ids]:
        """The last variable on the way that a breadth-first walk finds to one of `ends` from each variable (-1 where
        none is reached), and the edge that leads from there to the end (-1 from an end itself).
        """
        offsets, targets, _, _ = self._adjacency()
        away, frontier, steps = np.where(ends, 0, -1), np.flatnonzero(ends), 0
        while frontier.size:
            steps += 1
            frontier = np.unique(targets[ranges(offsets[frontier], np.diff(offsets)[frontier])])
            frontier = frontier[(away[frontier] < 0) & (frontier != 0)]  # no walk goes on from variable 0
            away[frontier] = steps
        source = np.repeat(np.arange(self.eqs.count), np.diff(offsets))
        nearer = np.flatnonzero((away[source] > 0) & (away[targets] == away[source] - 1))
        which, first = np.unique(source[nearer], return_index=True)
        edge = np.full(self.eqs.count, -1)
        edge[which] = nearer[first]
        last, far = np.where(away < 0, -1, np.arange(self.eqs.count)), np.flatnonzero(away > 1)
        last[far] = targets[edge[far]]
        while (far := far[away[last[far]] > 1]).size:
            last[far] = last[last[far]]
        return last, edge

    def _meeting(self, start: int, goal: int, port: AffinePort) -> Op | None:
        """The op at which two sides of a norm come together: the last merging op on the way from one to the other."""
        met: Op | None = None
        for i, via in self._walk(start, port):
            if isinstance(via, Sum | Select):
                met = via
            if i == goal:
                return via if met is None else met
        return met

    def _walk(self, start: int, port: AffinePort) -> Iterator[tuple[int, Op | None]]:
        """Variables of equal scale in breadth-first order, with the op that led there; never across `port`."""
        offsets, targets, via, ops = self._adjacency()
        seen = {start}
        queue: deque[tuple[int, Op | None]] = deque([(start, None)])
        while queue:
            i, op = queue.popleft()
            yield i, op
            if i == 0:
                continue
            for k in range(offsets[i], offsets[i + 1]):
                j, edge_op = int(targets[k]), ops[via[k]]
                if j not in seen and edge_op is not port.op:
                    seen.add(j)
                    queue.append((j, edge_op))

    def _adjacency(self) -> tuple[Ids, Ids, Ids, list[Op]]:
        """Compressed rows: the neighbours of i are targets[offsets[i]:offsets[i + 1]], by the ops in `via`."""
        if self._edges is None:
            gone = [o.port for o in self.solution.outcomes if o.form not in ("stays", "mul")]
            links: list[tuple[Ids, Ids, Op]] = [*self.eqs.ties, *((p.x, p.y, p.op) for p in gone)]
            a = np.concatenate([np.zeros(0, np.int64), *(x for x, _, _ in links)])
            b = np.concatenate([np.zeros(0, np.int64), *(y for _, y, _ in links)])
            label = np.repeat(np.arange(len(links)), [x.size for x, _, _ in links])
            source, target, via = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([label, label])
            order = np.argsort(source, kind="stable")
            offsets = np.searchsorted(source[order], np.arange(self.eqs.count + 1))
            self._edges = offsets, target[order], via[order], [op for _, _, op in links]
            self._crossed = {op for _, _, op in links}
        return self._edges
