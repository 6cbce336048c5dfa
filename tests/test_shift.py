"""The shift solver against dense linear algebra in exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.core.gauge.scale import Scale
from bnfold.core.gauge.shift import Shift

relaxed = settings(deadline=None, max_examples=150)
Row = tuple[list[int], list[int], int]
"""Variables, coefficients, right side: sum coef * q + rhs = 0."""


def _solvable(rows: list[Row], n: int) -> bool:
    """Gaussian elimination over the rationals."""
    matrix = [[Fraction(0)] * n + [Fraction(-rhs)] for _, _, rhs in rows]
    for line, (variables, coefs, _) in zip(matrix, rows, strict=True):
        for v, c in zip(variables, coefs, strict=True):
            line[v] += c
    rank = 0
    for column in range(n):
        pivot = next((r for r in range(rank, len(matrix)) if matrix[r][column]), None)
        if pivot is None:
            continue
        matrix[rank], matrix[pivot] = matrix[pivot], matrix[rank]
        for r in range(rank + 1, len(matrix)):
            factor = matrix[r][column] / matrix[rank][column]
            matrix[r] = [x - factor * y for x, y in zip(matrix[r], matrix[rank], strict=True)]
        rank += 1
    return not any(line[-1] for line in matrix[rank:])


def _draw_row(rng: np.random.Generator, n: int) -> Row:
    k = int(rng.integers(1, 4))
    variables, coefs = rng.integers(0, n, k).tolist(), rng.choice([1, -1, 1, -1, 2], k).tolist()
    return variables, coefs, int(rng.integers(-2, 3))


def _add(shift: Shift, row: Row) -> bool:
    variables, coefs, rhs = row
    parts = [(np.array([v]), float(c)) for v, c in zip(variables, coefs, strict=True)]
    mark = shift.mark()
    if shift.require(parts, np.array([float(rhs)])) is None:
        return True
    shift.undo(mark)
    return False


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(1, 14))
def test_an_equation_is_taken_exactly_when_the_system_stays_solvable(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    scale = Scale(n)
    scale.join(np.arange(1, n), np.zeros(n - 1, np.int64))
    shift = Shift(scale)
    taken: list[Row] = [([0], [1], 0)]  # variable 0 is held at 0
    for row in (_draw_row(rng, n) for _ in range(m)):
        assert _add(shift, row) == _solvable([*taken, row], n)
        if _solvable([*taken, row], n):
            taken.append(row)
    q = shift.values()
    for variables, coefs, rhs in taken:
        assert abs(sum(c * q[v] for v, c in zip(variables, coefs, strict=True)) + rhs) < 1e-9


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 20))
def test_many_rows_at_once_are_the_same_as_one_by_one(seed: int, n: int, m: int) -> None:
    """Rows of one call may share variables; they are consistent with a hidden solution."""
    rng = np.random.default_rng(seed)
    hidden = np.concatenate([[0.0], rng.integers(-5, 6, n - 1)])
    a, b = rng.integers(0, n, m), rng.integers(0, n, m)
    scale = Scale(n)
    scale.join(np.arange(1, n), np.zeros(n - 1, np.int64))
    shift = Shift(scale)
    assert shift.require([(a, 1.0), (b, -1.0)], hidden[b] - hidden[a]) is None
    q = shift.values()
    np.testing.assert_allclose(q[a] - q[b], hidden[a] - hidden[b], atol=1e-9)


def test_sums_are_definitions() -> None:
    scale = Scale(5)
    scale.join(np.arange(2, 5), np.ones(3, np.int64))
    shift = Shift(scale)
    shift.define(np.array([4]), [(np.array([1]), 1.0), (np.array([2]), -1.0), (np.array([3]), 2.0)])
    assert shift.require([(np.array([4]), 1.0)], np.array([-6.0])) is None
    q = shift.values()
    assert q[1] - q[2] + 2 * q[3] == 6 == q[4]


def test_held_variables_conflict_with_an_offset() -> None:
    scale = Scale(3)
    scale.join(np.array([1]), np.array([2]))
    shift = Shift(scale)
    shift.hold(np.array([1, 2]))
    conflict = shift.require([(np.array([1]), 1.0), (np.array([2]), -1.0)], np.array([0.5]))
    assert conflict is not None
    assert (conflict.kind, conflict.row) == ("shift", 0)
    assert shift.require([(np.array([1]), 1.0), (np.array([2]), -1.0)]) is None


def test_constants_keep_their_meaning_when_components_merge() -> None:
    """q_1 = 3 in units of p_1; afterwards p_1 turns out to be 4 p_2: in units of p_2 it is 12."""
    scale = Scale(4)
    shift = Shift(scale)
    assert shift.require([(np.array([1]), 1.0)], np.array([-3.0])) is None
    scale.join(np.array([2]), np.array([3]))  # so that 1 becomes the child
    assert scale.join(np.array([1]), np.array([2]), 4.0) is None
    root, unit = scale.find(np.array([1, 2]))
    assert root[0] == root[1]
    q = shift.values()
    assert q[1] / unit[1] == 12.0


def test_undo_forgets_and_the_same_equation_can_be_asked_again() -> None:
    scale = Scale(3)
    scale.join(np.array([1]), np.array([2]))
    shift = Shift(scale)
    mark = shift.mark()
    assert shift.require([(np.array([1]), 1.0)], np.array([-3.0])) is None
    shift.undo(mark)
    assert shift.require([(np.array([1]), 1.0)], np.array([-5.0])) is None
    assert shift.values()[1] == 5.0


# --- against dense linear algebra


class Dense:
    """The equations that were taken, as a matrix: consistency by rank, values by the rule for those that are free."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.rows: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = [np.eye(n + 1)[0]]

    def add(self, more: list[np.ndarray[tuple[int], np.dtype[np.float64]]]) -> bool:
        """Take rows `coef, rhs` of `coef * q + rhs = 0`, unless that leaves no solution."""
        system = np.array([*self.rows, *more])
        if np.linalg.matrix_rank(system[:, :-1], 1e-9) < np.linalg.matrix_rank(system, 1e-9):
            return False
        self.rows += more
        return True

    def values(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The last variable that is free is 0, then the last of those that are still free, and so on."""
        rows = list(self.rows)
        for i in reversed(range(self.n)):
            row = np.eye(self.n + 1)[i]
            matrix = np.array([*rows, row])[:, :-1]
            if np.linalg.matrix_rank(matrix, 1e-9) > np.linalg.matrix_rank(matrix[:-1], 1e-9):
                rows.append(row)
        system = np.array(rows)
        found = np.linalg.lstsq(system[:, :-1], -system[:, -1], rcond=None)[0]
        return np.asarray(found, np.float64)


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(3, 14), st.integers(1, 12))
def test_blocks_of_rows_agree_with_dense_linear_algebra_through_undo(seed: int, n: int, steps: int) -> None:
    """Chains, stars and sums in one call, each now and then taken back; the values are those of the same rule."""
    rng = np.random.default_rng(seed)
    scale = Scale(n)
    scale.join(np.arange(1, n), np.zeros(n - 1, np.int64))
    shift, dense = Shift(scale, rng.integers(0, 3, n)), Dense(n)
    for _ in range(steps):
        m, width = int(rng.integers(1, 7)), int(rng.integers(1, 5))
        kind = rng.choice(["any", "chain", "star"])
        first = {"any": rng.integers(0, n, m), "chain": np.arange(m) % n, "star": np.zeros(m, np.int64) + n - 1}[kind]
        vars_ = [first, *((first + k) % n if kind == "chain" else rng.integers(0, n, m) for k in range(1, width))]
        coefs = [float(c) for c in rng.choice([1, -1, 1, -1, 2], width)]
        rhs = rng.integers(-2, 3, m).astype(float) if rng.random() < 0.6 else np.zeros(m)
        rows = np.zeros((m, n + 1))
        for ids, c in zip(vars_, coefs, strict=True):
            np.add.at(rows, (np.arange(m), ids), c)
        rows[:, -1] = rhs
        before, mark = list(dense.rows), shift.mark()
        conflict = shift.require(list(zip(vars_, coefs, strict=True)), rhs)
        assert (conflict is None) == dense.add(list(rows))
        if conflict is not None or rng.random() < 0.3:
            shift.undo(mark)
            dense.rows = before
    np.testing.assert_allclose(shift.values(), dense.values(), rtol=0, atol=1e-8)


def test_a_long_chain_and_a_long_row_of_sums_stay_short() -> None:
    """Every variable of a chain of 3,000 is one step from its end; of a row of sums, each is two numbers."""
    n = 3000
    scale = Scale(2 * n)
    scale.join(np.arange(1, 2 * n), np.zeros(2 * n - 1, np.int64))
    shift = Shift(scale)
    assert shift.require([(np.arange(1, n - 1), 1.0), (np.arange(2, n), -1.0)], np.ones(n - 2)) is None
    assert (shift.length[shift.solved] <= 1).all()
    assert not shift.solved[shift._var[: shift._used]].any()
    x, c = np.arange(1, n), np.arange(n, 2 * n - 1)  # x[k + 1] = x[k] + c[k]
    uses = np.bincount(np.concatenate([x[:-1], x[1:], c[:-1]]), minlength=2 * n)
    shift = Shift(scale, uses)
    assert shift.require([(x[1:], 1.0), (x[:-1], -1.0), (c[:-1], -1.0)]) is None
    assert shift.solved[c[1:-2]].all()  # at the ends x stands in one sum only, too
    assert (shift.length[shift.solved] <= 2).all()
