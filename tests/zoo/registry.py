"""The table of networks, filled by the decorator that turns a wiring function into a model builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from .builder import NetBuilder
from .core import Signs

Wiring = Callable[[NetBuilder, str, int], str]


class Network(Protocol):
    """Builds one network; `width` scales its channels, and its default keeps the file small."""

    def __call__(
        self,
        dtype: npt.DTypeLike = np.float32,
        seed: int = 0,
        width: int = ...,
        signs: Signs = "positive",
        zero_gamma: float = 0.0,
        opset: int = 17,
    ) -> onnx.ModelProto: ...


ZOO: dict[str, Network] = {}
EXPECTED_BN: dict[str, int] = {}
WIRINGS: dict[str, Wiring] = {}
"""What the networks are made of, for builders of their own."""


def network(*, bn: int, shape: Sequence[int], width: int, eps: float = 1e-5) -> Callable[[Wiring], Network]:
    """Register a wiring (net, input, width) -> output together with its number of BNs, input shape and width."""
    default_width = width

    def register(wiring: Wiring) -> Network:
        def build(
            dtype: npt.DTypeLike = np.float32,
            seed: int = 0,
            width: int = default_width,
            signs: Signs = "positive",
            zero_gamma: float = 0.0,
            opset: int = 17,
        ) -> onnx.ModelProto:
            net = NetBuilder(dtype=dtype, seed=seed, signs=signs, zero_gamma=zero_gamma, opset=opset, eps=eps)
            return net.finish(wiring(net, net.input(shape), width), wiring.__name__)

        build.__name__, build.__qualname__, build.__doc__ = wiring.__name__, wiring.__qualname__, wiring.__doc__
        ZOO[wiring.__name__], EXPECTED_BN[wiring.__name__] = build, bn
        WIRINGS[wiring.__name__] = wiring
        return build

    return register
