"""What models need to be opened and run, as values that are passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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
