"""LRN is found by what it computes, whatever it looks like; and what only looks like it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnfold
from bnfold import DataError, ModelError
from bnfold.lrn.response import Response, identify

from .lrn_nets import (
    ConvLrn,
    Functional,
    Inception,
    PoolLrn,
    Residual,
    Stubborn,
    Written,
    chain,
    images,
    sliced,
    strong,
)

PARAMETERS = [(5, 1e-4, 0.75, 1.0), (5, 1e-4, 0.75, 2.0), (3, 0.5, 0.5, 0.01), (2, 1.0, 1.0, 1.0), (4, 2e-3, 0.75, 1.5)]


@pytest.mark.parametrize("given", PARAMETERS, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 5, 5), (1, 6, 4), (2, 8, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_parameters_come_from_the_answers(
    given: tuple[int, float, float, float], shape: tuple[int, ...], dtype: Any
) -> None:
    def lrn(x: Any) -> Any:
        return F.local_response_norm(torch.from_numpy(x), *given).numpy()

    found = identify(lrn, shape, dtype)
    assert found is not None
    assert found.size == given[0]
    assert (found.alpha, found.beta, found.k) == pytest.approx(given[1:], rel=1e-5)
    x = np.random.default_rng(0).standard_normal(shape) * 30
    np.testing.assert_allclose(found(x), lrn(x), rtol=1e-5)
    np.testing.assert_allclose(Response.of(*given)(x), lrn(x), rtol=1e-12)


@pytest.mark.parametrize(
    "made",
    [PoolLrn(5, 0.3, 0.75, 2.0), ConvLrn(12, 5, 0.3, 0.75, 2.0), Written(sliced(5, 0.3, 0.75, 2.0)),
     nn.LocalResponseNorm(5, 0.3, 0.75, 2.0), Written(lambda x: F.local_response_norm(x, 5, 0.3, 0.75, 2.0))],
    ids=["pool", "conv", "slices", "module", "call"],
)  # fmt: skip
def test_every_style_is_found(made: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), made, nn.Conv2d(12, 4, 1)).eval()
    (site,) = bnfold.find_lrn(net, images(2))
    assert (site.name, site.channels, site.size, site.conv, site.activation) == ("2", 12, 5, "0", "ReLU")
    assert (site.alpha, site.beta, site.k) == pytest.approx((0.3, 0.75, 2.0), rel=1e-5)
    assert site.kind == ("module" if isinstance(made, nn.LocalResponseNorm) else "handwritten")
    assert (site.input, site.output) == ("1", "3")


WEIGHTS = torch.tensor([0.5, 1.0, 0.5]).reshape(1, 1, 3, 1, 1)
NEAR: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "unit length": lambda x: F.normalize(x, dim=1),
    "rms": lambda x: x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt(),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "instance norm": F.instance_norm,
    "weighted window": lambda x: x / (1 + F.conv3d(
        F.pad(x.square(), (0, 0, 0, 0, 1, 1)).unsqueeze(1), WEIGHTS.to(x)).squeeze(1)) ** 0.75,
    "magnitudes": lambda x: x / (1 + x.abs().mean(1, keepdim=True)),
    "tanh": torch.tanh,
    "scale": lambda x: x * 0.25,
    "wraps around": lambda x: x / (1 + x.square() + x.roll(1, 1).square()) ** 0.5,
    "over the batch": lambda x: x / (1 + x.square().sum(0, keepdim=True)) ** 0.5,
    "edges divided by fewer": lambda x: x / (1 + F.avg_pool3d(
        x.square().unsqueeze(1), (3, 1, 1), 1, (1, 0, 0), count_include_pad=False).squeeze(1)) ** 0.75,
    "rectified": lambda x: F.local_response_norm(x, 3, 0.5).relu(),
    "offset": lambda x: F.local_response_norm(x, 3, 0.5) + 0.1,
    "centred": lambda x: F.local_response_norm(x - x.mean(1, keepdim=True), 3, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_what_only_looks_like_it_is_not_found(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), Written(NEAR[name]), nn.Conv2d(12, 4, 1)).eval()
    found = bnfold.find_lrn(net, images(2))
    inner = name in ("rectified", "offset", "centred")  # the LRN in their code is one
    assert [site.kind for site in found] == (["functional"] if inner else [])


def test_sequence() -> None:
    net = chain().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = bnfold.find_lrn(net, images(2))
    assert (first.name, first.conv, first.size, first.k) == ("2", "0", 5, 2.0)
    assert (second.name, second.conv, second.channels, second.beta) == ("6", "4", 16, 0.6)
    assert net.training
    assert net[7].training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in net.modules())
    assert first.to_dict()["alpha"] == 0.5


def test_branches_and_sums() -> None:
    names = [(s.name, s.conv, s.activation) for s in bnfold.find_lrn(Inception().eval(), images(2))]
    assert names == [("lrn1", "conv1", "ReLU"), ("lrn2", "conv2", "relu")]
    names = [(s.name, s.conv, s.activation) for s in bnfold.find_lrn(Residual().eval(), images(2))]
    assert names == [("lrn1", "conv1", "ReLU"), ("lrn2", "", ""), ("lrn3", "conv3", "ReLU")]


def test_calls_and_code_in_a_forward() -> None:
    first, second = bnfold.find_lrn(Functional().eval(), (images(2),))
    assert (first.kind, first.size, first.alpha, first.k, first.conv) == ("functional", 5, 0.5, 2.0, "conv1")
    assert (second.kind, second.size, second.conv) == ("handwritten", 3, "conv2")
    assert (second.alpha, second.beta) == pytest.approx((0.5, 0.75))


def test_within_channels_is_listed_and_left() -> None:
    def within(x: torch.Tensor) -> torch.Tensor:
        return x / (1 + 0.5 * F.avg_pool2d(x.square(), 3, 1, 1)) ** 0.75

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Written(within)).eval()
    (site,) = bnfold.find_lrn(net, images(2))
    assert (site.kind, site.size, site.name) == ("within-channel", 3, "2")
    assert (site.alpha, site.beta) == pytest.approx((0.5, 0.75))
    with pytest.raises(ModelError, match="2 normalises within channels"):
        bnfold.swap_lrn(net, images(2), data=images(8))


def test_code_that_cannot_be_followed_is_said() -> None:
    net = nn.Sequential(Stubborn(), nn.Conv2d(8, 2, 1)).eval()
    (site,) = bnfold.find_lrn(net, images(2))
    assert (site.name, site.size, site.alpha, site.conv) == ("0.local_response_norm", 3, 0.25, "0.conv")
    assert "cannot trace" in site.note
    with pytest.raises(ModelError, match=r"make it an nn\.LocalResponseNorm"):
        bnfold.swap_lrn(net, images(2), data=images(8))


def test_one_module_in_two_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.lrn = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.LocalResponseNorm(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.lrn(self.b(self.lrn(self.a(x))))
            return out

    (site,) = bnfold.find_lrn(Twice().eval(), images(2))
    assert (site.calls, site.conv) == (2, "a")


def test_inspect_lists_them() -> None:
    plan = bnfold.inspect(strong(chain()), images(2))
    assert [(other.name, other.op_type, other.input, other.output) for other in plan.others] == [
        ("2", "LRN", "1", "3"), ("6", "LRN", "5", "7"),
    ]  # fmt: skip


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="cannot be run"):
        bnfold.find_lrn(chain().eval(), torch.zeros(2, 5, 8, 8))


class Forgetful(nn.Module):
    """Its `train` returns nothing, as that of some networks does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lrn = nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(5)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.lrn(torch.relu(self.conv(x)))
        return found


def test_a_train_that_returns_nothing_is_no_obstacle() -> None:
    x = torch.randn(2, 3, 12, 12)
    for net in (Forgetful(), nn.Sequential(Forgetful())):
        net.eval()
        assert len(bnfold.find_lrn(net, (x,))) == 1
        assert len(bnfold.inspect(net, (x,)).others) == 1
        swapped = bnfold.swap_lrn(net, (x,), data=np.asarray(x)).model
        assert bnfold.fold(swapped, (x,)).plan.counts()["folded"] == 1


def test_a_search_that_fails_does_not_break_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.doors import torch_models as torchfiles

    def broken(*arguments: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(torchfiles, "find_lrn", broken)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    plan = bnfold.inspect(net, (torch.randn(2, 3, 8, 8),))
    assert plan.counts()["folded"] == 1
    assert plan.notes == ("LRNs could not be looked for: no such thing",)


def test_the_reasons_of_placement_are_documented() -> None:
    import re
    from pathlib import Path

    root = Path(bnfold.__file__).parents[1]
    text = "\n".join(path.read_text() for path in (root / "bnfold/lrn").glob("*.py"))
    source = set(re.findall(r"Reason\(\s*\"([a-z0-9-]+)\"", text))
    assert source == set(re.findall(r"^\| `([a-z0-9-]+)` \|", (root / "docs/lrn.md").read_text(), re.M))
