"""Samples as the arguments of a network, a batch at a time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import DataError
from ..torch.trace.capture import one_line
from .samples import Pixels, Samples, open_data


@dataclass(frozen=True)
class Batch:
    """Some samples: what the network is called with, and their classes, int64 (n, ...), where they are known."""

    args: tuple[torch.Tensor, ...]
    kwargs: Mapping[str, torch.Tensor]
    labels: torch.Tensor | None

    def run(self, net: nn.Module) -> torch.Tensor:
        """The outputs of a network; of several, those called logits or the first."""
        return outputs(net(*self.args, **self.kwargs))


@dataclass(frozen=True)
class Feed:
    """Samples on their way to a network. `dtype`: the type of its weights, which float arrays are brought to."""

    samples: Samples
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: torch.Tensor) -> Batch:
        """The samples with these numbers, int64 (n,)."""
        index = rows.numpy()
        tensors = {name: self._tensor(name, values) for name, values in self.samples.rows(index).items()}
        labels = self.samples.labels
        chosen = None if labels is None else torch.from_numpy(np.asarray(labels[index], np.int64)).to(self.device)
        if len(tensors) == 1:
            return Batch(tuple(tensors.values()), {}, chosen)
        return Batch((), tensors, chosen)

    def _tensor(self, name: str, values: np.ndarray[Any, Any]) -> torch.Tensor:
        try:
            tensor = torch.from_numpy(np.asarray(values, order="C"))
        except TypeError as error:
            raise DataError(
                f"{self.samples.source}: {name or 'the input'} holds {values.dtype}, which torch cannot take"
            ) from error
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def fits(self, net: nn.Module) -> torch.Tensor:
        """The outputs of a network in eval mode for the first two samples. DataError where it cannot take them."""
        batch = self.batch(torch.arange(min(2, len(self))))
        try:
            with torch.no_grad():
                return batch.run(net)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            values = [*batch.args, *batch.kwargs.values()]
            said = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in values)
            raise DataError(
                f"{self.samples.source}: a batch of {said} does not fit {type(net).__name__}: {one_line(error)}"
            ) from error


def outputs(found: Any) -> torch.Tensor:
    """The tensor that a network's answer is about: itself, `logits`, or the first tensor in it."""
    if isinstance(found, torch.Tensor):
        return found
    named = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", None)
    if isinstance(named, torch.Tensor):
        return named
    parts = found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple | list) else ()
    for part in parts:
        if isinstance(part, torch.Tensor):
            return part
    raise DataError(f"the network gives {type(found).__name__}, a tensor or a tuple of tensors expected")


def feed(source: Any, net: nn.Module, device: torch.device, pixels: Pixels | None, labels: bool) -> Feed:
    """Data of any kind that `open_data` takes, for a network. DataError where they lack an input or the classes."""
    needed = [name for name, must in arguments(net).items() if must]
    samples = open_data(source, pixels=pixels, labels=labels, inputs=needed if len(needed) > 1 else ())
    if len(samples.inputs) > 1:
        samples = _by_name(samples, net)
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    return Feed(samples, dtype, device)


def _by_name(samples: Samples, net: nn.Module) -> Samples:
    """Only the arrays that `forward` has arguments for."""
    known = arguments(net)
    found = {name: values for name, values in samples.inputs.items() if name in known}
    if {name for name, must in known.items() if must} - set(found) or not found:
        raise DataError(
            f"{samples.source}: arrays named as the arguments of {type(net).__name__}.forward expected "
            f"({', '.join(known)}), found: {', '.join(sorted(samples.inputs))}"
        )
    return replace(samples, inputs=found)


def arguments(net: nn.Module) -> dict[str, bool]:
    """The names under which `forward` takes arguments, and whether it must have them."""
    named = getattr(net, "argument_names", None)
    if isinstance(named, list):
        return dict.fromkeys(named, True)
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(net.forward).parameters.items()
    return {name: a.default is inspect.Parameter.empty for name, a in given if a.kind not in fixed}


def check_labels(samples: Samples, logits: torch.Tensor, training: bool) -> None:
    """Whether the classes fit logits (n, classes, ...). DataError where they do not, or, to train, are all the same."""
    labels, where = np.asarray(samples.labels), samples.source
    if labels.dtype.kind not in "iub":
        raise DataError(f"{where}: the classes are {labels.dtype}; whole numbers from 0 expected")
    if logits.ndim < 2 or labels.shape[1:] != tuple(logits.shape[2:]):
        raise DataError(
            f"{where}: classes of shape {labels.shape} do not fit logits of shape {tuple(logits.shape)}; one class for "
            "each sample expected, and logits (n, classes)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(f"{where}: classes from {low} to {high}, but the network tells {logits.shape[1]} classes apart")
    if training and low == high:
        raise DataError(f"{where}: all {len(labels)} samples are of class {low}; nothing can be learned from that")
