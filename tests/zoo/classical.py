"""Networks in the classical order, convolution then BN then activation."""

from __future__ import annotations

from .builder import NetBuilder, Size, make_divisible
from .registry import network

IMAGE = (3, 64, 64)


def _bottleneck(net: NetBuilder, x: str, out: int, stride: int, *, first: bool) -> str:
    y = net.conv_bn_relu(x, out // 4, 1)
    y = net.conv_bn_relu(y, out // 4, 3, stride)
    y = net.conv_bn(y, out, 1)
    return net.relu(net.add(y, net.conv_bn(x, out, 1, stride) if first else x))


@network(bn=53, shape=IMAGE, width=8)
def resnet50(net: NetBuilder, x: str, width: int) -> str:
    """ResNet-50 with the stride in the 3x3 convolution (v1.5, He et al. 2015, arXiv 1512.03385); true width 64."""
    x = net.max_pool(net.conv_bn_relu(x, width, 7, 2))
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _bottleneck(net, x, 4 * width * 2**stage, stride, first=block == 0)
    return net.classifier(x)


# (expansion, out, repeats, first stride) at width 32
MOBILENETV2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _inverted_residual(net: NetBuilder, x: str, expansion: int, out: int, stride: int, *, residual: bool) -> str:
    middle = expansion * net.channels(x)
    y = net.relu6(net.conv_bn(x, middle, 1)) if expansion > 1 else x
    y = net.relu6(net.conv_bn(y, middle, 3, stride, groups=middle))
    y = net.conv_bn(y, out, 1)
    return net.add(x, y) if residual else y


@network(bn=52, shape=IMAGE, width=8)
def mobilenetv2(net: NetBuilder, x: str, width: int) -> str:
    """MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381); width 32 is the 1.0x model."""
    x = net.relu6(net.conv_bn(x, width, 3, 2))
    for expansion, nominal, repeats, stride in MOBILENETV2_STAGES:
        out = make_divisible(nominal * width / 32)
        for i in range(repeats):
            x = _inverted_residual(net, x, expansion, out, stride if i == 0 else 1, residual=i > 0)
    return net.classifier(net.relu6(net.conv_bn(x, 40 * width, 1)))


# (kernel, expanded, out, squeeze-and-excitation, hard swish, stride) at width 16
MOBILENETV3_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def _gated_inverted_residual(
    net: NetBuilder, x: str, sizes: tuple[int, int], k: int, stride: int, *, expand: bool, gated: bool, swish: bool
) -> str:
    """Expand, convolve per channel, gate, project; sizes are (expanded, out)."""
    middle, out = sizes
    act = net.hardswish if swish else net.relu
    y = act(net.conv_bn(x, middle, 1)) if expand else x
    y = act(net.conv_bn(y, middle, k, stride, groups=middle))
    if gated:
        y = net.squeeze_excite(y, make_divisible(middle / 4), net.hardsigmoid, mean=False)
    return net.conv_bn(y, out, 1)


@network(bn=46, shape=IMAGE, width=8, eps=1e-3)
def mobilenetv3_like(net: NetBuilder, x: str, width: int) -> str:
    """MobileNetV3-Large wiring (Howard et al. 2019, arXiv 1905.02244); width 16 is the 1.0x model."""
    x = net.hardswish(net.conv_bn(x, width, 3, 2))
    previous = 16
    for k, expanded, out, gated, swish, stride in MOBILENETV3_BLOCKS:
        sizes = (make_divisible(expanded * width / 16), make_divisible(out * width / 16))
        expand = expanded != previous
        y = _gated_inverted_residual(net, x, sizes, k, stride, expand=expand, gated=gated, swish=swish)
        x = net.add(y, x) if stride == 1 and out == previous else y
        previous = out
    x = net.flatten(net.gap(net.hardswish(net.conv_bn(x, 60 * width, 1))))
    return net.gemm(net.hardswish(net.gemm(x, 10 * width)), 16)


def _shuffle_unit(net: NetBuilder, x: str, out: int, groups: int, *, down: bool, group_first: bool) -> str:
    """A ShuffleNet unit; a downsampling one is joined to its pooled input by Concat instead of Add."""
    middle, branch = out // 4, out - net.channels(x) if down else out
    y = net.conv_bn_relu(x, middle, 1, groups=groups if group_first else 1)
    y = net.channel_shuffle(y, groups)
    y = net.conv_bn(y, middle, 3, 2 if down else 1, groups=middle)
    y = net.conv_bn(y, branch, 1, groups=groups)
    return net.relu(net.concat([net.avg_pool(x, 3, 2, 1), y]) if down else net.add(x, y))


@network(bn=49, shape=IMAGE, width=12)
def shufflenet(net: NetBuilder, x: str, width: int) -> str:
    """ShuffleNet with three groups (Zhang et al. 2017, arXiv 1707.01083); width is the stem's, truly 24."""
    x = net.max_pool(net.conv_bn_relu(x, width, 3, 2))
    for stage, depth in enumerate((4, 8, 4)):
        for block in range(depth):
            # The paper leaves the very first pointwise layer ungrouped: it has few input channels.
            group_first = stage > 0 or block > 0
            x = _shuffle_unit(net, x, 4 * width * 2**stage, 3, down=block == 0, group_first=group_first)
    return net.classifier(x)


def _chain(net: NetBuilder, x: str, *layers: tuple[int, Size]) -> str:
    """Conv, BN, ReLU for each (channels, kernel)."""
    for out, k in layers:
        x = net.conv_bn_relu(x, out, k)
    return x


def _inception_a(net: NetBuilder, x: str, u: int, pool: int) -> str:
    one = _chain(net, x, (4 * u, 1))
    five = _chain(net, x, (3 * u, 1), (4 * u, 5))
    double = _chain(net, x, (4 * u, 1), (6 * u, 3), (6 * u, 3))
    return net.concat([one, five, double, _chain(net, net.avg_pool(x, 3, 1, 1), (pool, 1))])


def _inception_b(net: NetBuilder, x: str, u: int) -> str:
    three = net.conv_bn_relu(x, 24 * u, 3, 2, pad=0)
    double = net.conv_bn_relu(_chain(net, x, (4 * u, 1), (6 * u, 3)), 6 * u, 3, 2, pad=0)
    return net.concat([three, double, net.max_pool(x, 3, 2, 0)])


def _inception_c(net: NetBuilder, x: str, u: int, middle: int) -> str:
    row, column, out = (1, 7), (7, 1), 12 * u
    one = _chain(net, x, (out, 1))
    seven = _chain(net, x, (middle, 1), (middle, row), (out, column))
    double = _chain(net, x, (middle, 1), (middle, column), (middle, row), (middle, column), (out, row))
    return net.concat([one, seven, double, _chain(net, net.avg_pool(x, 3, 1, 1), (out, 1))])


def _inception_d(net: NetBuilder, x: str, u: int) -> str:
    out = 12 * u
    three = net.conv_bn_relu(_chain(net, x, (out, 1)), 20 * u, 3, 2, pad=0)
    seven = _chain(net, x, (out, 1), (out, (1, 7)), (out, (7, 1)))
    return net.concat([three, net.conv_bn_relu(seven, out, 3, 2, pad=0), net.max_pool(x, 3, 2, 0)])


def _fork(net: NetBuilder, x: str, out: int) -> str:
    return net.concat([_chain(net, x, (out, (1, 3))), _chain(net, x, (out, (3, 1)))])


def _inception_e(net: NetBuilder, x: str, u: int) -> str:
    one = _chain(net, x, (20 * u, 1))
    three = _fork(net, _chain(net, x, (24 * u, 1)), 24 * u)
    double = _fork(net, _chain(net, x, (28 * u, 1), (24 * u, 3)), 24 * u)
    return net.concat([one, three, double, _chain(net, net.avg_pool(x, 3, 1, 1), (12 * u, 1))])


@network(bn=94, shape=(3, 107, 107), width=2, eps=1e-3)
def inception_v3(net: NetBuilder, x: str, width: int) -> str:
    """Inception v3 without its auxiliary head (Szegedy et al. 2015, arXiv 1512.00567); true width 16."""
    u = width
    x = net.conv_bn_relu(x, 2 * u, 3, 2, pad=0)
    x = net.conv_bn_relu(net.conv_bn_relu(x, 2 * u, 3, pad=0), 4 * u, 3)
    x = net.conv_bn_relu(_chain(net, net.max_pool(x, 3, 2, 0), (5 * u, 1)), 12 * u, 3, pad=0)
    x = net.max_pool(x, 3, 2, 0)
    for pool in (2 * u, 4 * u, 4 * u):
        x = _inception_a(net, x, u, pool)
    x = _inception_b(net, x, u)
    for middle in (8 * u, 10 * u, 10 * u, 12 * u):
        x = _inception_c(net, x, u, middle)
    x = _inception_d(net, x, u)
    return net.classifier(_inception_e(net, _inception_e(net, x, u), u))
