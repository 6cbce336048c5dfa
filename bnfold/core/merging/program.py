"""A network as far as merging sees it: layers of one tensor, sums of several, and who reads what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ..graph import Reason
from .algebra import Lazy, identity
from .cost import TYPICAL, Cost, of_elements, of_layer, of_sum

JOINT = "\N{WORD JOINER}+"
"""In the names of tensors that no file holds."""
Size = int | str | None


@dataclass(frozen=True, eq=False)
class Step:
    """What gives the tensor `target`; `nodes`: where it stands in the file, last the one that gives the target."""

    name: str
    target: str
    sources: tuple[str, ...]
    nodes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layer(Step):
    """A linear map of one tensor. `op`: what computes it. `made`: by merging; `lead`: the node whose form it takes.

    `shared`: others read its weights, too, so that they stay when it goes.
    """

    layer: Lazy
    op: str = ""
    made: bool = False
    lead: int = -1
    shared: bool = False

    @property
    def source(self) -> str:
        """What it reads."""
        return self.sources[0]

    @property
    def real(self) -> bool:
        """Whether it is more than a factor for each channel."""
        return self.layer.geometry.kind != "diag"


@dataclass(frozen=True, eq=False)
class Sum(Step):
    """`sum_k factors_k * sources_k`."""

    factors: tuple[float, ...] = ()
    made: bool = False


@dataclass(frozen=True, eq=False)
class Join(Step):
    """The sources put together along an axis."""

    axis: int = 1
    made: bool = False


@dataclass(frozen=True, eq=False)
class Cut(Step):
    """Some channels of the source, made by merging; those of one source stand one behind another."""

    start: int = 0
    stop: int = 0
    axis: int = 1
    made: bool = True


@dataclass(frozen=True, eq=False)
class Stop(Step):
    """A layer that stays as it is, and why."""

    reason: Reason = field(default=Reason("", ""))


Made = Layer | Sum | Join | Cut


@dataclass
class Program:
    """`steps` by their targets, in order. `uses`: how often a tensor is read; `held`: why a tensor must stay."""

    steps: dict[str, Step]
    uses: Counter[str]
    held: dict[str, str]
    sizes: dict[str, tuple[Size, ...] | None]
    names: dict[int, str]
    itemsize: int = 4
    shifts: dict[str, Lazy] = field(default_factory=dict)
    """Constants that are added: `x + t` along an axis."""
    misfit: Callable[[Lazy], Reason | None] = lambda layer: None
    """Why a layer cannot be stored."""

    def free(self, tensor: str) -> bool:
        """Whether a tensor may go with its only reader."""
        return self.uses[tensor] == 1 and tensor not in self.held

    def elements(self, tensor: str, channels: int = 0) -> int:
        """How many numbers a tensor holds; sizes that are not known count as a typical one."""
        sizes = self.sizes.get(tensor)
        if sizes is None:
            return max(1, channels) * TYPICAL * TYPICAL
        count = 1
        for i, size in enumerate(sizes):
            count *= size if isinstance(size, int) else 1 if i == 0 else TYPICAL
        return max(1, count)

    def cost(self, step: Step) -> Cost:
        """What a step costs."""
        written = self.elements(step.target)
        if isinstance(step, Sum):
            return of_sum(len(step.sources), written)
        if isinstance(step, Layer):
            found = self.cost_of(step.layer, step.source, step.target, step.op)
            return replace(found, weights=0) if step.shared else found
        return of_elements(2 * written)

    def cost_of(self, layer: Lazy, source: str, target: str, op: str = "") -> Cost:
        """What a layer costs between two tensors."""
        read, written = self.elements(source), self.elements(target)
        if op == "Identity":
            return Cost()
        found = of_layer(layer.geometry, read, written)
        if op == "AveragePool":
            return Cost(found.multiplications, found.elements, 1, 0, found.seconds)
        return found

    def layers(self) -> Iterator[Layer]:
        """All layers."""
        yield from (step for step in list(self.steps.values()) if isinstance(step, Layer))

    def sums(self) -> Iterator[Sum]:
        """All sums."""
        yield from (step for step in list(self.steps.values()) if isinstance(step, Sum))

    def joins(self) -> Iterator[Join]:
        """All that puts tensors together."""
        yield from (step for step in list(self.steps.values()) if isinstance(step, Join))

    def made(self) -> list[Made]:
        """What merging has put into the program."""
        return [step for step in self.steps.values() if isinstance(step, Layer | Sum | Join | Cut) and step.made]

    def replace(self, old: set[str], new: list[Step]) -> None:
        """Put new steps in the place of old ones, of which the last of the new gives the tensor of the last old one."""
        target = new[-1].target
        steps: dict[str, Step] = {}
        for name, step in self.steps.items():
            if name == target:
                steps.update((made.target, made) for made in new)
            elif name not in old:
                steps[name] = step
        for name in old:
            self.uses.subtract(self.steps[name].sources)
        for made in new:
            self.uses.update(made.sources)
            self.sizes.setdefault(made.target, self.sizes.get(target))
        self.steps = steps


IDENTITY = Lazy(identity().geometry, identity)
"""`x`."""
