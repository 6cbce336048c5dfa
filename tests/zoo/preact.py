"""Networks whose BNs stand before the convolution: on residual streams, after Concat, behind gates."""

from __future__ import annotations

from .builder import NetBuilder
from .registry import network

IMAGE = (3, 64, 64)


def _preact_bottleneck(net: NetBuilder, x: str, out: int, stride: int, *, first: bool) -> str:
    pre = net.bn_relu(x)
    shortcut = net.conv(pre, out, 1, stride) if first else x
    y = net.bn_relu(net.conv(pre, out // 4, 1))
    y = net.bn_relu(net.conv(y, out // 4, 3, stride))
    return net.add(net.conv(y, out, 1), shortcut)


@network(bn=49, shape=IMAGE, width=8)
def resnetv2_50(net: NetBuilder, x: str, width: int) -> str:
    """ResNetV2-50, pre-activation bottlenecks (He et al. 2016, arXiv 1603.05027), stem without BN; true width 64."""
    x = net.max_pool(net.conv(x, width, 7, 2))
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _preact_bottleneck(net, x, 4 * width * 2**stage, stride, first=block == 0)
    return net.conv_classifier(net.bn_relu(x))


def _dense_layer(net: NetBuilder, features: list[str], growth: int) -> str:
    y = net.conv(net.bn_relu(net.concat(features)), 4 * growth, 1)
    return net.conv(net.bn_relu(y), growth, 3)


@network(bn=121, shape=IMAGE, width=8)
def densenet121(net: NetBuilder, x: str, width: int) -> str:
    """DenseNet-121 (Huang et al. 2017, arXiv 1608.06993); width is the growth rate, truly 32."""
    x = net.max_pool(net.conv_bn_relu(x, 2 * width, 7, 2))
    for stage, depth in enumerate((6, 12, 24, 16)):
        if stage > 0:
            x = net.avg_pool(net.conv(net.bn_relu(x), net.channels(x) // 2, 1))
        features = [x]
        for _ in range(depth):
            features.append(_dense_layer(net, features, width))
        x = net.concat(features)
    return net.classifier(net.bn_relu(x))


def _dual_path_block(
    net: NetBuilder, paths: tuple[str, ...], sizes: tuple[int, int, int], groups: int, stride: int, *, project: bool
) -> tuple[str, str]:
    """Grow the residual path by addition and the dense path by Concat; sizes are (bottleneck, residual, dense)."""
    middle, residual, dense = sizes
    x = net.concat(paths) if len(paths) > 1 else paths[0]
    if project:
        shortcut = net.conv(net.bn_relu(x), residual + 2 * dense, 1, stride)
        paths = (net.slice(shortcut, 0, residual), net.slice(shortcut, residual))
    y = net.conv(net.bn_relu(x), middle, 1)
    y = net.conv(net.bn_relu(y), middle, 3, stride, groups=groups)
    y = net.conv(net.bn_relu(y), residual + dense, 1)
    added, new = net.slice(y, 0, residual), net.slice(y, residual)
    return net.add(paths[0], added), net.concat([paths[1], new])


@network(bn=72, shape=IMAGE, width=16, eps=1e-3)
def dpn68(net: NetBuilder, x: str, width: int) -> str:
    """Dual Path Network 68 (Chen et al. 2017, arXiv 1707.01629); width is that of the first stage, truly 64."""
    paths: tuple[str, ...] = (net.max_pool(net.conv_bn_relu(x, 10, 3, 2)),)
    increments = (width // 4, width // 2, width // 2, width)
    for stage, (depth, dense) in enumerate(zip((3, 4, 12, 3), increments, strict=True)):
        residual = width * 2**stage
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            sizes = (2 * residual, residual, dense)
            paths = _dual_path_block(net, paths, sizes, width // 2, stride, project=block == 0)
    return net.conv_classifier(net.elu(net.bn(net.concat(paths))))


def _preact_basic(net: NetBuilder, x: str, out: int, stride: int) -> tuple[str, str]:
    """Return the branch and the shortcut of a basic pre-activation block, not yet added."""
    pre = net.bn_relu(x)
    project = stride != 1 or net.channels(x) != out
    shortcut = net.conv(pre, out, 1, stride) if project else x
    y = net.conv(pre, out, 3, stride)
    return net.conv(net.bn_relu(y), out, 3), shortcut


@network(bn=17, shape=(3, 32, 32), width=8)
def preact_resnet18(net: NetBuilder, x: str, width: int) -> str:
    """Pre-activation ResNet-18 for small images, with the final BN of the paper; true width 64."""
    x = net.conv(x, width, 3)
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            x = net.add(*_preact_basic(net, x, width * 2**stage, stride))
    return net.classifier(net.bn_relu(x))


@network(bn=17, shape=(3, 32, 32), width=16)
def se_preact_resnet18(net: NetBuilder, x: str, width: int) -> str:
    """Pre-activation ResNet-18 with squeeze-and-excitation on each branch, stem BN and no final one; true width 64."""
    x = net.conv_bn_relu(x, width, 3)
    for stage in range(4):
        out = width * 2**stage
        for block in range(2):
            branch, shortcut = _preact_basic(net, x, out, 2 if stage > 0 and block == 0 else 1)
            branch = net.squeeze_excite(branch, out // 16, net.sigmoid, mean=False)
            x = net.add(branch, shortcut)
    return net.classifier(x)
