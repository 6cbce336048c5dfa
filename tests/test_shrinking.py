"""Channels that carry nothing leave ONNX graphs: one case for each way through a network, and each reason to stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from benchmarks.shrinking import Landmark
from bnfold.onnx.shrinking import Shrunk, shrink

from .evaluate import evaluate
from .random_graphs import RandomGraph

ROOT = Path(__file__).parents[1]
Array = npt.NDArray[Any]


@dataclass
class Net:
    """A graph that grows node by node; the input x is (2, 4, 8, 8), all is float64."""

    opset: int = 17
    ir: int = 8
    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = (2, 4, 8, 8)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(7)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"{kind}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def const(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float64) -> str:
        self.tensors[f"c{len(self.tensors)}"] = np.asarray(value, dtype)
        return f"c{len(self.tensors) - 1}"

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def weight(self, *shape: int, dead: Sequence[int] = (), unread: Sequence[int] = ()) -> str:
        """A weight whose rows `dead` and columns `unread` are 0."""
        value = self.rng.normal(0.1, 0.5, shape)
        value[list(dead)] = 0
        value[:, list(unread)] = 0
        return self.const(value)

    def conv(self, x: str, source: int, out: int, dead: Sequence[int] = (), held: float = 0.7, kernel: int = 1,
             unread: Sequence[int] = (), **attributes: Any) -> str:  # fmt: skip
        """A Conv whose output channels `dead` are constant, and hold `held`."""
        groups = attributes.get("group", 1)
        bias = self.rng.normal(0, 0.5, out)
        bias[list(dead)] = held
        weight = self.weight(out, source // groups, kernel, kernel, dead=dead, unread=unread)
        return str(self.op("Conv", x, weight, self.const(bias), **attributes))

    def model(self, *outputs: str) -> ModelProto:
        names = list(outputs) or [self.nodes[-1].output[0]]
        shape = ["N" if size < 0 else size for size in self.shape]
        ends = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.tensors.items()]
        results = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in names]
        listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors] if self.ir < 4 else []
        graph = helper.make_graph(self.nodes, "net", ends + listed, results, tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=self.ir)
        return onnx.shape_inference.infer_shapes(made, data_prop=True)


def same(model: ModelProto, small: ModelProto, tolerance: float = 1e-12, **inputs: Array) -> None:
    """Both give the same numbers, in float64."""
    before, after = evaluate(model, **inputs), evaluate(small, **inputs)
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        finite = np.isfinite(a)
        assert (finite == np.isfinite(b)).all()
        assert np.abs(a - b, where=finite, out=np.zeros(a.shape)).max(initial=0) <= tolerance * np.abs(a[finite]).max(
            initial=0
        )


def checked(model: ModelProto, block: int = 1, **options: Any) -> Shrunk:
    """A model shrunk, which is valid, computes the same and has the same ends."""
    kept = model.SerializeToString()
    result = shrink(model, block=block, **options)
    assert model.SerializeToString() == kept
    assert not result.note
    assert result.changed or result.model is model
    onnx.checker.check_model(result.model, full_check=True)
    assert result.model.graph.output == model.graph.output
    assert [v.name for v in result.model.graph.input if v.name == "x"] == ["x"]
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    same(model, result.model, x=np.random.default_rng(1).normal(0.2, 1.0, shape))
    return result


CASES: dict[str, tuple[Callable[[], ModelProto], int, set[str]]] = {}
"""By name: the model, how many channels go, and the reasons why others stay."""


def case(dropped: int, *reasons: str) -> Callable[[Callable[[], ModelProto]], Callable[[], ModelProto]]:
    def register(build: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        CASES[build.__name__] = (build, dropped, set(reasons))
        return build

    return register


def end(net: Net, x: str, channels: int, kernel: int = 1, **attributes: Any) -> ModelProto:
    """A last layer that reads `channels`."""
    net.conv(x, channels, 3, kernel=kernel, **attributes)
    return net.model()


@case(3)
def constants_go_into_the_bias() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 8, dead=[1, 2, 6]))
    return end(net, x, 8, kernel=3)


@case(2)
def what_nobody_reads_goes() -> ModelProto:
    net = Net()
    return end(net, net.op("Relu", net.conv("x", 4, 6)), 6, unread=[0, 5])


@case(4)
def what_feeds_only_what_goes_is_not_read() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6))
    weight = net.weight(5, 6, 1, 1, dead=[0, 1])
    net.tensors[weight][2:, :2] = 0  # channels 0 and 1 feed the rows 0 and 1 alone, which nobody reads
    net.tensors[weight][:2] = 0.5
    x = net.op("Relu", net.op("Conv", x, weight))
    return end(net, x, 5, unread=[0, 1])


@case(1, "padded-constant")
def one_constant_stays_before_zero_padding() -> ModelProto:
    net = Net()
    return end(net, net.conv("x", 4, 6, dead=[1, 2]), 6, kernel=3, pads=[1, 1, 1, 1])


@case(1, "padded-constant")
def one_constant_stays_before_automatic_padding() -> ModelProto:
    net = Net()
    return end(net, net.conv("x", 4, 6, dead=[1, 2]), 6, kernel=3, auto_pad="SAME_UPPER")


@case(4, "padded-constant")
def one_constant_stands_for_all_before_zero_padding() -> ModelProto:
    net = Net()
    x = net.conv("x", 4, 8, dead=[1, 2, 4, 5, 7])
    net.tensors["c1"][[1, 2, 4, 5, 7]] = [0.2, -0.3, 0.25, 0.0, 90.0]
    a = net.conv(x, 8, 3, kernel=3, pads=[1, 0, 0, 1])
    return net.model(a, net.op("ConvTranspose", x, net.weight(8, 3, 2, 2), strides=[2, 2]))


@case(1, "padded-constant")
def a_bound_above_zero_is_no_zero() -> ModelProto:
    net = Net()
    x = net.op("Clip", net.conv("x", 4, 6, dead=[1, 2], held=-0.3), net.const(0.1), net.const(6.0))
    return end(net, x, 6, kernel=3, pads=[1, 1, 1, 1])


@case(2)
def zero_goes_before_zero_padding() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[1, 2], held=-0.3))
    return end(net, x, 6, kernel=3, pads=[1, 1, 1, 1])


@case(2)
def depthwise_layers_go_along() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[1, 2], held=-0.3))
    x = net.conv(x, 6, 6, kernel=3, group=6, pads=[1, 1, 1, 1])
    return end(net, net.op("Relu", x), 6)


@case(0, "live")
def a_depthwise_layer_bends_a_constant_at_its_padding() -> ModelProto:
    net = Net()
    x = net.conv("x", 4, 6, dead=[1, 2])
    return end(net, net.conv(x, 6, 6, kernel=3, group=6, pads=[1, 1, 1, 1]), 6)


@case(1)
def what_a_depthwise_layer_drops_is_not_read() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6))
    return end(net, net.conv(x, 6, 12, kernel=3, group=6, dead=[4, 5]), 12)


@case(4)
def a_group_goes_as_a_whole() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 8))
    return end(net, net.conv(x, 8, 12, kernel=3, group=4, dead=[3, 4, 5, 9, 10, 11]), 12)


@case(2)
def a_sum_lets_go_what_is_dead_on_every_branch() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 3], held=-1.0))
    y = net.conv(net.op("Relu", net.conv(x, 6, 6)), 6, 6, dead=[0, 3], held=0.2)
    return end(net, net.op("Add", y, x), 6)


@case(0, "live")
def a_sum_keeps_what_is_dead_on_one_branch() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 3], held=-1.0))
    return end(net, net.op("Sub", net.conv(x, 6, 6), x), 6)


@case(5)
def concat_split_slice_and_gather_are_index_maps() -> ModelProto:
    net = Net()
    a, b = net.conv("x", 4, 6, dead=[0, 5]), net.op("Relu", net.conv("x", 4, 6, dead=[2, 3, 4], held=-1))
    whole = net.op("Concat", a, b, axis=1)
    left, right = net.op("Split", whole, net.ints(5, 7), outputs=2, axis=1)
    part = net.op("Slice", whole, net.ints(0, 1), net.ints(100, 8), net.ints(2, 1))
    odd = net.op("Slice", whole, net.ints(-1), net.ints(-100), net.ints(1), net.ints(-2))
    some = net.op("Gather", whole, net.ints(11, -12, 3, 3, 8), axis=1)
    one = net.op("Unsqueeze", net.op("Gather", whole, net.const(6, np.int64), axis=1), net.ints(1))
    none = net.op("Slice", whole, net.ints(4), net.ints(4), net.ints(1))
    sizes = {left: 5, right: 7, part: 7, odd: 6, some: 5, one: 1}
    ends = [net.conv(x, size, 2) for x, size in sizes.items()] + [none]
    return net.model(*ends)


@case(2)
def old_forms_of_split_slice_and_pad() -> ModelProto:
    net = Net(opset=9)
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 4], held=-1.0))
    x = net.op("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    a, b = net.op("Split", x, outputs=2, axis=1)
    c = net.op("Slice", x, axes=[1], starts=[1], ends=[5])
    return net.model(*(net.conv(name, size, 2) for name, size in ((a, 3), (b, 3), (c, 4))))


@case(3)
def channels_of_zeros_go() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 4, dead=[1], held=-1.0))
    x = net.op("Pad", x, net.ints(0, 0, 0, 0, 0, 3, 0, 0))
    y = net.conv("x", 4, 7, dead=[1, 4, 6], held=0.4)
    return end(net, net.op("Add", x, y), 7)


@case(2 + 1)
def a_gate_goes_with_what_it_gates() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 4], held=-1.0))
    g = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 6, 4, dead=[2]))
    g = net.op("HardSigmoid", net.conv(g, 4, 6))
    return end(net, net.op("Mul", g, x), 6, kernel=3, pads=[1, 1, 1, 1])


@case(0, "live")
def a_gate_moves_a_constant() -> ModelProto:
    net = Net()
    x = net.conv("x", 4, 6, dead=[0, 4], held=0.5)
    g = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", x), 6, 6))
    return end(net, net.op("Mul", x, g), 6)


@case(1)
def a_map_of_one_channel_gates_them_all() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[3], held=-1.0))
    g = net.op("Sigmoid", net.conv(x, 6, 1, kernel=3, pads=[1, 1, 1, 1]))
    return end(net, net.op("Mul", x, g), 6)


@case(2 + 2)
def flatten_and_gemm() -> ModelProto:
    net = Net()
    x = net.op("Flatten", net.op("Relu", net.conv("x", 4, 6, dead=[0, 4])))
    weight, bias = net.weight(8, 6 * 64, dead=[1, 2]), net.const(net.rng.normal(0, 1, (1, 8)))
    x = net.op("Relu", net.op("Gemm", x, weight, bias, transB=1, alpha=0.5, beta=2.0))
    net.op("Gemm", x, net.weight(8, 3))
    return net.model()


@case(2)
def a_reshape_that_names_its_channels() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 4]))
    x = net.op("Reshape", x, net.ints(2, 6, -1))
    x = net.op("Transpose", net.op("Reshape", x, net.ints(0, 0, 8, 8)), perm=[0, 2, 3, 1])
    x = net.op("MatMul", net.op("Expand", x, net.ints(2, 8, 8, 6)), net.weight(6, 3))
    net.op("Add", x, net.const([0.1, 0.2, 0.3]))
    return net.model()


@case(4)
def channel_shuffle() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 12, dead=[1, 7, 2, 8, 3], held=-1.0))  # 3 has no partner
    x = net.op("Reshape", x, net.ints(-1, 2, 6, 8, 8))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(-1, 12, 8, 8))
    return end(net, x, 12)


@case(0, "live")
def what_is_shuffled_together_has_to_be_one_constant() -> ModelProto:
    net = Net()
    x = net.conv("x", 4, 6, dead=[1, 4])
    net.tensors["c1"][4] = -0.4
    x = net.op("Transpose", net.op("Reshape", x, net.ints(0, 2, 3, 8, 8)), perm=[0, 2, 1, 3, 4])
    return end(net, net.op("Reshape", x, net.ints(0, 6, 8, 8)), 6)


@case(4)
def a_reshape_to_computed_sizes() -> ModelProto:
    net = Net(shape=(-1, 4, 8, 8))
    x = net.op("Relu", net.conv("x", 4, 8, dead=[0, 1, 4, 5], held=-1.0))
    batch = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(1))
    x = net.op("Reshape", x, net.op("Concat", batch, net.ints(2, 4), net.ints(8, 8), axis=0))
    x = net.op("Reshape", x, net.op("Concat", batch, net.ints(8), net.ints(8, 8), axis=0))
    net.op("Gemm", net.op("Flatten", x), net.weight(8 * 64, 3))
    return net.model()


@case(0, "size-read")
def a_reshape_to_sizes_that_hold_the_channels() -> ModelProto:
    net = Net(shape=(-1, 4, 8, 8))
    x = net.op("Relu", net.conv("x", 4, 8, dead=[0, 1, 4, 5], held=-1.0))
    sizes = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(2))
    net.op("Conv", net.op("Reshape", x, net.op("Concat", sizes, net.ints(64), axis=0)), net.weight(3, 8, 1))
    return net.model()


@case(0, "read-elsewhere")
def expanded_to_the_shape_of_another() -> ModelProto:
    net = Net(shape=(-1, 4, 8, 8))
    x = net.op("GlobalAveragePool", net.conv("x", 4, 6, dead=[0, 1]))
    x = net.op("Expand", x, net.op("Shape", net.op("Relu", net.conv("x", 4, 6))))
    return end(net, x, 6)


@case(0, "read-elsewhere")
def a_choice_that_is_made() -> ModelProto:
    net = Net()
    x, y = net.conv("x", 4, 6, dead=[0, 1]), net.conv("x", 4, 6)
    return end(net, net.op("Where", net.const(True, np.bool_), x, y), 6)


@case(2)
def a_split_into_so_many_parts() -> ModelProto:
    net = Net(opset=18)
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 1]))
    parts = net.op("Split", x, outputs=2, num_outputs=2, axis=1)
    return net.model(*(net.conv(part, 3, 2) for part in parts))


@case(0, "read-elsewhere")
def a_layer_along_another_axis() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 1], held=-1.0))
    return end(net, net.op("MatMul", x, net.weight(8, 8)), 6)


@case(0, "read-elsewhere")
def a_condition_for_each_channel() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 4, dead=[0, 1], held=-1.0))
    x = net.op("Where", net.op("Greater", "x", net.const(0.1)), x, net.const(0.0))
    return end(net, x, 4)


@case(4)
def pixel_shuffle() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 12, dead=[1, 4, 7, 10], held=-1.0))
    return end(net, net.op("DepthToSpace", x, blocksize=2), 3, kernel=3)


@case(2)
def transposed_convolutions() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[1, 2], held=-0.3))
    net.op("ConvTranspose", x, net.weight(6, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    return net.model()


@case(2)
def dead_columns_of_a_transposed_convolution() -> ModelProto:
    net = Net()
    bias = net.const([0.1, -0.2, 0.3, 0.4, 0.5])
    x = net.op("ConvTranspose", "x", net.weight(4, 5, 3, 3, unread=[0, 3]), bias, strides=[2, 2])
    return end(net, net.op("Relu", x), 5)


@case(1, "padded-constant")
def a_transposed_convolution_bends_constants() -> ModelProto:
    net = Net()
    net.op("ConvTranspose", net.conv("x", 4, 6, dead=[1, 2]), net.weight(6, 3, 3, 3), strides=[2, 2])
    return net.model()


@case(3)
def activations_send_constants_to_constants() -> ModelProto:
    net = Net(opset=18)
    x = net.conv("x", 4, 6, dead=[1, 2, 5], held=-0.7)
    x = net.op("PRelu", x, net.const(net.rng.uniform(0.1, 0.9, (6, 1, 1))))
    x = net.op("Clip", x, net.const(-0.2), net.const(0.4))
    for kind in ("Sigmoid", "Tanh", "Elu", "Softplus", "Exp", "Mish", "Selu"):
        x = net.op(kind, x)
    x = net.op("LeakyRelu", net.op("HardSigmoid", x, alpha=0.125, beta=0.3), alpha=0.25)
    x = net.op("Mul", net.op("Add", x, net.const(net.rng.normal(0, 1, (1, 6, 1, 1)))), net.const(1.5))
    x = net.op("Max", x, net.const(-3.0))
    return end(net, net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 6)


@case(0, "live")
def counted_padding_is_no_constant() -> ModelProto:
    net = Net()
    x = net.conv("x", 4, 6, dead=[1])
    return end(net, net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), 6)


@case(2)
def a_norm_that_stayed() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6))
    gamma = net.const([1.0, 0.0, -0.7, 0.0, 1.3, 0.6])
    x = net.op("BatchNormalization", x, gamma, *(net.const(net.rng.uniform(0.2, 1.5, 6)) for _ in range(3)))
    return end(net, net.op("Relu", x), 6)


@case(1, "no-bias")
def a_product_without_a_bias() -> ModelProto:
    net = Net(shape=(2, 5, 4))
    weight = net.weight(4, 6, unread=[2, 3])
    x = net.op("Relu", net.op("Add", net.op("MatMul", "x", weight), net.const(np.full(6, 0.3))))
    net.op("MatMul", x, net.weight(6, 3))
    return net.model()


@case(2 + 2)
def shared_weights_are_copied() -> ModelProto:
    net = Net()
    weight = net.weight(2000, 6, 1, 1)  # large tensors are written late
    a, b = (net.op("Relu", net.conv("x", 4, 6, dead=dead)) for dead in ([0, 1], [2, 5]))
    return net.model(net.op("Conv", a, weight), net.op("Conv", b, weight))


@case(0, "held")
def what_a_graph_gives_stays() -> ModelProto:
    net = Net()
    net.op("Relu", net.conv("x", 4, 6, dead=[0, 1]))
    return net.model()


@case(0, "held")
def what_a_body_reads_stays() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 1]))
    bodies = [helper.make_graph([helper.make_node(kind, [x], [f"{kind}_out"])], kind, [],
                                [helper.make_tensor_value_info(f"{kind}_out", TensorProto.DOUBLE, None)])
              for kind in ("Neg", "Abs")]  # fmt: skip
    what = net.op("Greater", net.op("ReduceMax", "x", keepdims=0), net.const(0.5))
    net.op("If", what, then_branch=bodies[0], else_branch=bodies[1])
    return end(net, net.nodes[-1].output[0], 6)


@case(0, "read-elsewhere")
def a_norm_over_channels_needs_them_all() -> ModelProto:
    net = Net(shape=(2, 5, 4))
    x = net.op("Add", net.op("MatMul", "x", net.weight(4, 6, unread=[2])), net.const(np.full(6, 0.3)))
    net.op("MatMul", net.op("Softmax", x, axis=-1), net.weight(6, 3))
    return net.model()


@case(0, "size-read")
def how_many_channels_there_are_may_be_read() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 1]))
    size = net.op("Cast", net.op("Shape", x), to=TensorProto.DOUBLE)
    y = end(net, x, 6)
    return net.model(y.graph.output[0].name, size)


@case(2)
def other_sizes_may_be_read() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 1]))
    size = net.op("Gather", net.op("Shape", x), net.ints(2, 3))
    y = end(net, x, 6)
    return net.model(y.graph.output[0].name, net.op("Cast", size, to=TensorProto.DOUBLE))


@case(2)
def resized_by_sizes() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 1]))
    return end(net, net.op("Resize", x, "", "", net.ints(2, 6, 16, 12), mode="nearest"), 6)


@case(1)
def old_files_list_weights_as_inputs() -> ModelProto:
    net = Net(opset=9, ir=3)
    return end(net, net.op("Relu", net.conv("x", 4, 6, dead=[4])), 6)


@case(2)
def a_where_of_zeros() -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, unread=[0]))
    what = net.op("Greater", "x", net.const(np.zeros((1, 4, 1, 1))))
    what = net.op("Slice", what, net.ints(0), net.ints(1), net.ints(1))
    x = net.op("Where", what, x, net.const(net.rng.normal(0, 1, (6, 1, 1))))
    return end(net, x, 6, unread=[0, 5])


def _branch(bias: float, kind: str, opset: int = 17) -> ModelProto:
    """`x + branch(x)` between two layers; the branch ends in a layer without weights."""
    net = Net(opset=opset)
    x = net.conv("x", 4, 6)
    y = net.op("Relu", net.conv(net.op("Relu", x), 6, 8, kernel=3, pads=[1, 1, 1, 1]))
    if kind == "Mul":
        y = net.op("GlobalAveragePool", y)
    y = net.conv(y, 8, 6, dead=range(6), held=bias)
    y = net.op("HardSigmoid", y, alpha=0.25) if kind == "Mul" else y
    return end(net, net.op(kind, y, x) if kind == "Mul" else net.op(kind, x, y), 6)


@pytest.mark.parametrize(("kind", "bias", "kinds"), [
    ("Add", 0.0, ["Conv", "Conv"]), ("Add", 0.3, ["Conv", "Add", "Conv"]), ("Sub", 0.0, ["Conv", "Conv"]),
    ("Mul", 0.3, ["Conv", "Mul", "Conv"]),
])  # fmt: skip
def test_a_constant_branch_goes(kind: str, bias: float, kinds: list[str]) -> None:
    result = checked(_branch(bias, kind), 16)
    assert [node.op_type for node in result.model.graph.node] == kinds
    assert len(result.branches) == 1
    assert result.bytes[1] == sum(8 * int(np.prod(t.dims)) for t in result.model.graph.initializer if len(t.dims) == 4)


def test_a_branch_that_others_read_stays_for_them() -> None:
    net = Net()
    x, y = net.conv("x", 4, 6), net.conv("x", 4, 6, dead=range(6), held=0.0)
    result = checked(net.model(end(net, net.op("Add", x, y), 6).graph.output[0].name, y), 16)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Conv", "Conv"]


def test_a_branch_that_makes_the_shape_stays() -> None:
    net = Net()
    y = net.conv("x", 4, 6, dead=range(6), held=0.2)
    result = checked(end(net, net.op("Add", net.op("GlobalMaxPool", net.conv("x", 4, 6)), y), 6), 16)
    assert not result.branches


def test_a_branch_with_one_live_channel_stays() -> None:
    net = Net()
    x = net.conv("x", 4, 6)
    y = net.conv(net.op("Relu", x), 6, 6, dead=range(5))
    assert not shrink(end(net, net.op("Add", x, y), 6)).branches


def test_external_data(tmp_path: Path) -> None:
    net = Net()
    model = end(net, net.op("Relu", net.conv("x", 4, 40, dead=range(20))), 40)
    aside = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(aside, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    result = shrink(onnx.load(tmp_path / "m.onnx", load_external_data=False), folder=tmp_path)
    assert sum(group.dropped for group in result.groups) == 16
    onnx.load_external_data_for_model(result.model, str(tmp_path))
    same(model, result.model, x=np.random.default_rng(1).normal(0, 1, (2, 4, 8, 8)))


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    build, dropped, reasons = CASES[name]
    result = checked(build())
    assert sum(group.dropped for group in result.groups) == dropped, result.groups
    assert reasons <= {group.reason.code for group in result.groups if group.reason}, result.groups
    assert (result.multiplications[1] < result.multiplications[0]) == bool(dropped)


@pytest.mark.parametrize(("channels", "dead", "block", "stay"), [
    (40, 20, 16, 24), (48, 20, 16, 32), (48, 20, 8, 32), (48, 20, 1, 28), (32, 32, 16, 16), (20, 9, 16, 12),
    (7, 3, 16, 4), (64, 10, 16, 64), (24, 9, 16, 16),
])  # fmt: skip
def test_numbers_suit_the_runtime(channels: int, dead: int, block: int, stay: int) -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, channels, dead=range(1, 1 + dead) if dead < channels else range(dead)))
    result = checked(end(net, x, channels), block)
    assert sum(group.dropped for group in result.groups) == channels - stay


def test_what_stays_is_named_with_its_reason() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 32, dead=range(20)))
    (group,) = checked(end(net, x, 32), 16).groups
    assert (group.channels, group.empty, group.dropped, group.verdict) == (32, 20, 16, "dropped")
    assert group.reason
    assert group.reason.code == "blocks"
    assert group.layers == ("Conv_0", "Conv_2")
    assert group.tensor == "t0_0"
    assert group.multiplications == ((4 + 3) * 32 * 64, (4 + 3) * 16 * 64)
    assert group.bytes == (7 * 32 * 8, 7 * 16 * 8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_types_are_rounded_once(dtype: str) -> None:
    """The new bias is `b + sum_taps(W) c` in float64, rounded to its type."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    numbers = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": kind}[dtype]
    net = Net()
    end(net, net.op("Relu", net.conv("x", 4, 6, dead=[0, 4])), 6)
    model = net.model()
    own = np.dtype(helper.tensor_dtype_to_np_dtype(numbers))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(own), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = numbers
    result = shrink(model, block=1)
    old, new = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, result.model))
    wide = {name: value.astype(np.float64) for name, value in old.items()}
    held = np.maximum(wide["c1"], 0)[[0, 4]]
    expected = wide["c3"] + wide["c2"][:, [0, 4], 0, 0] @ held
    assert (new["c3"] == expected.astype(own)).all()
    assert new["c3"].dtype == own
    assert new["c0"].shape == (4, 4, 1, 1)
    assert new["c2"].shape == (3, 4, 1, 1)


def near_dead(weight: float, gain: float = 1.0, alone: bool = False) -> ModelProto:
    """Two channels of six have weights of about `weight`. Their reader multiplies them by `gain`; one row reads them
    `alone`.
    """
    net = Net()
    conv = net.conv("x", 4, 6)
    net.tensors["c0"][[1, 4]] *= weight
    end(net, conv, 6)
    net.tensors["c2"][:, [1, 4]] *= gain
    if alone:
        net.tensors["c2"][2, [0, 2, 3, 5]], net.tensors["c3"][2], net.tensors["c1"][[1, 4]] = 0, 0, 0
    model = net.model()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


@pytest.mark.parametrize("weight", [1e-40, 1e-20, 1e-14])
def test_what_is_lost_in_rounding_goes(weight: float) -> None:
    model = near_dead(weight)
    result = shrink(model, block=1)
    assert sum(group.dropped for group in result.groups) == 2
    x = np.random.default_rng(3).normal(0, 1, (2, 4, 8, 8)).astype(np.float32)
    same(model, result.model, 1e-6, x=x)
    assert not result.denormal
    exact = shrink(model, block=1, exact=True)
    assert not exact.changed
    assert exact.denormal == ((("Conv_0", 8),) if weight < 1e-38 else ())


@pytest.mark.parametrize(("weight", "gain", "alone"), [
    (1e-3, 1, False), (1e-7, 1, False), (1e-10, 1, False), (1e-14, 1e9, False), (1e-14, 1, True),
])  # fmt: skip
def test_what_may_be_seen_stays(weight: float, gain: float, alone: bool) -> None:
    assert not shrink(near_dead(weight, gain, alone), block=1).changed


def test_a_landmark_network_loses_its_dead_channels() -> None:
    model = Landmark(widths=(16, 32), depth=1, size=16).model()
    folded = bnfold.fold(model, verify=False).model
    result = shrink(folded, block=1)
    assert result.multiplications[1] < 0.6 * result.multiplications[0]
    x = np.random.default_rng(3).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)
    same(model, result.model, 1e-5, x=x)


def test_quantised_weights_are_left() -> None:
    net = Net()
    x = net.op("Relu", net.conv("x", 4, 6, dead=[0, 1]))
    integers = net.const(net.rng.integers(-9, 9, (3, 6, 1, 1)), np.int8)
    weight = net.op("DequantizeLinear", integers, net.const(np.full(3, 0.1)), axis=0)
    net.op("Conv", x, weight)
    assert not shrink(net.model(), block=1).changed


def deadened(seed: int) -> ModelProto:
    """A random graph of which many channels hold nothing."""
    rng = np.random.default_rng([seed, 3])
    model = RandomGraph(seed, int(rng.integers(8, 26))).model()
    at = {"BatchNormalization": 4, "Div": 1}
    positive = {node.input[at[node.op_type]] for node in model.graph.node if node.op_type in at}
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if value.dtype != np.float64 or not value.ndim or tensor.name in positive or rng.random() < 0.3:
            continue
        for axis in range(min(value.ndim, 2)):
            value[(slice(None),) * axis + (rng.random(value.shape[axis]) < 0.45,)] = 0
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


@pytest.mark.parametrize("seed", range(0, 120, 20))
def test_random_graphs(seed: int) -> None:
    dropped = 0
    for each in range(seed, seed + 20):
        model = deadened(each)
        result = shrink(model, block=1 + each % 2)
        assert not result.note
        dropped += sum(group.dropped for group in result.groups)
        shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
        if result.changed:
            same(model, result.model, x=np.random.default_rng(each).normal(0.2, 1, shape))
    assert dropped


def test_reasons_are_documented() -> None:
    files = (ROOT / "bnfold").glob("**/shrinking/*.py")
    codes = set(re.findall(r"Reason\(\s*\"([a-z-]+)\"", "\n".join(path.read_text() for path in files)))
    page = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/shrinking.md").read_text(), re.M)
    assert codes == set(page)
