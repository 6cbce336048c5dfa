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


def test_what_torch_prints_of_a_failed_trace_is_not_seen(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.process.quiet._shared", lambda: False)  # pytest's workers have threads of their own
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
    result = bnfold.fold(wide, (X.double(),), merge=False)
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


def network(layer: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    made[0].to(layer)
    return alive(made, zeros=False)  # type: ignore[return-value]


def test_modules_are_folded_in_their_own_types_whatever_the_caller_switched_on() -> None:
    net = network()
    with torch.autocast("cpu", torch.bfloat16):
        result = bnfold.fold(net, (X,))
        assert torch.is_autocast_enabled("cpu")
    assert result.plan.counts()["folded"] == 1
    assert torch.allclose(result.model(X), net(X), atol=1e-5)


class Domains(nn.Module):
    """A norm, or a block with one, for each domain, chosen by an attribute."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.conv, self.before, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.own = nn.ModuleDict({name: make() for name in "ab"})
        self.domain = "a"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.own[self.domain](self.before(self.conv(x))).relu())
        return found


@pytest.mark.parametrize("make", [
    lambda: nn.BatchNorm2d(8),
    lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
])  # fmt: skip
def test_what_other_domains_read_stays_as_it_is(make: Any) -> None:
    net: Any = alive(Domains(make), zeros=False)
    result: Any = bnfold.fold(net, (X,))
    assert next(norm for norm in result.plan.batch_norms if norm.name == "before").verdict == "folded"
    for domain in "ab":
        net.domain = result.model.domain = domain
        assert torch.allclose(result.model(X), net(X), atol=1e-5)
    kept = [norm for norm in result.plan.batch_norms if norm.name in ("own.a", "own.b")]
    assert all("do not run through" in norm.reason.text for norm in kept if norm.reason)


class Either(nn.Module):
    """The same, each under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head, self.other = nn.Conv2d(8, 4, 1), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        found: torch.Tensor = self.head((self.second(y) if self.other else self.first(y)).relu())
        return found


def test_a_choice_of_two_attributes() -> None:
    net: Any = alive(Either(), zeros=False)
    result: Any = bnfold.fold(net, (X,))
    assert [norm.verdict for norm in result.plan.batch_norms] == ["kept", "kept"]
    net.other = result.model.other = True
    assert torch.allclose(result.model(X), net(X), atol=1e-5)


def test_norms_that_run_beside_others_that_run_are_folded() -> None:
    """Twins that both run, and a norm that nothing runs, of another shape, keep none from folding."""

    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare = nn.Sequential(*list(network()), nn.BatchNorm2d(4)), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(x)
            return found

    counts = bnfold.fold(alive(Spare()), (X,)).plan.counts()
    assert (counts["folded"], counts["kept"]) == (2, 1)


class Streaming(nn.Module):
    """Buffers that a call replaces, and changes in place."""

    state: torch.Tensor
    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.register_buffer("state", torch.zeros(2, 8, 6, 6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = 0.5 * self.state + self.norm(self.conv(x))
        self.calls.add_(1)
        return torch.mul(self.state, 2)


def test_buffers_are_as_they_were_when_a_module_was_folded_in_place() -> None:
    net: Any = alive(Streaming())
    held = net.state
    result = bnfold.fold(net, (X,), inplace=True)
    assert result.plan.counts()["folded"] == 1
    assert result.model.state is held
    assert not held.any()
    assert net.calls.item() == 0


class Wide(nn.BatchNorm2d):
    """A norm that computes in float32, whatever it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).type_as(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", [Wide, nn.BatchNorm2d])
def test_norms_of_another_type_than_the_layers(dtype: torch.dtype, norm: Any) -> None:
    if (dtype, norm) == (torch.float64, nn.BatchNorm2d):
        pytest.skip("torch itself refuses it")
    net = network().to(dtype)
    net[1] = norm(8)
    alive(net)
    x = X.to(dtype)
    result = bnfold.fold(net, (x,))
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert not any("in float64" in warning for warning in result.check.warnings)
    expected = net(x)
    limit = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(dtype, 1e-5)
    assert (result.model(x) - expected).abs().max() <= limit * expected.abs().max()


def test_a_network_of_float32_that_gives_float64() -> None:
    class Longer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(x)
            return found.double()

    net = Longer().eval()
    assert bnfold.fold(net, (X,)).plan.counts()["folded"] == 1
    wrong: Any = copy.deepcopy(net)
    wrong.body[3].bias.data[1] += 1e-3
    assert not bnfold.verify(net, wrong, inputs=(X,)).passed


class Output(dict):  # type: ignore[type-arg]
    """As model libraries give it."""


class Listed(list):  # type: ignore[type-arg]
    """Of a class that torch does not know."""


@pytest.mark.parametrize("kind", [lambda y: Output(out=y, all=Output(aux=[y.mean()])), lambda y: Listed([y, y * 2])])
def test_outputs_in_classes_of_containers(kind: Any) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor) -> Any:
            return kind(self.body(x))

    result = bnfold.fold(Named().eval(), (X,))
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert len(result.check.outputs) >= 2


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_sparse_buffers(layout: str, inplace: bool, used: bool) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.register_buffer("adjacency", getattr(torch.eye(4) * 2, layout)())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(x).mean((2, 3))
            return torch.sparse.mm(self.adjacency, found.t()) if used else found

    net = Graph().eval()
    expected = net(X)
    result = bnfold.fold(net, (X,), inplace=inplace)
    assert result.plan.counts()["folded"] == 1
    assert torch.allclose(result.model(X), expected, atol=1e-5)


class Scalars(nn.Module):
    """Tensors of rank 0 beside a network."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> Any:
        most = x.max()
        self.seen.add_(1)
        return self.body(x), most * 2 + 1, most.mean(0), most.transpose(0, -1), (most / 3).sum(0)


@pytest.mark.parametrize("form", ["module", "program", "training"])
def test_tensors_of_rank_0(form: str) -> None:
    net: Any = Scalars().eval()
    if form != "module":
        net = torch.export.export(net.train(form == "training"), (X,))
    result = bnfold.fold(net, (X,))
    assert result.plan.counts()["folded"] == (form != "training")
    assert not result.plan.notes


def test_norms_that_are_no_modules_are_not_passed_over_in_silence() -> None:
    """As a Keras model has them: variables, and arithmetic in the code of the layer."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in (("gamma", 1.5), ("beta", -0.3), ("moving_mean", 0.4), ("moving_variance", 2.0)):
                self.register_parameter(name, nn.Parameter(torch.rand(8, 1, 1) + value))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gamma, beta, mean, variance = self.parameters()
            inv = torch.multiply(torch.rsqrt(torch.add(variance, 1e-3)), gamma)
            return torch.add(torch.multiply(x, inv), torch.subtract(beta, torch.multiply(mean, inv))).relu()

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Layer(), nn.Conv2d(8, 4, 1)).eval()
    result = bnfold.fold(net, (X,))
    assert not result.plan.batch_norms
    assert any("exported program" in note for note in result.plan.notes)
    program = bnfold.fold(torch.export.export(net, (X,)))
    assert program.plan.counts()["folded"] == 2
    assert not bnfold.fold(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), (X,)).plan.notes
