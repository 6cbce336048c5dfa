"""Small torch modules that take the place of a norm or an activation where one cheaper op is left of it.

They hold buffers of shape (channels, 1, ..., 1), so that they broadcast along their axis; they are scriptable,
exportable and picklable, and `bnfold` must be installed where they are unpickled. What they work on is called `input`,
as in the modules whose place they take.
"""

import torch
from torch import nn


class ChannelAffine(nn.Module):
    """`x * scale + offset`, one number for each channel; a part that is trivial is left out."""

    scale: torch.Tensor | None
    offset: torch.Tensor | None

    def __init__(self, scale: torch.Tensor | None, offset: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same shape as `input`."""
        scale, offset = self.scale, self.offset
        if scale is not None:
            input = input * scale
        if offset is not None:
            input = input + offset
        return input


class ChannelClamp(nn.Module):
    """`min(max(x, low), high)` with bounds for each channel; `high` may be absent."""

    low: torch.Tensor
    high: torch.Tensor | None

    def __init__(self, low: torch.Tensor, high: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same shape as `input`."""
        input = torch.maximum(input, self.low)
        high = self.high
        if high is not None:
            input = torch.minimum(input, high)
        return input


class ChannelClampInPlace(ChannelClamp):
    """The same, written into `x` itself: in place of an in-place activation, whose input others may read afterwards."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input`."""
        return input.clamp_(self.low, self.high)


class Nothing(nn.Module):
    """A zero that broadcasts: in place of an identity branch that a layer beside it has taken up."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """A single 0 of the type of `input`."""
        return input.new_zeros(1)


class Zeros(nn.Module):
    """Zeros of the shape of the input: in the same place, where the code looks at the shape or writes into them."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As many zeros as `input` has numbers."""
        return torch.zeros_like(input)


class Copy(nn.Module):
    """A copy: in place of a norm behind which values are overwritten that others read."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same values in memory of their own."""
        return input.clone()
