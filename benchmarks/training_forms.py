"""Reparameterised networks as they are trained, at full width: several branches where one layer would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from tests.zoo import NetBuilder
from tests.zoo.registry import WIRINGS

IMAGE = (3, 224, 224)


def overparameterised(net: NetBuilder, x: str, out: int, k: int, stride: int, groups: int, branches: int) -> str:
    """MobileOne's block (Vasu et al. 2022, arXiv 2206.04040): k x k convs, a 1 x 1 scale and a norm, added."""
    y = net.conv_bn(x, out, 1, stride, groups=groups) if k > 1 else ""
    if out == net.channels(x) and stride == 1:
        y = net.add(y, net.bn(x)) if y else net.bn(x)
    for _ in range(branches):
        branch = net.conv_bn(x, out, k, stride, groups=groups)
        y = net.add(y, branch) if y else branch
    return net.relu(y)


def mobileone_s0(net: NetBuilder, x: str, width: int = 64) -> str:
    """MobileOne-S0: every block depthwise, then pointwise, with four branches each."""
    x = overparameterised(net, x, width * 3 // 4, 3, 2, 1, 4)
    for out, depth in ((width * 3 // 4, 2), (2 * width, 8), (4 * width, 10), (16 * width, 1)):
        for i in range(depth):
            x = overparameterised(net, x, net.channels(x), 3, 1 if i else 2, net.channels(x), 4)
            x = overparameterised(net, x, out, 1, 1, 1, 4)
    return net.classifier(x)


def built(
    wiring: Callable[[NetBuilder, str, int], str], width: int, shape: tuple[int, ...] = IMAGE, **options: Any
) -> onnx.ModelProto:
    """A network for images of that shape."""
    net = NetBuilder(**{"dtype": np.float32, "seed": 0, "signs": "both", "zero_gamma": 0.0, "opset": 17, **options})
    return net.finish(wiring(net, net.input(shape), width), wiring.__name__)


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "MobileOne-S0": lambda: built(mobileone_s0, 64),
    "RepVGG-A0": lambda: built(WIRINGS["repvgg_a0"], 48),
    "FastViT-T8, stages of RepMixer": lambda: built(WIRINGS["fastvit"], 48),
    "RepGhostNet": lambda: built(WIRINGS["repghostnet"], 16),
    "RepViT, blocks": lambda: built(WIRINGS["repvit"], 48),
}
"""Each at the width of its authors."""
