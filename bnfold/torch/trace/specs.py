"""Example inputs from text: `1x3x224x224`, `1x16:int64`, and by name `mask=1x16:bool`."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import UsageError

HIGH = 8
"""Whole numbers lie below, so that they can be indices."""


def examples(inputs: Any, dtype: torch.dtype = torch.float32) -> Any:
    """What a caller gives as inputs; text becomes tensors, and anything else stays as it is.

    `dtype`: of tensors whose text names no type. Text with a name is left out, see `named`; None where no other is
    left.
    """
    if not _texts(inputs):
        return inputs
    made = [tensor(text, i, dtype) for i, text in enumerate(_texts(inputs)) if "=" not in text]
    return tuple(made) if made else None


def named(inputs: Any, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The tensors of texts with a name, `mask=1x16:bool`: arguments by name."""
    texts = enumerate(_texts(inputs))
    return {text.rpartition("=")[0]: tensor(text, i, dtype) for i, text in texts if "=" in text}


def _texts(inputs: Any) -> tuple[str, ...]:
    given = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(given) if all(isinstance(value, str) for value in given) else ()


def dtype_of(module: object) -> torch.dtype:
    """The floating type of a module's first parameter; float32 where it has none."""
    parameters = module.parameters() if isinstance(module, torch.nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def tensor(text: str, seed: int = 0, default: torch.dtype = torch.float32) -> torch.Tensor:
    """A seeded tensor of the shape and type that a text names. UsageError where it names none."""
    sizes, _, kind = text.rpartition("=")[2].partition(":")
    parts = sizes.split("x")
    dtype = getattr(torch, kind, None) if kind else default
    if not all(part.isdecimal() and int(part) for part in parts) or not isinstance(dtype, torch.dtype):
        raise UsageError(f"--input {text}: a shape and perhaps a type expected, as 1x3x224x224 or 1x16:int64")
    try:
        return _random([int(part) for part in parts], dtype, torch.Generator().manual_seed(seed))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise UsageError(f"--input {text}: cannot be made ({' '.join(str(error).split())[:150]})") from error


def _random(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(0, HIGH, shape, generator=generator, dtype=dtype)
