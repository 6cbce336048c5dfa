"""Conditions that are constant in PyTorch: what is taken stands in the place of torch.cond, where and masked_fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.torch_nets import alive, codes, error, fates

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double()


class Branches(nn.Module):
    """Norms in both branches; in the first, `deep`, another torch.cond. `flag`: what is stored, None: what data say."""

    flag: Tensor

    def __init__(self, flag: bool | None, deep: bool = False) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.first, self.second, self.third = (nn.BatchNorm2d(4) for _ in range(3))
        self.deep, self.asks = deep, flag is None
        self.register_buffer("flag", torch.tensor(bool(flag)))

    def forward(self, x: Tensor) -> Tensor:
        flag = x.mean() > 0 if self.asks else self.flag.logical_not().logical_not()
        x = self.before(x)

        def inner(y: Tensor) -> Tensor:
            found: Tensor = self.second(y).relu()
            return found

        def yes(y: Tensor) -> Tensor:
            y = self.first(y)
            found: Tensor = torch.cond(self.flag, inner, torch.tanh, (y,)) if self.deep else inner(y)
            return found

        def no(y: Tensor) -> Tensor:
            found: Tensor = self.third(y).relu()
            return found

        found: Tensor = self.after(torch.cond(flag, yes, no, (x,)))
        return found


@pytest.mark.parametrize(("flag", "deep"), [(True, False), (True, True), (False, True)])
def test_the_branch_that_is_always_taken_meets_what_is_around_it(flag: bool, deep: bool) -> None:
    net = alive(Branches(flag, deep)).double()
    program = torch.export.export(net, (X,), strict=False)
    result = bnfold.fold(program)
    assert fates(result) == ({"first": "folded", "second": "folded"} if flag else {"third": "folded"})
    assert "cond" not in {str(node.target) for node in result.model.graph.nodes}
    assert error(net(X), result.model.module()(X)) < 1e-10
    assert not bnfold.inspect(result.model).batch_norms


def test_norms_in_branches_that_data_choose_are_named() -> None:
    net = alive(Branches(None)).double()
    result = bnfold.fold(torch.export.export(net, (X,), strict=False))
    assert list(codes(result).values()) == ["in-subgraph"] * 3


class Choice(nn.Module):
    """A norm behind a choice between a layer, which can take it up, and what cannot."""

    mask: Tensor

    def __init__(self, choose: Callable[[Tensor, Tensor, Tensor], Tensor], mask: list[Any]) -> None:
        super().__init__()
        self.layer, self.other, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.choose = choose
        self.register_buffer("mask", torch.tensor(mask))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.choose(self.mask, self.layer(x), self.other(x).sigmoid())).relu()
        return found


@pytest.mark.parametrize("form", ["module", "program"])
@pytest.mark.parametrize(
    ("choose", "mask", "form_left"),
    [
        (torch.where, [True], "folded"),
        (lambda mask, a, b: torch.where(mask, b, a), [[False]], "folded"),
        (torch.where, [[[True]], [[False]], [[True]], [[True]]], "kept"),
        (lambda mask, a, b: a.masked_fill(mask, 0.5), [False], "folded"),
        (lambda mask, a, b: a.masked_fill(mask, 0.5), [True], "kept"),
    ],
)
def test_what_a_constant_condition_takes_carries(choose: Any, mask: list[Any], form_left: str, form: str) -> None:
    net = alive(Choice(choose, mask)).double()
    given: Any = torch.export.export(net, (X,), strict=False) if form == "program" else net
    result = bnfold.fold(given, (X,), leftovers="none")
    assert fates(result)["norm"] == form_left
    found = result.model.module() if form == "program" else result.model
    assert error(net(X), found(X)) < 1e-10
