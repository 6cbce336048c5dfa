"""PyTorch networks with code that torch.export writes in unusual ops: read as what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from tests.torch_nets import alive

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Cast(nn.Module):
    """`.float()` leaves an assertion on the tensor in the graph, which needs no values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.conv(x).float())
        return found


class Product(nn.Module):
    """addmm with a bias of one axis, as core ATen has a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.o = nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(16))
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(torch.addmm(self.o, x, self.w))
        return found


@pytest.mark.parametrize("form", ["module", "program", "core"])
@pytest.mark.parametrize("name", ["cast", "addmm", "linear"])
def test_the_norm_folds(name: str, form: str) -> None:
    torch.manual_seed(0)
    nets = {"cast": Cast(), "addmm": Product(), "linear": nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))}
    x = torch.randn(2, 3, 8, 8) if name == "cast" else torch.randn(4, 8)
    net: Any = alive(nets[name], zeros=False)
    if form != "module":
        net = torch.export.export(net, (x,))
    if form == "core":
        net = net.run_decompositions()
    result = bnfold.fold(net, (x,))
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert result.check.passed


class Deciding(nn.Module):
    """Code that looks at the data, at which torch.export fails and prints the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x)
        return found * 2 if found.mean() > 0.5 else found


def test_what_torch_prints_of_a_failed_trace_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    plan = bnfold.inspect(alive(Deciding()), (X,))
    assert plan.counts()["folded"] == 1
    assert "data-dependent" in plan.notes[0]
    assert capfd.readouterr() == ("", "")
