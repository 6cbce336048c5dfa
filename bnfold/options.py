"""What models need to be opened and run, as values that are passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UsageError
from .limits import LEFTOVERS, PRECISION_LIMIT

Progress = Callable[[str], None]
"""Called with the name of each stage."""


@dataclass(frozen=True)
class TorchOptions:
    """What only PyTorch models need; see `fold`."""

    inputs: Any = None
    kwargs: Mapping[str, Any] | None = None
    eval: bool = False
    bake: bool = False
    ignore_hooks: bool = False
    arch: str | Callable[[], Any] | None = None
    arch_args: str | None = None
    trust_pickle: bool = False


@dataclass(frozen=True)
class Folding:
    """What a fold may do; see `bnfold.inspect`. `frozen`: whether graph inputs with a default are constants, None for
    what the file suggests. `merge`: linear layers become one; `shrink`: channels that carry nothing go."""

    skip: tuple[str, ...] = ()
    precision_limit: float = PRECISION_LIMIT
    leftovers: str = LEFTOVERS[0]
    frozen: bool | None = None
    merge: bool = True
    shrink: bool = True
    exact: bool = False
    """Channels go only where not even a denormal number of them is left."""

    @classmethod
    def of(
        cls, skip: Iterable[str], precision_limit: float, leftovers: str, freeze: bool = False, keep: bool = False,
        merge: bool = True, shrink: bool = True,
    ) -> Folding:  # fmt: skip
        """From what a caller gives. UsageError where that does not fit."""
        if leftovers not in LEFTOVERS:
            raise UsageError(f"leftovers={leftovers!r}: one of {', '.join(LEFTOVERS)} expected")
        if freeze and keep:
            raise UsageError("freeze_inputs and keep_inputs (--freeze-inputs, --keep-inputs) say opposite things")
        patterns = (skip,) if isinstance(skip, str) else tuple(skip)
        return cls(patterns, precision_limit, leftovers, True if freeze else False if keep else None, merge, shrink)
