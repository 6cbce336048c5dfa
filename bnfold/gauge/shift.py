"""The shift solver: sparse elimination over gauge variables, vectorised over channels.

With the ratios of the scales known, every equation between shifts is linear, and all of its variables lie in one scale
component. Shifts are measured in units of the component's root, where all coefficients are those of the original sums
(+1 and -1 nearly always). A variable is free, or solved: `q = sum_k c_k q_k + const`. The constant is stored over the
variable's own scale, a number that does not change when components merge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .equations import Ids, Vector
from .scale import TOLERANCE, Conflict, Scale


@dataclass(frozen=True, eq=False)
class Terms:
    """Sparse rows `sum coef * q[var] + const`: entries sorted by row; `size` is the summed magnitude of the parts."""

    row: Ids
    var: Ids
    coef: Vector
    const: Vector
    size: Vector


class Shift:
    """Shifts of the variables of a `Scale`; `require` adds an equation, `mark` and `undo` take additions back."""

    def __init__(self, scale: Scale) -> None:
        count = scale.parent.size
        self.scale = scale
        self.solved: npt.NDArray[np.bool_] = np.zeros(count, bool)
        self.start: Ids = np.zeros(count, np.int64)
        self.length: Ids = np.zeros(count, np.int64)
        self.const: Vector = np.zeros(count)
        self._var: Ids = np.zeros(1024, np.int64)
        self._coef: Vector = np.zeros(1024)
        self._used = 0
        self._log: list[tuple[Ids, int]] = []
        self.solved[0] = True

    def mark(self) -> int:
        """A point to come back to with `undo`."""
        return len(self._log)

    def undo(self, mark: int) -> None:
        """Take back everything since `mark`."""
        while len(self._log) > mark:
            ids, self._used = self._log.pop()
            self.solved[ids] = False

    def define(self, ids: Ids, parts: list[tuple[Ids, float]]) -> None:
        """Let fresh variables be weighted sums of others: `q_ids = sum coef * q_part`."""
        n = ids.size
        var = np.stack([part for part, _ in parts], 1).ravel()
        coef = np.tile([c for _, c in parts], n)
        self._solve(ids, np.full(n, len(parts)), var, coef, np.zeros(n))

    def require(self, parts: list[tuple[Ids, float]], rhs: Vector | None = None) -> Conflict | None:
        """Add `sum coef * q_part + rhs = 0`, row by row; `rhs` in units of the root of the row's component."""
        n = parts[0][0].size
        pending = np.arange(n)
        rhs = np.zeros(n) if rhs is None else rhs
        while pending.size:
            terms = self.expand([(ids[pending], c) for ids, c in parts], rhs[pending])
            empty = np.bincount(terms.row, minlength=pending.size) == 0
            wrong = empty & (np.abs(terms.const) > TOLERANCE * terms.size)
            if wrong.any():
                return Conflict("shift", int(pending[wrong][0]))
            done = self._eliminate(terms, pending.size) | empty
            pending = pending[~done]
        return None

    def hold(self, ids: Ids) -> None:
        """Add `q = 0`. Together with other homogeneous equations this never conflicts."""
        solved = self.solved[ids]
        free, rest = ids[~solved], ids[solved]
        self._solve(free, np.zeros(free.size, np.int64), free[:0], np.zeros(0), np.zeros(free.size))
        if rest.size:
            conflict = self.require([(rest, 1.0)])
            assert conflict is None, "homogeneous equations conflict"

    def expand(self, parts: list[tuple[Ids, float]], rhs: Vector) -> Terms:
        """Rows written in free variables only."""
        n = rhs.size
        row = np.tile(np.arange(n), len(parts))
        var = np.concatenate([ids for ids, _ in parts])
        coef = np.repeat([c for _, c in parts], n).astype(np.float64)
        const, size = rhs.copy(), np.abs(rhs)
        while (mask := self.solved[var]).any():
            known, weight, at = var[mask], coef[mask], row[mask]
            value = weight * self.const[known] * self.scale.find(known)[1]
            const += np.bincount(at, value, n)
            size += np.bincount(at, np.abs(value), n)
            length = self.length[known]
            entry = _ranges(self.start[known], length)
            row = np.concatenate([row[~mask], np.repeat(at, length)])
            coef = np.concatenate([coef[~mask], np.repeat(weight, length) * self._coef[entry]])
            var = np.concatenate([var[~mask], self._var[entry]])
            if var.size > 8 * len(parts) * n:  # sums of sums of the same tensors multiply
                row, var, coef = _collect(row, var, coef, self.solved.size)
        row, var, coef = _collect(row, var, coef, self.solved.size)
        return Terms(row, var, coef, const, size)

    def _eliminate(self, terms: Terms, n: int) -> npt.NDArray[np.bool_]:
        """Solve each row for its first variable, for rows that share none with an earlier row; tells which."""
        first_row = np.full(self.solved.size, n)
        np.minimum.at(first_row, terms.var, terms.row)
        shared = np.bincount(terms.row, first_row[terms.var] != terms.row, n) > 0
        head = np.flatnonzero(np.diff(terms.row, prepend=-1))  # entries are sorted by row, then variable
        head = head[~shared[terms.row[head]]]
        rows, pivot, lead = terms.row[head], terms.var[head], terms.coef[head]
        leads = np.zeros(n)
        leads[rows] = lead
        keep = leads[terms.row] != 0
        keep[head] = False
        length = np.bincount(terms.row[keep], minlength=n)[rows]
        unit = self.scale.find(pivot)[1]
        const = -terms.const[rows] / lead / unit
        self._solve(pivot, length, terms.var[keep], -terms.coef[keep] / leads[terms.row[keep]], const)
        done = np.zeros(n, bool)
        done[rows] = True
        return done

    def _solve(self, ids: Ids, length: Ids, var: Ids, coef: Vector, const: Vector) -> None:
        """Note `q_ids = sum coef * q_var + const`, the entries of `ids[0]` first."""
        self._log.append((ids, self._used))
        end = self._used + var.size
        while end > self._var.size:
            self._var, self._coef = np.resize(self._var, 2 * self._var.size), np.resize(self._coef, 2 * self._var.size)
        self._var[self._used : end], self._coef[self._used : end] = var, coef
        self.start[ids] = self._used + np.cumsum(length) - length
        self.length[ids], self.const[ids], self.solved[ids] = length, const, True
        self._used = end

    def values(self) -> Vector:
        """Every shift in units of its root, with the free ones set to 0."""
        everything = np.arange(self.solved.size)
        return self.expand([(everything, 1.0)], np.zeros(everything.size)).const


def _ranges(start: Ids, length: Ids) -> Ids:
    """start[0], start[0]+1, .. (length[0] of them), start[1], .."""
    offset = np.repeat(start - np.cumsum(length) + length, length)
    return offset + np.arange(offset.size)


def _collect(row: Ids, var: Ids, coef: Vector, count: int) -> tuple[Ids, Ids, Vector]:
    """Add up entries of the same row and variable, drop those that cancel, sort by row, then variable."""
    key, where = np.unique(row * count + var, return_inverse=True)
    total: Vector = np.asarray(np.bincount(where, coef, key.size), np.float64)
    keep = np.abs(total) > TOLERANCE
    found: Ids = key[keep]
    return found // count, found % count, total[keep]
