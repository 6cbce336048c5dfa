"""PyTorch networks with code that torch.export writes in unusual ops: read as what it computes."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from tests.torch_nets import alive, error

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


class Growing(nn.Module):
    """A stream that grows by channels of zeros, as in PyramidNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 7, 1), nn.Conv2d(7, 2, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.inner(torch.relu(self.first(x)))
        x = nn.functional.pad(x, (0, 0, 0, 0, 1, 2)) + y
        found: torch.Tensor = self.head(torch.relu(self.second(x)))
        return found


def test_channels_of_zeros_carry_what_the_others_carry() -> None:
    torch.manual_seed(0)
    net: Any = alive(Growing(), zeros=False)
    for norm in (net.first, net.second):
        norm.weight.data.abs_()
    result = bnfold.fold(net, (torch.randn(2, 3, 5, 5),))
    assert result.plan.counts()["folded"] == 2
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


@dataclass
class Found:
    """What a detector returns."""

    scores: torch.Tensor
    features: dict[str, torch.Tensor]
    name: str = "found"


class Holder:
    """A class of the user's own that holds tensors."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores, self.size = scores, 8


class Returning(nn.Module):
    """Returns something that is no container of torch's; its norm goes into a layer behind code."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.norm, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.norm(torch.tanh(x))
        scores = self.head(y)
        return Holder(scores) if self.form == "object" else Found(scores, {"pooled": self.head(y.mean((2, 3), True))})


@pytest.mark.parametrize("form", ["dataclass", "object"])
def test_what_a_module_returns_may_be_an_object(form: str) -> None:
    torch.manual_seed(0)
    net = alive(Returning(form), zeros=False).double()
    result = bnfold.fold(net, (X.double(),))
    assert result.plan.notes == ()
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert len({entry.output for entry in result.check.outputs}) == (1 if form == "object" else 2)
    other = 2 * X.double() + 1
    assert error(net(other).scores, result.model(other).scores) < 1e-12
    wrong = copy.deepcopy(result.model)
    wrong.head.weight.data.mul_(1.001)
    assert not bnfold.verify(net, wrong, (X.double(),)).passed


class Counting(nn.Module):
    """Buffers that every call changes, in place and by a new tensor."""

    calls: torch.Tensor
    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * y.mean((0, 2, 3))
        found: torch.Tensor = y + self.calls + self.mean.view(-1, 1, 1)
        return found


def test_modules_that_count_their_calls_are_compared_from_the_same_state() -> None:
    net: Any = alive(Counting(), zeros=False).double()
    result = bnfold.fold(net, (X.double(),))
    assert result.plan.counts()["folded"] == 1
    assert net.calls.item() == result.model.calls.item() == 0
    for _ in range(2):
        assert error(net(X.double()), result.model(X.double())) < 1e-12
