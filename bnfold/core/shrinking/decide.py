"""Which channels leave: all that can, in numbers that runtimes are fast with."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np

from ..graph import Reason
from .channels import Ids, Mask, Network, Port, Track

BLOCK = 16
"""Runtimes work on so many channels at once (onnxruntime on 8, or 16 with AVX-512): a multiple of it stays.

Of a number of channels that is no multiple, a multiple of what the two have in common stays: no tensor is laid out
worse than before.
"""


@dataclass(frozen=True, eq=False)
class Cell:
    """Channels of the same tensors: variables that stand for one thing, of which some leave."""

    members: Ids
    empty: Mask
    """Which hold a constant, or have no reader."""
    free: Mask
    """Which can leave."""
    gone: Mask
    """Which do."""
    reason: Reason | None
    """Why some that are empty do not."""


@dataclass(frozen=True, eq=False)
class Decision:
    """`gone`: for each variable whether it leaves."""

    gone: Mask
    roots: Ids
    cells: tuple[Cell, ...]

    def keeps(self, track: Track) -> Ids | None:
        """The channels of a tensor that stay, None where all do."""
        stays = ~self.gone[self.roots[track.ids]]
        return None if stays.all() else np.flatnonzero(stays)


def decide(net: Network, block: int = BLOCK) -> Decision:
    """The largest set of channels that can leave, in multiples of `block`.

    What leaves takes the weights of its readers' rows along, so that more channels may have no reader: again, until no
    more leave. Each round keeps what those before let go.
    """
    roots = net.variables.roots()
    pinned = np.zeros(roots.size, np.bool_)
    pinned[roots[[0, *net.variables.pinned]]] = True
    cells = _cells(net, roots, pinned, block)
    gone, late = np.zeros(roots.size, np.bool_), np.zeros(roots.size, np.bool_)
    for port, x in _dense(net):
        late[roots[x.ids[port.layer.carriers(x, x.known) != 0]]] = True
    while True:
        held = pinned.copy()
        for port, x in _dense(net):
            held[roots[x.ids[~port.layer.lets_go(x, *_stay(port, x, roots, gone))]]] = True
        more = gone.copy()
        for members, step in cells:
            more[_leaving(members, ~held[members], gone[members], late[members], step)] = True
        _fill_up(net, roots, cells, gone, more)
        _keep_carriers(net, roots, cells, gone, more)
        if (more == gone).all():
            break
        gone = more
    empty, reasons = _empty(net, roots, gone, pinned), _reasons(net, roots, gone)
    tail = Reason("blocks", f"a multiple of {block} channels stays, with which runtimes are fast, and never none")
    found = [_cell(members, empty, held, gone, reasons, tail) for members, _ in cells if empty[members].any()]
    return Decision(gone, roots, tuple(found))


def _dense(net: Network) -> list[tuple[Port, Track]]:
    """The layers that can let single input channels go."""
    return [(port, port.x) for port in net.ports if port.x is not None and port.layer.groups == 1]


def _cells(net: Network, roots: Ids, pinned: Mask, block: int) -> list[tuple[Ids, int]]:
    """Roots that occur in the same tensors equally often, and in which steps they may leave.

    Of what a layer gives as many leave at once as its number of channels has in common with `block`.
    """
    random = np.random.default_rng(0)
    marks, steps = pinned.astype(np.uint64), np.ones(roots.size, np.int64)
    seen = np.zeros(roots.size, np.bool_)
    for track in net.tracks.values():
        if track is not None:
            own, counts = np.unique(roots[track.ids], return_counts=True)
            marks[own] += counts.astype(np.uint64) * random.integers(2, 2**63, dtype=np.uint64)
            seen[own] = True
    for port in net.ports:
        own, counts = np.unique(roots[port.y.ids], return_counts=True)
        common = gcd(port.y.ids.size, block)
        steps[own] = np.lcm(steps[own], common // np.gcd(common, counts))
    seen[0] = False
    own = np.flatnonzero(seen)
    _, which = np.unique(marks[own], return_inverse=True)
    order = np.argsort(which, kind="stable")
    parts = np.split(own[order], np.flatnonzero(np.diff(which[order])) + 1) if own.size else []
    return [(part, int(steps[part[0]])) for part in sorted(parts, key=lambda part: int(part[0]))]


def _stay(port: Port, x: Track, roots: Ids, gone: Mask) -> tuple[Mask, Mask]:
    """Of the outputs and the inputs of a layer those that are not gone."""
    return ~gone[roots[port.y.ids]], ~gone[roots[x.ids]]


def _leaving(members: Ids, free: Mask, gone: Mask, late: Mask, step: int) -> Ids:
    """Those of one cell that leave, a multiple of `step`, those that are `late` last. Once gone is gone."""
    free = free & ~gone
    parts = [np.flatnonzero(part)[::-1] for part in (gone, free & ~late, free & late)]
    order = np.concatenate(parts)
    leaving: Ids = members[order[: order.size // step * step]]
    return leaving


def _fill_up(net: Network, roots: Ids, cells: list[tuple[Ids, int]], gone: Mask, more: Mask) -> None:
    """Take back of what leaves now, in steps, where a tensor would be left with no channel."""
    for track in net.tracks.values():
        own = np.zeros(0, np.int64) if track is None else roots[track.ids]
        if not own.size or not more[own].all():
            continue
        fresh = np.isin(np.arange(roots.size), own) & ~gone
        members, step = max(cells, key=lambda cell: int(fresh[cell[0]].sum()))
        more[members[fresh[members]][:step]] = False


def _keep_carriers(net: Network, roots: Ids, cells: list[tuple[Ids, int]], gone: Mask, more: Mask) -> None:
    """Take back, in steps, what a layer needs of what leaves now to hold the constants that its bias cannot take."""
    for port, x in _dense(net):
        while not port.layer.folds:
            rows, left = _stay(port, x, roots, more)
            missing = ~left & ~port.layer.lets_go(x, rows, left)
            fresh = ~left & ~gone[roots[x.ids]]
            places = np.flatnonzero(missing & fresh if (missing & fresh).any() else fresh)
            if not missing.any() or not places.size:
                break
            root = roots[x.ids[places[np.argmax(np.abs(np.nan_to_num(x.value[places])))]]]  # it holds the most
            members, step = next(cell for cell in cells if root in cell[0])
            again = members[more[members] & ~gone[members] & (members != root)][: step - 1]
            more[[root, *again]] = False


def _empty(net: Network, roots: Ids, gone: Mask, pinned: Mask) -> Mask:
    """The roots of channels that hold a constant somewhere, or for which no layer and nothing else has a use."""
    known, used = np.zeros(roots.size, np.bool_), pinned.copy()
    for track in net.tracks.values():
        if track is not None:
            known[roots[track.ids[track.known]]] = True
    for port, x in _dense(net):
        rows = port.layer.sizes[0][~gone[roots[port.y.ids]]]
        used[roots[x.ids[rows.any(0)]]] = True
    return known | ~used


def _reasons(net: Network, roots: Ids, gone: Mask) -> dict[int, Reason]:
    """Why a root stays: the first thing that holds it."""
    reasons: dict[int, Reason] = {}
    for i, why in net.variables.pinned.items():
        reasons.setdefault(int(roots[i]), why)
    for port, x in _dense(net):
        for i in np.flatnonzero(~port.layer.lets_go(x, *_stay(port, x, roots, gone))).tolist():
            reasons.setdefault(int(roots[x.ids[i]]), _refusal(port, x, i))
    return reasons


def _refusal(port: Port, x: Track, i: int) -> Reason:
    """Why a layer cannot let input channel i go."""
    name, value = port.name, float(x.value[i])
    if not np.isfinite(value):
        return Reason("live", f"{name} reads them where they hold more than a constant", name)
    if value != 0 and not port.layer.op.carries_shift:
        return Reason("padded-constant", f"{name} pads with zeros, beside which a constant other than 0 counts", name)
    if value != 0 and not port.layer.op.takes_bias:
        return Reason("no-bias", f"{name} has no bias that could take their constants", name)
    return Reason("above-rounding", f"{name} would see more than its own rounding", name)


def _cell(members: Ids, empty: Mask, held: Mask, gone: Mask, reasons: dict[int, Reason], tail: Reason) -> Cell:
    left = members[empty[members] & ~gone[members]]
    why = next((reasons[i] for i in left.tolist() if i in reasons), tail) if left.size else None
    return Cell(members, empty[members], ~held[members], gone[members], why)
