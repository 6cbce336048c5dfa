"""PyTorch networks whose code computes with the sizes of its inputs: folded for all sizes, not for those given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.torch.trace.sizes import resized, shapes
from tests.torch_nets import alive, codes, error, fates

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


class Between(nn.Module):
    """A norm, code, and a layer without padding that could take the norm up; another norm has a layer beside it."""

    def __init__(self, code: Any) -> None:
        super().__init__()
        self.code = code
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh())
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.code(self.norm(self.first(x))))
        return found


def folded(code: Any) -> bnfold.FoldResult:
    torch.manual_seed(0)
    net = alive(Between(code), zeros=False).double()
    result = bnfold.fold(net, (X,))
    for size in ((3, 3, 8, 8), (1, 3, 11, 13)):
        x = torch.randn(size, generator=torch.Generator().manual_seed(2)).double()
        with torch.no_grad():
            assert error(net(x), result.model(x)) < 1e-12
    return result


def test_padding_up_to_a_multiple_that_the_example_has() -> None:
    result = folded(lambda x: F.pad(x, (0, -x.shape[3] % 3, 0, -x.shape[2] % 3)))
    assert codes(result) == {"norm": "zero-padding"}


def test_a_padding_of_nothing_in_a_module_of_its_own_is_no_padding() -> None:
    assert set(fates(folded(nn.ZeroPad2d(0))).values()) == {"folded"}


def test_a_factor_computed_from_the_size() -> None:
    result = folded(lambda x: x * x.shape[2])
    assert fates(result)["first.1"] == "folded"
    assert codes(result) == {"norm": "uncooperative-code"}
    assert "inputs of other sizes (3x3x9x9)" in result.plan.notes[0]


def test_a_path_that_depends_on_the_batch() -> None:
    result = folded(lambda x: x if x.shape[0] == 2 else x.clamp(-0.3, 0.3))
    assert codes(result) == {"norm": "uncooperative-code"}


def test_networks_that_take_one_size_only_are_checked_at_that() -> None:
    net = alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))).double()
    assert bnfold.fold(net, (X,)).plan.counts()["folded"] == 1


def test_arguments_grow_together() -> None:
    given = ((X, torch.arange(2)), {"mask": torch.ones(2, 5, dtype=torch.bool), "scale": torch.tensor(2.0), "n": 3})
    both, batch, space = resized(*given)
    assert shapes(both) == "3x3x9x9, 3, 3x5, a number"
    assert shapes(batch) == "3x3x8x8, 3, 3x5, a number"
    assert shapes(space) == "2x3x9x9, 2, 2x5, a number"
    assert both[1]["n"] == 3
    assert torch.equal(both[0][0][:2, :, :8, :8], X)
