"""What models are compared on: seeded inputs of several kinds, since one alone hides faults, or a user's data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.graph import Shape
from ...data.samples import Pixels, Samples, open_data
from ...errors import DataError, UsageError
from ...options import Progress

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Axes = Mapping[str, Collection[int]]
RESIZED = "resized"
"""The kind of inputs whose dynamic sizes are others than those of the rest."""
MORE = ((1, 32), (1, 0), (0, 32))
"""By how much dynamic sizes grow for that, axis 0 and the others; what the reference takes first is used."""
SAMPLES = 64
"""How much of a user's data is taken, where nothing is said."""


@dataclass(frozen=True)
class InputSpec:
    """An input of a model: name, numpy dtype (object for strings), shape with dynamic sizes by name or None.

    `high`: integers that are made up for it lie below.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    high: int = 8


def dynamic_axes(specs: Sequence[InputSpec]) -> dict[str, set[int]]:
    """Which axes of each input have no size of their own."""
    return {spec.name: {i for i, dim in enumerate(spec.shape) if not isinstance(dim, int)} for spec in specs}


@dataclass(frozen=True)
class Inputs:
    """Which inputs are made or taken.

    `seed`: of the random numbers. `shapes`: sizes by input, "" for the only one. `kinds`: some of `KINDS`, all by
    default. `data`: what `open_data` takes, instead of random numbers. `samples`: how many of each kind, or of the data
    at most (64 by default). `mean`, `std`: of images, per channel.
    """

    seed: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    data: Any = None
    samples: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: a number from 0 up expected")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples {self.samples}: a number from 1 up expected")
        unknown = set(self.kinds) - set(KINDS)
        if unknown:
            raise UsageError(f"inputs of kind {min(unknown)!r}: one of {', '.join(KINDS)} expected")

    def choices(self, specs: list[InputSpec]) -> Iterator[Choice]:
        """Ways to call a network with these inputs, to be tried in turn."""
        if self.data is not None:
            yield from_data(self, specs)
            return
        for shapes in shape_choices(specs, self.shapes):
            count = self._draws(shapes) * len(self.kinds or KINDS)
            yield Choice(shapes, lambda shapes=shapes: self._seeded(specs, shapes), count)  # type: ignore[misc]

    def resized(
        self, specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]], axes: Axes
    ) -> Iterator[Choice]:  # fmt: skip
        """Inputs of other sizes along dynamic axes, to be tried in turn; none where a user chose sizes or inputs."""
        if self.data is not None or self.shapes or self.kinds:
            return
        tried, inner = [dict(shapes)], inner_names(specs)
        named = {spec.name: spec.shape for spec in specs}
        for more in MORE:
            sizes: dict[str, Any] = {
                name: tuple(
                    size + (more[i > 0 or named[name][i] in inner] if i in axes.get(name, ()) else 0)
                    for i, size in enumerate(shape)
                )
                for name, shape in shapes.items()
            }
            if sizes not in tried:
                tried.append(sizes)
                yield Choice(sizes, lambda sizes=sizes: self._resized(specs, sizes))  # type: ignore[misc]

    def _resized(self, specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Feed]]:
        yield RESIZED, next(feeds(specs, shapes, self.seed))[1]

    def _seeded(self, specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Feed]]:
        for draw in range(self._draws(shapes)):
            for kind, feed in feeds(specs, shapes, self.seed, draw):
                if not self.kinds or kind in self.kinds:
                    yield kind, feed

    def _draws(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """How many batches of each kind hold the samples that were asked for."""
        batch = min((shape[0] for shape in shapes.values() if shape), default=1)
        return max(1, -(-(self.samples or 1) // batch))


@dataclass(frozen=True)
class Choice:
    """Sizes of the inputs, and a function that goes through the inputs, each with its kind; how many there are."""

    shapes: dict[str, tuple[int, ...]]
    feeds: Callable[[], Iterator[tuple[str, Feed]]]
    count: int = 1


def from_data(inputs: Inputs, specs: list[InputSpec]) -> Choice:
    """Batches of a user's data: of the size that the network has, else of up to 8.

    Inputs without a batch axis (single numbers, fixed vectors) are the same in all.
    """
    pixels = _pixels(specs[0], inputs) if len(specs) == 1 else None
    fixed = {spec.name: tuple(d for d in spec.shape if isinstance(d, int)) for spec in specs if _static(spec)}
    samples = open_data(inputs.data, [spec.name for spec in specs], pixels, fixed=fixed if len(specs) > 1 else {
        name: shape for name, shape in fixed.items() if not shape
    })  # fmt: skip
    batched = [spec for spec in specs if spec.name not in samples.same]
    batch = next((spec.shape[0] for spec in batched if spec.shape and isinstance(spec.shape[0], int)), 8)
    count = min(len(samples), inputs.samples or SAMPLES)
    shapes = {spec.name: _checked(spec, samples, batch if isinstance(batch, int) else 8, count) for spec in specs}
    size = min((shapes[spec.name][0] for spec in batched), default=1)

    def batches() -> Iterator[tuple[str, Feed]]:
        for start in range(0, count, size):
            rows = np.arange(start, start + size) % count  # the last batch is filled up from the start
            found = samples.rows(rows)
            yield "data", {spec.name: _cast(spec, found[spec.name], samples.source) for spec in specs}

    return Choice(shapes, batches, -(-count // size))


def _checked(spec: InputSpec, samples: Samples, batch: int, count: int) -> tuple[int, ...]:
    """The shape of a batch of data. DataError where the network cannot take it."""
    if spec.name in samples.same:
        return spec.shape  # type: ignore[return-value]
    first = np.asarray(samples.inputs[spec.name][:1])
    shape = (batch if isinstance(spec.shape[0] if spec.shape else None, int) else min(batch, count), *first.shape[1:])
    fits = len(shape) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        wanted = "x".join(str(dim) if dim is not None else "?" for dim in spec.shape)
        found = "x".join(["samples", *map(str, first.shape[1:])])
        raise DataError(f"{samples.source}: {found} does not fit input {spec.name!r}, which is {wanted}")
    if (first.dtype.kind == "f" and spec.dtype.kind in "iub") or (first.dtype.kind == "c" and spec.dtype.kind != "c"):
        raise DataError(f"{samples.source}: input {spec.name!r} takes {spec.dtype}, {first.dtype} found")
    return shape


def _cast(spec: InputSpec, values: Array, source: str) -> Array:
    """Data in the type of an input. DataError for whole numbers that it cannot hold."""
    if spec.dtype.kind in "iu" and values.dtype.kind in "iu" and values.size:
        low, high = int(values.min()), int(values.max())
        bounds = np.iinfo(spec.dtype)
        if low < bounds.min or high > bounds.max:
            raise DataError(
                f"{source}: input {spec.name!r} takes {spec.dtype}, {low if low < bounds.min else high} found"
            )
    return values.astype(spec.dtype)


def _pixels(spec: InputSpec, inputs: Inputs) -> Pixels:
    """How images become this input: its layout and size."""
    shape = inputs.shapes.get(spec.name, inputs.shapes.get("", spec.shape))
    if len(shape) != 4:
        return Pixels(mean=inputs.mean, std=inputs.std)
    last = shape[1] not in (1, 3) and shape[3] in (1, 3)
    channels, sizes = (shape[3], shape[1:3]) if last else (shape[1], shape[2:])
    size = tuple(value for value in sizes if isinstance(value, int))
    return Pixels(
        (size[0], size[1]) if len(size) == 2 else None, 1 if channels == 1 else 3, "NHWC" if last else "NCHW",
        inputs.mean, inputs.std, spec.dtype if spec.dtype.kind in "iuf" else np.float32,
    )  # fmt: skip


def shape_choices(specs: list[InputSpec], given: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Ways to fill in dynamic sizes: 2 samples (then 1), and for other sizes what networks commonly take.

    The name "" in `given` is that of the only input.
    """
    if "" in given and len(specs) == 1:
        given = {specs[0].name: given[""], **{name: shape for name, shape in given.items() if name}}
    unknown = set(given) - {spec.name for spec in specs}
    if unknown:
        names = ", ".join(spec.name for spec in specs) or "none"
        found = f"no input {min(unknown)!r}" if min(unknown) else f"{len(specs)} inputs, so their names must be given"
        raise UsageError(f"--shape: the model has {found}; its inputs: {names}")
    inner = inner_names(specs)
    for size, batch in product((64, 224, 32, 128, 28, 8, 256, 299), (2, 1)):
        yield {spec.name: _resolve(spec, given.get(spec.name), batch, size, inner) for spec in specs}
        if all(_static(spec) or spec.name in given for spec in specs):
            return


def inner_names(specs: Sequence[InputSpec]) -> set[str]:
    """Names of dynamic sizes along other axes than the first: such a size is no batch where it is the first of another
    input, as in a product of matrices.
    """
    return {dim for spec in specs for dim in spec.shape[1:] if isinstance(dim, str)}


def _static(spec: InputSpec) -> bool:
    return all(isinstance(dim, int) for dim in spec.shape)


def _resolve(
    spec: InputSpec, given: tuple[int, ...] | None, batch: int, size: int, inner: set[str]
) -> tuple[int, ...]:  # fmt: skip
    if given is None:
        firsts = [batch if i == 0 and dim not in inner else size for i, dim in enumerate(spec.shape)]
        return tuple(dim if isinstance(dim, int) else other for dim, other in zip(spec.shape, firsts, strict=True))
    fits = len(given) == len(spec.shape) and all(
        g > 0 and (not isinstance(dim, int) or dim == g) for dim, g in zip(spec.shape, given, strict=True)
    )
    if not fits:
        found = "x".join(map(str, given))
        wanted = "x".join(str(dim) if dim is not None else "?" for dim in spec.shape)
        raise UsageError(f"--shape: input {spec.name!r} is {wanted}, {found} does not fit")
    return given


def _image(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Smooth, non-negative, with a bright frame: what sits at the border matters to zero padding."""
    picture = np.cumsum(rng.standard_normal(shape), -1) if shape else rng.standard_normal(shape)
    low, high = picture.min(), picture.max()
    picture = (picture - low) / (high - low + 1e-12)
    if len(shape) >= 3:
        picture[..., 0] = picture[..., -1] = 1.0
    return np.asarray(picture)


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "image": _image,
    "large": lambda rng, shape: 30.0 * rng.standard_normal(shape),
    "constant": lambda rng, shape: np.full(shape, rng.uniform(0.25, 1.0)),
    "tiny": lambda rng, shape: 1e-3 * rng.standard_normal(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
}
"""The kinds of inputs, each a function of a generator and a shape."""


def feeds(
    specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]], seed: int, draw: int = 0
) -> Iterator[tuple[str, Feed]]:
    """One set of inputs of each kind; another for each `draw`. Integers are small, so that they can be indices."""
    for i, (kind, make) in enumerate(KINDS.items()):
        rng = np.random.default_rng([seed, i, draw] if draw else [seed, i])
        yield kind, {spec.name: _fill(spec, make, rng, shapes[spec.name]) for spec in specs}


def _fill(
    spec: InputSpec,
    make: Callable[[np.random.Generator, tuple[int, ...]], Array],
    rng: np.random.Generator,
    shape: tuple[int, ...],
) -> Array:
    if spec.dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    if spec.dtype.kind in "iu":
        return np.asarray(rng.integers(0, spec.high, shape), spec.dtype)
    if spec.dtype.kind == "O":  # strings: any will do, and those that are numbers can be read as such too
        return np.asarray(rng.integers(0, spec.high, shape)).astype(str).astype(object)
    return np.asarray(make(rng, shape)).astype(spec.dtype)


@dataclass(frozen=True)
class Judging:
    """Whether a result is verified, and on which inputs."""

    verify: bool = True
    inputs: Inputs = field(default_factory=Inputs)
    progress: Progress = lambda stage: None


def inputs_of(
    seed: int, shapes: Mapping[str, tuple[int, ...]] | None, kinds: Any, data: Any, samples: int | None,
    mean: Any, std: Any,
) -> Inputs:  # fmt: skip
    """What the front door takes as one value."""
    chosen = (kinds,) if isinstance(kinds, str) else tuple(kinds or ())
    return Inputs(seed, dict(shapes or {}), chosen, data, samples, _numbers("mean", mean), _numbers("std", std))


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """One number or one for each channel. UsageError for anything else, and for a deviation of 0."""
    try:
        found = tuple(float(part) for part in (value if isinstance(value, tuple | list) else (value,)))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(math.isfinite(number) for number in found) or (name == "std" and 0 in found):
        raise UsageError(
            f"{name} {value!r}: a number or one for each channel expected{', none of them 0' * (name == 'std')}"
        )
    return found
