"""Helpers for tests of PyTorch models: norms that are never trivial, and exactness in float64."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

import bnfold


def alive(module: nn.Module, seed: int = 0, zeros: bool = True) -> nn.Module:
    """The module in eval mode, its norms with means off zero, variances off one, gammas of both signs and some zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for inner in module.modules():
            mean, var = getattr(inner, "running_mean", None), getattr(inner, "running_var", None)
            if isinstance(mean, torch.Tensor) and isinstance(var, torch.Tensor):
                mean.copy_(torch.randn(mean.shape, generator=g) * 0.6)
                var.copy_(torch.rand(var.shape, generator=g) * 2 + 0.2)
                for name, low in (("weight", 0.5), ("bias", None)):
                    value = getattr(inner, name, None)
                    if isinstance(value, torch.Tensor):
                        value.copy_(torch.randn(value.shape, generator=g) * 0.4)
                        if low is not None:
                            value.copy_(value.sign() * (value.abs() + low))
                            if zeros:
                                value[::5] = 0
    return module.eval()


def positive(module: nn.Module) -> nn.Module:
    """The same with positive gammas."""
    with torch.no_grad():
        for inner in module.modules():
            if isinstance(getattr(inner, "running_mean", None), torch.Tensor) and inner.weight is not None:
                inner.weight.abs_().add_(0.1)  # type: ignore[operator]
    return module


def widened(values: Any) -> Any:
    """Floating tensors in float64."""
    return tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, values)


def tensors(values: Any) -> list[torch.Tensor]:
    """The tensors in what a module returned."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def error(reference: Any, found: Any) -> float:
    """The largest difference, over the largest magnitude."""
    pairs = list(zip(tensors(reference), tensors(found), strict=True))
    assert pairs
    return max(float((b.double() - a.double()).abs().max() / a.double().abs().max().clamp_min(1e-30)) for a, b in pairs)


def folded(
    module: nn.Module, *args: Any, exact: float = 1e-10, blamed: bool = False, **options: Any
) -> bnfold.FoldResult:
    """Fold a float64 copy and compare on two further inputs; the module given stays as it was, and keeps its class.

    `blamed`: norms may be kept because the fold did not pass without, which would hide a fault elsewhere.
    """
    wide, given = copy.deepcopy(module).double(), widened(args)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    result = bnfold.fold(wide, given, **options)
    assert type(result.model) is type(wide)
    assert all(torch.equal(value, wide.state_dict()[name]) for name, value in before.items())
    assert result.check is not None
    assert result.check.passed
    assert blamed or "uncooperative-code" not in codes(result).values()
    for scale in (1.0, 2.5):
        other = tree_map_only(torch.Tensor, partial(_varied, scale=scale), given)
        with torch.no_grad():
            assert error(wide(*copy.deepcopy(other)), result.model(*copy.deepcopy(other))) < exact
    return result


def _varied(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    return tensor.flip(0) * scale + 0.3 if tensor.is_floating_point() else tensor


def fates(result: bnfold.FoldResult) -> dict[str, str]:
    """What became of each norm, by name."""
    return {bn.name: bn.form or bn.verdict for bn in result.plan.batch_norms}


def codes(result: bnfold.FoldResult) -> dict[str, str]:
    """The reason codes, by name."""
    return {bn.name: bn.reason.code for bn in result.plan.batch_norms if bn.reason}
