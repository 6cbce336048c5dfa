"""Names of norms that are to be left alone, and patterns with * and ? for them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ..errors import UsageError

SHOWN = 3
"""Names that a message lists."""


class Skip:
    """Whether a norm is to be left alone, by its name; knows all the names that it was asked about."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        self.names: dict[str, None] = {}

    def __call__(self, name: str) -> bool:
        """Whether the norm of this name is to be left alone."""
        self.names[name] = None
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The patterns that fit none of the names."""
    known = list(names)
    return [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in known)]


def demand_match(patterns: Iterable[str], names: Iterable[str], model: str) -> None:
    """UsageError where a pattern fits none of the names: a norm that was to stay would go."""
    known = list(dict.fromkeys(names))
    for pattern in unmatched(patterns, known):
        plain = {name.lower(): name for name in known}
        near = [plain[name] for name in get_close_matches(pattern.lower(), plain, SHOWN)]
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        there = f"near names: {', '.join(near)}" if near else f"it has {', '.join(known[:SHOWN])}{more}"
        raise UsageError(
            f"skip {pattern!r}: no norm of {model} has such a name"
            + (f" ({there}; bnfold inspect lists all)" if known else ", it has none")
        )
