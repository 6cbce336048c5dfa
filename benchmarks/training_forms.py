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
    return net.classifier(x, 1000)


def mobile_block(net: NetBuilder, x: str, out: int, k: int, stride: int = 1, groups: int = 1) -> str:
    """The same with one conv branch and no activation, as FastViT uses it."""
    branches = [net.conv_bn(x, out, 1, stride, groups=groups)] * (k > 1)
    branches += [net.bn(x)] * (out == net.channels(x) and stride == 1)
    y = net.conv_bn(x, out, k, stride, groups=groups)
    for branch in branches:
        y = net.add(y, branch)
    return y


def fastvit_t8(net: NetBuilder, x: str, width: int = 48) -> str:
    """FastViT-T8 (Vasu et al. 2023, arXiv 2303.14189): RepMixer blocks in four stages, large kernels between them."""
    x = net.gelu(mobile_block(net, x, width, 3, 2))
    x = net.gelu(mobile_block(net, x, width, 3, 2, width))
    x = net.gelu(mobile_block(net, x, width, 1))
    for stage, depth in enumerate((2, 2, 4, 2)):
        if stage:
            c = net.channels(x)
            x = net.gelu(net.add(net.conv_bn(x, 2 * c, 7, 2, groups=c), net.conv_bn(x, 2 * c, 3, 2, groups=c)))
            x = net.gelu(mobile_block(net, x, 2 * c, 1))
        for _ in range(depth):
            c = net.channels(x)
            x = net.add(x, net.layer_scale(net.sub(mobile_block(net, x, c, 3, groups=c), net.bn(x))))
            y = net.conv(net.conv_bn(x, c, 7, groups=c), 3 * c, 1, bias=True)
            x = net.add(x, net.layer_scale(net.conv(net.gelu(y), c, 1, bias=True)))
    c = net.channels(x)
    y = mobile_block(net, x, 2 * c, 3, groups=c)
    return net.classifier(net.gelu(net.squeeze_excite(y, c // 8, net.sigmoid)), 1000)


def repvit_m09(net: NetBuilder, x: str, width: int = 48) -> str:
    """RepViT-M0.9 (Wang et al. 2023, arXiv 2307.09283): a depthwise 3 x 3, a 1 x 1, the input, and a norm over all."""
    x = net.conv_bn(net.gelu(net.conv_bn(x, width // 2, 3, 2)), width, 3, 2)
    for stage, depth in enumerate((3, 4, 16, 3)):
        for i in range(depth):
            c = net.channels(x)
            gated = i % 2 == (stage > 0) and i < depth - (stage > 0)
            down = stage and i == 0
            if down:
                x = net.conv_bn(net.conv_bn(x, c, 3, 2, groups=c), 2 * c, 1)
                c *= 2
            else:
                local = net.add(net.conv_bn(x, c, 3, groups=c), net.conv(x, c, 1, groups=c, bias=True))
                x = net.bn(net.add(local, x))
                x = net.squeeze_excite(x, c // 4, net.sigmoid) if gated else x
            x = net.add(x, net.conv_bn(net.gelu(net.conv_bn(x, 2 * c, 1)), c, 1))
    return net.classifier(x, 1000)


def built(
    wiring: Callable[[NetBuilder, str, int], str], width: int, shape: tuple[int, ...] = IMAGE, **options: Any
) -> onnx.ModelProto:
    """A network for images of that shape."""
    net = NetBuilder(**{"dtype": np.float32, "seed": 0, "signs": "both", "zero_gamma": 0.0, "opset": 17, **options})
    return net.finish(wiring(net, net.input(shape), width), wiring.__name__)


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "MobileOne-S0": lambda: built(mobileone_s0, 64),
    "RepVGG-A0": lambda: built(WIRINGS["repvgg_a0"], 48),
    "FastViT-T8": lambda: built(fastvit_t8, 48, (3, 256, 256)),
    "RepGhostNet": lambda: built(WIRINGS["repghostnet"], 16),
    "RepViT-M0.9": lambda: built(repvit_m09, 48),
}
"""Each at the width of its authors."""
