"""LRN to batch norm: the norm goes where it folds, knows the data, and answers as the LRN did."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import bnfold
from bnfold import DataError, ModelError, UsageError
from bnfold.cli import main
from bnfold.lrn.affine_fit import fit, quality

from .lrn_nets import Functional, Inception, PoolLrn, Residual, chain, images, strong
from .torch_nets import error

pytestmark = pytest.mark.usefixtures("one_thread")

NETS: dict[str, Any] = {"chain": chain, "inception": Inception, "residual": Residual, "functional": Functional}


def _norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: inner for name, inner in module.named_modules() if isinstance(inner, nn.BatchNorm2d)}


def _outputs_of(net: nn.Module, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, result: seen.append(result.detach().clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen[0].double()


def test_the_norm_before_the_activation_folds_and_the_network_stays_the_same() -> None:
    net = strong(chain())
    before = copy.deepcopy(net.state_dict())
    result = bnfold.swap_lrn(net, images(2), data=images())
    assert [(site.name, site.placement, site.reason) for site in result.report.sites] == [
        ("2", "foldable", None), ("6", "foldable", None),
    ]  # fmt: skip
    assert isinstance(result.model[2], nn.Identity)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert set(before) <= set(result.model.state_dict())
    folded = bnfold.fold(copy.deepcopy(result.model).double(), images(2).double())
    assert {bn.verdict for bn in folded.plan.batch_norms} == {"folded"}
    assert not _norms(folded.model)
    x = images(4, seed=9).double()
    with torch.no_grad():
        assert error(copy.deepcopy(result.model).double()(x), folded.model(x)) < 1e-10


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("placement", ["foldable", "in-place"])
def test_fitted_norms_answer_better_than_standard_ones(name: str, placement: str) -> None:
    net = strong(NETS[name]())
    given: dict[str, Any] = {"data": images(), "placement": placement}
    fitted = bnfold.swap_lrn(net, images(2), **given)
    standard = bnfold.swap_lrn(net, images(2), init="standard", **given)
    fresh = images(32, seed=7)
    with torch.no_grad():
        wanted = net(fresh)
        errors = [float((r.model(fresh) - wanted).square().sum().sqrt() / wanted.norm()) for r in (fitted, standard)]
    assert errors[0] < 0.25
    assert errors[0] < 0.5 * errors[1]
    assert fitted.report.output_error is not None
    assert fitted.report.output_error < 0.2
    for a, b in zip(fitted.report.sites, standard.report.sites, strict=True):
        assert a.r2 is not None
        assert b.r2 is not None
        assert 0.35 < a.r2 <= 1
        assert b.r2 < a.r2


def test_statistics_are_those_of_what_the_swapped_network_is_given() -> None:
    net: Any = strong(chain())
    data = images()
    model = bnfold.swap_lrn(net, images(2), data=data, batch_size=10).model
    for conv, norm in ((model[0], model[1].norm), (model[4], model[5].norm)):
        z = _outputs_of(model, conv, data).transpose(0, 1).flatten(1).numpy()
        assert np.allclose(norm.running_mean, z.mean(1), atol=1e-5)
        assert np.allclose(norm.running_var, z.var(1, ddof=1), rtol=1e-5)
    old = _outputs_of(net, net[4], data).transpose(0, 1).flatten(1).mean(1)
    assert not np.allclose(model[5].norm.running_mean, old, atol=1e-3)


def test_in_place_is_least_squares() -> None:
    net: Any = strong(chain())
    data = images()
    result = bnfold.swap_lrn(net, images(2), data=data, placement="in-place")
    norm = result.model[2]
    x = _outputs_of(net, net[1], data).transpose(0, 1).flatten(1).numpy()
    y = _outputs_of(net, net[2], data).transpose(0, 1).flatten(1).numpy()
    xhat = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, ddof=1, keepdims=True) + norm.eps)
    residual = 0.0
    for c in range(12):
        a = np.stack([xhat[c], np.ones_like(xhat[c])], 1)
        wanted, left, *_ = np.linalg.lstsq(a, y[c], rcond=None)
        assert np.allclose([norm.weight[c].item(), norm.bias[c].item()], wanted, rtol=1e-4, atol=1e-5)
        residual += float(left[0])
    r2 = 1 - residual / (y.var(1) * y.shape[1]).sum()
    assert result.report.sites[0].r2 == pytest.approx(r2, rel=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_the_fit_before_a_relu_cannot_be_improved(slope: float) -> None:
    g = torch.Generator().manual_seed(3)
    z = torch.randn(4000, 6, generator=g, dtype=torch.float64) * 2 + torch.linspace(-3, 2, 6)
    target = F.local_response_norm(F.leaky_relu(z, slope)[:, :, None], 3, 0.8)[:, :, 0]
    mean, deviation = z.mean(0), z.std(0)
    xhat = (z - mean) / deviation
    small = deviation.numpy(), mean.numpy()
    best = fit(xhat.numpy(), target.numpy(), small, slope)
    assert (best.gamma > 0).all()

    def loss(gamma: Any, beta: Any) -> torch.Tensor:
        line = xhat * torch.as_tensor(gamma) + torch.as_tensor(beta)
        return (F.leaky_relu(line, slope) - target).square().sum(0)

    reached = loss(best.gamma, best.beta)
    for dg, db in ((0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01), (0.1, -0.1), (-0.1, 0.1), (0.3, 0.3)):
        assert (loss(best.gamma + dg, best.beta + db) >= reached * (1 - 1e-9)).all()
    on_the_active = quality(xhat.numpy(), target.numpy(), *small, slope)
    assert best.r2 > on_the_active.r2
    linear = fit(xhat.numpy(), target.numpy(), small, None)
    assert (loss(linear.gamma, linear.beta) >= reached * (1 - 1e-9)).all()
    assert loss(linear.gamma, linear.beta).sum() > reached.sum() * 1.05


class _Shared(nn.Module):
    """One ReLU for all, and the activation as a function; both leave no module to put a norm before."""

    def __init__(self, function: bool, leaky: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.lrn = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.LocalResponseNorm(5, 0.5)
        self.lrn2 = PoolLrn(3, 0.5, 0.75, 1.0)
        self.act: Any = (F.leaky_relu if leaky else F.relu) if function else nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lrn(F.max_pool2d(self.act(self.conv1(x)), 2))
        out: torch.Tensor = self.lrn2(self.act(self.conv2(x))).mean((2, 3))
        return out


@pytest.mark.parametrize(("function", "leaky"), [(False, False), (True, False), (True, True)])
def test_without_an_activation_of_its_own_the_norm_goes_behind_the_convolution(function: bool, leaky: bool) -> None:
    net = strong(_Shared(function, leaky))
    result = bnfold.swap_lrn(net, images(2), data=images())
    assert isinstance(result.model, _Shared)
    assert list(_norms(result.model)) == ["conv1.norm", "conv2.norm"]
    assert [site.changed for site in result.report.sites] == [
        {"conv1": "conv+BatchNorm2d"}, {"conv2": "conv+BatchNorm2d"},
    ]  # fmt: skip
    folded = bnfold.fold(result.model, images(2))
    assert folded.plan.counts()["folded"] == 2
    with torch.no_grad():
        assert error(net(images(16)), result.model(images(16))) < 0.4


class _Awkward(nn.Module):
    """A convolution, something, an LRN."""

    def __init__(self, middle: nn.Module, again: bool = False, keep: bool = False) -> None:
        super().__init__()
        self.conv, self.middle, self.lrn = nn.Conv2d(3, 6, 3, padding=1), middle, nn.LocalResponseNorm(3, 0.5)
        self.again, self.keep = again, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.middle(self.conv(x))
        z: torch.Tensor = self.lrn(y)
        z = self.lrn(z) if self.again else z
        return z + y if self.keep else z


@pytest.mark.parametrize(
    ("net", "code"),
    [(_Awkward(nn.Sigmoid()), "activation"), (_Awkward(nn.AvgPool2d(2)), "no-conv"),
     (_Awkward(nn.ReLU(), keep=True), "read-elsewhere"), (_Awkward(nn.ReLU(), again=True), "called-again")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_where_it_cannot_fold_it_stays_in_place_and_says_why(net: nn.Module, code: str) -> None:
    result = bnfold.swap_lrn(strong(net), images(2), data=images())
    (site,) = result.report.sites
    assert site.placement == "in-place"
    assert site.reason is not None
    assert site.reason.code == code
    assert isinstance(result.model.lrn, nn.BatchNorm2d)
    assert f"in place: {site.reason.text}" in str(result.report)
    assert site.values == 64 * (25 if code == "no-conv" else 200 if code == "called-again" else 100)


def test_without_an_activation_in_place_is_foldable() -> None:
    result = bnfold.swap_lrn(strong(_Awkward(nn.Identity())), images(2), data=images())
    assert result.report.sites[0].changed == {"conv": "conv+BatchNorm2d"}
    net = strong(nn.Sequential(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3, 0.5), nn.Conv2d(6, 2, 1)))
    result = bnfold.swap_lrn(net, images(2), data=images())
    assert (result.report.sites[0].placement, result.report.sites[0].reason) == ("foldable", None)
    assert bnfold.fold(result.model, images(2)).plan.counts()["folded"] == 1


@pytest.mark.parametrize(("make", "kind"), [(nn.Conv1d, nn.BatchNorm1d), (nn.Conv3d, nn.BatchNorm3d)])
def test_other_dimensions(make: Any, kind: type[nn.Module]) -> None:
    net = strong(nn.Sequential(make(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3, 0.5), make(8, 2, 1)))
    data = torch.randn(40, 3, *([5] * (1 if make is nn.Conv1d else 3)))
    result = bnfold.swap_lrn(net, data[:2], data=data)
    assert type(result.model[1].norm) is kind
    assert bnfold.fold(result.model, data[:2]).plan.counts()["folded"] == 1


def test_calls_in_a_forward_make_it_a_graph_under_the_same_names() -> None:
    net = strong(Functional()).train()
    result = bnfold.swap_lrn(net, images(2), data=images())
    assert isinstance(result.model, torch.fx.GraphModule)
    assert result.report.graphs == {"": ""}
    renamed = {name.replace("conv1.conv", "conv1").replace("conv2.conv", "conv2") for name in result.model.state_dict()}
    assert set(net.state_dict()) <= renamed
    first, second = result.model(images(4)), result.model(images(4))
    assert not torch.equal(first, second)  # dropout goes on
    result.model.eval()
    with torch.no_grad():
        assert error(net.eval()(images(16)), result.model(images(16))) < 0.2
        assert torch.equal(result.model(images(4)), result.model(images(4)))
    assert {bn.verdict for bn in bnfold.fold(result.model, images(2)).plan.batch_norms} == {"folded"}
    nested = strong(nn.Sequential(Functional(), nn.Linear(4, 2)))
    result = bnfold.swap_lrn(nested, images(2), data=images())
    assert type(result.model) is nn.Sequential
    assert list(result.report.graphs or {}) == ["0"]
    with pytest.raises(UsageError, match="take the copy"):
        bnfold.swap_lrn(net, images(2), data=images(), inplace=True)


def test_dropout_modes_and_in_place_changes() -> None:
    net: Any = strong(chain()).train()
    net[4].eval()
    result = bnfold.swap_lrn(net, images(2), data=images(), drop_dropout=True)
    assert result.report.dropouts == ("7",)
    assert isinstance(result.model[7], nn.Identity)
    assert isinstance(net[7], nn.Dropout)
    assert [inner.training for inner in result.model] == [inner.training for inner in net]
    assert result.model[1].norm.training
    changed = bnfold.swap_lrn(net, images(2), data=images(), drop_dropout=True, inplace=True)
    assert changed.model is net
    assert isinstance(net[7], nn.Identity)
    with torch.no_grad():
        assert torch.equal(net.eval()(images(4)), result.model.eval()(images(4)))


def test_constant_channels_and_few_values_are_said() -> None:
    net: Any = strong(chain())
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].bias[2], net[0].bias[3] = 0.7, -100.0
    result = bnfold.swap_lrn(net, images(2), data=images())
    assert result.report.sites[0].warnings == ("1 channels are constant on the data, their variance is 0",)
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())
    assert result.report.output_error is not None
    assert result.report.output_error < 0.2
    small = bnfold.swap_lrn(chain().eval(), images(2), data=images(2, size=4), samples=2)
    assert "8 values for each channel are few" in str(small.report)


def test_bad_calls_are_refused() -> None:
    net, x = chain().eval(), images(2)
    with pytest.raises(UsageError, match="init='fit' needs data"):
        bnfold.swap_lrn(net, x)
    with pytest.raises(UsageError, match="placement"):
        bnfold.swap_lrn(net, x, data=images(), placement="before")
    with pytest.raises(UsageError, match="init='zeros'"):
        bnfold.swap_lrn(net, x, data=images(), init="zeros")
    with pytest.raises(UsageError, match="batch_size=0"):
        bnfold.swap_lrn(net, x, data=images(), batch_size=0)
    with pytest.raises(ModelError, match="no LRN"):
        bnfold.swap_lrn(nn.Sequential(nn.Conv2d(3, 3, 1)).eval(), x, data=images())
    with pytest.raises(UsageError, match="example inputs"):
        bnfold.swap_lrn(net, init="standard")


def test_bad_data_are_refused() -> None:
    net, x = strong(chain()), images(2)
    spoilt = images(8)
    spoilt[3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="sample 3"):
        bnfold.swap_lrn(net, x, data=spoilt)
    with pytest.raises(DataError, match="does not take a batch of shape 8x5x10x10"):
        bnfold.swap_lrn(net, x, data=images(8, channels=5))
    with pytest.raises(DataError, match="no samples"):
        bnfold.swap_lrn(net, x, data=torch.zeros(0, 3, 10, 10))
    large: Any = copy.deepcopy(net)
    with torch.no_grad():
        large[0].weight.mul_(1e3)
    with pytest.raises(DataError, match=r"2: of what goes into it on these data, channel \d holds NaN or infinity"):
        bnfold.swap_lrn(large, x, data=images(8) * 1e37)
    with pytest.raises(DataError, match="no array for input"):
        bnfold.swap_lrn(net, x, data={"a": images(8), "b": images(8)})


def test_without_data_the_norms_are_standard() -> None:
    result = bnfold.swap_lrn(strong(chain()), images(2), init="standard")
    norm = result.model[1].norm
    assert torch.equal(norm.weight, torch.ones(12))
    assert torch.equal(norm.running_var, torch.ones(12))
    assert result.report.output_error is None
    assert "no data" in str(result.report)


ARCH = f"{Path(__file__).parent / 'lrn_nets.py'}:chain"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_from_the_command_line_to_a_folded_checkpoint(tmp_path: Path, suffix: str) -> None:
    net = strong(chain())
    torch.save(net.state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "data.npz", x=images().numpy(), y=np.zeros(64, np.int64))
    out, report, folded = tmp_path / f"bn{suffix}", tmp_path / "r.json", tmp_path / f"folded{suffix}"
    calibrated = tmp_path / f"calibrated{suffix}"
    common = ["--arch", ARCH, "--data", str(tmp_path / "data.npz")]

    def run(*args: Any) -> str:
        done = CliRunner().invoke(main, [str(arg) for arg in args])
        assert done.exit_code == 0, done.output
        return done.output

    said = run("swap-lrn", tmp_path / "net.pt", "-o", out, *common, "--drop-dropout", "--report", report)
    assert "2: module, 12 channels, foldable, R^2 0." in said
    assert [site["placement"] for site in json.loads(report.read_text())["sites"]] == ["foldable"] * 2
    rebuilt = bnfold.restore(chain(), out).eval()
    expected = bnfold.swap_lrn(net, images(2), data=images(), drop_dropout=True).model
    with torch.no_grad():
        assert torch.equal(rebuilt(images(4)), expected(images(4)))
    said = run("calibrate", out, "-o", calibrated, *common, "--order", "layerwise", "--json")
    assert [norm["name"] for norm in json.loads(said)["norms"]] == ["1.norm", "5.norm"]
    assert error(expected.state_dict(), bnfold.restore(chain(), calibrated).state_dict()) < 1e-5
    said = run("fold", calibrated, "-o", folded, "--arch", ARCH, "--input", "1x3x10x10")
    assert "2 folded, 0 reduced, 0 kept" in said
    with torch.no_grad():
        assert error(expected(images(4)), bnfold.restore(chain(), folded).eval()(images(4))) < 1e-4


def test_graphs_are_written_as_programs_only(tmp_path: Path) -> None:
    net = strong(Functional())
    with pytest.raises(UsageError, match="which a checkpoint cannot hold"):
        bnfold.swap_lrn(net, images(2), data=images(), out=tmp_path / "a.pt")
    bnfold.swap_lrn(net, images(2), data=images(), out=tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2").module()
    with torch.no_grad():
        assert error(net(images(2)), program(images(2))) < 0.3
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt2"]


def test_one_lrn_for_several_widths_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.lrn = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.LocalResponseNorm(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.lrn(self.b(self.lrn(torch.relu(self.a(x)))))
            return found

    with pytest.raises(ModelError, match="lrn: one LRN module serves tensors of 8 and 12 channels"):
        bnfold.swap_lrn(Net().eval(), images(2), data=images())
