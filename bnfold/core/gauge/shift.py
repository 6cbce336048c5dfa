"""The shift solver: sparse elimination over gauge variables, vectorised over channels.

With the ratios of the scales known, every equation between shifts is linear, and all of its variables lie in one scale
component. Shifts are measured in units of the component's root, where all coefficients are those of the original sums
(+1 and -1 nearly always). A variable is free, or solved: `q = sum_k c_k q_k + const`. The constant is stored over the
variable's own scale, a number that does not change when components merge; where that scale becomes 0, so does it.

What keeps it near-linear is which variable an equation is solved for. Of two, the one that fewer others refer to, as a
union-find links by size: chains of equal shifts stay as short as the logarithm of their length. Of several, one that no
other equation mentions where there is one: `y = x + c` with the output c of a layer is solved for c, so that a stream
of sums is not written as the sum of all the layers before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .equations import Ids, Vector
from .scale import TOLERANCE, Conflict, Scale, chained

STUCK = 4
"""Where fewer than one in so many rows can be solved at once, they are solved one after the other."""
Mask = npt.NDArray[np.bool_]
Row = tuple[dict[int, float], float, float]
"""Coefficients by variable, constant, size: as the rows of `Terms`."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Sparse rows `sum coef * q[var] + const`: entries sorted by row; `size` is the summed magnitude of the parts."""

    row: Ids
    var: Ids
    coef: Vector
    const: Vector
    size: Vector


class Shift:
    """Shifts of the variables of a `Scale`; `require` adds an equation, `mark` and `undo` take additions back.

    `uses`: in how many sums each variable stands; those in many are not solved for.
    """

    def __init__(self, scale: Scale, uses: Ids | None = None) -> None:
        count = scale.parent.size
        self.scale = scale
        self.solved: Mask = np.zeros(count, bool)
        self.start: Ids = np.zeros(count, np.int64)
        self.length: Ids = np.zeros(count, np.int64)
        self.const: Vector = np.zeros(count)
        self.size: Vector = np.zeros(count)
        self.weight: Ids = np.ones(count, np.int64) if uses is None else 1 + uses
        self._var: Ids = np.zeros(1024, np.int64)
        self._coef: Vector = np.zeros(1024)
        self._used = 0
        self._log: list[Callable[[], None]] = []
        self.solved[0] = True
        self.weight[0] = np.iinfo(np.int64).max // 2

    def mark(self) -> int:
        """A point to come back to with `undo`."""
        return len(self._log)

    def undo(self, mark: int) -> None:
        """Take back everything since `mark`."""
        while len(self._log) > mark:
            self._log.pop()()

    def kill(self, ids: Ids) -> None:
        """Drop the constants of whole components whose scale, which they are proportional to, becomes 0."""
        const, size = self.const[ids], self.size[ids]

        def back() -> None:
            self.const[ids], self.size[ids] = const, size

        self._log.append(back)
        self.const[ids] = self.size[ids] = 0.0

    def define(self, ids: Ids, parts: list[tuple[Ids, float]]) -> None:
        """Add `q_ids = sum coef * q_part`, which conflicts with nothing that is homogeneous."""
        conflict = self.require([(ids, 1.0), *((part, -c) for part, c in parts)])
        assert conflict is None, "homogeneous equations conflict"

    def hold(self, ids: Ids) -> None:
        """Add `q = 0`. Together with other homogeneous equations this never conflicts."""
        conflict = self.require([(ids, 1.0)])
        assert conflict is None, "homogeneous equations conflict"

    def require(self, parts: list[tuple[Ids, float]], rhs: Vector | None = None) -> Conflict | None:
        """Add `sum coef * q_part + rhs = 0`, row by row; `rhs` in units of the root of the row's component."""
        n = parts[0][0].size
        row, var = np.tile(np.arange(n), len(parts)), np.concatenate([ids for ids, _ in parts])
        coef = np.repeat([c for _, c in parts], n).astype(np.float64)
        return self.add(row, var, coef, np.zeros(n) if rhs is None else rhs)

    def add(self, row: Ids, var: Ids, coef: Vector, rhs: Vector, passing: bool = False) -> Conflict | None:
        """Add `sum coef * q[var] + rhs = 0` for rows given by their entries.

        `passing`: a row that the rows before it decide already is passed over, whether it agrees with them or not.
        """
        terms, rows = self.expand(row, var, coef, rhs), np.arange(rhs.size)
        while rows.size:
            filled = np.zeros(rows.size, bool)
            filled[terms.row] = True
            wrong = ~filled & (terms.const != 0)
            if wrong.any() and not passing:
                return Conflict("shift", int(rows[wrong][0]))
            done = ~filled | self._solve_at_once(terms, passing)
            rest = np.flatnonzero(~done)
            if STUCK * rest.size > (STUCK - 1) * rows.size > STUCK:
                stuck = self._solve_in_turn(self._rest(terms, done), passing)
                return None if stuck is None else Conflict("shift", int(rows[rest[stuck]]))
            rows, terms = rows[rest], self._rest(terms, done)
        return None

    def _rest(self, terms: Terms, done: Mask) -> Terms:
        """The rows that are not done, numbered anew, in variables that are free now."""
        number, keep = np.cumsum(~done) - 1, ~done[terms.row]
        const, size = terms.const[~done], terms.size[~done]
        return self.expand(number[terms.row[keep]], terms.var[keep], terms.coef[keep], const, size)

    def expand(self, row: Ids, var: Ids, coef: Vector, rhs: Vector, size: Vector | None = None) -> Terms:
        """Rows written in free variables only. `size`: the magnitude of what `rhs` was summed from."""
        const, size, n = rhs.copy(), np.abs(rhs) if size is None else size.copy(), rhs.size
        limit, free = 8 * max(1, var.size), list[tuple[Ids, Ids, Vector]]()
        while var.size:
            mask = self.solved[var]
            free.append((row[~mask], var[~mask], coef[~mask]))
            known, weight, at = var[mask], coef[mask], row[mask]
            unit = weight * self.scale.find(known)[1]
            const += np.bincount(at, unit * self.const[known], n)
            size += np.bincount(at, np.abs(unit) * self.size[known], n)
            length = self.length[known]
            entry = ranges(self.start[known], length)
            row, var, coef = np.repeat(at, length), self._var[entry], np.repeat(weight, length) * self._coef[entry]
            if var.size > limit:  # sums of sums of the same tensors multiply
                row, var, coef = _collect(row, var, coef, self.solved.size)
        if free:
            row, var, coef = (np.concatenate([entries[i] for entries in free]) for i in range(3))
            row, var, coef = _collect(row, var, coef, self.solved.size)
        const[np.abs(const) <= TOLERANCE * size] = 0.0  # what cancels in real numbers is nothing
        return Terms(row, var, coef, const, size)

    def _solve_at_once(self, terms: Terms, passing: bool) -> Mask:
        """Solve rows that do not hinder each other; tells which.

        A row of at least three variables is solved for one that no other row has. Others link one variable to another
        or, since variable 0 is held at 0, to that. Where rows may be `passing`, their order decides which do: one goes
        only if no row before it has any of its variables, or no other row has one of them.
        """
        n = terms.const.size
        number = np.bincount(terms.row, minlength=n)
        _, local, count = np.unique(terms.var, return_inverse=True, return_counts=True)
        alone = count[local] == 1
        if passing:
            first = np.full(count.size, n)
            np.minimum.at(first, local, terms.row)
            foremost = np.bincount(terms.row, first[local] != terms.row, n) == 0
            alone = alone | foremost[terms.row]
        order = np.lexsort((terms.var, self.weight[terms.var], ~alone, terms.row))
        head = order[np.diff(terms.row[order], prepend=-1) != 0]
        head = head[alone[head] & ((number[terms.row[head]] > 2) | passing)]
        done = np.zeros(n, bool)
        done[terms.row[head]] = True
        self._pivot(terms, head)
        if not passing:
            done |= self._link(terms, np.flatnonzero((number == 1) | (number == 2)))
        return done

    def _pivot(self, terms: Terms, head: Ids) -> None:
        """Solve rows, each for its entry in `head`."""
        if not head.size:
            return
        rows, n = terms.row[head], terms.const.size
        lead = np.zeros(n)
        lead[rows] = terms.coef[head]
        keep = lead[terms.row] != 0
        keep[head] = False
        at = terms.row[keep]
        length = np.bincount(at, minlength=n)[rows]
        const, size = -terms.const[rows] / lead[rows], terms.size[rows] / np.abs(lead[rows])
        self._solve(terms.var[head], length, terms.var[keep], -terms.coef[keep] / lead[at], const, size)

    def _link(self, terms: Terms, rows: Ids) -> Mask:
        """Solve rows of one or two variables for the one that fewer refer to; tells which."""
        done = np.zeros(terms.const.size, bool)
        if not rows.size:
            return done
        head, tail = (np.searchsorted(terms.row, rows, side) for side in ("left", "right"))
        a, b, single = terms.var[head], terms.var[tail - 1], tail - head == 1
        ca, cb = terms.coef[head], terms.coef[tail - 1]
        b[single] = 0
        swap = ~single & self._heavier(a, b)
        child, parent = np.where(swap, b, a), np.where(swap, a, b)
        lead, other = np.where(swap, cb, ca), np.where(swap, ca, cb)
        order = np.lexsort((-self.weight[parent], child))  # of several rows that which links to the heaviest
        order = order[np.diff(child[order], prepend=-1) != 0]
        child, parent, rows = child[order], parent[order], rows[order]
        factor = -other[order] / lead[order]
        const, size = -terms.const[rows] / lead[order], terms.size[rows] / np.abs(lead[order])
        for on, at in chained(child, parent):
            const[on], size[on] = const[on] + factor[on] * const[at], size[on] + np.abs(factor[on]) * size[at]
            factor[on], parent[on] = factor[on] * factor[at], parent[at]
        ends, which = np.unique(parent, return_inverse=True)
        gained = np.bincount(which, self.weight[child], ends.size).astype(np.int64)
        keep = parent != 0
        self._solve(child, keep.astype(np.int64), parent[keep], factor[keep], const, size, ends[ends != 0])
        self.weight[ends[ends != 0]] += gained[ends != 0]
        done[rows] = True
        return done

    def _heavier(self, a: Ids, b: Ids) -> Mask:
        """Whether more refer to `a` than to `b`: an order without ties, so that links made at once close no circle."""
        weight_a, weight_b = self.weight[a], self.weight[b]
        heavier: Mask = (weight_a > weight_b) | ((weight_a == weight_b) & (a < b))
        return heavier

    def _solve_in_turn(self, terms: Terms, passing: bool) -> int | None:
        """Solve rows one after the other, and then write each in variables that stay free; the row that conflicts."""
        rows = _rows(terms)
        count = Counter(var for entries, _, _ in rows for var in entries)
        solved: dict[int, Row] = {}
        for i, row in enumerate(rows):
            count.subtract(row[0].keys())
            entries, const, size = _substituted(row, solved)
            if entries:
                pivot = min(entries, key=lambda var: (count[var], self.weight[var], var))
                lead = -entries.pop(pivot)
                solved[pivot] = {var: c / lead for var, c in entries.items()}, const / lead, size / abs(lead)
            elif not passing and abs(const) > TOLERANCE * size:
                return i
        for pivot in reversed(list(solved)):
            solved[pivot] = _substituted(solved[pivot], solved)
        made = list(solved.values())
        self._solve(
            np.array(list(solved), np.int64),
            np.array([len(entries) for entries, _, _ in made], np.int64),
            np.array([var for entries, _, _ in made for var in entries], np.int64),
            np.array([c for entries, _, _ in made for c in entries.values()], np.float64),
            np.array([const for _, const, _ in made]),
            np.array([size for _, _, size in made]),
        )
        return None

    def _solve(
        self, ids: Ids, length: Ids, var: Ids, coef: Vector, const: Vector, size: Vector, heavier: Ids | None = None
    ) -> None:
        """Note `q_ids = sum coef * q_var + const`, the entries of `ids[0]` first; the weight of some will change."""
        heavier = ids[:0] if heavier is None else heavier
        used, weight = self._used, self.weight[heavier]

        def back() -> None:
            self.solved[ids], self._used = False, used
            self.weight[heavier] = weight

        self._log.append(back)
        end = used + var.size
        while end > self._var.size:
            self._var, self._coef = np.resize(self._var, 2 * self._var.size), np.resize(self._coef, 2 * self._var.size)
        self._var[self._used : end], self._coef[self._used : end] = var, coef
        unit = self.scale.find(ids)[1]
        self.start[ids] = self._used + np.cumsum(length) - length
        self.length[ids], self.solved[ids] = length, True
        self.const[ids], self.size[ids] = const / unit, size / np.abs(unit)
        self._used = end

    def decided(self, ids: Ids) -> tuple[Vector, Mask]:
        """Shifts over the scales of their variables, which no later equation changes, and where they are decided."""
        rows = np.arange(ids.size)
        terms, decided = self.expand(rows, ids, np.ones(ids.size), np.zeros(ids.size)), np.ones(ids.size, bool)
        decided[terms.row] = False
        return terms.const / self.scale.find(ids)[1], decided

    def values(self, order: Iterable[Ids] | None = None) -> Vector:
        """Every shift in units of its root, with free ones set to 0.

        `order`: which are set to 0 where some follow from others: the first in it that are still free, block by block.
        By default the last variable comes first.
        """
        everything = np.arange(self.solved.size)
        ones, zeros, mark = np.ones(everything.size), np.zeros(everything.size), self.mark()
        terms = self.expand(everything, everything, ones, zeros)
        if terms.row.size:
            free = np.zeros(everything.size, bool)
            free[terms.row] = True
            for block in everything[::-1, None] if order is None else order:
                ids = block[free[block]]
                if ids.size:
                    self.add(np.arange(ids.size), ids, ones[: ids.size], zeros[: ids.size], passing=True)
            terms = self.expand(everything, everything, ones, zeros)
            self.undo(mark)
        return terms.const


def _rows(terms: Terms) -> list[Row]:
    """The rows one by one."""
    n = terms.const.size
    ends = np.searchsorted(terms.row, np.arange(n + 1)).tolist()
    var, coef = terms.var.tolist(), terms.coef.tolist()
    entries = [dict(zip(var[a:b], coef[a:b], strict=True)) for a, b in pairwise(ends)]
    return list(zip(entries, terms.const.tolist(), terms.size.tolist(), strict=True))


def _substituted(row: Row, solved: dict[int, Row]) -> Row:
    """A row in variables that are not solved."""
    entries, const, size = dict(row[0]), row[1], row[2]
    wanted = [var for var in entries if var in solved]
    while wanted:
        var = wanted.pop()
        factor = entries.pop(var, 0.0)
        if not factor:
            continue
        inner, add, large = solved[var]
        const, size = const + factor * add, size + abs(factor) * large
        for other, coef in inner.items():
            before = entries.get(other, 0.0)
            total = before + factor * coef
            if abs(total) > TOLERANCE * (abs(before) + abs(factor * coef)):
                entries[other] = total
                wanted += [other] if other in solved else []
            else:
                entries.pop(other, None)
    return entries, const, size


def ranges(start: Ids, length: Ids) -> Ids:
    """start[0], start[0]+1, .. (length[0] of them), start[1], .."""
    offset = np.repeat(start - np.cumsum(length) + length, length)
    return offset + np.arange(offset.size)


def _collect(row: Ids, var: Ids, coef: Vector, count: int) -> tuple[Ids, Ids, Vector]:
    """Add up entries of the same row and variable, drop those that cancel, sort by row, then variable."""
    key, where = np.unique(row * count + var, return_inverse=True)
    total: Vector = np.asarray(np.bincount(where, coef, key.size), np.float64)
    keep = np.abs(total) > TOLERANCE * np.bincount(where, np.abs(coef), key.size)
    found: Ids = key[keep]
    return found // count, found % count, total[keep]
