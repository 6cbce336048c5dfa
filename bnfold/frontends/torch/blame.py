"""Which norms of a network its code does not let go: found by trial.

Code can do with a norm what a trace does not show: look at its class, give it further arguments, expect a tuple from
it, hold it under another name. Whether it stands a fold is only seen by running it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field

from ...graph import Reason

TRIALS = 40
"""So many folds are tried at most."""


class _SpentError(Exception):
    """No trial is left."""


@dataclass
class Search:
    """Looks for the norms to blame among `names`, each by bisection.

    `fault`: what goes wrong when the norms given are kept and all others folded, "" where nothing does. `kin`: the same
    for norms at the same place of alike modules; where two of these are to blame, all are taken to be.
    """

    names: Sequence[str]
    fault: Callable[[Collection[str]], str]
    kin: Callable[[str], Hashable]
    explained: Callable[[str], bool] = lambda message: False
    left: int = TRIALS
    found: dict[str, str] = field(default_factory=dict)

    def culprits(self) -> dict[str, str]:
        """The norms to blame, each with what went wrong; none where the search does not end, or explains nothing."""
        try:
            if self._fault(self.names):
                return {}
            while message := self._fault(list(self.found)):
                self._next(message)
        except _SpentError:
            return {}
        some = len(self.found) < len(self.names)
        return self.found if some or all(map(self.explained, self.found.values())) else {}

    def _fault(self, kept: Collection[str]) -> str:
        if not self.left:
            raise _SpentError
        self.left -= 1
        return self.fault(kept)

    def _next(self, message: str) -> None:
        """One more: all is well when what comes before it is folded, and is not when it is folded too."""
        open_ = [name for name in self.names if name not in self.found]
        low, high = 0, len(open_)
        while high - low > 1:
            middle = (low + high) // 2
            why = self._fault([*self.found, *open_[middle:]])
            low, high, message = (low, middle, why) if why else (middle, high, message)
        name = open_[high - 1]
        again = self.kin(name) in {self.kin(other) for other in self.found}
        self.found.update((other, message) for other in open_ if other == name or (again and self._akin(other, name)))

    def _akin(self, a: str, b: str) -> bool:
        return self.kin(a) == self.kin(b)


def uncooperative(name: str, message: str = "") -> Reason:
    """Why such a norm stays."""
    text = f"the code of the network does not stand that it goes: {message.rstrip('.')}"
    return Reason("uncooperative-code", text, name, "let the code call the norm by its name, and do no more with it")
