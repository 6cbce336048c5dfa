"""Finds layers that can be one, decides by cost, and rewrites the program; front ends carry it out."""

from __future__ import annotations

from .ledger import Ledger
from .program import Program
from .result import Candidate
from .rows import Rows
from .siblings import Apart, Siblings
from .sums import Sums


def search(program: Program, apart: bool = False) -> tuple[Candidate, ...]:
    """Rewrite a program until nothing is better as one any more; what was merged, then what was left.

    `apart`: layers of one tensor and one form become one, too, whose outputs are cut apart again.
    """
    ledger = Ledger(program)
    sums, rows, siblings = Sums(ledger), Rows(ledger), Siblings(ledger)
    while sums.merge() or rows.merge() or siblings.merge():
        pass
    if apart:
        Apart(ledger).merge()
    merged = [candidate for candidate, _ in ledger.merged.values()]
    return (*merged, *sums.left(), *rows.left())
