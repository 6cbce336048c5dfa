"""Channels that carry nothing, as trained networks hold them: gammas and variances near the smallest float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import bnfold
from bnfold.core.absorb import Layout, rounding
from bnfold.core.plan import Rescale
from tests.evaluate import evaluate
from tests.nets import Net

Array = npt.NDArray[Any]
GAMMAS = [0.0, 7e-41, -7e-41, 1e-38, -3e-38, 1e-30, -1e-25]
VARIANCES = [0.0, 6e-45, 1e-38, 1e-12]


def _kill(net: Net, norm: str, weight: str, bias: str, share: float) -> None:
    """Some channels of a norm carry nothing: their gammas, variances, means, and the weights that make them."""
    rng, w = net.rng, net.weights
    dead = rng.random(w[f"{norm}_gamma"].size) < share
    count = int(dead.sum())
    w[f"{norm}_gamma"][dead] = rng.choice(GAMMAS, count)
    w[f"{norm}_var"][dead] = rng.choice(VARIANCES, count)
    w[f"{norm}_mean"][dead] = rng.choice([0.0, 1e-21, 0.3], count)
    w[f"{norm}_beta"][dead] = np.where(
        rng.random(count) < 0.5, w[f"{norm}_beta"][dead], rng.choice([0.0, 7e-41], count)
    )
    faint = dead & (rng.random(dead.size) < 0.7)
    w[weight][faint] *= w[weight].dtype.type(1e-20)
    if bias in w:
        w[bias][faint] = 0.0


def _net(seed: int, kind: str, dtype: npt.DTypeLike = np.float32, share: float = 0.5) -> Net:
    net = Net(seed, dtype)
    x, width = net.input("x", ("N", 3, 8, 8)), 3

    def block(x: str, name: str, channels: tuple[int, int], **attributes: Any) -> str:
        x = net.conv(x, channels, name, pad=1, bias=bool(net.rng.random() < 0.5), **attributes)
        out = net.bn(x, channels[1], f"{name}n", "both")
        _kill(net, f"{name}n", f"{name}_weight", f"{name}_bias", share)
        return out

    if kind == "forward":  # the norm goes into the layer behind it
        first = net.relu(net.conv(x, (width, 8), "a", pad=1), "ra")
        first = net.bn(first, 8, "an", "both", epsilon=1e-12)
        _kill(net, "an", "a_weight", "a_bias", share)
        net.output(net.node("GlobalAveragePool", [net.conv(first, (8, 4), "b")], "pool"))
        return net
    first = net.relu(block(x, "a", (width, 8)), "ra")
    if kind == "depthwise":
        first = net.relu(block(first, "d", (1, 8), group=8), "rd")
    second = block(first, "b", (8, 8))
    if kind == "residual":
        second = net.node("Add", [first, second], "sum")
    if kind == "concat":
        second = net.conv(net.node("Concat", [first, second], "both", axis=1), (16, 8), "mix", k=1)
    net.output(second if kind == "bare" else net.node("GlobalAveragePool", [second], "pool"))
    return net


@pytest.mark.parametrize("kind", ["chain", "bare", "depthwise", "residual", "concat", "forward"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_with_dead_channels_go_like_any_other(kind: str, dtype: npt.DTypeLike) -> None:
    for seed in range(4):
        model = _net(seed, kind, dtype).model()
        result = bnfold.fold(model)  # verified
        assert result.plan.counts()["folded"] == len(result.plan.batch_norms), (seed, result.plan.batch_norms)
        x = np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype(dtype)
        a, b = (evaluate(m, x=x)[0] for m in (model, result.model))
        assert np.abs(a - b).max() <= 3e-6 * np.abs(a).max()


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_float16_beside_a_bias(share: float) -> None:
    net = _net(3, "chain", np.float16, 0.0)
    beta, gamma = net.weights["an_beta"], net.weights["an_gamma"]
    faint = np.arange(gamma.size) < share * gamma.size
    gamma[faint], beta[faint] = np.float16(6e-8), np.float16(0.5)
    counts = bnfold.fold(net.model()).plan.counts()
    assert counts["folded"] == 2


def test_a_channel_that_carries_something_keeps_its_digits() -> None:
    """Every channel is faint, so that nothing beside it hides what rounding its weights would lose."""
    net = _net(1, "chain", share=0.0)
    for name, value in (("gamma", 1e-38), ("beta", 0.0), ("mean", 0.0)):
        net.weights[f"bn_{name}"][:] = value
    assert [bn.verdict for bn in bnfold.fold(net.model()).plan.batch_norms if bn.name == "bn"] != ["folded"]


def test_chains_of_norms_with_gammas_of_0() -> None:
    """A channel that a norm killed is killed again by a later norm, and takes that one's constant."""
    for seed in range(25):
        net, rng = Net(seed, np.float64), np.random.default_rng(seed)
        h = net.conv(net.input("x", (2, 3, 8, 8)), (3, 6), "first", k=1)
        for i in range(rng.integers(2, 5)):
            h = net.bn(h, 6, f"bn{i}", "both")
            net.weights[f"bn{i}_gamma"][rng.random(6) < 0.4] = 0
            between = rng.choice(["Neg", "LeakyRelu", "MaxPool", ""])
            if between:
                h = net.node(between, [h], f"op{i}", **({"kernel_shape": [2, 2]} if between == "MaxPool" else {}))
        net.output(net.conv(h, (6, 4), "last", k=1, bias=bool(seed % 2)), (2, 4, None, None))
        model = net.model()
        result = bnfold.fold(model, verify=False)
        x = rng.standard_normal((2, 3, 8, 8))
        for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9, err_msg=f"seed {seed}")


@pytest.mark.parametrize("faint", [7e-41, 1e-38])
def test_modules(faint: float) -> None:
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norms[0], nn.ReLU(), nn.Conv2d(8, 8, 3), norms[1]).eval()
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            norm.running_mean.normal_(0.2, 0.3), norm.running_var.uniform_(0.3, 2), norm.bias.normal_(0.1, 0.4)
            norm.weight[::2], norm.running_var[::2] = faint, 6e-45
            norm.weight[1] *= -1
    assert bnfold.fold(net, (torch.randn(2, 3, 12, 12),)).plan.counts()["folded"] == 2


def test_what_rounding_costs_is_seen_beside_what_a_channel_holds() -> None:
    weight = np.full((2, 3), 0.5, np.float32)
    faint = Rescale(0, "layer", np.array([1.0, 1e-44]), None, None, None)
    assert rounding(weight, Layout(), faint) < 1e-7  # beside the first channel
    alone = Rescale(0, "layer", np.array([1e-44, 1e-44]), None, None, None)
    assert rounding(weight, Layout(), alone) > 1e-3
    assert rounding(weight, Layout(), alone, np.array([0.3, -0.2])) == 0.0  # beside a bias
    assert rounding(weight, Layout(), alone, np.array([0.3, 1e-43])) > 1e-3
    over = Rescale(0, "layer", np.array([1.0, 1e39]), None, None, None)
    assert rounding(weight, Layout(), over, np.array([0.3, 1e39])) > 1e300
    half = weight.astype(np.float16)
    small = Rescale(0, "layer", np.array([1.0, 1e-6]), None, None, None)
    assert rounding(half, Layout(), small) > 1e-3  # float16 holds what small channels carry
    assert rounding(half, Layout(), small, np.array([0.3, 0.3])) < 1e-3
    assert rounding(half, Layout(), Rescale(0, "layer", None, None, np.array([1.0, 1.0, 1e-7]), None)) > 1e-3


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("act", ["Relu", "Sigmoid", "Identity"])
def test_a_faint_norm_goes_into_the_layer_behind(act: str, turned: bool) -> None:
    """Its channel's weights there are denormal, and lost beside others; no offset may overflow on the way."""
    net = Net(4, np.float32)
    x = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "first", bias=True)
    x = net.node("Transpose", [net.node("Transpose", [x], "there", perm=[0, 2, 3, 1])], "back", perm=[0, 3, 1, 2]) \
        if turned else x  # fmt: skip
    y = net.bn(net.node(act, [x], "act"), 4, "bn")
    net.weights["bn_gamma"][:] = [1.3, -0.6, 0.0, 1e-41]
    net.output(net.conv(y, (4, 2), "last"), ("N", 2, 6, 6))
    model = net.model()
    result = bnfold.fold(model)
    (norm,) = result.plan.batch_norms
    kept = act == "Identity"  # its offset could only go where it overflows
    assert (norm.verdict, norm.reason and norm.reason.code) == (("kept", "range") if kept else ("folded", None))
