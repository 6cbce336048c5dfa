"""Which norms of a network do not go: found by trial.

Code can do with a norm what a trace does not show: look at its class, give it further arguments, expect a tuple from
it, hold it under another name. Whether it stands a fold is only seen by running it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field

from ...core.graph import Reason

TRIALS = 4
"""So many times the logarithm of the number of norms, folds are tried at most."""
TIMES = 3.0
"""So many times the time that the fold took, trials take at most."""


class SpentError(Exception):
    """No trial is left."""


@dataclass
class Budget:
    """What trials may cost: how many there are, and when they have to end on a clock (seconds)."""

    trials: int
    end: float
    clock: Callable[[], float]
    longest: float = 0.0

    @classmethod
    def after(cls, began: float, clock: Callable[[], float], norms: int) -> Budget:
        """That of a search among so many norms, behind a fold that began then and ends now."""
        now = clock()
        return cls(TRIALS * max(1, norms.bit_length()), now + TIMES * (now - began), clock)

    def again(self, norms: int) -> Budget:
        """That of one more search, which has to end when this one has."""
        return Budget(TRIALS * max(1, norms.bit_length()), self.end, self.clock, self.longest)

    def spend(self, trial: Callable[[], str]) -> str:
        """What a trial gives. It is not begun where it would end too late if it took as long as the longest so far."""
        began = self.clock()
        if not self.trials or began + self.longest > self.end:
            raise SpentError
        self.trials -= 1
        found = trial()
        self.longest = max(self.longest, self.clock() - began)
        return found


@dataclass
class Search:
    """Looks for the norms to blame among `names`, each by bisection.

    `fault`: what goes wrong when the norms given are kept and all others folded, "" where nothing does. `kin`: the same
    for norms at the same place of alike modules; where two of these are to blame, all are taken to be.
    """

    names: Sequence[str]
    fault: Callable[[Collection[str]], str]
    kin: Callable[[str], Hashable]
    budget: Budget
    explained: Callable[[str], bool] = lambda message: False
    found: dict[str, str] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    """Norms of which nothing is known, since the budget was spent: without these and those found all is well."""
    kept: Collection[str] = ()
    """Those that the fold kept that passed and kept the fewest."""

    def culprits(self) -> dict[str, str]:
        """The norms to blame, each with what went wrong; none where the search explains nothing."""
        self.kept = frozenset(self.names)
        try:
            if self._fault(self.names):
                return {}
            while message := self._fault(list(self.found)):
                self._next(message)
        except SpentError:
            self.undecided = tuple(name for name in self.names if name in self.kept and name not in self.found)
        some = len(self.found) < len(self.names)
        return self.found if some or all(map(self.explained, self.found.values())) else {}

    def _fault(self, kept: Collection[str]) -> str:
        message = self.budget.spend(lambda: self.fault(kept))
        if not message and len(kept) < len(self.kept):
            self.kept = frozenset(kept)
        return message

    def _next(self, message: str) -> None:
        """One more: all is well when what comes before it is folded, and is not when it is folded too."""
        open_ = [name for name in self.names if name not in self.found]
        cleared = [name for name in open_ if name not in self.kept]
        low, high = min(len(cleared), len(open_) - 1), len(open_)
        while high - low > 1:
            middle = (low + high) // 2
            why = self._fault([*self.found, *open_[middle:]])
            low, high, message = (low, middle, why) if why else (middle, high, message)
        name = open_[high - 1]
        again = self.kin(name) in {self.kin(other) for other in self.found}
        alike = [other for other in open_[low:] if again and self.kin(other) == self.kin(name)]
        self.found.update((other, message) for other in (name, *alike))


def uncooperative(name: str, message: str = "") -> Reason:
    """Why a norm stays whose fold is right, and with which the network differs."""
    text = f"the code of the network does not stand that it goes: {message.rstrip('.')}"
    return Reason("uncooperative-code", text, name, "let the code call the norm by its name, and do no more with it")


def internal(name: str, message: str = "") -> Reason:
    """Why a norm stays whose fold is wrong."""
    text = f"its fold is wrong in the trace, too, where no code of the network runs: {message.rstrip('.')}"
    return Reason("internal", text, name, f"this is a fault of bnfold; please report it with {TO_SEND}")


def undecided(name: str) -> Reason:
    """Why a norm stays that may or may not be to blame."""
    text = "the folded network did not pass, and the search for the norms to blame ended before this one was cleared"
    return Reason("undecided", text, name, "name those that the code does more with (--skip)")


TO_SEND = (
    "the code of the network and its example inputs (or the file that torch.export.save makes of it), the plan "
    "(`bnfold inspect --json`), and the versions of bnfold and torch"
)
