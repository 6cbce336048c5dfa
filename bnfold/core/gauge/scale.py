"""The scale solver: a weighted union-find over gauge variables, vectorised over channels.

Variables whose scales are known up to a common factor form a component; its root carries the factor. `p_i = ratio_i *
p_root`. The component of variable 0 is pinned. A component also knows which sign its factor must have, how many readers
would have to invert its scale, and how many ops compute its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .equations import Ids, Vector

Mask = npt.NDArray[np.bool_]
TOLERANCE = 1e-12
"""Relative difference up to which two ratios are the same number computed in two orders."""


@dataclass(frozen=True)
class Conflict:
    """Why an equation cannot be added: a word for the kind, and the row (channel) at which it shows first."""

    kind: str
    row: int


def chained(child: Ids, parent: Ids) -> Iterator[tuple[Ids, Ids]]:
    """Where links lead to links, which lead where: the caller puts the second in, and paths grow twice as long.

    `child`: each once, in ascending order.
    """
    while True:
        at = np.minimum(np.searchsorted(child, parent), child.size - 1)
        on = np.flatnonzero(child[at] == parent)
        if not on.size:
            return
        yield on, at[on]


class Scale:
    """Scales of `count` variables; `join` adds an equation, `mark` and `undo` take additions back."""

    def __init__(self, count: int) -> None:
        self.parent: Ids = np.arange(count, dtype=np.int64)
        self.ratio: Vector = np.ones(count)
        self.size: Ids = np.ones(count, np.int64)
        self.next: Ids = np.arange(count, dtype=np.int64)  # each component is a ring
        self.sign: Ids = np.zeros(count, np.int64)
        self.readers: Ids = np.zeros(count, np.int64)
        self.sources: Ids = np.zeros(count, np.int64)
        self.killed: Mask = np.zeros(count, bool)
        self.constant: Vector = np.full(count, np.nan)
        self.sign[0] = 1
        self._log: list[Callable[[], None]] = []

    def mark(self) -> int:
        """A point to come back to with `undo`."""
        return len(self._log)

    def undo(self, mark: int) -> None:
        """Take back everything since `mark`."""
        while len(self._log) > mark:
            self._log.pop()()

    def _set(self, array: npt.NDArray[np.generic], index: Ids, value: npt.ArrayLike) -> None:
        before = array[index]
        self._log.append(lambda: array.__setitem__(index, before))
        array[index] = value

    def find(self, ids: Ids) -> tuple[Ids, Vector]:
        """Roots of variables, and the factor of each against its root."""
        root, factor = self.parent[ids], self.ratio[ids]
        while True:
            above = self.parent[root]
            if (above == root).all():
                return root, factor
            factor = factor * self.ratio[root]
            root = above

    def flatten(self) -> None:
        """Let every variable point at its root. It changes no scale, and comes between transactions only."""
        assert not self._log, "inside a transaction"
        self.parent, self.ratio = self.find(np.arange(self.parent.size, dtype=np.int64))

    def commit(self) -> None:
        """Forget the way back."""
        self._log.clear()

    def join(self, a: Ids, b: Ids, ratio: Vector | float = 1.0) -> Conflict | None:
        """Add `p_a = ratio * p_b`, row by row; `ratio` is never 0. On a conflict undo to your own mark."""
        ratio = np.broadcast_to(np.asarray(ratio, np.float64), a.shape)
        row = np.arange(a.size)
        if self.special(a) or self.special(b):
            return Conflict("constant", int(np.flatnonzero(self._marked(a) | self._marked(b))[0]))
        while row.size:
            (root_a, fa), (root_b, fb) = self.find(a[row]), self.find(b[row])
            # fa * p_root_a = ratio * fb * p_root_b
            right = ratio[row] * fb
            closed = root_a == root_b
            wrong = closed & (np.abs(fa - right) > TOLERANCE * np.abs(fa))
            if wrong.any():
                return Conflict("scale", int(row[wrong][0]))
            open_ = ~closed
            row, root_a, root_b, fa, right = row[open_], root_a[open_], root_b[open_], fa[open_], right[open_]
            if not row.size:
                return None
            swap = self._below(root_b, root_a)
            child, parent = np.where(swap, root_b, root_a), np.where(swap, root_a, root_b)
            factor = np.where(swap, fa / right, right / fa)  # p_child = factor * p_parent
            _, first = np.unique(child, return_index=True)
            conflict = self._link(child[first], parent[first], factor[first], row[first])
            if conflict:
                return conflict
            row = np.delete(row, first)
        return None

    def _below(self, a: Ids, b: Ids) -> Mask:
        """Whether root `a` goes under root `b`: an order without ties, so that links made at once close no circle."""
        size_a, size_b = self.size[a], self.size[b]
        smaller = (size_a < size_b) | ((size_a == size_b) & (a > b))
        below: Mask = (b == 0) | ((a != 0) & smaller)
        return below

    def _link(self, child: Ids, parent: Ids, factor: Vector, row: npt.NDArray[np.intp]) -> Conflict | None:
        """Put roots, each once and in ascending order, under others."""
        for on, at in chained(child, parent):
            factor[on], parent[on] = factor[on] * factor[at], parent[at]
        self._set(self.parent, child, parent)
        self._set(self.ratio, child, factor)
        self._add_up(child, parent)
        self._join_rings(child, parent)
        return self._demand(parent, self.sign[child] * np.sign(factor).astype(np.int64), row)

    def _add_up(self, child: Ids, parent: Ids) -> None:
        """Count what roots have at those above them."""
        top, where = np.unique(parent, return_inverse=True)
        for array in (self.size, self.readers, self.sources):
            self._set(array, top, array[top] + np.bincount(where, array[child], top.size).astype(np.int64))

    def _join_rings(self, child: Ids, root: Ids) -> None:
        """One ring of each root and its children: each leads on to the ring of the next, the last to the root's."""
        order = np.argsort(root, kind="stable")
        child, root = child[order], root[order]
        first, last = (np.diff(root, **{side: -1}) != 0 for side in ("prepend", "append"))
        follower = np.where(last, self.next[root], np.roll(self.next[child], -1))
        top, begins = root[first], self.next[child[first]]
        self._set(self.next, np.concatenate([top, child]), np.concatenate([begins, follower]))

    def positive(self, ids: Ids) -> Conflict | None:
        """Add `p > 0`."""
        root, factor = self.find(ids)
        return self._demand(root, np.sign(factor).astype(np.int64), np.arange(ids.size))

    def _demand(self, root: Ids, sign: Ids, row: npt.NDArray[np.intp]) -> Conflict | None:
        """Demand signs (0: none) of roots."""
        asked = sign != 0
        root, sign, row = root[asked], sign[asked], row[asked]
        fresh = self.sign[root] == 0
        self._set(self.sign, root[fresh], sign[fresh])
        wrong = self.sign[root] != sign
        return Conflict("sign", int(row[wrong].min())) if wrong.any() else None

    def pinned(self, ids: Ids) -> Mask:
        """Whether p = 1 is forced, or a ratio to it."""
        pinned: Mask = self.find(ids)[0] == 0
        return pinned

    def add_readers(self, ids: Ids, step: int = 1) -> None:
        """Count (or with -1 discount) readers that would have to invert the scale of `ids`."""
        self._count(self.readers, ids, step)

    def add_sources(self, ids: Ids, step: int = 1) -> None:
        """Count (or with -1 discount) ops that compute `ids`."""
        self._count(self.sources, ids, step)

    def _count(self, array: Ids, ids: Ids, step: int) -> None:
        top, times = np.unique(self.find(ids)[0], return_counts=True)
        self._set(array, top, array[top] + step * times)

    def members(self, roots: Ids) -> Ids:
        """All variables in the components of `roots`, each of which is named once."""
        found, at = [roots], self.next[roots]
        while (on := at != roots).any():
            at, roots = at[on], roots[on]
            found.append(at)
            at = self.next[at]
        return np.sort(np.concatenate(found))

    def kill(self, ids: Ids, units: Ids) -> Mask:
        """Set p = 0 in the components of `ids` where nobody would miss the values; tells where that was possible.

        `units` are variables to whose scale the shifts of the killed components are held from now on.
        """
        root = self.find(ids)[0]
        alone: Mask = (root != 0) & (self.readers[root] == 0) & ~self._marked(ids)
        unit_root = self.find(units)[0]
        alone &= root != unit_root
        _, first, group = np.unique(root, return_index=True, return_inverse=True)
        mixed = unit_root != unit_root[first][group]  # one component cannot be held to two scales
        alone &= ~np.isin(root, root[mixed])
        top, first = np.unique(root[alone], return_index=True)
        if top.size:
            self._set(self.killed, self.members(top), True)
            unit_root, factor = self.find(units[alone][first])
            self._set(self.parent, top, unit_root)
            self._set(self.ratio, top, factor)
            self._add_up(top, unit_root)
            self._join_rings(top, unit_root)
        return alone

    def fix(self, ids: Ids, values: Vector) -> None:
        """Note that the original values of `ids` are constants, so that readers can do without the tensor."""
        self._set(self.constant, ids, values)

    def _marked(self, ids: Ids) -> Mask:
        marked: Mask = self.killed[ids] | ~np.isnan(self.constant[ids])
        return marked

    def special(self, ids: Ids) -> bool:
        """Whether some of `ids` were killed or are constants that readers do without."""
        return bool(self._marked(ids).any())
