"""Every rule of the table and every refusal, one small float64 network each: verdicts, reasons, same function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.evaluate import evaluate

Array = npt.NDArray[Any]


class Net:
    """A float64 network over the input `x`."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def w(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float64) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        index = len(self.nodes)
        names = [f"{kind.lower()}{index}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        domain = attrs.pop("domain", "")
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}{index}", domain=domain, **attrs))
        return names[0] if outputs == 1 else names

    def bn(self, x: str, c: int, gamma: list[float] | None = None, **attrs: Any) -> str:
        g = np.abs(self.rng.normal(1.0, 0.4, c)) + 0.2 if gamma is None else np.array(gamma)
        beta, mean = self.rng.normal(0.3, 0.7, c), self.rng.normal(-0.2, 0.8, c)
        var = np.exp(self.rng.uniform(-1.2, 1.2, c))
        return str(self.op("BatchNormalization", x, *map(self.w, (g, beta, mean, var)), epsilon=1e-3, **attrs))

    def conv(self, x: str, cin: int, out: int, k: int = 1, bias: bool = False, **attrs: Any) -> str:
        groups = attrs.get("group", 1)
        weight = self.rng.standard_normal((out, cin // groups, k, k)) / np.sqrt(cin // groups * k * k)
        return str(self.op("Conv", x, self.w(weight), *([self.w(self.rng.normal(size=out))] if bias else []), **attrs))

    def model(self, *outputs: str, opset: int = 17, domains: tuple[str, ...] = ()) -> onnx.ModelProto:
        def value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape)

        graph = helper.make_graph(self.nodes, "net", [value("x", self.shape)], [], self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        made.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
        if not outputs:  # the caller adds them
            return made
        inferred = onnx.shape_inference.infer_shapes(made)
        known = {v.name: v for v in inferred.graph.value_info}
        made.graph.output.extend(known[name] for name in outputs)
        return made


@dataclass(frozen=True)
class Case:
    """`fates`: verdict, "reduced:form" or "kept:code" of each norm in graph order."""

    name: str
    fates: tuple[str, ...]
    build: Callable[[], onnx.ModelProto]


CASES: list[Case] = []


def case(*fates: str) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], onnx.ModelProto]]:
    def register(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        CASES.append(Case(build.__name__, fates, build))
        return build

    return register


def _fate(bn: bnfold.BatchNorm) -> str:
    if bn.verdict == "folded":
        assert bn.reason is None
        return "folded"
    assert bn.reason is not None
    return f"{bn.verdict}:{bn.form or bn.reason.code}"


# --- linear layers


@case("folded")
def conv_then_bn() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    return n.model(n.bn(n.conv("x", 3, 4, 3, pads=[1] * 4), 4))


@case("folded")
def conv_with_bias_then_bn_of_both_signs_and_a_zero() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    return n.model(n.bn(n.conv("x", 3, 4, 3, True, pads=[1] * 4), 4, [1.2, -0.7, 0.0, 0.4]))


@case("folded")
def bn_then_unpadded_conv() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    return n.model(n.conv(n.bn("x", 4, [1.2, -0.7, 0.0, 0.4]), 4, 3, 3))


@case("folded")
def bn_then_grouped_conv() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    return n.model(n.conv(n.bn("x", 4), 4, 6, 3, True, group=2))


@case("reduced:add")
def bn_then_zero_padded_conv() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    return n.model(n.conv(n.bn("x", 4), 4, 3, 3, pads=[1] * 4))


@case("reduced:add")
def bn_then_conv_with_auto_pad_same() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    return n.model(n.conv(n.bn("x", 4), 4, 3, 3, auto_pad="SAME_LOWER"))


@case("folded")
def bn_then_conv_with_auto_pad_valid() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    return n.model(n.conv(n.bn("x", 4), 4, 3, 3, auto_pad="VALID"))


@case("folded")
def conv_transpose_grouped_then_bn() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    y = n.op("ConvTranspose", "x", n.w(n.rng.standard_normal((4, 3, 3, 3))), group=2, strides=[2, 2], pads=[1] * 4)
    return n.model(n.bn(y, 6))


@case("reduced:add")
def bn_then_conv_transpose() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    return n.model(n.op("ConvTranspose", n.bn("x", 4), n.w(n.rng.standard_normal((4, 3, 2, 2))), strides=[2, 2]))


@case("folded")
def bn_then_pointwise_conv_transpose() -> onnx.ModelProto:
    n = Net(2, 4, 5, 5)
    return n.model(n.op("ConvTranspose", n.bn("x", 4), n.w(n.rng.standard_normal((4, 3, 1, 1)))))


@case("folded", "folded")
def gemm_alpha_beta_trans_b_on_both_sides() -> onnx.ModelProto:
    n = Net(3, 4)
    y = n.bn("x", 4)
    y = n.op("Gemm", y, n.w(n.rng.normal(size=(5, 4))), n.w(n.rng.normal(size=5)), alpha=0.5, beta=2.0, transB=1)
    return n.model(n.bn(y, 5))


@case("folded")
def gemm_beta_zero_ignores_c() -> onnx.ModelProto:
    n = Net(3, 4)
    return n.model(n.bn(n.op("Gemm", "x", n.w(n.rng.normal(size=(4, 5))), n.w(n.rng.normal(size=5)), beta=0.0), 5))


@case("folded")
def gemm_with_matrix_bias() -> onnx.ModelProto:
    n = Net(3, 4)
    return n.model(n.bn(n.op("Gemm", "x", n.w(n.rng.normal(size=(4, 5))), n.w(n.rng.normal(size=(3, 5))), beta=0.5), 5))


@case("folded")
def gemm_with_scalar_bias_and_trans_a() -> onnx.ModelProto:
    n = Net(4, 3)
    return n.model(n.bn(n.op("Gemm", "x", n.w(n.rng.normal(size=(4, 5))), n.w(0.7), transA=1), 5))


@case("folded")
def matmul_with_bias_add_then_bn() -> onnx.ModelProto:
    n = Net(3, 4)
    y = n.op("MatMul", "x", n.w(n.rng.normal(size=(4, 5))))
    return n.model(n.bn(n.op("Add", n.w(n.rng.normal(size=5)), y), 5))


@case("folded")
def matmul_without_bias_gets_one_in_an_addition() -> onnx.ModelProto:
    n = Net(3, 4)
    return n.model(n.bn(n.op("MatMul", "x", n.w(n.rng.normal(size=(4, 5)))), 5))


@case("folded", "folded")
def one_addition_takes_the_offsets_of_norms_on_both_sides_of_a_matmul() -> onnx.ModelProto:
    n = Net(3, 4)
    y = n.op("MatMul", n.bn("x", 4, [1.2, -0.7, 0.0, 1e-41]), n.w(n.rng.normal(size=(4, 5))))
    return n.model(n.op("Relu", n.bn(y, 5, [0.9, -1.1, 0.0, 1e-41, 0.4])))


@case("folded")
def a_bias_behind_a_matmul_lies_along_its_own_axis() -> onnx.ModelProto:
    n = Net(2, 3, 4)
    y = n.op("Transpose", n.op("MatMul", "x", n.w(n.rng.normal(size=(4, 5)))), perm=[0, 2, 1])
    return n.model(n.op("Sigmoid", n.bn(y, 5, [0.9, -1.1, 0.0, 1.3, 0.4])))


@case("folded", "folded")
def a_mul_and_an_add_behind_a_matmul_from_the_left() -> onnx.ModelProto:
    n = Net(2, 2, 4, 3)
    y = n.op("MatMul", n.w(n.rng.normal(size=(5, 4))), "x")
    y = n.op("Mul", y, n.w(n.rng.normal(size=(5, 1))))
    return n.model(n.op("Sigmoid", n.op("Sub", y, n.w(n.rng.normal(size=(5, 1))))))


@case("folded")
def a_bias_behind_an_einsum_lies_along_the_axis_of_its_outputs() -> onnx.ModelProto:
    n = Net(2, 4, 3, 5)
    y = n.op("Einsum", "x", n.w(n.rng.normal(size=(6, 4))), equation="nchw,oc->nohw")
    return n.model(n.op("Sigmoid", n.bn(y, 6)))


@case("reduced:add", "folded")
def no_more_biases_than_norms() -> onnx.ModelProto:
    """Query, key and value would each need one; the other layer's is worth its norm."""
    n = Net(2, 3, 4)
    x = n.op("Transpose", n.bn("x", 3), perm=[0, 2, 1])
    ends = [n.op("Sigmoid", n.op("MatMul", x, n.w(n.rng.normal(size=(3, 4))))) for _ in range(3)]
    y = n.op("Transpose", n.op("MatMul", ends[0], n.w(n.rng.normal(size=(4, 5)))), perm=[0, 2, 1])
    return n.model(*ends, n.op("Sigmoid", n.bn(y, 5)))


@case("kept:channels-tied")
def linear_on_the_last_axis_is_not_the_axis_of_bn() -> onnx.ModelProto:
    """Linear + BatchNorm1d on (N, C, L) with C == L: the BN axis is 1, the linear layer's 2."""
    n = Net(2, 4, 4)
    y = n.op("MatMul", "x", n.w(n.rng.normal(size=(4, 4))))
    return n.model(n.bn(n.op("Add", y, n.w(n.rng.normal(size=4))), 4))


@case("folded")
def matmul_from_the_left_mixes_axis_1() -> onnx.ModelProto:
    n = Net(2, 4, 3)
    y = n.op("MatMul", n.w(n.rng.normal(size=(5, 4))), "x")
    return n.model(n.bn(n.op("Add", y, n.w(n.rng.normal(size=(5, 1)))), 5))


# --- norms and constants that take up what they stand before


def _behind_norm(kind: str, x: tuple[int, ...], scale: tuple[int, ...], opset: int, **attrs: Any) -> onnx.ModelProto:
    n = Net(*x)
    bias = () if kind == "RMSNormalization" else (n.w(n.rng.normal(0.4, 1.0, scale)),)
    y = n.op(kind, "x", n.w(n.rng.normal(0.4, 1.0, scale)), *bias, **attrs)
    if kind in ("LayerNormalization", "RMSNormalization"):
        y = n.op("Mul", y, n.w(np.reshape([0.5, -2.0, 0.0, 1e-41, 1.5], (-1, *[1] * (len(scale) - 1)))))
        y = n.op("Add", y, n.w(n.rng.normal(0.4, 1.0, (5, *[1] * (len(scale) - 1)))))
    else:
        y = n.bn(y, 4, [0.5, -2.0, 0.0, 1e-41])
    y, made = n.op("Sigmoid", y), n.model(opset=opset)
    made.graph.output.append(helper.make_tensor_value_info(y, TensorProto.DOUBLE, x))  # onnx does not infer all of them
    return made


@case("folded", "folded")
def behind_layer_normalization() -> onnx.ModelProto:
    return _behind_norm("LayerNormalization", (2, 3, 5), (5,), 17)


@case("folded", "folded")
def behind_layer_normalization_over_three_axes() -> onnx.ModelProto:
    return _behind_norm("LayerNormalization", (2, 5, 3, 2), (5, 3, 2), 17, axis=1)


@case("folded", "folded")
def behind_rms_normalization() -> onnx.ModelProto:
    return _behind_norm("RMSNormalization", (2, 3, 5), (5,), 23)


@case("folded")
def behind_instance_normalization() -> onnx.ModelProto:
    return _behind_norm("InstanceNormalization", (2, 4, 3, 2), (4,), 17)


@case("folded")
def behind_group_normalization() -> onnx.ModelProto:
    return _behind_norm("GroupNormalization", (2, 4, 3, 2), (4,), 21, num_groups=2)


@case("folded", "folded")
def a_map_of_positions_is_scaled_along() -> onnx.ModelProto:
    n = Net(2, 3, 4, 5)
    y = n.bn(n.conv("x", 3, 4, 3, pads=[1] * 4), 4, [0.9, -1.2, 0.0, 1e-41])
    y = n.op("Sub", n.w(n.rng.normal(0.4, 1.0, (1, 4, 4, 5))), y)
    return n.model(n.op("Sigmoid", n.bn(y, 4, [-0.8, 1.1, 0.0, 1e-41])))


@case("folded", "folded")
def a_map_of_positions_takes_an_offset_up() -> onnx.ModelProto:
    """Two norms want different offsets of what one layer makes; the map in front of one of them has the difference."""
    n = Net(2, 3, 4, 5)
    y = n.conv("x", 3, 4)
    z = n.op("Add", y, n.w(n.rng.normal(0.4, 1.0, (4, 4, 5))))
    return n.model(*(n.conv(n.op("Relu", n.bn(v, 4)), 4, 2, 3, pads=[1] * 4) for v in (y, z)))


# --- between


@case("folded")
def bn_behind_relu_and_max_pool_before_conv() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("Relu", n.conv("x", 3, 4))
    return n.model(n.conv(n.op("MaxPool", n.bn(y, 4), kernel_shape=[2, 2], strides=[2, 2]), 4, 2))


@case("folded")
def bn_then_max_pool_with_positive_gamma_goes_backwards() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("MaxPool", n.bn(n.conv("x", 3, 4), 4), kernel_shape=[3, 3], pads=[1] * 4)
    return n.model(y)


@case("kept:sign")
def max_pool_before_bn_with_negative_gamma() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    return n.model(n.bn(n.op("MaxPool", n.conv("x", 3, 4), kernel_shape=[2, 2]), 4, [1.0, -1.0, 0.5, 2.0]))


@case("folded")
def average_pool_without_padding_carries_both() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    return n.model(n.bn(n.op("AveragePool", n.conv("x", 3, 4), kernel_shape=[2, 2]), 4))


@case("folded")
def average_pool_that_leaves_padding_out_carries_both() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    return n.model(n.bn(n.op("AveragePool", n.conv("x", 3, 4), kernel_shape=[3, 3], pads=[1] * 4), 4))


@case("reduced:add")
def average_pool_that_counts_padding_holds_the_offset() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("AveragePool", n.conv("x", 3, 4), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    return n.model(n.bn(y, 4))


@case("folded", "folded")
def global_pool_flatten_gemm() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("GlobalAveragePool", n.bn(n.op("Relu", n.conv("x", 3, 4)), 4))
    y = n.bn(n.op("Flatten", y), 4)
    return n.model(n.op("Gemm", y, n.w(n.rng.normal(size=(4, 2)))))


@case("folded")
def flatten_spreads_a_channel_over_features() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    return n.model(n.op("Gemm", n.op("Flatten", n.bn("x", 3)), n.w(n.rng.normal(size=(48, 2)))))


@case("folded")
def reduce_mean_over_space() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("ReduceMean", n.bn("x", 3), axes=[2, 3], keepdims=0)
    return n.model(n.op("Gemm", y, n.w(n.rng.normal(size=(3, 2)))))


@case("folded", "folded")
def bn_behind_concat_of_convs_and_before() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.op("Concat", n.bn(n.conv("x", 3, 2), 2), n.conv("x", 3, 3, 3, pads=[1] * 4), axis=1)
    return n.model(n.bn(y, 5, [0.5, 0.0, -1.5, 2.0, 1.0]))


@case("folded")
def bn_behind_split_reaches_a_part_of_the_conv() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    a, b = n.op("Split", n.conv("x", 3, 5), n.w([2, 3], np.int64), outputs=2, axis=1)
    return n.model(n.bn(b, 3), a)


@case("folded")
def channel_shuffle_is_an_index_map() -> onnx.ModelProto:
    n = Net(2, 4, 3, 3)
    y = n.op("Reshape", n.conv("x", 4, 6), n.w([2, 3, 2, 3, 3], np.int64))
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3, 4]), n.w([2, -1, 3, 3], np.int64))
    return n.model(n.bn(y, 6, [0.4, -1.0, 2.0, 0.0, 1.5, 0.7]))


@case("folded")
def slice_and_gather_are_index_maps() -> onnx.ModelProto:
    n = Net(2, 4, 3, 3)
    y = n.op("Slice", n.conv("x", 4, 6), *(n.w([v], np.int64) for v in (5, 0, 1, -2)))
    return n.model(n.bn(n.op("Gather", y, n.w([2, 0, 1], np.int64), axis=1), 3))


@case("folded")
def depth_to_space_ties_the_channels_of_a_block() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    return n.model(n.bn(n.op("DepthToSpace", n.conv("x", 3, 8), blocksize=2), 2))


@case("folded")
def space_to_depth_repeats_channels() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("SpaceToDepth", n.bn("x", 3), blocksize=2)
    return n.model(n.conv(y, 12, 2))


@case("folded", "folded")
def add_of_two_branches_each_with_bn() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.op("Add", n.bn(n.conv("x", 3, 4, 3), 4), n.bn(n.conv("x", 3, 4, 3), 4, [-1.0, 0.5, 0.0, 2.0]))
    return n.model(n.op("Relu", y))


@case("folded")
def bn_behind_sub_of_two_convs() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    return n.model(n.bn(n.op("Sub", n.conv("x", 3, 4), n.conv("x", 3, 4)), 4, [-1.0, 0.5, 0.3, 2.0]))


@case("folded", "folded")
def identity_branch_of_repvgg() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.op("Relu", n.conv("x", 3, 4))
    y = n.op("Relu", n.op("Add", n.bn(n.conv(x, 4, 4, 3, pads=[1] * 4), 4), n.bn(x, 4)))
    return n.model(n.conv(y, 4, 2))


@case("folded", "folded", "folded")
def residual_stream_with_several_readers() -> onnx.ModelProto:
    """Pre-activation: each BN asks for another shift of the stream, and each block's last conv adds the difference."""
    n = Net(2, 3, 5, 5)
    x = n.conv("x", 3, 4)
    for _ in range(2):
        x = n.op("Add", x, n.conv(n.op("Relu", n.bn(x, 4)), 4, 4, 3, pads=[1] * 4))
    return n.model(n.conv(n.op("Relu", n.bn(x, 4)), 4, 2))


@case("folded", "folded", "reduced:max")
def two_readers_that_need_different_offsets_before_pointwise_convs() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.conv("x", 3, 4)
    y = n.bn(n.conv(n.op("Relu", n.bn(x, 4)), 4, 2), 2)
    return n.model(y, n.conv(n.op("Relu", n.bn(x, 4)), 4, 2))


@case("folded", "folded", "reduced:add")
def two_readers_that_need_different_offsets_before_padded_convs() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.conv("x", 3, 4)
    y = n.bn(n.conv(n.op("Relu", n.bn(x, 4)), 4, 2, 3, pads=[1] * 4), 2)
    return n.model(y, n.conv(n.op("Relu", n.bn(x, 4)), 4, 2, 3, pads=[1] * 4))


@case("reduced:max", "folded", "folded", "reduced:max")
def bn_with_a_scale_and_an_offset_behind_it_then_relu_on_a_shared_stream() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.conv("x", 3, 4)
    first = n.op("Add", n.op("Mul", n.bn(x, 4), n.w(np.full((4, 1, 1), 1.3))), n.w(np.full((4, 1, 1), 0.4)))
    second = n.bn(x, 4)
    ends = [n.conv(n.op("Relu", y), 4, 2) for y in (first, second)]
    return n.model(*ends, n.op("Tanh", x))


@case("reduced:max")
def relu_written_as_clip_becomes_a_threshold_through_pooling() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("Clip", n.bn(n.op("Tanh", "x"), 3), n.w(0.0))
    y = n.op("MaxPool", y, kernel_shape=[2, 2])
    return n.model(n.conv(y, 3, 2))


@case("kept:scale-fixed")
def relu_that_is_a_graph_output_stays() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    return n.model(n.op("Relu", n.bn(n.op("Tanh", "x"), 3)))


@case("reduced:max", "reduced:max")
def one_threshold_for_two_norms_behind_concat() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    x = n.op("Tanh", "x")
    y = n.op("Concat", n.bn(x, 3), n.bn(x, 3), axis=1)
    return n.model(n.conv(n.op("Relu", y), 6, 2))


@case("kept:sign")
def no_threshold_for_a_negative_gamma() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    return n.model(n.conv(n.op("Relu", n.bn(n.op("Tanh", "x"), 3, [1.0, -0.5, 2.0])), 3, 2))


@case("kept:sign", "folded")
def negative_gamma_on_a_stream_before_relu() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.op("Relu", n.conv("x", 3, 4))
    y = n.conv(n.op("Relu", n.bn(x, 4, [-1.0, 1.0, 1.0, 1.0])), 4, 4)
    return n.model(n.bn(n.op("Add", x, y), 4))


@case("folded")
def dead_channel_on_a_stream_becomes_bias_of_the_reader() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.conv("x", 3, 4)
    y = n.conv(n.op("Relu", n.bn(x, 4, [1.0, 0.0, 0.5, 2.0])), 4, 4)
    return n.model(n.op("Add", x, y))


@case("folded", "folded", "folded")
def a_norm_in_front_of_a_factor_of_zero_on_a_stream() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.conv("x", 3, 4)
    y = n.op("Mul", n.bn(x, 4), n.w(np.reshape([0.0, -0.9, 0.7, 0.0], (4, 1, 1))))
    y = n.conv(n.op("Add", y, n.w(np.reshape([0.3, -0.2, 0.5, 0.8], (4, 1, 1)))), 4, 4)
    return n.model(n.op("Add", n.conv(x, 4, 4), y))


@case("kept:dead-channel")
def dead_channel_that_meets_zero_padding_as_a_positive_constant() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.op("Relu", n.conv("x", 3, 4))
    bn = n.op("BatchNormalization", x, *map(n.w, ([1.0, 0.0, 0.5, 2.0], [0.0, 3.0, 0.0, 0.0], [0.0] * 4, [1.0] * 4)))
    y = n.conv(n.op("Relu", bn), 4, 4, 3, pads=[1] * 4)
    return n.model(n.op("Add", x, y))


@case("folded", "folded")
def gate_lets_the_scale_through() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.op("Relu", n.bn(n.conv("x", 3, 4), 4))
    s = n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", x), 4, 4))
    return n.model(n.bn(n.conv(n.op("Mul", x, s), 4, 4), 4))


@case("kept:scale-fixed")
def swish_pins_its_input() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.op("Sigmoid", "x")
    y = n.bn(x, 3)
    return n.model(n.op("Mul", y, n.op("Sigmoid", y)))


@case("folded", "folded")
def leaky_relu_and_prelu_carry_positive_scales() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.op("LeakyRelu", n.bn(n.conv("x", 3, 4), 4, [-1.0, 0.5, 0.0, 2.0]), alpha=0.3)
    y = n.op("PRelu", n.bn(n.conv(y, 4, 4), 4), n.w(n.rng.uniform(0.1, 0.5, (4, 1, 1))))
    return n.model(y)


@case("reduced:add")
def bn_behind_relu_before_padded_conv() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    return n.model(n.conv(n.bn(n.op("Relu", n.conv("x", 3, 4)), 4), 4, 2, 3, pads=[1] * 4))


@case("folded")
def resize_and_reflect_pad_carry_both() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Resize", n.bn("x", 3), "", n.w([1, 1, 2, 2], np.float32), mode="nearest")
    y = n.op("Pad", y, n.w([0, 0, 1, 1, 0, 0, 1, 1], np.int64), mode="reflect")
    return n.model(n.conv(y, 3, 2, 3))


@case("reduced:add")
def zero_pad_holds_the_offset() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Pad", n.bn("x", 3), n.w([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    return n.model(n.conv(y, 3, 2, 3))


@case("folded", "folded")
def channels_of_zeros_beside_a_layer() -> onnx.ModelProto:
    """PyramidNet, and option A of the first residual networks: the stream grows by channels of zeros."""
    n = Net(2, 3, 4, 4)
    x = n.conv("x", 3, 4, bias=True)
    y = n.conv(n.op("Relu", n.bn(x, 4)), 4, 7, bias=True)
    x = n.op("Pad", x, n.w([0, 1, 0, 0, 0, 2, 0, 0], np.int64))
    return n.model(n.conv(n.op("Relu", n.bn(n.op("Add", x, y), 7)), 7, 2))


@case("reduced:add", "folded")
def channels_of_zeros_and_a_frame_of_zeros() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Pad", n.bn("x", 3), n.w([0, 1, 1, 0, 0, -1, 0, 0], np.int64))
    return n.model(n.conv(n.bn(n.conv(y, 3, 4), 4), 4, 2))


@case("folded")
def a_frame_of_infinities_before_a_maximum() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Pad", n.conv("x", 3, 4), n.w([0, 0, 1, 1, 0, 0, 1, 1], np.int64), n.w(-np.inf))
    return n.model(n.bn(n.op("MaxPool", y, kernel_shape=[3, 3]), 4))


@case("kept:sign")
def a_frame_of_infinities_keeps_its_sign() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Pad", n.conv("x", 3, 4), n.w([0, 0, 1, 1, 0, 0, 1, 1], np.int64), n.w(-np.inf))
    return n.model(n.bn(n.op("MaxPool", y, kernel_shape=[3, 3]), 4, [1.0, -1.0, 0.5, 1.0]))


@case("folded")
def resize_with_the_channels_last() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Transpose", n.conv("x", 3, 4), perm=[0, 2, 3, 1])
    y = n.op("Resize", y, "", n.w([1, 2, 2, 1], np.float32), mode="nearest")
    return n.model(n.bn(n.op("Transpose", y, perm=[0, 3, 1, 2]), 4))


@case("kept:channels-tied")
def resize_that_mixes_as_many_channels_as_there_were() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Resize", n.conv("x", 3, 4), "", n.w([1, 1.2, 1, 1], np.float32), mode="nearest")
    return n.model(n.bn(y, 4))


@case("folded")
def maximum_of_two_branches() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    return n.model(n.bn(n.op("Max", n.conv("x", 3, 4), n.conv("x", 3, 4)), 4))


@case("folded")
def conv_whose_input_has_no_known_rank() -> onnx.ModelProto:
    """Reshape to a shape that is computed: nothing is known of its output, but a conv behind it is one all the same."""
    n = Net(2, 3, 4, 4)
    shape = n.op("Slice", n.op("Shape", "x"), *(n.w([v], np.int64) for v in (0, 4, 0)))
    doubled = n.op("Cast", n.op("Abs", n.op("Cast", shape, to=TensorProto.DOUBLE)), to=TensorProto.INT64)
    y = n.conv(n.op("Reshape", n.op("Tanh", "x"), doubled), 3, 4)
    model = n.model(domains=())
    model.graph.node.append(
        helper.make_node(
            "BatchNormalization",
            [y, *map(n.w, ([1.2, -0.7, 0.0, 0.4], [0.1, 0.2, 0.3, -0.5], [0.5, -0.5, 0.2, 0.1], [2.0, 0.4, 1.5, 0.8]))],
            ["y"],
            name="bn",
        )
    )
    model.graph.initializer.extend(n.weights[len(model.graph.initializer) :])
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2, 4, 4, 4]))
    return model


# --- constants that stand for a norm


@case("folded", "folded", "folded")
def bn_then_scale_of_caffe() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.bn(n.conv("x", 3, 4), 4, [-1.0, 0.5, 0.2, 2.0])
    y = n.op("Mul", y, n.w([[[0.5]], [[-1.5]], [[0.0]], [[2.0]]]))
    return n.model(n.op("Relu", n.op("Add", y, n.w([[[0.5]], [[-1.5]], [[0.3]], [[2.0]]]))))


@case("folded", "folded", "folded")
def sub_div_mul_as_a_decomposed_norm() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.op("Sub", n.conv("x", 3, 2), n.w([[[0.5]], [[-0.2]]]))
    y = n.op("Div", y, n.w([[[[1.5]], [[0.2]]]]))
    return n.model(n.op("Mul", n.w([[[-2.0]], [[0.7]]]), y))


@case("kept:shift-fixed", "kept:scale-fixed")
def constants_between_pinned_values_stay() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.op("Add", n.op("Sigmoid", "x"), n.w([[[0.5]], [[-0.2]], [[1.0]]]))
    return n.model(n.op("Sigmoid", n.op("Mul", y, n.w([[[0.5]], [[-0.2]], [[1.0]]]))))


@case("folded")
def a_factor_along_the_width_lets_the_scale_through() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.op("Mul", n.conv("x", 3, 4), n.w(n.rng.uniform(0.5, 2.0, 5)))
    return n.model(n.conv(n.op("Relu", n.bn(n.conv(y, 4, 4), 4)), 4, 2))


@case("kept:scale-fixed")
def an_offset_along_the_width_pins() -> onnx.ModelProto:
    n = Net(2, 5, 5, 5)
    y = n.op("Add", n.conv("x", 5, 5), n.w(n.rng.uniform(0.5, 2.0, (5,))))
    return n.model(n.op("Sigmoid", n.bn(y, 5)))


@case("folded")
def a_single_factor_scales_the_shift_too() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    return n.model(n.bn(n.op("Mul", n.conv("x", 3, 4), n.w(0.125)), 4))


# --- refusals


@case("kept:scale-fixed")
def pinned_on_both_sides() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    return n.model(n.op("Sigmoid", n.bn(n.op("Tanh", "x"), 3)))


@case("kept:scale-cycle")
def a_branch_that_meets_its_own_input() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    x = n.conv("x", 3, 4)
    y = n.op("Concat", x, n.op("Add", x, n.op("Relu", n.bn(x, 4))), axis=1)
    return n.model(n.conv(y, 8, 2))


@case("kept:training-mode")
def batch_statistics() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    weights = [n.w(np.abs(n.rng.normal(size=3)) + 0.5) for _ in range(4)]
    y, _, _ = n.op("BatchNormalization", n.conv("x", 3, 3), *weights, outputs=3, training_mode=1)
    return n.model(y)


@case("kept:not-constant")
def statistics_computed_from_data() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    var = n.op("Reshape", n.op("Abs", n.op("ReduceMean", "x", axes=[0, 2, 3])), n.w([3], np.int64))
    rest = [n.w(np.abs(n.rng.normal(size=3)) + 0.5) for _ in range(3)]
    return n.model(n.op("BatchNormalization", n.conv("x", 3, 3), *rest, var))


@case("kept:bad-statistics")
def a_negative_variance() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    good = [n.w([1.0, 2.0, 0.5]) for _ in range(3)]
    y = n.op("BatchNormalization", n.conv("x", 3, 3), *good, n.w([1.0, -0.5, 1.0]), epsilon=1e-3)
    return n.model(n.op("Concat", n.conv("x", 3, 3), y, axis=1))


# --- constants that move along


@case("reduced:clip")
def relu6_gets_bounds_per_channel_before_a_pointwise_conv() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    y = n.bn(n.op("MaxPool", n.op("Relu", n.conv("x", 4, 4)), kernel_shape=[2, 2]), 4)
    six = n.op("Clip", y, n.w(0.0), n.w(6.0))
    return n.model(n.conv(six, 4, 3), n.op("Neg", n.op("HardSwish", n.op("MaxPool", "x", kernel_shape=[2, 2]))))


@case("reduced:clip")
def a_clip_without_upper_bound_becomes_one_max() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    return n.model(n.conv(n.op("Clip", n.bn("x", 4), n.w(-0.5)), 4, 3))


@case("reduced:clip")
def one_channel_keeps_a_clip_with_two_other_numbers() -> onnx.ModelProto:
    n = Net(2, 1, 6, 6)
    return n.model(n.conv(n.op("Clip", n.bn("x", 1), n.w(-0.5), n.w(0.7)), 1, 3))


@case("folded")
def relu6_stays_a_clip_where_the_conv_before_takes_all() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    return n.model(n.conv(n.op("Clip", n.bn(n.conv("x", 4, 4), 4), n.w(0.0), n.w(6.0)), 4, 3))


@case("kept:scale-fixed")
def no_bounds_for_a_negative_gamma() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    return n.model(n.conv(n.op("Clip", n.bn("x", 4, [0.5, -1.0, 2.0, 1.0]), n.w(0.0), n.w(6.0)), 4, 3))


@case("folded", "folded")
def max_and_min_with_constants_carry_everything() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    low = n.op("Max", n.bn("x", 3), n.w(n.rng.normal(-1.0, 0.2, (3, 1, 1))))
    high = n.op("Min", n.w(n.rng.normal(1.0, 0.2, (1, 3, 1, 1))), low)
    both = n.op("Max", high, n.w(-0.3))
    return n.model(n.conv(both, 3, 4), n.conv(n.op("Max", n.bn("x", 3), n.w(0.2)), 3, 4))


@case("folded")
def where_with_a_constant_carries_any_sign() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    mask = n.op("Greater", "x", n.w(0.1))
    y = n.op("Where", mask, n.bn("x", 3, [0.5, -1.0, 2.0]), n.w(-0.7))
    return n.model(n.conv(y, 3, 4))


@case("folded", "folded")
def where_between_two_branches() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    mask = n.op("Greater", n.op("ReduceMean", "x", axes=[1]), n.w(0.0))
    a, b = n.bn(n.conv("x", 3, 3), 3), n.bn(n.conv("x", 3, 3), 3, [0.5, -1.0, 0.0])
    return n.model(n.op("Where", mask, a, b))


@case("folded", "folded", "folded")
def constant_minus_data_in_a_chain() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("Sub", n.w(n.rng.normal(size=(3, 1, 1))), n.conv("x", 3, 3))
    y = n.op("Mul", n.w(n.rng.normal(size=(1, 3, 1, 1)) + 2), y)
    return n.model(n.op("Sub", y, n.w(n.rng.normal(size=(3, 1, 1)))))


@case("kept:scale-fixed", "reduced:add")
def constant_minus_data_that_stays() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("Sub", n.w(n.rng.normal(size=(3, 1, 1))), "x")
    return n.model(n.op("Sigmoid", y), n.conv(n.bn("x", 3), 3, 4, k=3, pads=[1, 1, 1, 1]))


@case("kept:scale-fixed", "folded")
def constant_minus_data_that_stays_takes_up_an_offset() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("Sub", n.w(n.rng.normal(size=(3, 1, 1))), n.op("Sigmoid", "x"))
    return n.model(n.op("Relu", n.op("Add", y, n.w(n.rng.normal(2.0, size=(3, 1, 1))))))


@case("folded")
def one_channel_by_a_scalar_index() -> onnx.ModelProto:
    n = Net(2, 3, 6, 6)
    y = n.op("Gather", n.bn(n.conv("x", 3, 3), 3), n.w(1, np.int64), axis=1)
    return n.model(n.op("Relu", y))


# --- more carriers


@case("folded", "folded")
def einsum_before_and_behind_a_bn_on_the_last_axis() -> onnx.ModelProto:
    n = Net(2, 5, 3)
    w = n.rng.standard_normal((4, 3))
    y = n.op("Add", n.op("Einsum", "x", n.w(w), equation="bti, oi -> bto"), n.w(n.rng.normal(size=4)))
    y = n.op("Mul", y, n.w(np.abs(n.rng.normal(size=4)) + 0.3))
    y = n.op("Relu", n.op("Add", y, n.w(n.rng.normal(size=(1, 1, 4)))))
    return n.model(y)


@case("folded")
def einsum_that_moves_the_channels() -> onnx.ModelProto:
    n = Net(2, 3, 5)
    y = n.op("Einsum", n.w(n.rng.standard_normal((3, 4))), "x", equation="io,bit->bto")
    y = n.op("Mul", y, n.w(np.abs(n.rng.normal(size=4)) + 0.3))
    return n.model(n.op("Add", y, n.op("ReduceMean", "x", axes=[1, 2], keepdims=1)))


@case("folded")
def matmul_with_a_matrix_of_more_axes() -> onnx.ModelProto:
    n = Net(2, 5, 3)
    y = n.op("MatMul", "x", n.w(n.rng.standard_normal((1, 3, 4))))
    return n.model(n.op("Sigmoid", n.op("Mul", y, n.w(n.rng.normal(size=4)))))


def _recurrent(n: Net, kind: str, x: str, bias: bool, **attrs: Any) -> str:
    gates, hidden, inputs = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 4, n.shape[-1]
    weights = [n.w(n.rng.standard_normal((1, gates * hidden, k)) / 2) for k in (inputs, hidden)]
    both = [n.w(n.rng.normal(size=(1, 2 * gates * hidden)))] if bias else []
    return str(n.op(kind, x, *weights, *both, outputs=2, hidden_size=hidden, **attrs)[0])


@case("folded")
def lstm_takes_up_what_comes_in() -> onnx.ModelProto:
    n = Net(5, 3, 2)
    return n.model(_recurrent(n, "LSTM", n.op("Neg", n.op("Mul", "x", n.w([0.5, -1.5]))), True))


@case("folded", "folded")
def lstm_without_bias_gets_one() -> onnx.ModelProto:
    n = Net(5, 3, 2)
    y = n.op("Add", n.op("Mul", "x", n.w([0.5, -1.5])), n.w([0.3, -2.0]))
    return n.model(_recurrent(n, "LSTM", y, False))


@case("folded", "folded")
def gru_with_a_bias_of_the_state() -> onnx.ModelProto:
    n = Net(5, 3, 2)
    y = n.op("Add", n.op("Mul", "x", n.w([0.5, -1.5])), n.w([0.3, -2.0]))
    return n.model(_recurrent(n, "GRU", y, True, linear_before_reset=1))


@case("folded", "folded")
def rnn_behind_a_bn_in_another_layout() -> onnx.ModelProto:
    n = Net(3, 2, 5, 1)
    y = n.op("Squeeze", n.bn("x", 2), n.w([3], np.int64))
    y = n.op("Transpose", y, perm=[2, 0, 1])
    n.shape = (5, 3, 2)
    y = _recurrent(n, "RNN", n.op("Mul", y, n.w([2.0, -0.7])), True)
    n.shape = (3, 2, 5, 1)
    return n.model(y)


@case("folded")
def nhwc_island_with_matmul_and_norm() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Transpose", n.conv("x", 3, 4), perm=[0, 2, 3, 1])
    y = n.op("Add", n.op("MatMul", y, n.w(n.rng.standard_normal((4, 4)))), n.w(n.rng.normal(size=4)))
    y = n.op("Transpose", y, perm=[0, 3, 1, 2])
    return n.model(n.op("Relu", n.bn(y, 4, [0.5, -1.0, 0.0, 2.0])))


@case("folded")
def pixel_unshuffle_by_reshape_and_transpose() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Reshape", n.bn("x", 3), n.w([2, 3, 2, 2, 2, 2], np.int64))
    y = n.op("Transpose", y, perm=[0, 1, 3, 5, 2, 4])
    return n.model(n.conv(n.op("Reshape", y, n.w([2, 12, 2, 2], np.int64)), 12, 4))


@case("folded")
def token_embedding_then_flattened_bn() -> onnx.ModelProto:
    """3-D MatMul with bias -> Flatten of the leading axes -> BN, as LeViT has it."""
    n = Net(2, 5, 3)
    y = n.op("Add", n.op("MatMul", "x", n.w(n.rng.standard_normal((3, 4)))), n.w(n.rng.normal(size=4)))
    y = n.bn(n.op("Reshape", y, n.w([-1, 4], np.int64)), 4, [0.5, -1.0, 0.0, 2.0])
    return n.model(n.op("Reshape", y, n.w([2, 5, 4], np.int64)))


# --- identity branches


@case("folded", "folded", "folded", "folded", "folded")
def rep_mixer_of_fastvit_on_a_stream_that_must_stay() -> onnx.ModelProto:
    """x + scale * (bn(dw(x)) + bn(dw1(x)) + bn(x) - bn(x)), as FastViT has it; the last one is the layer scale."""
    n = Net(2, 4, 6, 6)
    x = n.op("Sigmoid", "x")
    mixed = n.bn(n.conv(x, 4, 4, k=3, group=4, pads=[1] * 4), 4, [0.5, -1.0, 0.0, 2.0])
    scaled = n.bn(n.conv(x, 4, 4, group=4), 4)
    y = n.op("Add", n.op("Add", mixed, scaled), n.bn(x, 4, [0.3, 1.0, -2.0, 0.0]))
    y = n.op("Mul", n.op("Sub", y, n.bn(x, 4)), n.w(n.rng.normal(size=(4, 1, 1))))
    return n.model(n.op("Sigmoid", n.op("Add", x, y)))


@case("folded")
def repvit_norm_behind_a_residual_conv() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    x = n.op("Sigmoid", "x")
    y = n.op("Add", n.op("Add", n.conv(x, 4, 4, k=3, group=2, pads=[1] * 4), n.conv(x, 4, 4, group=4)), x)
    return n.model(n.op("Sigmoid", n.bn(y, 4, [0.5, -1.0, 0.0, 2.0])))


@case("folded", "folded", "folded", "folded")
def repvgg_identity_norms_of_both_signs() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    x = n.op("Relu", n.bn(n.conv("x", 4, 4), 4))
    three = n.bn(n.conv(x, 4, 4, k=3, bias=True, pads=[1] * 4), 4)
    y = n.op("Sum", three, n.bn(n.conv(x, 4, 4), 4), n.bn(x, 4, [0.5, -1.0, 0.0, 2.0]))
    return n.model(n.op("Concat", n.op("Relu", y), x, axis=1))


@case("folded")
def gemm_that_takes_up_a_norm_of_its_input() -> onnx.ModelProto:
    n = Net(5, 3)
    x = n.op("Sigmoid", "x")
    weights = n.w(n.rng.standard_normal((3, 3))), n.w(n.rng.normal(size=(5, 3)))
    y = n.op("Gemm", x, *weights, alpha=0.5, beta=2.0, transB=1)
    return n.model(n.op("Sigmoid", n.op("Add", n.bn(x, 3, [0.5, -1.0, 0.0]), y)))


@case("folded")
def matmul_with_bias_takes_up_a_scaled_copy() -> onnx.ModelProto:
    n = Net(2, 5, 3)
    x = n.op("Sigmoid", "x")
    y = n.op("Add", n.op("MatMul", x, n.w(n.rng.standard_normal((3, 3)))), n.w(n.rng.normal(size=3)))
    return n.model(n.op("Sigmoid", n.op("Sub", y, n.op("Mul", x, n.w([0.5, -1.0, 2.0])))))


@case("kept:scale-fixed")
def an_identity_branch_that_others_read() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    x = n.op("Sigmoid", "x")
    branch = n.bn(x, 4)
    y = n.op("Add", n.conv(x, 4, 4, k=3, pads=[1] * 4), branch)
    return n.model(n.op("Sigmoid", y), n.op("Sigmoid", branch))


@case("reduced:mul")
def an_identity_branch_whose_shape_is_asked_for() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    x = n.op("Sigmoid", "x")
    branch = n.bn(x, 4)
    y = n.op("Add", n.conv(x, 4, 4, k=3, pads=[1] * 4), branch)
    return n.model(n.op("Mul", n.op("Sigmoid", y), n.op("CastLike", n.op("Size", branch), "x")))


@case("reduced:mul")
def a_conv_without_a_centre_tap() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    x = n.op("Sigmoid", "x")
    y = n.op("Add", n.conv(x, 4, 4, k=2, pads=[0, 0, 1, 1]), n.bn(x, 4))
    return n.model(n.op("Sigmoid", y))


@case("reduced:mul")
def a_norm_of_another_tensor_than_the_input_of_the_conv() -> onnx.ModelProto:
    n = Net(2, 4, 6, 6)
    x = n.op("Sigmoid", "x")
    y = n.op("Add", n.conv(x, 4, 4, k=3, pads=[1] * 4), n.bn(n.op("Sigmoid", x), 4))
    return n.model(n.op("Sigmoid", y))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_rule(case: Case) -> None:
    model = case.build()
    result = bnfold.fold(model, verify=False, leftovers="all", merge=False)  # what the gauges alone do
    assert tuple(_fate(bn) for bn in result.plan.batch_norms) == case.fates
    onnx.checker.check_model(result.model, full_check=True)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal(shape) * 2
        for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * max(1.0, np.abs(before).max()))


def test_every_case_is_a_real_test() -> None:
    """The cases' outputs depend on the input, else an equal output would prove nothing."""
    for case in CASES:
        model = case.build()
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        a, b = (evaluate(model, x=np.random.default_rng(s).standard_normal(shape)) for s in (0, 1))
        assert any(not np.allclose(p, q) for p, q in zip(a, b, strict=True)), case.name
