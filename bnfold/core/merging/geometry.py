"""Where the taps of linear layers lie: enough to tell whether a sum or a product of two is one layer. No weights.

A convolution along one axis, stride s, reads for output o the inputs `s*o + first + step*i`, i < taps, and zeros
beyond the n that there are; it has `(n - 1 + room) // s + 1` outputs. A transposed one adds input p to the outputs
`s*p + first + step*i`, and has `s*(n - 1) + 1 + room` of them. So `first` is the padding in front, negated, and `room`
what padding adds to the size less what the kernel takes from it (for the transposed one the reverse); both are 0 for
the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

from ..graph import Reason
from .reasons import BORDER, CHANNELS, KINDS, PADDING, STRIDE


@dataclass(frozen=True)
class Axis:
    """One spatial axis; `size` is n where it is known. `auto`: an auto_pad that nothing but the runtime can resolve."""

    first: int = 0
    step: int = 1
    taps: int = 1
    stride: int = 1
    room: int = 0
    size: int | None = None
    auto: str = ""

    @property
    def last(self) -> int:
        """The place of the last tap."""
        return self.first + self.step * (self.taps - 1)

    @property
    def trivial(self) -> bool:
        """Whether output o is made of input o alone."""
        return (self.first, self.taps, self.stride, self.room, self.auto) == (0, 1, 1, 0, "")

    def count(self, transposed: bool = False) -> int | None:
        """How many outputs there are, where that is known."""
        if self.size is None or self.auto:
            return None
        if transposed:
            return self.stride * (self.size - 1) + 1 + self.room
        return (self.size - 1 + self.room) // self.stride + 1

    def end(self, transposed: bool = False) -> int:
        """The padding behind, which may come out negative; for a transposed one less its output padding.

        As much as in front, where that gives the right number of outputs: runtimes are slower where the two differ.
        Else as little as gives it, and not below 0 where 0 does.
        """
        if transposed:
            return self.last - self.room
        count = self.count()
        if count is None or self.size is None:
            return self.last + self.room
        least = self.stride * (count - 1) - (self.size - 1) + self.last
        wanted = max(0, -self.first)
        return wanted if least <= wanted < least + self.stride else 0 if -self.stride < least < 0 else least


@dataclass(frozen=True)
class Geometry:
    """A linear layer without its numbers.

    `kind`: "conv", "transpose", "dense", or "diag", a factor for each channel (`inputs` 0: the same for all).
    `axis`: that of the channels. `biased`: whether any bias is not 0. The kernel has the shape
    (groups, outputs/groups, inputs/groups, *taps).
    """

    kind: str
    inputs: int
    outputs: int
    groups: int = 1
    axes: tuple[Axis, ...] = ()
    axis: int = 1
    biased: bool = False

    @property
    def taps(self) -> tuple[int, ...]:
        """The size of the kernel."""
        return tuple(axis.taps for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel; of a diag (channels,), or (1,)."""
        if self.kind == "diag":
            return (max(1, self.outputs),)
        return (self.groups, self.outputs // self.groups, self.inputs // self.groups, *self.taps)

    @property
    def weights(self) -> int:
        """How many numbers the kernel has."""
        return prod(self.shape)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.kind == "transpose"

    @property
    def pointwise(self) -> bool:
        """Whether each pixel is made of the same pixel."""
        return all(axis.trivial for axis in self.axes)

    def like(self, other: Geometry) -> Geometry | None:
        """A diag as a layer of another's kind; None where the channels are others."""
        if self.kind != "diag" or other.kind == "diag":
            return self
        if self.inputs and (self.inputs != other.inputs or self.axis != other.axis):
            return None
        axes = tuple(Axis(size=axis.size) for axis in other.axes)
        return Geometry(other.kind, other.inputs, other.inputs, other.inputs, axes, other.axis, self.biased)

    def on_outputs(self, other: Geometry) -> bool:
        """Whether this diag may stand behind another layer."""
        return not self.inputs or (other.outputs == self.inputs and other.axis == self.axis)

    def on_inputs(self, other: Geometry) -> bool:
        """Whether this diag may stand before another layer."""
        return not self.inputs or (other.inputs == self.inputs and other.axis == self.axis)


IDENTITY = Geometry("diag", 0, 0)


def total(a: Geometry, b: Geometry) -> Geometry | Reason:
    """The geometry of `a(x) + b(x)`: all taps of both, in the coarser grouping."""
    if a.kind == b.kind == "diag":
        return _diags(a, b)
    left, right = a.like(b), b.like(a)
    if (
        left is None
        or right is None
        or (left.inputs, left.outputs, left.axis) != (right.inputs, right.outputs, right.axis)
    ):
        return CHANNELS
    if left.kind != right.kind:
        return _both_kinds(left, right)
    axes = [_union(x, y, left.transposed) for x, y in zip(left.axes, right.axes, strict=True)]
    biased = a.biased or b.biased
    return _with_axes(replace(left, groups=gcd(left.groups, right.groups), biased=biased), axes)


def _both_kinds(a: Geometry, b: Geometry) -> Geometry | Reason:
    """A pointwise transposed convolution is one that is not transposed."""
    if {a.kind, b.kind} == {"conv", "transpose"}:
        plain = [replace(g, kind="conv") if g.transposed and g.pointwise else g for g in (a, b)]
        if plain[0].kind == plain[1].kind:
            return total(plain[0], plain[1])
        swapped = [replace(g, kind="transpose") if g.pointwise else g for g in (a, b)]
        if swapped[0].kind == swapped[1].kind:
            return total(swapped[0], swapped[1])
    return KINDS


def _diags(a: Geometry, b: Geometry) -> Geometry | Reason:
    if a.inputs and b.inputs and (a.inputs, a.axis) != (b.inputs, b.axis):
        return CHANNELS
    return replace(a if a.inputs else b, biased=a.biased or b.biased)


def _with_axes(geometry: Geometry, axes: Iterable[Axis | Reason]) -> Geometry | Reason:
    found: list[Axis] = []
    for axis in axes:
        if isinstance(axis, Reason):
            return axis
        found.append(axis)
    return replace(geometry, axes=tuple(found))


def _union(a: Axis, b: Axis, transposed: bool) -> Axis | Reason:
    """The axis that has the taps of both."""
    if a.stride != b.stride:
        return STRIDE
    if a.auto or b.auto:
        return a if a == b else PADDING
    size = a.size if b.size is None else b.size
    if a.room != b.room:
        counts = [replace(axis, size=size).count(transposed) for axis in (a, b)]
        if counts[0] is None or counts[0] != counts[1]:
            return PADDING
    first, last, step = min(a.first, b.first), max(a.last, b.last), _step(a, b, a.first - b.first)
    return fitted(Axis(first, step, (last - first) // step + 1, a.stride, a.room, size), transposed)


def _step(a: Axis, b: Axis, apart: int) -> int:
    return gcd(a.step if a.taps > 1 else 0, b.step if b.taps > 1 else 0, apart) or 1


def fitted(axis: Axis, transposed: bool) -> Axis | Reason:
    """The axis with as many more taps as it takes for paddings that are not negative."""
    front = max(0, -(-axis.first // axis.step))
    axis = replace(axis, first=axis.first - front * axis.step, taps=axis.taps + front)
    short = -axis.end(transposed)
    if transposed and short < max(axis.stride, axis.step):
        return axis  # output padding
    back = max(0, -(-short // axis.step))
    return replace(axis, taps=axis.taps + back)


def product(outer: Geometry, inner: Geometry) -> Geometry | Reason:
    """The geometry of `outer(inner(x))`."""
    if outer.kind == "diag":
        return _behind(outer, inner)
    if inner.kind == "diag":
        return _before(outer, inner)
    if inner.outputs != outer.inputs or inner.axis != outer.axis:
        return CHANNELS
    if inner.biased and reads_border(outer):
        return BORDER
    kind = _kind(outer, inner)
    if isinstance(kind, Reason):
        return kind
    axes = [_chained(x, y, kind) for x, y in zip(outer.axes, inner.axes, strict=True)]
    groups = gcd(outer.groups, inner.groups)
    biased = outer.biased or inner.biased
    return _with_axes(Geometry(kind, inner.inputs, outer.outputs, groups, (), outer.axis, biased), axes)


def _behind(outer: Geometry, inner: Geometry) -> Geometry | Reason:
    if inner.kind == "diag":
        return _diags(outer, inner)
    if not outer.on_outputs(inner):
        return CHANNELS
    return replace(inner, biased=outer.biased or inner.biased)


def _before(outer: Geometry, inner: Geometry) -> Geometry | Reason:
    if not inner.on_inputs(outer):
        return CHANNELS
    if inner.biased and reads_border(outer):
        return BORDER
    return replace(outer, biased=outer.biased or inner.biased)


def _kind(outer: Geometry, inner: Geometry) -> str | Reason:
    kinds = outer.kind, inner.kind
    if kinds in (("conv", "conv"), ("dense", "dense")):
        return outer.kind
    if kinds[0] == "transpose" and inner.pointwise and kinds[1] in ("conv", "transpose"):
        return "transpose"
    if kinds[1] == "transpose" and outer.pointwise and kinds[0] in ("conv", "transpose"):
        return "transpose"
    return KINDS


def stack(layers: Sequence[Geometry]) -> Geometry | Reason:
    """The geometry of the outputs of layers of one tensor, put together along the channels."""
    first = layers[0]
    alike = {(g.kind, g.inputs, g.groups, g.axes, g.axis) for g in layers}
    if len(alike) > 1 or first.groups > 1 or first.kind == "diag":
        return KINDS
    outputs = sum(g.outputs for g in layers)
    return replace(first, outputs=outputs, biased=any(g.biased for g in layers))


def reads_border(layer: Geometry) -> bool:
    """Whether a constant input may give an output that is not constant."""
    if layer.transposed:
        return not layer.pointwise
    return any(axis.auto or _meets_front(axis) or _meets_back(axis) for axis in layer.axes)


def _meets_front(axis: Axis) -> bool:
    return axis.first < 0


def _meets_back(axis: Axis) -> bool:
    """Whether the last output reads behind the last input."""
    count = axis.count()
    if count is None or axis.size is None:
        return axis.last + axis.room > 0
    return axis.stride * (count - 1) + axis.last > axis.size - 1


def _chained(outer: Axis, inner: Axis, kind: str) -> Axis | Reason:
    """Output o reads `s1*(s2*o + b) + a` for all places a of the inner and b of the outer taps.

    Beyond what the inner layer gives, the outer one sees zeros. There the inner one must see nothing but zeros, too.
    """
    if kind == "transpose":
        return outer if inner.trivial else inner
    if outer.trivial or inner.trivial:
        return replace(inner if outer.trivial else outer, size=inner.size)
    if outer.auto or inner.auto:
        return PADDING
    s = inner.stride
    if _meets_front(outer) and inner.last - s >= 0:
        return BORDER
    if _meets_back(outer):
        count = inner.count()
        free = inner.room + inner.first >= 0
        if count is not None and inner.size is not None:
            free = s * count + inner.first >= inner.size
        if not free:
            return BORDER
    first, last = s * outer.first + inner.first, s * outer.last + inner.last
    step = gcd(s * outer.step if outer.taps > 1 else 0, inner.step if inner.taps > 1 else 0) or 1
    taps = (last - first) // step + 1
    return fitted(Axis(first, step, taps, s * outer.stride, inner.room + s * outer.room, inner.size), False)
