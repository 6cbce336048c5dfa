"""Carry out a plan's edits on a module: new values for parameters, other modules in the place of norms."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...core.absorb import moves_bias, new_bias, scale_weight, tapped
from ...core.plan import Merge, Remove, Replace, Rescale
from ...errors import PlanError
from ...layers import ChannelAffine, ChannelClamp, ChannelClampInPlace, Copy, Nothing, Zeros
from ..read.bindings import ActivationBinding, AffineBinding, LinearBinding
from ..read.module import Planned
from ..read.sharing import argument, weight_arguments
from ..trace.capture import own
from ..trace.memory import tangled

Array = npt.NDArray[np.float64]


def apply(target: nn.Module, planned: Planned) -> nn.Module:
    """Edit `target`, a module like the one that the plan was made for; the module itself."""
    work = _Work(target, planned)
    for edit in planned.plan.edits:
        binding = planned.source.bindings.get(edit.op)
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding):
            work.rescale(edit, binding)
        elif isinstance(edit, Remove) and isinstance(binding, AffineBinding) and binding.path:
            work.remove(edit, binding)
        elif isinstance(edit, Replace) and isinstance(binding, AffineBinding) and binding.path:
            work.norm(edit, binding)
        elif isinstance(edit, Replace) and isinstance(binding, ActivationBinding) and binding.path:
            work.activation(edit, binding)
        elif isinstance(edit, Merge):
            work.merge(edit)
        else:
            raise PlanError(f"{edit.name}: op {edit.op} is not what the plan expects; was it made for this module?")
    work.finish()
    return target


@dataclass
class _Work:
    """The edits of one module: first all new values are computed, then all are put in place."""

    target: nn.Module
    planned: Planned
    values: dict[str, Array] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def rescale(self, edit: Rescale, at: LinearBinding) -> None:
        """New weight and bias for a layer."""
        weight = self._weight(at)
        weight = tapped(weight, at.layout, edit)
        old = self._bias(at)
        if moves_bias(edit) or (old is not None and (edit.p_out is not None or edit.mix is not None)):
            if not at.bias:
                raise PlanError(f"{edit.name}: has no bias to put an offset into")
            self._put(at.bias, new_bias(old, weight, at.layout, edit, at.out_channels), edit.name)
        if edit.p_out is not None or edit.u_in is not None or edit.mix is not None:
            new = scale_weight(weight, at.layout, edit)
            self._put(at.weight, new.T if at.turned else new, edit.name)

    def _weight(self, at: LinearBinding) -> Array:
        constants = self.planned.source.constants
        if at.weight:
            value = constants.of(at.weight)
            return value.T if at.turned else value
        node = next(n for n in self.planned.source.capture.program.graph.nodes if n.name == at.node)
        role, _ = weight_arguments(node.target._schema.name.rpartition("::")[2])
        return constants.value(argument(node, role))

    def _bias(self, at: LinearBinding) -> Array | None:
        source = self.planned.source
        return None if not at.bias or at.bias in source.capture.added else source.constants.of(at.bias)

    def _put(self, name: str, value: Array, who: str) -> None:
        if not name or (name in self.values and not np.array_equal(self.values[name], value)):
            raise PlanError(f"{who}: {name or 'its weight'} cannot hold what the plan asks for")
        self.values[name] = value

    def remove(self, edit: Remove, at: AffineBinding) -> None:
        """Nothing in place of a norm, or zeros, or a copy."""
        if edit.op in self.planned.vanished:
            self._exchange(at, self._zeros())
        elif at.path in self.planned.copies:
            self._exchange(at, Copy())
        else:
            self._exchange(at, None)

    def norm(self, edit: Replace, at: AffineBinding) -> None:
        """A norm with other numbers, or a cheaper op in its place."""
        inner = self.target.get_submodule(at.path)
        if edit.form == "bn" and self._holds(inner, at):
            self._statistics(edit, at.path, inner, at.eps)
            return
        offset = None if edit.form == "mul" else edit.offset
        scale = None if edit.form == "add" and (edit.scale == 1).all() else edit.scale
        self._exchange(at, ChannelAffine(*(self._along(v, edit.axis, at, inner) for v in (scale, offset))))

    def _holds(self, inner: nn.Module, at: AffineBinding) -> bool:
        """Whether a batch norm has four vectors of its own that can take any numbers, and does no more with them."""
        known = isinstance(inner, nn.modules.batchnorm._BatchNorm) and inner.affine and inner.bias is not None
        modules = self.planned.modules
        return known and modules.plain(at) and modules.alone(modules.paths[at.path])

    def _statistics(self, edit: Replace, path: str, inner: nn.Module, eps: float) -> None:
        """`(x - centre) / sqrt(1) * scale + bias`, with 1 - eps as the variance."""
        mean = torch.from_numpy(np.zeros_like(edit.scale) if edit.centre is None else edit.centre)
        held: torch.Tensor = inner.running_mean  # type: ignore[assignment]
        mean = mean.to(held.dtype).to(torch.float64)
        bias = edit.offset + mean.numpy() * edit.scale
        for name, value in (("weight", edit.scale), ("bias", bias), ("running_mean", mean.numpy()),
                            ("running_var", np.full_like(edit.scale, 1.0 - eps))):  # fmt: skip
            self.values[f"{path}.{name}"] = value

    def activation(self, edit: Replace, at: ActivationBinding) -> None:
        """A maximum, or a clamp with bounds for each channel."""
        inner = self.target.get_submodule(at.path)
        binding = AffineBinding(at.path, (at.node,), "")
        low = edit.offset if edit.form == "max" else edit.scale * at.low + edit.offset
        high = None if edit.form == "max" or np.isinf(at.high) else edit.scale * at.high + edit.offset
        low_, high_ = (self._along(v, edit.axis, binding, inner) for v in (low, high))
        assert low_ is not None
        writes = getattr(inner, "inplace", False) is True and at.path not in self.planned.outplace
        self._exchange(binding, (ChannelClampInPlace if writes else ChannelClamp)(low_, high_))

    def _along(self, vector: Array | None, axis: int, at: AffineBinding, inner: nn.Module) -> torch.Tensor | None:
        """A vector that broadcasts along an axis of the data, of the type and on the device that the data have."""
        if vector is None:
            return None
        node = next(n for n in self.planned.source.capture.program.graph.nodes if n.name == at.nodes[-1])
        value = node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        tensor = torch.from_numpy(np.asarray(vector, order="C")).to(value.dtype).to(value.device)
        return tensor.reshape(-1, *[1] * (value.dim() - 1 - axis))

    def _exchange(self, at: AffineBinding, new: nn.Module | None) -> None:
        """Another module for the one at a path; what runs inside it around the norm stays."""
        modules = self.planned.modules
        key = min(modules.calls[id(modules.paths[at.path])])
        before, behind = modules.around(key) or ((), ())
        made = new or nn.Identity()
        made.training = training = self.target.get_submodule(at.path).training
        if before or behind:
            parts = OrderedDict[str, nn.Module]()
            for path in (*before, *([""] if new is not None else []), *behind):
                leaf = path.rpartition(".")[2]
                name = _free(leaf, parts) if path else _free("norm", {p.rpartition(".")[2] for p in (*before, *behind)})
                parts[name] = self.target.get_submodule(path) if path else made
            made = nn.Sequential(parts)
            made.training = training
        self.modules[at.path] = made

    def merge(self, edit: Merge) -> None:
        """The norms of an expression that its layers have taken up."""
        for op in {*edit.drop, edit.op}:
            binding = self.planned.source.bindings.get(op)
            if isinstance(binding, AffineBinding):
                self._exchange(binding, self._zeros() if op in self.planned.vanished else None)

    def _zeros(self) -> nn.Module:
        return Zeros() if self.planned.solid else Nothing()

    def finish(self) -> None:
        """Put all values and modules in place; nothing is changed where one of the values has no place."""
        rounded = {name: self._rounded(name, value) for name, value in self.values.items()}
        for path in self.planned.outplace:
            self.target.get_submodule(path).inplace = False  # type: ignore[assignment]
        for name, value in rounded.items():
            self._assign(name, value)
        exchanged = {id(self.target.get_submodule(path)): made for path, made in self.modules.items()}
        for parent in [*self.target.modules(), *(inner for made in exchanged.values() for inner in made.modules())]:
            for name, inner in list(parent._modules.items()):
                if id(inner) in exchanged:
                    setattr(parent, name, exchanged[id(inner)])

    def _rounded(self, name: str, value: Array) -> torch.Tensor:
        """One rounding, to the type of the parameter; of the weight beside it, for a bias that was not there."""
        owner, leaf = self._place(name)
        held: torch.Tensor = own(owner) if getattr(owner, leaf) is None else getattr(owner, leaf)
        rounded = torch.from_numpy(np.asarray(value, order="C")).to(held.dtype)
        if np.isfinite(value).all() and not torch.isfinite(rounded).all():
            raise PlanError(
                f"{name}: the folded values exceed the range of {held.dtype}; leave the norm next to it alone "
                "(--skip NAME)"
            )
        return rounded.to(held.device)

    def _place(self, name: str) -> tuple[Any, str]:
        path, _, leaf = name.rpartition(".")
        return self.target.get_submodule(path), leaf

    def _assign(self, name: str, value: torch.Tensor) -> None:
        """Into the memory that the parameter has; a bias that was not there is added."""
        owner, leaf = self._place(name)
        if getattr(owner, leaf) is None:
            owner.register_parameter(leaf, nn.Parameter(value.clone(), own(owner).requires_grad))
        else:
            write(getattr(owner, leaf), value)


def _free(name: str, taken: Collection[str]) -> str:
    """The name, or with a number behind it where another has it."""
    return next(n for n in chain([name], (f"{name}_{i}" for i in count(2))) if n not in taken)


def write(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """New values for a tensor, in its own memory; in new memory where several of its elements lie in one place."""
    with torch.no_grad(), torch.inference_mode() if tensor.is_inference() else nullcontext():
        if tangled(tensor):
            tensor.data = value.clone(memory_format=torch.contiguous_format)
        else:
            tensor.copy_(value)
