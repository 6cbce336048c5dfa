"""NetBuilder: one method per layer, written as exporters write it; each takes and returns tensor names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, prod, sqrt
from typing import Any

import numpy as np

from .core import GraphBuilder
from .moments import Array, Moments, concatenate

Size = int | Sequence[int]
INT64_MAX = 2**63 - 1  # what exporters write for an open slice end


def make_divisible(value: float, divisor: int = 4) -> int:
    """Round a channel count to a multiple of the divisor, never down by more than a tenth (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class NetBuilder(GraphBuilder):
    """Builds a network layer by layer, with random weights and BN statistics from one seed."""

    # -- linear layers

    def conv(
        self,
        x: str,
        out: int,
        k: Size = 3,
        stride: Size = 1,
        *,
        groups: int = 1,
        pad: Size | None = None,
        dilation: Size = 1,
        bias: bool = False,
    ) -> str:
        """Convolve in as many dimensions as x has; `pad=None` pads odd kernels to "same"."""
        kernel, steps, gaps = (self._per_axis(x, v) for v in (k, stride, dilation))
        pads = [g * (n - 1) // 2 for g, n in zip(gaps, kernel, strict=True)] if pad is None else self._per_axis(x, pad)
        name = self.fresh("conv")
        weight, moments = self.random_weight(x, out, prod(kernel), groups)
        inputs = [x, self.weight(f"{name}.weight", weight.reshape(out, -1, *kernel))]
        moments = self._with_bias(name, inputs, moments, bias)
        sizes = _window_sizes(self.spatial(x), kernel, steps, pads, gaps)
        return self.node(
            "Conv", inputs, (out, *sizes), moments, name=name,
            kernel_shape=kernel, strides=steps, pads=pads * 2, dilations=gaps, group=groups,
        )  # fmt: skip

    def conv_transpose(
        self, x: str, out: int, k: Size = 2, stride: Size = 2, *, groups: int = 1, pad: Size = 0, bias: bool = False
    ) -> str:
        """Convolve transposed; the weight is (in, out / groups, *k)."""
        kernel, steps, pads = (self._per_axis(x, v) for v in (k, stride, pad))
        name, per_group = self.fresh("convtranspose"), self.channels(x) // groups
        # Each output pixel meets only one in prod(stride) of the kernel's taps.
        taps, met = prod(kernel), prod(steps)
        weight, moments = self.random_weight(x, out, taps, groups)
        # (out, in/g, taps) -> (g, out/g, in/g, taps) -> (g, in/g, out/g, taps) -> (in, out/g, *k)
        turned = (weight * np.sqrt(met)).reshape(groups, out // groups, per_group, taps).swapaxes(1, 2)
        inputs = [x, self.weight(f"{name}.weight", turned.reshape(-1, out // groups, *kernel))]
        moments = self._with_bias(name, inputs, Moments(moments.mean / np.sqrt(met), moments.var), bias)
        sizes = [(n - 1) * s - 2 * p + w for n, s, p, w in zip(self.spatial(x), steps, pads, kernel, strict=True)]
        return self.node(
            "ConvTranspose", inputs, (out, *sizes), moments, name=name,
            kernel_shape=kernel, strides=steps, pads=pads * 2, group=groups,
        )  # fmt: skip

    def gemm(self, x: str, out: int, *, bias: bool = True) -> str:
        """Apply a fully connected layer as Gemm with transB, the weight being (out, in)."""
        name = self.fresh("gemm")
        weight, moments = self.random_weight(x, out)
        inputs = [x, self.weight(f"{name}.weight", weight[:, :, 0])]
        moments = self._with_bias(name, inputs, moments, bias)
        return self.node("Gemm", inputs, (out,), moments, name=name, transB=1)

    def matmul(self, x: str, out: int, *, bias: bool = True) -> str:
        """Apply a fully connected layer to (N, in) as MatMul, the weight being (in, out), then Add."""
        name = self.fresh("matmul")
        weight, moments = self.random_weight(x, out)
        y = self.node("MatMul", [x, self.weight(f"{name}.weight", weight[:, :, 0].T)], (out,), moments, name=name)
        if not bias:
            return y
        inputs = [y]
        moments = self._with_bias(name, inputs, moments, bias)
        return self.node("Add", inputs[::-1], (out,), moments)  # torch writes the bias first

    def _with_bias(self, name: str, inputs: list[str], moments: Moments, bias: bool) -> Moments:
        """Append a bias to a layer's inputs, if it has one, and return the moments with it."""
        if not bias:
            return moments
        values = self.random_bias(len(moments.mean))
        inputs.append(self.weight(f"{name}.bias", values))
        return moments.affine(1.0, values)

    # -- normalisation

    def bn(self, x: str, eps: float | None = None) -> str:
        """Normalise per channel with statistics near the true ones, and nowhere trivial."""
        name, channels, eps = self.fresh("bn"), self.channels(x), self.eps if eps is None else eps
        gamma, beta, seen = self.random_gamma(channels), self.rng.normal(0.0, 0.4, channels), self.moments[x]
        mean = seen.mean + self.rng.normal(0.0, 0.3, channels) * np.maximum(seen.std, 0.5)
        var = np.maximum(seen.var, 0.1) * self.log_uniform(0.7, 1.4, channels)
        inv = gamma / np.sqrt(var + eps)
        moments = seen.affine(inv, beta - mean * inv)
        # In torch's order, which is also the order of the ONNX inputs.
        statistics = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}
        inputs = [x, *(self.weight(f"{name}.{key}", values) for key, values in statistics.items())]
        return self.node("BatchNormalization", inputs, self.shapes[x], moments, name=name, epsilon=eps)

    def layer_norm(self, x: str) -> str:
        """Normalise over the last axis of (N, features) (opset 17 and later)."""
        if self.opset < 17:
            raise ValueError(f"opset {self.opset}: LayerNormalization needs 17")
        name, size = self.fresh("layernorm"), self.channels(x)
        scale, bias = self.rng.uniform(0.5, 1.5, size), self.random_bias(size)
        inputs = [x, self.weight(f"{name}.weight", scale), self.weight(f"{name}.bias", bias)]
        moments = Moments.standard(size).affine(scale, bias)
        return self.node("LayerNormalization", inputs, self.shapes[x], moments, name=name, axis=-1, epsilon=1e-6)

    def layer_scale(self, x: str) -> str:
        """Multiply each channel by a learnt factor, as the last step of a residual branch."""
        name, factor = self.fresh("layerscale"), self.rng.uniform(0.3, 1.0, self.channels(x))
        gamma = self.weight(f"{name}.gamma", factor.reshape(1, -1, *(1 for _ in self.spatial(x))))
        return self.node("Mul", [x, gamma], self.shapes[x], self.moments[x].affine(factor, 0.0), name=name)

    # -- activations

    def _activation(self, op: str, x: str, function: Callable[[Array], Array], *more: str, **attributes: Any) -> str:
        moments = self.moments[x].pointwise(function)
        return self.node(op, [x, *more], self.shapes[x], moments, **attributes)

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self._activation("Relu", x, lambda v: np.maximum(v, 0.0))

    def clip(self, x: str, low: float, high: float) -> str:
        """Clip to an interval whose ends are scalar Constants."""
        return self._activation("Clip", x, lambda v: np.clip(v, low, high), self.scalar(low), self.scalar(high))

    def relu6(self, x: str) -> str:
        """Clip to [0, 6], as torch exports ReLU6."""
        return self.clip(x, 0.0, 6.0)

    def prelu(self, x: str) -> str:
        """Apply PReLU with one shared slope, as torch's default."""
        slope = self.weight(f"{self.fresh('prelu')}.weight", np.full((1, *(1 for _ in self.spatial(x))), 0.25))
        return self._activation("PRelu", x, lambda v: np.where(v > 0.0, v, 0.25 * v), slope)

    def elu(self, x: str) -> str:
        """x where positive, else exp(x) - 1."""
        return self._activation("Elu", x, lambda v: np.where(v > 0.0, v, np.expm1(np.minimum(v, 0.0))))

    def sigmoid(self, x: str) -> str:
        """1 / (1 + exp(-x))."""
        return self._activation("Sigmoid", x, lambda v: np.asarray(1.0 / (1.0 + np.exp(-v))))

    def hardsigmoid(self, x: str) -> str:
        """clip(x / 6 + 1 / 2, 0, 1), as torch defines it."""
        return self._activation("HardSigmoid", x, _hardsigmoid, alpha=1.0 / 6.0, beta=0.5)

    def hardswish(self, x: str) -> str:
        """x * hardsigmoid(x)."""
        return self._activation("HardSwish", x, lambda v: v * _hardsigmoid(v))

    def gelu(self, x: str) -> str:
        """Apply the exact GELU: the Gelu node from opset 20 on, before that x * (1 + erf(x / sqrt 2)) / 2."""
        if self.opset >= 20:
            return self._activation("Gelu", x, _gelu)
        shape, seen = self.shapes[x], self.moments[x]
        scaled = self.node("Div", [x, self.scalar(sqrt(2.0))], shape, seen.affine(sqrt(0.5), 0.0))
        # Inside, only the last step's moments are read: x and its erf are not independent.
        erf = self.node("Erf", [scaled], shape, seen)
        gate = self.node("Add", [erf, self.scalar(1.0)], shape, seen)
        product = self.node("Mul", [x, gate], shape, seen)
        return self.node("Mul", [product, self.scalar(0.5)], shape, seen.pointwise(_gelu))

    # -- joining and parting

    def add(self, x: str, y: str) -> str:
        """Add two tensors of one shape."""
        return self.node("Add", [x, y], self.shapes[x], self.moments[x].plus(self.moments[y]))

    def sub(self, x: str, y: str) -> str:
        """Subtract a tensor of the same shape."""
        moments = self.moments[x].plus(self.moments[y].affine(-np.ones(self.channels(y)), 0.0))
        return self.node("Sub", [x, y], self.shapes[x], moments)

    def mul(self, x: str, y: str) -> str:
        """Multiply; y may broadcast over space."""
        return self.node("Mul", [x, y], self.shapes[x], self.moments[x].times(self.moments[y]))

    def concat(self, xs: Sequence[str]) -> str:
        """Join along channels; a single input is written too, as torch does."""
        shape = (sum(self.channels(x) for x in xs), *self.spatial(xs[0]))
        return self.node("Concat", xs, shape, concatenate([self.moments[x] for x in xs]), axis=1)

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Part the channels into pieces of the given sizes."""
        name, ends = self.fresh("split"), np.cumsum(sizes)
        inputs = [x, self.integers(f"{name}.sizes", sizes)]
        ranges = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        results = [((r.stop - r.start, *self.spatial(x)), self.moments[x].index(r)) for r in ranges]
        return self.emit("Split", inputs, results, name=name, axis=1)

    def slice(self, x: str, start: int, end: int | None = None) -> str:
        """Take x[:, start:end]."""
        name = self.fresh("slice")
        bounds = {"starts": start, "ends": INT64_MAX if end is None else end, "axes": 1, "steps": 1}
        inputs = [x, *(self.integers(f"{name}.{key}", [value]) for key, value in bounds.items())]
        moments = self.moments[x].index(slice(start, end))
        return self.node("Slice", inputs, (len(moments.mean), *self.spatial(x)), moments, name=name)

    def channel_shuffle(self, x: str, groups: int) -> str:
        """Interleave the groups' channels: (N, g c, h, w) -> (N, g, c, h, w) -> (N, c, g, h, w) -> (N, c g, h, w)."""
        size, space, seen = self.channels(x) // groups, self.spatial(x), self.moments[x]
        order = np.arange(groups * size).reshape(groups, size).T.ravel()
        grouped = self._reshape(x, (groups, size, *space), seen)
        perm = [0, 2, 1, *range(3, 3 + len(space))]
        turned = self.node("Transpose", [grouped], (size, groups, *space), seen, perm=perm)
        return self._reshape(turned, self.shapes[x], seen.index(order))

    def _reshape(self, x: str, shape: Sequence[int], moments: Moments) -> str:
        """Reshape all but the batch axis, which is left to be inferred."""
        name = self.fresh("reshape")
        return self.node("Reshape", [x, self.integers(f"{name}.shape", [-1, *shape])], shape, moments, name=name)

    def pixel_shuffle(self, x: str, factor: int = 2) -> str:
        """Move channels into space in torch's order: (N, c r r, h, w) -> (N, c, h r, w r)."""
        shape, seen = (self.channels(x) // factor**2, *(factor * n for n in self.spatial(x))), self.moments[x]
        means, variances = seen.mean.reshape(-1, factor**2), seen.var.reshape(-1, factor**2)
        moments = Moments(means.mean(axis=1), variances.mean(axis=1) + means.var(axis=1))
        return self.node("DepthToSpace", [x], shape, moments, blocksize=factor, mode="CRD")

    def flatten(self, x: str) -> str:
        """Flatten all but the batch axis."""
        spread = np.repeat(np.arange(self.channels(x)), prod(self.spatial(x)))
        return self.node("Flatten", [x], (prod(self.shapes[x]),), self.moments[x].index(spread), axis=1)

    # -- pooling

    def _pool(self, op: str, x: str, windows: tuple[Size, Size, Size], moments: Moments, **attributes: Any) -> str:
        kernel, steps, pads = (self._per_axis(x, v) for v in windows)
        shape = (self.channels(x), *_window_sizes(self.spatial(x), kernel, steps, pads, [1] * len(kernel)))
        sizes: dict[str, Any] = {"kernel_shape": kernel, "strides": steps, "pads": pads * 2}
        return self.node(op, [x], shape, moments, **sizes, **attributes)

    def max_pool(self, x: str, k: Size = 3, stride: Size = 2, pad: Size = 1) -> str:
        """Take the maximum over windows."""
        return self._pool("MaxPool", x, (k, stride, pad), self.moments[x].maximum())

    def avg_pool(self, x: str, k: Size = 2, stride: Size = 2, pad: Size = 0) -> str:
        """Average over windows, padding counted in, as torch's default."""
        return self._pool("AveragePool", x, (k, stride, pad), self.moments[x].averaged(0.4), count_include_pad=1)

    def gap(self, x: str) -> str:
        """Average over all of space, which stays as axes of size one."""
        shape = (self.channels(x), *(1 for _ in self.spatial(x)))
        return self.node("GlobalAveragePool", [x], shape, self.moments[x].averaged(0.3))

    def reduce_mean(self, x: str, *, keepdims: bool) -> str:
        """Average over space with ReduceMean, whose axes became an input in opset 18."""
        name, axes = self.fresh("reducemean"), list(range(2, 1 + len(self.shapes[x])))
        shape, moments = (self.channels(x), *(1 for _ in axes if keepdims)), self.moments[x].averaged(0.3)
        if self.opset >= 18:
            inputs = [x, self.integers(f"{name}.axes", axes)]
            return self.node("ReduceMean", inputs, shape, moments, name=name, keepdims=int(keepdims))
        return self.node("ReduceMean", [x], shape, moments, name=name, axes=axes, keepdims=int(keepdims))

    # -- what most networks share

    def conv_bn(
        self, x: str, out: int, k: Size = 3, stride: Size = 1, *, groups: int = 1, pad: Size | None = None
    ) -> str:
        """Conv without bias, then BN."""
        return self.bn(self.conv(x, out, k, stride, groups=groups, pad=pad))

    def conv_bn_relu(
        self, x: str, out: int, k: Size = 3, stride: Size = 1, *, groups: int = 1, pad: Size | None = None
    ) -> str:
        """Conv without bias, BN, ReLU."""
        return self.relu(self.conv_bn(x, out, k, stride, groups=groups, pad=pad))

    def bn_relu(self, x: str) -> str:
        """BN, then ReLU: the pre-activation."""
        return self.relu(self.bn(x))

    def squeeze_excite(self, x: str, reduced: int, gate: Callable[[str], str], *, mean: bool = True) -> str:
        """Scale the channels by a gate computed from their averages (ReduceMean, or GlobalAveragePool)."""
        pooled = self.reduce_mean(x, keepdims=True) if mean else self.gap(x)
        hidden = self.relu(self.conv(pooled, reduced, 1, bias=True))
        return self.mul(x, gate(self.conv(hidden, self.channels(x), 1, bias=True)))

    def classifier(self, x: str, classes: int = 16) -> str:
        """Global average pooling, Flatten, Gemm."""
        return self.gemm(self.flatten(self.gap(x)), classes)

    def conv_classifier(self, x: str, classes: int = 16) -> str:
        """Global average pooling, a 1x1 convolution, Flatten."""
        return self.flatten(self.conv(self.gap(x), classes, 1, bias=True))

    def _per_axis(self, x: str, value: Size) -> list[int]:
        return [value] * len(self.spatial(x)) if isinstance(value, int) else list(value)


def _window_sizes(
    sizes: Sequence[int], kernel: Sequence[int], steps: Sequence[int], pads: Sequence[int], gaps: Sequence[int]
) -> list[int]:
    """Return the output size per axis of a sliding window, rounded down."""
    axes = zip(sizes, kernel, steps, pads, gaps, strict=True)
    result = [(n + 2 * p - g * (k - 1) - 1) // s + 1 for n, k, s, p, g in axes]
    if min(result, default=1) < 1:
        raise ValueError(f"window {list(kernel)} does not fit input of size {list(sizes)}: use a larger input")
    return result


def _hardsigmoid(v: Array) -> Array:
    return np.clip(v / 6.0 + 0.5, 0.0, 1.0)


def _gelu(v: Array) -> Array:
    """Compute GELU by its tanh form: good enough for an estimate, and numpy has no erf."""
    return np.asarray(0.5 * v * (1.0 + np.tanh(sqrt(2.0 / pi) * (v + 0.044715 * v**3))))
