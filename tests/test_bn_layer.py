"""The classical TensorFlow layer, against its formulas written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import bnfold
from bnfold import MovingAverageBatchNorm, UsageError

Array = npt.NDArray[np.float64]


class _Formulas:
    """tf.nn.moments, tf.train.ExponentialMovingAverage, tf.nn.batch_normalization, over (N, C, H, W)."""

    def __init__(self, gamma: Array | None, beta: Array | None, decay: float, eps: float, unbiased: bool) -> None:
        self.gamma, self.beta, self.decay, self.eps, self.unbiased = gamma, beta, decay, eps, unbiased
        self.mean, self.var = np.zeros(5), np.ones(5)

    def __call__(self, x: Array, train: bool) -> Array:
        mean, var = self.mean, self.var
        if train:
            mean = x.mean((0, 2, 3))
            var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
            m = x.size // x.shape[1]
            kept = var * m / (m - 1) if self.unbiased else var
            self.mean = self.mean * self.decay + mean * (1 - self.decay)
            self.var = self.var * self.decay + kept * (1 - self.decay)
        inv = 1 / np.sqrt(var + self.eps)
        inv = inv * self.gamma if self.gamma is not None else inv
        offset = (self.beta if self.beta is not None else 0) - mean * inv
        return x * inv[:, None, None] + offset[:, None, None]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("decay", "eps"), [(0.999, 1e-3), (0.5, 0.1), (0.0, 1e-5)])
def test_both_phases(scale: bool, offset: bool, unbiased: bool, decay: float, eps: float) -> None:
    rng = np.random.default_rng(4)
    gamma, beta = rng.normal(1, 0.5, 5), rng.normal(0, 1, 5)
    formulas = _Formulas(gamma if scale else None, beta if offset else None, decay, eps, unbiased)
    layer: Any = MovingAverageBatchNorm(5, decay, eps, scale, offset, unbiased).double()
    assert (layer.weight is not None, layer.bias is not None) == (scale, offset)
    with torch.no_grad():
        if scale:
            layer.weight.copy_(torch.from_numpy(gamma))
        if offset:
            layer.bias.copy_(torch.from_numpy(beta))
    for step in range(3):
        x = rng.normal(step, 1 + step, (4, 5, 3, 2))
        given = torch.from_numpy(x).requires_grad_()
        y = layer.train()(given)
        assert np.allclose(y.detach(), formulas(x, True), atol=1e-12)
        (gradient,) = torch.autograd.grad((y**2).sum(), given)
        assert gradient.abs().max() > 1e-6  # gradients go through the statistics of the batch
        assert np.allclose(layer.running_mean, formulas.mean, atol=1e-13)
        assert np.allclose(layer.running_var, formulas.var, atol=1e-13)
        assert np.allclose(layer.eval()(given).detach(), formulas(x, False), atol=1e-12)
    assert int(layer.num_batches_tracked) == 3


@pytest.mark.parametrize(("space", "kind"), [(1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)])
def test_from_and_to_torch(space: int, kind: type[nn.BatchNorm2d]) -> None:
    x = torch.randn(6, 4, *[3] * space)
    norm: Any = kind(4, eps=1e-3, momentum=0.01)
    norm(x)
    nn.init.normal_(norm.weight)
    layer: Any = MovingAverageBatchNorm.from_torch(norm)
    assert layer.decay == 0.99
    assert torch.allclose(layer(x), norm(x), atol=1e-5)
    assert torch.allclose(layer.running_var, norm.running_var, atol=1e-6)
    back: Any = layer.eval().to_torch(space)
    assert type(back) is kind
    assert back.eps == 1e-3
    assert back.momentum == pytest.approx(0.01)
    assert torch.equal(back(x), layer(x))
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in back.state_dict().items())
    bare = MovingAverageBatchNorm(4, scale=False, offset=False).eval()
    assert torch.equal(bare.to_torch(space)(x), bare(x))


@pytest.mark.slow
def test_it_folds_and_is_calibrated() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), MovingAverageBatchNorm(5, scale=False), nn.ReLU(), nn.Conv2d(5, 2, 1))
    x = torch.randn(8, 3, 6, 6) * 2 + 1
    model: Any = bnfold.calibrate(net.eval(), x).model
    rows = net[0](x).detach().transpose(0, 1).flatten(1)
    assert torch.allclose(model[1].running_var, rows.var(1), rtol=1e-5)
    result = bnfold.fold(model, x)
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert result.check.passed


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError, match=r"decay=1\.0"):
        MovingAverageBatchNorm(3, decay=1.0)
    with pytest.raises(UsageError, match="with a momentum"):
        MovingAverageBatchNorm.from_torch(nn.BatchNorm2d(3, momentum=None))
    with pytest.raises(UsageError, match="running statistics"):
        MovingAverageBatchNorm.from_torch(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="1 dimensions found"):
        MovingAverageBatchNorm(3)(torch.zeros(3))
    assert "decay=0.9, eps=0.001, scale=False" in repr(MovingAverageBatchNorm(3, 0.9, scale=False))
