"""What a reshape does to an array of gauge variables, also where some sizes are dynamic."""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np

from ..graph import Dim, Shape
from .equations import Ids

Block = tuple[slice, slice]
"""Axes of the source, axes of the target that hold the same elements."""


def reshape_ids(ids: Ids, source: Shape, target: Shape) -> Ids | None:
    """The variables behind a reshape from `source` to `target`; None where unknown sizes hide the index map.

    Row-major order lets both shapes be cut into blocks of equal size, and the reshape acts on each block alone. Only a
    block along which the gauge varies needs its sizes.
    """
    blocks = _blocks(source, target)
    if blocks is None:
        return None
    shape: list[int] = []
    for block_in, block_out in blocks:
        mine = ids.shape[block_in]
        if prod(mine) == 1:
            shape += [1] * len(target[block_out])
            continue
        sizes_in, sizes_out = _static(source[block_in]), _static(target[block_out])
        if sizes_in is None or sizes_out is None or prod(sizes_in) != prod(sizes_out):
            return None
        ids = np.broadcast_to(ids, (*ids.shape[: block_in.start], *sizes_in, *ids.shape[block_in.stop :]))
        shape += sizes_out
    return ids.reshape(shape)


def _static(dims: Shape) -> list[int] | None:
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return sizes if len(sizes) == len(dims) else None


def _blocks(source: Shape, target: Shape) -> list[Block] | None:
    """Cut both shapes into the finest blocks of equal size: from the left, then from the right, the rest is one."""
    left = _prefix(source, target)
    i, j = (left[-1][0].stop, left[-1][1].stop) if left else (0, 0)
    right = _prefix(source[i:][::-1], target[j:][::-1])
    mirrored = [
        (slice(len(source) - a.stop, len(source) - a.start), slice(len(target) - b.stop, len(target) - b.start))
        for a, b in reversed(right)
    ]
    rest_in = slice(i, mirrored[0][0].start if mirrored else len(source))
    rest_out = slice(j, mirrored[0][1].start if mirrored else len(target))
    rest = [(rest_in, rest_out)] if source[rest_in] or target[rest_out] else []
    return [*left, *rest, *mirrored]


def _prefix(source: Shape, target: Shape) -> list[Block]:
    """The blocks of equal size that can be cut off at the left."""
    blocks: list[Block] = []
    i = j = 0
    while i < len(source) and j < len(target):
        a, b = i + 1, j + 1
        while not _equal(source[i:a], target[j:b]):
            grow_source = _size(source[i:a]) < _size(target[j:b])
            if grow_source and a < len(source):
                a += 1
            elif not grow_source and b < len(target):
                b += 1
            else:
                return blocks
        blocks.append((slice(i, a), slice(j, b)))
        i, j = a, b
    return blocks


def _size(dims: Shape) -> int:
    return prod(dim for dim in dims if isinstance(dim, int))


def _equal(a: Shape, b: Shape) -> bool:
    """Whether two runs of dims have the same size whatever the dynamic ones are."""
    return None not in a and None not in b and _size(a) == _size(b) and _symbols(a) == _symbols(b)


def _symbols(dims: Shape) -> Counter[Dim]:
    return Counter(dim for dim in dims if isinstance(dim, str))
