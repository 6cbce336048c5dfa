"""Where the batch norm goes that takes the place of an LRN: before the activation, where it folds, or in its place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.graph import Reason
from .affine_fit import RISING
from .find import ACTIVATIONS, POOLS, RELUS, Chain, Site, Survey, operation
from .lift import exchanged
from .record import Event, Record

NORMS: dict[int, type[nn.modules.batchnorm._BatchNorm]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A decision. `how`: "slot" (the norm replaces the LRN), "activation" or "conv" (it goes before, or behind, the
    module at `path`, and the LRN becomes an Identity). `behind`: what then lies between the norm and the LRN.
    `slope`: of the activation below zero, None where there is none. `folds`: a convolution before the norm takes it up.
    `reason`: why it does not, where that was asked for.
    """

    site: Site
    how: str
    path: str
    dims: int
    behind: tuple[Event, ...] = ()
    slope: float | None = None
    folds: bool = False
    reason: Reason | None = None

    @property
    def placement(self) -> str:
        """What the report says."""
        return "foldable" if self.folds else "in-place"

    def pooled(self, root: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What the pooling between the norm and the LRN makes of values; it commutes with both."""
        for event in self.behind:
            if operation(event) not in POOLS:
                continue
            x = _called(event, x) if event.module is None else root.get_submodule(event.path).forward(x)
        return x


def _called(event: Event, x: torch.Tensor) -> torch.Tensor:
    """The function of an event, of other values."""
    assert event.function is not None
    if event.args:
        made: Any = event.function(x, *event.args[1:], **event.kwargs)
    else:
        made = event.function(**{**event.kwargs, "input": x})
    assert isinstance(made, torch.Tensor)
    return made


def decide(survey: Survey, site: Site, foldable: bool) -> Place:
    """Where the norm for an LRN goes."""
    event = site.chains[0].event
    dims = len(survey.record.shapes[event.outputs[0]])
    if not foldable:
        return Place(site, "slot", site.name, dims)
    found = site.chains[0]
    reason = _obstacle(survey.record, site, found)
    if reason is not None:
        return Place(site, "slot", site.name, dims, reason=reason)
    if not found.between:
        return Place(site, "slot", site.name, dims, folds=True)
    return _before(survey.record, site, found, dims)


def _before(seen: Record, site: Site, found: Chain, dims: int) -> Place:
    """Before the activation, or behind the convolution."""
    act, conv = found.activation, found.conv
    assert conv is not None
    slope = _slope(act) if act is not None else RISING if _pools(found.between) else None
    if act is not None and act.module is not None and _once(seen, act):
        start = found.between.index(act)
        return Place(site, "activation", act.path, dims, found.between[start:], slope, folds=True)
    if conv.module is not None and _once(seen, conv):
        return Place(site, "conv", conv.path, dims, found.between, slope, folds=True)
    what = "is a function" if conv.module is None else "is used more than once"
    reason = Reason("no-place", f"the convolution before it {what}, and the activation has no module of its own",
                    conv.name, "use modules, one for each call")  # fmt: skip
    return Place(site, "slot", site.name, dims, reason=reason)


def _obstacle(seen: Record, site: Site, found: Chain) -> Reason | None:
    """Why a norm cannot go before the activation."""
    acts = [operation(event) for event in found.between if operation(event) in ACTIVATIONS]
    if len(site.chains) > 1:
        return Reason("called-again", f"the network runs it {len(site.chains)} times", site.name)
    if found.conv is None:
        return Reason("no-conv", "no convolution directly before it", site.name)
    if found.conv.module is not None and not _once(seen, found.conv):
        return Reason("no-place", "the convolution before it is used more than once", found.conv.name)
    if not found.private:
        return Reason("read-elsewhere", "others read what lies between the convolution and the LRN", found.conv.name)
    if any(name not in RELUS for name in acts) or len(acts) > 1:
        return Reason("activation", f"{' and '.join(acts)} between: ReLU or leaky ReLU expected", site.name)
    return None


def _pools(events: Sequence[Event]) -> bool:
    return any(operation(event) in POOLS for event in events)


def _slope(act: Event) -> float:
    """Of a ReLU below zero."""
    if "eaky" not in operation(act):
        return 0.0
    if isinstance(act.module, nn.LeakyReLU):
        return float(act.module.negative_slope)
    return float(act.args[1] if len(act.args) > 1 else act.kwargs.get("negative_slope", 0.01))


def _once(seen: Record, event: Event) -> bool:
    return sum(other.module is event.module for other in seen.events) == 1


def place(root: nn.Module, where: Place, norm: nn.Module) -> dict[str, str]:
    """Put a norm where it was decided; the paths that changed, and what they are now, as a checkpoint keeps it."""
    kind, name = type(norm).__name__, where.site.name
    if where.how == "slot":
        exchanged(root, root.get_submodule(name), norm)
        return {name: kind}
    old = root.get_submodule(where.path)
    if where.how == "activation":
        both, form = OrderedDict([("norm", norm), ("act", old)]), f"{kind}+act"
    else:
        both, form = OrderedDict([("conv", old), ("norm", norm)]), f"conv+{kind}"
    exchanged(root, root.get_submodule(name), nn.Identity())
    exchanged(root, old, nn.Sequential(both))
    return {where.path: form, name: "Identity"}
