"""Networks of other kinds: mixers, U-shapes, other ranks, other domains."""

from __future__ import annotations

from .builder import NetBuilder
from .registry import network


def _inception_mixer(net: NetBuilder, x: str, band: int = 9) -> str:
    """Leave a quarter of the channels alone, convolve the others per channel: square, row, column."""
    c = net.channels(x) // 4
    same, square, row, column = net.split(x, [net.channels(x) - 3 * c, c, c, c])
    square = net.conv(square, c, 3, groups=c, bias=True)
    row = net.conv(row, c, (1, band), groups=c, bias=True)
    column = net.conv(column, c, (band, 1), groups=c, bias=True)
    return net.concat([same, square, row, column])


def _metanext_block(net: NetBuilder, x: str, ratio: int) -> str:
    y = net.bn(_inception_mixer(net, x))
    y = net.gelu(net.conv(y, ratio * net.channels(x), 1, bias=True))
    y = net.conv(y, net.channels(x), 1, bias=True)
    return net.add(net.layer_scale(y), x)


@network(bn=16, shape=(3, 64, 64), width=16)
def inception_next(net: NetBuilder, x: str, width: int) -> str:
    """InceptionNeXt-Atto (Yu et al. 2023, arXiv 2303.16900); true width 40. Its LayerNorm needs opset 17."""
    x = net.bn(net.conv(x, width, 4, 4, pad=0, bias=True))
    for stage, (depth, ratio) in enumerate(zip((2, 2, 6, 2), (4, 4, 4, 3), strict=True)):
        if stage > 0:
            x = net.conv(net.bn(x), width * 2**stage, 2, 2, pad=0, bias=True)
        for _ in range(depth):
            x = _metanext_block(net, x, ratio)
    y = net.gelu(net.gemm(net.reduce_mean(x, keepdims=False), 3 * net.channels(x)))
    return net.gemm(net.layer_norm(y), 16)


@network(bn=17, shape=(3, 32, 32), width=32)
def convmixer(net: NetBuilder, x: str, width: int) -> str:
    """ConvMixer of depth 8 with 5x5 kernels, BN after GELU (Trockman and Kolter 2022, arXiv 2201.09792)."""
    x = net.bn(net.gelu(net.conv(x, width, 4, 4, pad=0, bias=True)))
    for _ in range(8):
        x = net.add(net.bn(net.gelu(net.conv(x, width, 5, groups=width, bias=True))), x)
        x = net.bn(net.gelu(net.conv(x, width, 1, bias=True)))
    return net.classifier(x)


def _double_conv(net: NetBuilder, x: str, out: int) -> str:
    return net.conv_bn_relu(net.conv_bn_relu(x, out), out)


@network(bn=22, shape=(3, 64, 64), width=8)
def unet(net: NetBuilder, x: str, width: int) -> str:
    """U-Net of four levels, BN after each convolution, the transposed ones included; true width 64."""
    skips: list[str] = []
    for level in range(4):
        skips.append(_double_conv(net, x, width * 2**level))
        x = net.max_pool(skips[-1], 2, 2, 0)
    x = _double_conv(net, x, width * 16)
    for level in reversed(range(4)):
        up = net.relu(net.bn(net.conv_transpose(x, width * 2**level, 2, 2)))
        x = _double_conv(net, net.concat([skips[level], up]), width * 2**level)
    return net.conv(x, 4, 1, bias=True)


@network(bn=7, shape=(24, 100), width=64)
def speech_tdnn(net: NetBuilder, x: str, width: int) -> str:
    """A time-delay network on (features, frames), BN after ReLU and no padding, as x-vectors are; true width 512."""
    for out, k, dilation in ((width, 5, 1), (width, 3, 2), (width, 3, 3), (width, 1, 1), (3 * width, 1, 1)):
        x = net.bn(net.relu(net.conv(x, out, k, pad=0, dilation=dilation, bias=True)))
    # Averaged over time; the paper adds the deviation, which no affine map passes.
    x = net.reduce_mean(x, keepdims=False)
    for _ in range(2):
        x = net.bn(net.relu(net.gemm(x, width)))
    return net.gemm(x, 16)


def _basic_block(net: NetBuilder, x: str, out: int, stride: int, *, project: bool) -> str:
    y = net.conv_bn(net.conv_bn_relu(x, out, 3, stride), out, 3)
    return net.relu(net.add(y, net.conv_bn(x, out, 1, stride) if project else x))


@network(bn=20, shape=(3, 8, 32, 32), width=8)
def resnet3d_18(net: NetBuilder, x: str, width: int) -> str:
    """3-D ResNet-18 on (frames, height, width) (Tran et al. 2018, arXiv 1711.11248), true width 64."""
    x = net.conv_bn_relu(x, width, (3, 7, 7), (1, 2, 2))
    for stage in range(4):
        for block in range(2):
            first = stage > 0 and block == 0
            x = _basic_block(net, x, width * 2**stage, 2 if first else 1, project=first)
    return net.classifier(x)


@network(bn=5, shape=(20,), width=32)
def mlp(net: NetBuilder, x: str, width: int) -> str:
    """A network for tables: BN on the input, then BN before and after ReLU, behind Gemm and behind MatMul and Add."""
    x = net.gemm(net.bn(x), width)
    x = net.gemm(net.bn_relu(x), width, bias=False)
    x = net.matmul(net.bn_relu(x), 2 * width)
    x = net.gemm(net.bn_relu(x), width)
    return net.gemm(net.bn(net.relu(x)), 8)


def _sr_block(net: NetBuilder, x: str, width: int) -> str:
    y = net.prelu(net.conv_bn(x, width))
    return net.add(x, net.conv_bn(y, width))


@network(bn=19, shape=(3, 16, 16), width=16)
def super_resolution(net: NetBuilder, x: str, width: int) -> str:
    """SRResNet (Ledig et al. 2017, arXiv 1609.04802), 4x, 8 blocks, BN around the pixel shuffles; true width 64."""
    head = net.prelu(net.conv(x, width, 9, bias=True))
    y = head
    for _ in range(8):
        y = _sr_block(net, y, width)
    y = net.add(head, net.conv_bn(y, width))
    # The paper has no BN here; one in front of a shuffle and one behind it show both index maps.
    y = net.prelu(net.pixel_shuffle(net.conv_bn(y, 4 * width)))
    y = net.prelu(net.bn(net.pixel_shuffle(net.conv(y, 4 * width, bias=True))))
    return net.conv(y, 3, 9, bias=True)
