"""Example inputs from text: `1x3x224x224`, `1x16:int64`, `mask=1x16:bool`."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import UsageError

HIGH = 8
"""Whole numbers lie below, so that they can be indices."""


def examples(inputs: Any) -> Any:
    """What a caller gives as inputs; text becomes tensors, and anything else stays as it is."""
    given = inputs if isinstance(inputs, tuple | list) else (inputs,)
    if not given or not all(isinstance(value, str) for value in given):
        return inputs
    return tuple(tensor(value, i) for i, value in enumerate(given))


def tensor(text: str, seed: int = 0) -> torch.Tensor:
    """A seeded tensor of the shape and type that a text names. UsageError where it names none."""
    sizes, _, kind = text.rpartition("=")[2].partition(":")
    parts = sizes.split("x")
    dtype = getattr(torch, kind or "float32", None)
    if not all(part.isdecimal() and int(part) for part in parts) or not isinstance(dtype, torch.dtype):
        raise UsageError(f"--input {text}: a shape and perhaps a type expected, as 1x3x224x224 or 1x16:int64")
    shape = [int(part) for part in parts]
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if not dtype.is_floating_point:
        return torch.randint(0, HIGH, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)
