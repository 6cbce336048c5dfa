"""Networks in their train-time form, with identity branches that hold nothing but a BN."""

from __future__ import annotations

from .builder import NetBuilder, make_divisible
from .registry import network

IMAGE = (3, 64, 64)


def _repvgg_block(net: NetBuilder, x: str, out: int, stride: int, *, identity: bool) -> str:
    y = net.add(net.conv_bn(x, out, 1, stride), net.conv_bn(x, out, 3, stride))
    return net.relu(net.add(y, net.bn(x)) if identity else y)


@network(bn=61, shape=IMAGE, width=12)
def repvgg_a0(net: NetBuilder, x: str, width: int) -> str:
    """RepVGG-A0 before re-parameterisation (Ding et al. 2021, arXiv 2101.03697); true width 48."""
    x = _repvgg_block(net, x, width, 2, identity=False)
    # The last stage is 1280 = 26 2/3 times 48 wide.
    for depth, out in zip((2, 4, 14, 1), (width, 2 * width, 4 * width, width * 80 // 3), strict=True):
        for block in range(depth):
            x = _repvgg_block(net, x, out, 2 if block == 0 else 1, identity=block > 0)
    return net.classifier(x)


# (kernel, expanded, out, squeeze-and-excitation, stride) at width 16
REPGHOST_BLOCKS = (
    (3, 8, 16, False, 1),
    (3, 24, 24, False, 2),
    (3, 36, 24, False, 1),
    (5, 36, 40, True, 2),
    (5, 60, 40, True, 1),
    (3, 120, 80, False, 2),
    (3, 100, 80, False, 1),
    (3, 120, 80, False, 1),
    (3, 120, 80, False, 1),
    (3, 240, 112, True, 1),
    (3, 336, 112, True, 1),
    (5, 336, 160, True, 2),
    (5, 480, 160, False, 1),
    (5, 480, 160, True, 1),
    (5, 480, 160, False, 1),
    (5, 480, 160, True, 1),
)


def _repghost_module(net: NetBuilder, x: str, out: int, *, relu: bool) -> str:
    primary = net.conv_bn_relu(x, out, 1) if relu else net.conv_bn(x, out, 1)
    y = net.add(net.conv_bn(primary, out, 3, groups=out), net.bn(primary))
    return net.relu(y) if relu else y


def _depthwise_bn(net: NetBuilder, x: str, k: int, stride: int) -> str:
    return net.conv_bn(x, net.channels(x), k, stride, groups=net.channels(x))


def _repghost_bottleneck(
    net: NetBuilder, x: str, sizes: tuple[int, int], k: int, stride: int, *, gated: bool, same: bool
) -> str:
    """Expand, downsample, gate, project; sizes are (expanded, out), `same` where input and output agree."""
    middle, out = sizes
    y = _repghost_module(net, x, middle, relu=True)
    if stride > 1:
        y = _depthwise_bn(net, y, k, stride)
    if gated:
        y = net.squeeze_excite(y, make_divisible(0.25 * middle), net.hardsigmoid)
    y = _repghost_module(net, y, out, relu=False)
    shortcut = x if same else net.conv_bn(_depthwise_bn(net, x, k, stride), out, 1)
    return net.add(y, shortcut)


@network(bn=112, shape=IMAGE, width=4)
def repghostnet(net: NetBuilder, x: str, width: int) -> str:
    """RepGhostNet before re-parameterisation (Chen et al. 2022, arXiv 2211.06088); width 16 is the 1.0x model."""
    x = net.conv_bn_relu(x, make_divisible(width), 3, 2)
    previous = 16
    for k, expanded, out, gated, stride in REPGHOST_BLOCKS:
        sizes = (make_divisible(expanded * width / 16), make_divisible(out * width / 16))
        # Decided on the nominal widths: rounding must not change the wiring.
        same = stride == 1 and out == previous
        x = _repghost_bottleneck(net, x, sizes, k, stride, gated=gated, same=same)
        previous = out
    x = net.gap(net.conv_bn_relu(x, make_divisible(960 * width / 16), 1))
    x = net.relu(net.conv(x, 80 * width, 1, bias=True))
    return net.gemm(net.flatten(x), 16)


def _mobile_one(net: NetBuilder, x: str, k: int, *, conv: bool = True) -> str:
    """MobileOne's depthwise block: a k x k branch, a 1 x 1 branch and the input itself, each with a norm."""
    c = net.channels(x)
    y = net.bn(x)
    if not conv:
        return y
    return net.add(net.add(net.conv_bn(x, c, k, groups=c), net.conv_bn(x, c, 1, groups=c)), y)


def _fastvit_mlp(net: NetBuilder, x: str) -> str:
    """Depthwise 7 x 7 with a norm, then two pointwise layers around a GELU, scaled and added."""
    c = net.channels(x)
    y = net.conv_bn(x, c, 7, groups=c)
    y = net.conv(net.gelu(net.conv(y, 3 * c, 1, bias=True)), c, 1, bias=True)
    return net.add(x, net.layer_scale(y))


@network(bn=35, shape=IMAGE, width=12)
def fastvit(net: NetBuilder, x: str, width: int) -> str:
    """FastViT's RepMixer stages before re-parameterisation (Vasu et al. 2023, arXiv 2303.14189); true width 48."""
    x = net.gelu(net.conv_bn(x, width, 3, 2))
    for stage in range(3):
        for _ in range(2):
            mixed = net.sub(_mobile_one(net, x, 3), _mobile_one(net, x, 3, conv=False))
            x = _fastvit_mlp(net, net.add(x, net.layer_scale(mixed)))
        if stage < 2:
            x = net.gelu(net.conv_bn(net.gelu(net.conv_bn(x, 2 * net.channels(x), 7, 2)), 2 * net.channels(x), 1))
    return net.classifier(x)


@network(bn=31, shape=IMAGE, width=12)
def repvit(net: NetBuilder, x: str, width: int) -> str:
    """RepViT blocks before re-parameterisation (Wang et al. 2023, arXiv 2307.09283); true width 48.

    Token mixer: bn(bn(dw3x3(x)) + dw1x1(x) + x), a gate in every other block; channel mixer: x + two pointwise convs.
    """
    x = net.conv_bn(net.gelu(net.conv_bn(x, width // 2, 3, 2)), width, 3, 2)
    for block in range(6):
        c = net.channels(x)
        local = net.add(net.conv_bn(x, c, 3, groups=c), net.conv(x, c, 1, groups=c, bias=True))
        x = net.bn(net.add(local, x))
        if block % 2 == 0:
            x = net.squeeze_excite(x, 4, net.sigmoid)
        x = net.add(x, net.conv_bn(net.gelu(net.conv_bn(x, 2 * c, 1)), c, 1))
    for _ in range(2):
        c = net.channels(x)
        x = net.add(x, net.conv_bn(net.gelu(net.conv_bn(x, 2 * c, 1)), c, 1))
    return net.classifier(net.bn(x))
