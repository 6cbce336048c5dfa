"""The batch norm of classical TensorFlow code: a moving average with a decay, of biased variances, parts left out.

    train:  y = (x - mean(x)) / sqrt(var(x) + eps) * gamma + beta
            moving = decay * moving + (1 - decay) * batch, for the mean and the variance
    test:   y = (x - moving_mean) / sqrt(moving_var + eps) * gamma + beta

`decay` is its name in tf.train.ExponentialMovingAverage and tf.contrib; tf.layers and Keras call it `momentum`, and
PyTorch's momentum is `1 - decay`. TensorFlow's unfused layer keeps the biased variance of the batch (tf.nn.moments),
its fused one and PyTorch `m / (m - 1)` times that.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import UsageError

KINDS: dict[int, type[nn.modules.batchnorm._BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class MovingAverageBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over axis 1 of (N, C, *space) as classical TensorFlow code has it; in eval mode it folds like any.

    `scale`, `offset`: whether there is a gamma, a beta. `unbiased`: keep `m / (m - 1)` times the batch's variance.
    UsageError for a decay that is not in [0, 1).
    """

    def __init__(
        self, num_features: int, decay: float = 0.999, eps: float = 1e-3, scale: bool = True, offset: bool = True,
        unbiased: bool = False,
    ) -> None:  # fmt: skip
        if not 0 <= decay < 1:
            raise UsageError(f"decay={decay}: 0 or more, and less than 1, expected (PyTorch's momentum is 1 - decay)")
        super().__init__(num_features, eps=eps, momentum=1 - decay)
        self.decay, self.unbiased = decay, unbiased
        if not scale:
            self.register_parameter("weight", None)
        if not offset:
            self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Moving mean 0 and variance 1, gamma 1, beta 0; as far as they are there."""
        self.reset_running_stats()
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"(N, C, *space) expected, a tensor of {input.dim()} dimensions found")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, *space) -> the same shape. In train mode the moving averages take a step."""
        self._check_input_dim(input)
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        self._step(input.detach())
        return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)

    @torch.no_grad()
    def _step(self, x: torch.Tensor) -> None:
        axes = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x, axes, correction=int(self.unbiased))
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.mul_(self.decay).add_(mean, alpha=1 - self.decay)
        self.running_var.mul_(self.decay).add_(var, alpha=1 - self.decay)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        """What torch prints of it."""
        return (
            f"{self.num_features}, decay={self.decay}, eps={self.eps}, scale={self.weight is not None}, "
            f"offset={self.bias is not None}, unbiased={self.unbiased}"
        )

    def to_torch(self, space: int = 2) -> nn.modules.batchnorm._BatchNorm:
        """The layer of PyTorch for `space` dimensions that answers the same in eval mode; an absent gamma is 1, beta 0.

        In train mode it normalises in the same way, and keeps unbiased variances.
        """
        made = KINDS[space](self.num_features, eps=self.eps, momentum=1 - self.decay)
        own = self.state_dict()
        made.load_state_dict({**made.state_dict(), **own})
        like = self.running_mean
        assert like is not None
        return made.to(like.device, like.dtype).train(self.training)

    @classmethod
    def from_torch(
        cls, norm: nn.modules.batchnorm._BatchNorm, decay: float | None = None, unbiased: bool = True
    ) -> MovingAverageBatchNorm:
        """The same of a layer of PyTorch; `decay` is 1 - its momentum.

        UsageError where it averages over all batches (momentum None) or keeps no statistics.
        """
        if norm.running_mean is None or (norm.momentum is None and decay is None):
            raise UsageError(f"{type(norm).__name__}: running statistics with a momentum expected")
        kept = decay if decay is not None else 1 - float(norm.momentum)  # type: ignore[arg-type]
        made = cls(norm.num_features, kept, norm.eps, norm.weight is not None, norm.bias is not None, unbiased)
        made.to(norm.running_mean.device, norm.running_mean.dtype).load_state_dict(norm.state_dict())
        return made.train(norm.training)
