"""PyTorch networks with code that torch.export writes in unusual ops: read as what it computes."""

from __future__ import annotations

import warnings
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


def test_a_scripted_part_stays_and_the_others_fold() -> None:
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = alive(nn.Sequential(torch.jit.script(block()), block()))
        result = bnfold.fold(net, (X,))
    assert {bn.name: bn.verdict for bn in result.plan.batch_norms} == {"0.1": "kept", "1.1": "folded"}
    assert result.check is not None
    assert result.check.passed


def test_a_module_without_values_is_a_clear_error() -> None:
    with pytest.raises(bnfold.ModelError, match="meta device"):
        bnfold.inspect(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to("meta").eval(), (X.to("meta"),))


def test_an_added_bias_has_the_type_of_the_layer_whose_weight_is_computed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net[0])
    wide: Any = alive(net).double()
    wide[1].weight.data.copy_((wide[1].running_var + wide[1].eps).sqrt())  # nothing is left but an offset
    result = bnfold.fold(wide, (X.double(),))
    assert result.plan.notes == ()
    assert result.plan.counts()["folded"] == 1
