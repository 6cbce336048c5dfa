"""What a swap did, to read and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ..core.graph import Reason

SCHEMA = 1


class Left(Protocol):
    """An LRN that stays."""

    @property
    def name(self) -> str:
        """As the network calls it."""

    @property
    def kind(self) -> str:
        """What it is."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""


@dataclass(frozen=True)
class SwapSite:
    """One exchange. `placement`: "foldable" or "in-place". `changed`: other modules that changed for it, by path, and
    what they are now. `values`: of each channel, in the statistics. `r2`, `worst`: how much of the variance of the
    LRN's answers the norm meets, over all channels and for the worst; None without data. `reason`: why it is in place
    where "foldable" was asked for.
    """

    name: str
    kind: str
    placement: str
    changed: Mapping[str, str]
    channels: int
    values: int
    r2: float | None
    worst: float | None
    reason: Reason | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        fit = "no data" if self.r2 is None else f"R^2 {self.r2:.4f} (worst channel {self.worst:.4f})"
        moved = "".join(f"; {path} is now {kind}" for path, kind in self.changed.items())
        said = [f"{self.name}: {self.kind}, {self.channels} channels, {self.placement}, {fit}{moved}"]
        if self.reason is not None:
            said.append(f"  in place: {self.reason.text}")
        return "\n".join([*said, *(f"  warning: {text}" for text in self.warnings)])


@dataclass(frozen=True)
class SwapReport:
    """All exchanges, in the order of the network.

    `left`: LRNs that stay. `dropouts`: dropouts that became Identity. `graphs`: modules that became torch.fx graphs
    ("" is the network itself), with what is to be said about each. `samples`: of the data. `output_error`: the
    difference of all outputs on the data to those of the old network, relative, None without data.
    """

    sites: tuple[SwapSite, ...]
    left: tuple[Left, ...] = ()
    dropouts: tuple[str, ...] = ()
    graphs: Mapping[str, str] | None = None
    samples: int = 0
    output_error: float | None = None

    def __repr__(self) -> str:
        return f"SwapReport({len(self.sites)} LRNs exchanged, {len(self.left)} left)"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        sites = [asdict(site) for site in self.sites]
        return {
            "schema": SCHEMA, "sites": sites, "left": [site.to_dict() for site in self.left],
            "dropouts": list(self.dropouts), "graphs": dict(self.graphs or {}), "samples": self.samples,
            "output_error": self.output_error,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [str(site) for site in self.sites]
        lines += [f"{site.name}: stays, {site.kind}" for site in self.left]
        lines += [f"{path or 'the network'} is now a torch.fx graph{': ' + note if note else ''}"
                  for path, note in (self.graphs or {}).items()]  # fmt: skip
        if self.dropouts:
            lines.append(f"dropout taken out: {', '.join(self.dropouts)}")
        if self.output_error is not None:
            lines.append(f"outputs differ from the old network's by {self.output_error:.2%} on {self.samples} samples")
        return "\n".join(lines)


@dataclass(frozen=True)
class SwapResult:
    """The network with batch norms, and what was done. `placed`: the changed modules by path, for checkpoints."""

    model: Any
    report: SwapReport
    placed: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SwapResult({self.report!r})"
