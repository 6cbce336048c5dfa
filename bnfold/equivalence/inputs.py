"""Seeded inputs of several kinds: one kind alone hides faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..graph import Shape

Array = npt.NDArray[Any]
Feed = dict[str, Array]


@dataclass(frozen=True)
class InputSpec:
    """An input of a model: name, numpy dtype, shape with dynamic sizes by name or None.

    `high`: integers that are made up for it lie below.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    high: int = 8


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
    for size, batch in product((64, 224, 32, 128, 28, 8, 256, 299), (2, 1)):
        yield {spec.name: _resolve(spec, given.get(spec.name), batch, size) for spec in specs}
        if all(_static(spec) or spec.name in given for spec in specs):
            return


def _static(spec: InputSpec) -> bool:
    return all(isinstance(dim, int) for dim in spec.shape)


def _resolve(spec: InputSpec, given: tuple[int, ...] | None, batch: int, size: int) -> tuple[int, ...]:
    if given is None:
        return tuple(dim if isinstance(dim, int) else batch if i == 0 else size for i, dim in enumerate(spec.shape))
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
}
"""The kinds of inputs, each a function of a generator and a shape."""


def feeds(specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, Feed]]:
    """One set of inputs of each kind. Integers are small and non-negative, so that they can be indices."""
    for i, (kind, make) in enumerate(KINDS.items()):
        rng = np.random.default_rng([seed, i])
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
    return np.asarray(make(rng, shape)).astype(spec.dtype)
