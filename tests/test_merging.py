"""Linear layers that become one: laws in float64, blocks of reparameterised networks, and what must stay as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from itertools import product as grid
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.core.graph import Reason
from bnfold.core.merging import reasons
from bnfold.core.merging.algebra import Linear, add, average, compose, diagonal, identity, scaled
from bnfold.core.merging.geometry import Axis, Geometry
from bnfold.onnx.files import dump, load
from bnfold.onnx.merging.merge import Merged, merge
from bnfold.onnx.read import constants
from bnfold.onnx.write.apply import apply
from bnfold.options import Folding
from tests.evaluate import evaluate
from tests.random_linear import RandomLinear
from tests.test_rules import Net
from tests.zoo import ZOO, NetBuilder

LOADED = import_module("bnfold.doors.onnx")
ROOT = Path(__file__).parents[1]
Array = npt.NDArray[Any]
RNG = np.random.default_rng(5)

# --- laws


def applied(layer: Linear, x: Array) -> Array:
    """What a layer gives for x (N, C, *sizes), tap by tap, by the definition in `geometry`."""
    g = layer.geometry
    if g.kind == "diag":
        along = [-1 if i == g.axis else 1 for i in range(x.ndim)]
        return np.asarray(layer.kernel.reshape(along) * x + layer.bias.reshape(along))
    sizes, count = x.shape[2:], len(g.axes)
    made = [replace(axis, size=n).count(g.transposed) or 0 for axis, n in zip(g.axes, sizes, strict=True)]
    y = np.zeros((x.shape[0], g.groups, g.outputs // g.groups, *made)) + layer.bias.reshape(g.groups, -1, *[1] * count)
    split = x.reshape(x.shape[0], g.groups, -1, *sizes)
    for tap in np.ndindex(*g.taps):
        far = [a.first + a.step * i for a, i in zip(g.axes, tap, strict=True)]
        reads, writes = [], []
        for axis, place, n, m in zip(g.axes, far, sizes, made, strict=True):
            own = np.arange(n if g.transposed else m)
            other = axis.stride * own + place
            inside = (other >= 0) & (other < (m if g.transposed else n))
            pair = (own[inside], other[inside])
            reads.append(pair[0] if g.transposed else pair[1])
            writes.append(pair[1] if g.transposed else pair[0])
        if not all(part.size for part in reads):
            continue
        seen = split[np.ix_(*map(np.arange, split.shape[:3]), *reads)]
        part = np.einsum("goi,ngi...->ngo...", layer.kernel[(..., *tap)], seen)
        y[np.ix_(*map(np.arange, y.shape[:3]), *writes)] += part
    return y.reshape(x.shape[0], g.outputs, *made)


def drawn(
    rank: int, into: int, out: int, sizes: tuple[int, ...] | None, kind: str = "conv", same: bool = True
) -> Linear:
    """A random layer; mostly one that keeps the size."""
    axes = []
    for i in range(rank):
        taps, step = int(RNG.choice([1, 2, 3, 5])), int(RNG.choice([1, 1, 2]))
        reach = step * (taps - 1)
        stride = 1 if same else int(RNG.choice([1, 2, 3]))
        first = -int(RNG.integers(0, reach + 1))
        room = 0 if same else int(RNG.integers(-1, 2))
        if not (kind == "transpose" or reach + room + first >= 0):
            room = -reach - first
        axes.append(Axis(first, step if taps > 1 else 1, taps, stride, room, sizes[i] if sizes else None))
    groups = int(RNG.choice([g for g in range(1, into + 1) if into % g == 0 and out % g == 0]))
    geometry = Geometry(kind, into, out, groups, tuple(axes), 1, True)
    return Linear(geometry, RNG.normal(size=geometry.shape), RNG.normal(size=out))


def alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.abs(a).max(initial=0.0))))


@pytest.mark.parametrize(("rank", "kind", "known"), list(grid((1, 2, 3), ("conv", "transpose"), (True, False))))
def test_sums_are_layers(rank: int, kind: str, known: bool) -> None:
    """`a(x) + b(x)`: layers that keep the size always add; with a copy of x and, for convs, an average, too."""
    for _ in range(12):
        sizes = tuple(int(n) for n in RNG.integers(5, 8, rank))
        c = int(RNG.choice([1, 2, 4, 6]))
        layers = [drawn(rank, c, c, sizes if known else None, kind) for _ in range(2)]
        layers += [
            diagonal(RNG.normal(size=c), RNG.normal(size=c)),
            identity(),
            diagonal(RNG.normal(size=1), RNG.normal(size=1)),
        ]
        if kind == "conv":
            layers.append(average(c, (Axis(-1, 1, 3),) * rank))
        x = RNG.normal(size=(2, c, *sizes))
        total: Linear | Reason = layers[0]
        for layer in layers[1:]:
            assert isinstance(total, Linear)
            total = add(total, layer)
        assert isinstance(total, Linear)
        assert alike(applied(total, x), np.sum([applied(layer, x) for layer in layers], 0))
        assert alike(applied(scaled(total, np.full(1, -2.0)), x), -2 * applied(total, x))


@pytest.mark.parametrize(("rank", "known"), list(grid((1, 2, 3), (True, False))))
def test_what_is_taken_for_a_layer_is_one(rank: int, known: bool) -> None:
    """Strides, dilations, paddings, groups, kinds at random: a sum or product is refused, or it is right."""
    made: Counter[str] = Counter()
    for _ in range(120):
        sizes = tuple(int(n) for n in RNG.integers(5, 9, rank))
        c, mid, out = (int(v) for v in RNG.choice([1, 2, 4], 3))
        kinds = [str(kind) for kind in RNG.choice(["conv", "conv", "transpose"], 2)]
        inner = drawn(rank, c, mid, sizes if known else None, kinds[0], bool(RNG.random() < 0.6))
        x = RNG.normal(size=(2, c, *sizes))
        y = applied(inner, x)
        if RNG.random() < 0.6:
            inner = Linear(replace(inner.geometry, biased=False), inner.kernel, np.zeros(mid))
            y = applied(inner, x)
        if min(y.shape[2:]) < 5:
            continue
        outer = drawn(rank, mid, out, y.shape[2:] if known else None, kinds[1], bool(RNG.random() < 0.6))
        if RNG.random() < 0.4:  # pointwise
            axes = tuple(Axis(size=n if known else None) for n in y.shape[2:])
            geometry = Geometry(kinds[1], mid, out, 1, axes, 1, True)
            outer = Linear(geometry, RNG.normal(size=geometry.shape), RNG.normal(size=out))
        if min(applied(outer, y).shape[2:]) < 1:
            continue
        row = compose(outer, inner)
        made["row" if isinstance(row, Linear) else row.code] += 1
        if isinstance(row, Linear):
            assert alike(applied(row, x), applied(outer, y)), (outer.geometry, inner.geometry)
        other = drawn(rank, c, mid, sizes if known else None, kinds[1], bool(RNG.random() < 0.5))
        both = add(inner, other)
        made["sum" if isinstance(both, Linear) else both.code] += 1
        if isinstance(both, Linear):
            assert alike(applied(both, x), y + applied(other, x)), (inner.geometry, other.geometry)
    assert min(made[key] for key in ("row", "sum", "merge-border", "merge-kinds", "merge-stride", "merge-padding")) > 0


def test_a_bias_behind_zero_padding_is_no_layer_unless_it_is_zero() -> None:
    inner, outer = drawn(1, 2, 2, None), drawn(1, 2, 2, None)
    inner = replace(
        inner, geometry=replace(inner.geometry, axes=(Axis(),), groups=1), kernel=RNG.normal(size=(1, 2, 2, 1))
    )
    outer = replace(
        outer, geometry=replace(outer.geometry, axes=(Axis(-1, 1, 3),), groups=1), kernel=RNG.normal(size=(1, 2, 2, 3))
    )
    assert compose(outer, inner) is reasons.BORDER
    bare = Linear(replace(inner.geometry, biased=False), inner.kernel, np.zeros(2))
    made, x = compose(outer, bare), RNG.normal(size=(1, 2, 6))
    assert isinstance(made, Linear)
    assert alike(applied(made, x), applied(outer, applied(bare, x)))


# --- random graphs


def merged(model: onnx.ModelProto, siblings: bool = False) -> tuple[onnx.ModelProto, Merged]:
    """A copy of a model, merged and checked."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    found = merge(copy, siblings=siblings)
    made = found.applied.complete()
    onnx.checker.check_model(made, full_check=True)
    return made, found


def demand_equal(model: onnx.ModelProto, made: onnx.ModelProto, x: Array, bound: float = 1e-11) -> None:
    name = model.graph.input[0].name
    for a, b in zip(evaluate(model, **{name: x}), evaluate(made, **{name: x}), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.abs(a - b).max() <= bound * max(1.0, np.abs(a).max())


@pytest.mark.parametrize("start", range(0, 30, 10))
def test_random_graphs_stay_the_same_function(start: int) -> None:
    changed = 0
    for seed in range(start, start + 10):
        drawn = RandomLinear(seed)
        model, x = drawn.model(), drawn.feed()
        made, found = merged(model, siblings=seed % 2 == 1)
        demand_equal(model, made, x)
        changed += found.changed
        ends = [[(v.name, v.type) for v in side] for g in (model, made) for side in (g.graph.input, g.graph.output)]
        assert ends[:2] == ends[2:]
        assert found.changed or made == model
    assert changed > 3


# --- blocks as they are trained

SHAPE = (8, 9, 9)


def builder(seed: int = 3, dtype: npt.DTypeLike = np.float64) -> NetBuilder:
    return NetBuilder(dtype=dtype, seed=seed, signs="both", zero_gamma=0.15, opset=17)


def repvgg(net: NetBuilder, x: str) -> str:
    return net.add(net.add(net.conv_bn(x, 8, 3), net.conv_bn(x, 8, 1)), net.bn(x))


def strided(net: NetBuilder, x: str) -> str:
    return net.add(net.conv_bn(x, 6, 3, 2), net.conv_bn(x, 6, 1, 2))


def mobileone(net: NetBuilder, x: str) -> str:
    y = net.add(net.conv_bn(x, 8, 1, groups=8), net.bn(x))
    for _ in range(4):
        y = net.add(y, net.conv_bn(x, 8, 3, groups=8))
    y = net.relu(y)
    z = net.bn(y)
    for _ in range(4):
        z = net.add(net.conv_bn(y, 8, 1), z)
    return z


def acnet(net: NetBuilder, x: str) -> str:
    return net.add(net.add(net.conv_bn(x, 8, 3), net.conv_bn(x, 8, (1, 3))), net.conv_bn(x, 8, (3, 1)))


def dbb(net: NetBuilder, x: str) -> str:
    """Diverse branch block: a 1 x 1 that pads, and so gives its bias there, before a 3 x 3 or an average."""
    y = net.add(net.conv_bn(x, 8, 3), net.conv_bn(x, 8, 1))
    inner = net.bn(net.conv(x, 8, 1, pad=1))
    y = net.add(y, net.bn(net.conv(inner, 8, 3, pad=0)))
    inner = net.bn(net.conv(x, 8, 1, pad=1))
    return net.add(y, net.bn(net.avg_pool(inner, 3, 1)))


def repvit(net: NetBuilder, x: str) -> str:
    local = net.add(net.conv_bn(x, 8, 3, groups=8), net.conv(x, 8, 1, groups=8, bias=True))
    return net.bn(net.add(local, x))


def fastvit(net: NetBuilder, x: str) -> str:
    """x + scale * (mobileone(x) - bn(x)): one depthwise convolution."""
    y = net.add(net.add(net.conv_bn(x, 8, 3, groups=8), net.conv_bn(x, 8, 1, groups=8)), net.bn(x))
    return net.add(x, net.layer_scale(net.sub(y, net.bn(x))))


def replarge(net: NetBuilder, x: str) -> str:
    return net.add(net.conv_bn(x, 8, 7, groups=8), net.conv_bn(x, 8, 3, groups=8))


def repghost(net: NetBuilder, x: str) -> str:
    return net.add(net.conv_bn(x, 8, 3, groups=8), net.bn(x))


def poolformer(net: NetBuilder, x: str) -> str:
    pooled = net.node(
        "AveragePool", [x], net.shapes[x], net.moments[x], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    )
    return net.sub(pooled, x)


def one_dimension(net: NetBuilder, x: str) -> str:
    x = net.node("Reshape", [x, net.integers("shape", [0, 8, 81])], (8, 81), net.moments[x])
    return net.add(net.add(net.conv_bn(x, 8, 5), net.conv_bn(x, 8, 3)), x)


BLOCKS: list[tuple[Callable[[NetBuilder, str], str], int]] = [
    (repvgg, 1), (strided, 1), (mobileone, 2), (acnet, 1), (dbb, 1), (repvit, 1), (fastvit, 1), (replarge, 1),
    (repghost, 1), (poolformer, 1), (one_dimension, 1),
]  # fmt: skip


@pytest.mark.parametrize(("block", "layers"), BLOCKS, ids=lambda v: getattr(v, "__name__", str(v)))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_training_forms_become_deploy_forms(block: Any, layers: int, dtype: npt.DTypeLike) -> None:
    net = builder(dtype=dtype)
    x = net.relu(net.conv_bn(net.input(SHAPE), 8, 1))
    model = net.finish(net.classifier(net.relu(block(net, x))))
    folded = bnfold.fold(model, verify=False).model
    made, found = merged(folded)
    ops = Counter(node.op_type for node in made.graph.node)
    assert ops["Conv"] == layers + 1
    assert not {"Add", "Sub", "Sum", "Mul", "BatchNormalization", "AveragePool"} & set(ops)
    bound = 1e-11 if dtype == np.float64 else 1e-5
    demand_equal(model, made, RNG.normal(size=(2, *SHAPE)).astype(dtype), bound)
    for candidate in found.candidates:
        assert candidate.verdict == "merged"
        assert {node.name for node in folded.graph.node}.issuperset(candidate.nodes)
        assert candidate.into in {node.name for node in made.graph.node}
        assert candidate.multiplications[1] <= candidate.multiplications[0] or block is poolformer
        assert candidate.seconds[1] < candidate.seconds[0]


def test_depthwise_branches_stay_depthwise() -> None:
    net = builder()
    model = net.finish(mobileone(net, net.relu(net.input(SHAPE))))
    made, _ = merged(bnfold.fold(model, verify=False).model)
    groups = [a.i for n in made.graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "group"]
    assert groups == [8, 1]


@pytest.mark.parametrize("name", ["inception_v3", "resnet50", "shufflenet", "densenet121", "unet", "mlp"])
def test_networks_without_such_layers_stay_byte_for_byte(name: str) -> None:
    folded = bnfold.fold(ZOO[name](), verify=False).model
    before = folded.SerializeToString(deterministic=True)
    found = merge(folded)
    assert not found.changed
    assert found.applied.complete().SerializeToString(deterministic=True) == before


def test_a_resnext_block_has_nothing_to_merge() -> None:
    """Grouped layers with activations between, and a shortcut of its own: nothing looks as if it could be merged."""
    net = builder()
    x = net.relu(net.conv_bn(net.input(SHAPE), 8, 1))
    y = net.conv_bn_relu(net.conv_bn_relu(x, 8, 1), 8, 3, groups=4)
    model = net.finish(net.classifier(net.relu(net.add(net.conv_bn(y, 8, 1), x))))
    assert merge(bnfold.fold(model, verify=False).model).candidates == ()


# --- what is merged, and what is left and why


def build(make: Callable[[Net], str | list[str]], channels: int = 8, size: int = 8) -> onnx.ModelProto:
    """A model over (2, channels, size, size) with an activation before and behind."""
    net = Net(2, channels, size, size)
    x = net.op("Relu", "x")
    assert x == "relu0"
    made = make(net)
    return net.model(*(made if isinstance(made, list) else [net.op("Relu", made)]))


def conv(n: Net, k: int = 3, x: str = "relu0", out: int = 8, into: int = 8, **attrs: Any) -> str:
    dilations = attrs.get("dilations", [1, 1])
    if "auto_pad" not in attrs:
        attrs = {"pads": [d * (k - 1) // 2 for d in dilations] * 2} | attrs
    return n.conv(x, into, out, k, **attrs)


def average_of(n: Net, **attrs: Any) -> str:
    return str(n.op("AveragePool", "relu0", kernel_shape=[3, 3], pads=[1] * 4, **attrs))


def quantised(n: Net, k: int, factor: float = 0.0) -> str:
    integers = n.w(n.rng.integers(-90, 90, (8, 8, k, k)), np.int8)
    weight = n.op("DequantizeLinear", integers, n.w(0.01, np.float32), n.w(0, np.int8))
    weight = n.op("Cast", weight, to=TensorProto.DOUBLE)
    weight = n.op("Mul", weight, n.w(factor)) if factor else weight
    return str(n.op("Conv", "relu0", weight, pads=[k // 2] * 4))


def gemms(n: Net, *sizes: int) -> str:
    y = n.op("Flatten", n.op("GlobalAveragePool", "relu0"))
    for into, out in pairwise(sizes):
        y = n.op("Gemm", y, n.w(n.rng.normal(size=(out, into))), n.w(n.rng.normal(size=out)), transB=1)
    return str(y)


def add_(n: Net, *names: str) -> str:
    return str(n.op("Add", *names))


LEFT: dict[str, tuple[str, Callable[[Net], Any]]] = {
    "strides": ("merge-stride", lambda n: add_(n, conv(n, 1, strides=[2, 1], pads=[0, 0, 7, 0]), conv(n))),
    "sizes": (
        "merge-padding",
        lambda n: n.op("Add", conv(n, 8, pads=[0] * 4, out=8), conv(n, 1)),
    ),
    "pooling": (
        "merge-pooling",
        lambda n: add_(n, average_of(n), conv(n)),
    ),
    "kinds": (
        "merge-kinds",
        lambda n: add_(n, n.op("ConvTranspose", "relu0", n.w(n.rng.normal(size=(8, 8, 3, 3))), pads=[1] * 4), conv(n)),
    ),
    "unknown padding": (
        "merge-unknown-padding",
        lambda n: add_(n, *(n.op("ConvTranspose", "relu0", n.w(n.rng.normal(size=(8, 8, 3, 3))), strides=[2, 2],
                                 auto_pad=auto) for auto in ("SAME_UPPER", "SAME_LOWER"))),
    ),
    "border": ("merge-border", lambda n: conv(n, 3, conv(n, 1, bias=True))),
    "border of an offset": (
        "merge-border",
        lambda n: add_(n, conv(n, 3, n.op("Add", "relu0", n.w(n.rng.normal(size=(8, 1, 1))))), conv(n, 1)),
    ),
    "shared weights": (
        "merge-cost",
        lambda n: [
            n.op("Relu", n.op("Conv", conv(n, 1), w := n.w(n.rng.normal(size=(8, 8, 3, 3))), pads=[1] * 4)),
            n.op("Relu", n.op("Conv", n.op("Sigmoid", "relu0"), w)),
        ],
    ),
    "border of two": ("merge-border", lambda n: conv(n, 3, conv(n, 3))),
    "quantized": ("merge-quantized", lambda n: add_(n, quantised(n, 3), quantised(n, 1))),
    "one quantized": ("merge-quantized", lambda n: add_(n, quantised(n, 3), conv(n, 1))),
    "quantized, then scaled": ("merge-quantized", lambda n: add_(n, quantised(n, 3, 2.0), conv(n, 1))),
    "second reader": ("merge-second-reader", lambda n: [add_(n, (y := conv(n)), conv(n, 1)), n.op("Relu", y)]),
    "graph output": ("merge-second-reader", lambda n: [add_(n, (y := conv(n)), conv(n, 1)), y]),
    "row with a second reader": (
        "merge-second-reader",
        lambda n: [n.op("Relu", conv(n, 1, (y := conv(n)))), n.op("Relu", y)],
    ),
    "low rank": ("merge-cost", lambda n: gemms(n, 8, 2, 8)),
    "separable": ("merge-cost", lambda n: conv(n, 1, conv(n, group=8, bias=True))),
    "channel axes": (
        "merge-channels",
        lambda n: n.op("MatMul", conv(n), n.w(n.rng.normal(size=(8, 8)))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_merged_is_left_and_says_why(name: str) -> None:
    code, make = LEFT[name]
    model = build(make)
    made, found = merged(model)
    assert not found.changed
    assert made == model
    assert [candidate.reason.code for candidate in found.candidates if candidate.reason] == [code]
    (candidate,) = found.candidates
    assert candidate.verdict == "left"
    assert candidate.into == ""
    assert candidate.reason is not None
    assert candidate.plain.reason == candidate.reason
    assert candidate.bytes[0] == candidate.bytes[1]


def test_layers_of_unlike_cost_stay_apart() -> None:
    """A depthwise 3 x 3 beside a full 1 x 1 of many channels: as one layer it would be nine times the work."""
    _, found = merged(build(lambda n: add_(n, conv(n, 1, out=64, into=64), conv(n, group=64, out=64, into=64)), 64, 28))
    assert [c.reason and c.reason.code for c in found.candidates] == ["merge-cost"]


def tree(n: Net) -> str:
    """A tree of unlike depths, with terms that are subtracted, constants, and a term of another tensor."""
    parts = [
        conv(n, bias=True),
        conv(n, 1),
        n.op("Mul", "relu0", n.w(n.rng.normal(size=(8, 1, 1)))),
        conv(n, 3, dilations=[1, 1]),
    ]
    left = n.op("Sum", parts[0], n.w(n.rng.normal(size=(1, 8, 1, 1))), n.op("Sub", parts[1], parts[2]))
    right = n.op("Add", n.op("Identity", parts[3]), n.op("Sigmoid", "relu0"))
    return str(n.op("Add", n.op("Add", right, n.op("Sub", n.w(0.3), "relu0")), left))


MERGED: dict[str, tuple[dict[str, int], Callable[[Net], Any]]] = {
    "a tree with a stranger": ({"Conv": 1, "Add": 1, "Sigmoid": 1}, tree),
    "dilations that fit": ({"Conv": 1}, lambda n: add_(n, conv(n, 5), conv(n, 3, dilations=[2, 2]))),
    "auto_pad": ({"Conv": 1}, lambda n: add_(n, conv(n, 3, auto_pad="SAME_UPPER"), conv(n, 1, auto_pad="VALID"))),
    "auto_pad, strides": (
        {"Conv": 1},
        lambda n: add_(n, *(conv(n, k, auto_pad="SAME_UPPER", strides=[2, 2]) for k in (3, 2))),
    ),
    "even kernels that pad unlike": ({"Conv": 1}, lambda n: add_(n, conv(n, 4, pads=[2, 1, 1, 2]), conv(n))),
    "paddings of unlike sizes that read alike": (
        {"Conv": 1},
        lambda n: add_(n, conv(n, 3, strides=[2, 2], pads=[1, 1, 0, 0]), conv(n, 1, strides=[2, 2])),
    ),
    "the same weights twice": (
        {"Conv": 1},
        lambda n: (w := n.w(n.rng.normal(size=(8, 8, 3, 3))))
        and n.op("Add", n.op("Conv", "relu0", w, pads=[1] * 4), n.op("Conv", "relu0", w, pads=[1] * 4)),
    ),
    "groups": ({"Conv": 1}, lambda n: add_(n, conv(n, group=4), conv(n, 1, group=2))),
    "transposed": (
        {"ConvTranspose": 1},
        lambda n: add_(
            n,
            n.op("ConvTranspose", "relu0", n.w(n.rng.normal(size=(8, 2, 4, 4))), strides=[2, 2], pads=[1] * 4, group=2),
            n.op("ConvTranspose", "relu0", n.w(n.rng.normal(size=(8, 4, 2, 2))), strides=[2, 2]),
        ),
    ),
    "transposed, output padding": (
        {"ConvTranspose": 1},
        lambda n: add_(
            n,
            *(n.op("ConvTranspose", "relu0", n.w(n.rng.normal(size=(8, 4, k, k))), strides=[2, 2], pads=[k // 2] * 4,
                   output_padding=[1, 1]) for k in (3, 1)),
        ),
    ),
    "a row of Gemms": ({"Gemm": 1, "Flatten": 1, "GlobalAveragePool": 1}, lambda n: gemms(n, 8, 16, 24, 4)),
    "1x1, then 3x3 with padding": ({"Conv": 1}, lambda n: conv(n, 3, conv(n, 1))),
    "3x3 with padding, then 1x1": ({"Conv": 1}, lambda n: conv(n, 1, conv(n, 3, bias=True), bias=True)),
    "strides in a row": (
        {"Conv": 1},
        lambda n: conv(n, 2, conv(n, 1, strides=[2, 2]), strides=[2, 2], pads=[0] * 4, out=2),
    ),
    "pointwise, then transposed": (
        {"ConvTranspose": 1},
        lambda n: n.op("ConvTranspose", conv(n, 1), n.w(n.rng.normal(size=(8, 4, 2, 2))), strides=[2, 2]),
    ),
    "pooling in a row": (
        {"Conv": 1},
        lambda n: conv(n, 1, n.op("AveragePool", conv(n, 3), kernel_shape=[1, 1]), bias=True),
    ),
    "two groups of unlike strides": (
        {"Conv": 2, "Add": 1},
        lambda n: add_(
            n,
            add_(n, conv(n, strides=[2, 2]), conv(n, 5, pads=[0] * 4)),
            add_(n, conv(n, 1, strides=[2, 2]), conv(n, 5, pads=[0] * 4)),
        ),
    ),
    "siblings": ({"Conv": 1}, lambda n: n.op("Concat", conv(n, bias=True), conv(n, out=4), conv(n, out=2), axis=1)),
    "siblings beside another form": (
        {"Conv": 2, "Concat": 1},
        lambda n: n.op("Concat", conv(n), conv(n), conv(n, 1), axis=1),
    ),
    "siblings beside a stranger": (
        {"Conv": 1, "Concat": 1, "Sigmoid": 1},
        lambda n: n.op("Concat", n.op("Sigmoid", "relu0"), conv(n, 1), conv(n, 1, out=4, bias=True), "relu0", axis=-3),
    ),
    "siblings that are sums": (
        {"Conv": 1},
        lambda n: n.op("Concat", add_(n, conv(n), conv(n, 1)), conv(n), axis=1),
    ),
    "an average beside a conv": (
        {"Conv": 1},
        lambda n: add_(n, average_of(n, count_include_pad=1), conv(n)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_what_can_be_merged_is(name: str) -> None:
    ops, make = MERGED[name]
    model = build(make)
    made, found = merged(model)
    assert Counter(node.op_type for node in made.graph.node) - Counter(["Relu", "Relu"]) == Counter(ops)
    demand_equal(model, made, RNG.normal(size=(2, 8, 8, 8)))
    assert found.changed


@pytest.mark.parametrize(
    "make",
    [
        lambda n: n.op("Concat", conv(n), conv(n, 1), axis=1),
        lambda n: n.op("Concat", conv(n, group=2), conv(n, group=2), axis=1),
        lambda n: n.op("Concat", conv(n), conv(n, x=n.op("Sigmoid", "relu0")), axis=1),
        lambda n: n.op("Concat", conv(n), conv(n), axis=2),
        lambda n: [n.op("Concat", y := conv(n), conv(n), axis=1), n.op("Relu", y)],
    ],
)
def test_outputs_that_are_put_together_and_are_no_layer(make: Callable[[Net], Any]) -> None:
    """Kernels of unlike sizes, groups, other inputs, another axis, a second reader."""
    assert not merge(build(make)).changed


def test_matmuls_of_sequences_and_their_biases() -> None:
    net = Net(2, 5, 6)
    first = net.op("Add", net.w(net.rng.normal(size=6)), net.op("MatMul", "x", net.w(net.rng.normal(size=(6, 6)))))
    second = net.op("Add", net.op("MatMul", "x", net.w(net.rng.normal(size=(6, 6)))), net.w(net.rng.normal(size=6)))
    total = net.op("Add", net.op("Add", first, "x"), second)
    model = net.model(net.op("Relu", net.op("MatMul", total, net.w(net.rng.normal(size=(6, 3))))))
    made, _ = merged(model)
    assert [node.op_type for node in made.graph.node] == ["MatMul", "Add", "Relu"]
    demand_equal(model, made, RNG.normal(size=(2, 5, 6)))


@pytest.mark.parametrize("opset", [12, 13, 18])
def test_queries_keys_and_values_are_one_product_where_that_is_wanted(opset: int) -> None:
    net = Net(2, 5, 6)
    sides = []
    for out in (6, 6, 3):
        y = net.op("MatMul", "x", net.w(net.rng.normal(size=(6, out))))
        sides.append(net.op("Add", y, net.w(net.rng.normal(size=out))))
    scores = net.op("MatMul", sides[0], net.op("Transpose", sides[1], perm=[0, 2, 1]))
    model = net.model(net.op("MatMul", net.op("Softmax", scores), sides[2]), sides[1], opset=opset)
    assert not merged(model)[1].changed
    made, found = merged(model, siblings=True)
    ops = [node.op_type for node in made.graph.node]
    assert ops == ["MatMul", "Add", "Split", "Transpose", "MatMul", "Softmax", "MatMul"]
    assert [(c.kind, c.verdict) for c in found.candidates] == [("siblings", "merged")]
    demand_equal(model, made, RNG.normal(size=(2, 5, 6)))


@pytest.mark.parametrize(("alpha", "beta", "across"), list(grid((1.0, 0.7), (1.0, 0.3, 0.0), (0, 1))))
def test_factors_of_gemms(alpha: float, beta: float, across: int) -> None:
    net = Net(3, 6)
    factors: dict[str, Any] = {"alpha": alpha, "beta": beta, "transB": across}
    constants = [net.w(net.rng.normal(size=shape)) for shape in ((6,), (1,))]
    sides = [net.op("Gemm", "x", net.w(net.rng.normal(size=(6, 6))), c, **factors) for c in constants]
    model = net.model(net.op("Relu", net.op("Add", net.op("Add", *sides), "x")))
    made, _ = merged(model)
    assert [node.op_type for node in made.graph.node] == ["Gemm", "Relu"]
    demand_equal(model, made, RNG.normal(size=(3, 6)))


@pytest.mark.parametrize(("opset", "ops"), [(6, 2), (9, 1), (10, 1), (11, 1)])
def test_old_opsets_in_which_a_gemm_has_a_bias(opset: int, ops: int) -> None:
    """Before 11 there is no Gemm without one; before 7 operators broadcast otherwise, and nothing is touched."""
    net = Net(3, 6)
    y = "x"
    for into, out in ((6, 6), (6, 2)):
        weight = net.w(net.rng.normal(size=(into, out)))
        y = net.op("Gemm", y, weight, net.w(np.zeros(out)), **({"broadcast": 1} if opset < 7 else {}))
    model = net.model(y, opset=opset)
    made, _ = merged(model)
    assert len(made.graph.node) == ops
    if opset >= 7:
        demand_equal(model, made, RNG.normal(size=(3, 6)))


def test_weights_that_others_share_are_copied() -> None:
    """The 3 x 3 kernel is read by a layer that stays, too."""

    def make(n: Net) -> list[str]:
        w = n.w(n.rng.normal(size=(8, 8, 3, 3)))
        y = n.op("Conv", "relu0", w, pads=[1] * 4)
        return [n.op("Relu", add_(n, y, conv(n, 1))), n.op("Relu", n.op("Conv", n.op("Sigmoid", "relu0"), w))]

    model = build(make)
    made, found = merged(model)
    assert found.changed
    kept = [n.op_type for n in made.graph.node]
    assert kept.count("Conv") == 2
    demand_equal(model, made, RNG.normal(size=(2, 8, 8, 8)))


def test_two_layers_of_a_sum_with_a_reader_of_the_third() -> None:
    """What can be merged is, beside what has to stay."""
    model = build(lambda n: [n.op("Relu", add_(n, add_(n, (y := conv(n)), conv(n, 1)), conv(n))), n.op("Relu", y)])
    made, found = merged(model)
    assert Counter(node.op_type for node in made.graph.node)["Conv"] == 2
    assert [c.verdict for c in found.candidates] == ["merged", "left"]
    assert found.candidates[1].reason is not None
    assert found.candidates[1].reason.code == "merge-second-reader"
    demand_equal(model, made, RNG.normal(size=(2, 8, 8, 8)))


def test_a_term_that_is_a_graph_output_is_added_by_a_sum() -> None:
    """Optimisers of onnxruntime make one op of a Conv and an Add, and forget that the Conv is an output."""
    model = build(lambda n: [n.op("Relu", n.op("Sum", y := conv(n), conv(n, 1, bias=True), conv(n, bias=True))), y])
    made, found = merged(model)
    assert found.changed
    assert [node.op_type for node in made.graph.node] == ["Relu", "Conv", "Conv", "Sum", "Relu"]
    demand_equal(model, made, RNG.normal(size=(2, 8, 8, 8)))


def _in_a_body(model: onnx.ModelProto) -> None:
    """Let the body of an If read the output of the first conv."""
    inner = next(n.output[0] for n in model.graph.node if n.op_type == "Conv")
    bodies = {}
    for name, op in (("then", "Relu"), ("else", "Neg")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.DOUBLE, None)
        node = helper.make_node(op, [inner], [out.name])
        bodies[f"{name}_branch"] = helper.make_graph([node], name, [], [out])
    model.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["choice"], ["inner"], **bodies))
    model.graph.output.append(helper.make_tensor_value_info("inner", TensorProto.DOUBLE, None))


def _overridable(model: onnx.ModelProto) -> None:
    """A caller may give another weight."""
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    model.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.DOUBLE, weight.dims))


def _in_training(model: onnx.ModelProto) -> None:
    """The dilemma of a norm that is to be trained: it is no affine map."""
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["mean", "var"])


@pytest.mark.parametrize("spoil", [_in_a_body, _overridable, _in_training])
def test_what_must_not_be_touched_is_not(spoil: Callable[[onnx.ModelProto], None]) -> None:
    model = build(
        lambda n: add_(
            n, n.bn(conv(n), 8), conv(n, 1, x="relu0") if spoil is not _in_training else n.op("Sigmoid", "relu0")
        )
    )
    spoil(model)
    before = model.SerializeToString(deterministic=True)
    found = merge(model)
    assert not found.changed
    assert model.SerializeToString(deterministic=True) == before


def test_norms_that_are_to_be_left_alone_are() -> None:
    model = build(lambda n: add_(n, n.bn(conv(n), 8), conv(n, 1)))
    name = next(n.name for n in model.graph.node if n.op_type == "BatchNormalization")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    assert not merge(copy, kept={name}).changed
    assert not merge(copy, kept={next(n.output[0] for n in model.graph.node if n.name == name)}).changed
    made, found = merged(model)
    assert found.changed
    demand_equal(model, made, RNG.normal(size=(2, 8, 8, 8)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_short_types_are_added_in_float64_and_rounded_once(dtype: str) -> None:
    kind = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}[dtype]
    store = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    model = build(lambda n: add_(n, add_(n, conv(n, bias=True), conv(n, 1, bias=True)), conv(n, bias=True)))
    model.opset_import[0].version = 22
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(store), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    old = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "Conv"]
    kernel = sum((np.pad(w, [(0, 0)] * 2 + [(1, 1)] * 2) if (w := old[n.input[1]]).shape[2] == 1 else w) for n in nodes)
    made, _ = merged(model)
    new = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    (node,) = [n for n in made.graph.node if n.op_type == "Conv"]
    assert new[node.input[1]].dtype == new[node.input[2]].dtype == store
    assert np.array_equal(new[node.input[1]], np.asarray(kernel).astype(store))
    assert np.array_equal(new[node.input[2]], np.sum([old[n.input[2]] for n in nodes], 0).astype(store))


@pytest.mark.parametrize(
    ("value", "bias", "make"),
    [
        (40000, 0, lambda n: add_(n, conv(n, 1), conv(n, 1))),
        (1, 40000, lambda n: add_(n, conv(n, 1, bias=True), conv(n, 1, bias=True))),
        (5e-5, 0, lambda n: conv(n, 1, conv(n, 1))),
    ],
)
def test_layers_that_float16_does_not_hold_together_stay_apart(value: float, bias: float, make: Any) -> None:
    """Weights and biases too large, and a product too small."""
    model = build(make)
    for tensor in model.graph.initializer:
        made = np.full(tensor.dims, value if len(tensor.dims) > 1 else bias, np.float16)
        tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.elem_type = TensorProto.FLOAT16
    _, found = merged(model)
    assert [c.reason and c.reason.code for c in found.candidates] == ["merge-range"]


def test_padding_that_follows_from_sizes_that_are_not_known() -> None:
    """SAME with a stride: layers of the same form add, others do not."""

    def make(k: int) -> onnx.ModelProto:
        net = Net(2, 8, 9, 9)
        sides = [conv(net, size, "x", auto_pad="SAME_UPPER", strides=[2, 2]) for size in (3, k)]
        model = net.model(net.op("Relu", net.op("Add", *sides)))
        for value in (*model.graph.input, *model.graph.output):
            for axis in (2, 3):
                value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}{axis}"
        return model

    model = make(3)
    made, found = merged(model)
    assert found.changed
    for size in (8, 9):
        demand_equal(model, made, RNG.normal(size=(2, 8, size, size)))
    _, found = merged(make(5))
    assert [c.reason and c.reason.code for c in found.candidates] == ["merge-padding"]


def test_weights_beside_the_file_are_read_only_where_they_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays is not even there, so that reading it would fail; what is merged is written beside the new file."""
    rng = np.random.default_rng(1)
    model = build(lambda n: conv(n, 1, n.op("Relu", add_(n, conv(n), conv(n, 1)))), 8)
    stays = next(n for n in reversed(model.graph.node) if n.op_type == "Conv").input[1]
    large = numpy_helper.from_array(rng.normal(size=(8000, 8, 1, 1)), stays)
    for tensor in model.graph.initializer:
        if tensor.name == stays:
            tensor.CopyFrom(large)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=1, location="model.data")
    read = load(path)
    seen: list[str] = []
    filled = vars(constants)["filled"]

    def watched(tensor: TensorProto, folder: Path | None) -> TensorProto:
        seen.append(tensor.name)
        return cast("TensorProto", filled(tensor, folder))

    monkeypatch.setattr(constants, "filled", watched)
    found = merge(read, tmp_path)
    assert found.changed
    assert stays not in seen
    out = tmp_path / "merged.onnx"
    dump(found.applied, out, tmp_path)
    demand_equal(onnx.load(path), onnx.load(out), rng.normal(size=(2, 8, 8, 8)))


def test_weights_that_folding_has_not_computed_yet_are_merged() -> None:
    """Large weights are computed when they are written, after folding and merging alike."""
    net = builder(dtype=np.float32)
    x = net.relu(net.input((32, 6, 6)))
    model = net.finish(net.relu(net.add(net.conv_bn(x, 32, 3), net.conv_bn(x, 32, 3))))
    loaded = LOADED._load(model, Folding())
    state = apply(loaded.model, loaded.source, LOADED._plan(loaded, Folding()))
    assert state.pending
    found = merge(state)
    assert len(found.applied.pending) == 1
    demand_equal(model, found.applied.complete(), RNG.normal(size=(1, 32, 6, 6)).astype(np.float32), 1e-5)


@pytest.mark.parametrize("channels", [8, 24])
def test_before_ir_4_new_weights_are_nodes(channels: int) -> None:
    """Large ones are computed when they are written."""
    sizes: dict[str, Any] = {"into": channels, "out": channels}
    model = build(lambda n: add_(n, conv(n, bias=True, **sizes), conv(n, 1, **sizes)), channels)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    made, found = merged(model)
    assert found.changed
    assert [value.name for value in made.graph.input] == ["x"]
    demand_equal(model, made, RNG.normal(size=(2, channels, 8, 8)))


def test_nodes_without_names_and_annotations_of_tensors_that_go() -> None:
    model = build(lambda n: add_(n, conv(n), conv(n, 1)))
    inner = model.graph.node[1].output[0]
    for node in model.graph.node:
        node.name = ""
    model.graph.value_info.append(helper.make_tensor_value_info(inner, TensorProto.DOUBLE, [2, 8, 8, 8]))
    model.graph.quantization_annotation.add().tensor_name = inner
    made, found = merged(model)
    assert found.changed
    assert not made.graph.value_info
    assert not made.graph.quantization_annotation
    assert all(candidate.nodes for candidate in found.candidates)


def test_the_reasons_are_documented_and_reached() -> None:
    declared = {value.code for value in vars(reasons).values() if isinstance(value, Reason)}
    page = re.findall(r"^\| `(merge-[a-z0-9-]+)` \| (.+?) \|", (ROOT / "docs/reasons.md").read_text(), re.M)
    assert declared == {code for code, _ in page}
    reached = {code for code, _ in LEFT.values()} | {"merge-range"}  # a test of its own
    assert declared == reached


def test_constants_in_a_sum_of_merged_layers_stay() -> None:
    """A row, which runs along no channels, is added to layers that become one."""
    model = build(lambda n: str(n.op("Sum", conv(n, bias=True), n.w(RNG.normal(size=(8,))), conv(n, 1))))
    made, _ = merged(model)
    assert [node.op_type for node in made.graph.node].count("Conv") == 1
    demand_equal(model, made, RNG.normal(size=(2, 8, 8, 8)))


def test_a_merge_that_does_not_pass_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold itself is not refused for it; the note says what was."""
    writer = import_module("bnfold.onnx.merging.merge").Writer
    sound = writer._rounded
    monkeypatch.setattr(writer, "_rounded", lambda self, step, value: sound(self, step, value * 1.01))
    net = builder(dtype=np.float32)
    x = net.relu(net.input((6, 6, 6)))
    model = net.finish(net.relu(net.add(net.conv_bn(x, 6, 3), net.conv_bn(x, 6, 1))))
    result = bnfold.fold(model)
    assert result.check is not None
    assert result.check.passed
    assert result.plan.merged == ()
    assert result.plan.counts()["folded"] == 2
    assert any("no layers were merged" in note and "differs" in note for note in result.plan.notes)


def test_a_norm_that_a_merged_layer_took_up_is_folded() -> None:
    """`x + bn(x) + conv(x)` where the gauges alone would keep the norm: its verdict is that of what happened."""
    model = build(lambda n: add_(n, add_(n, conv(n), n.bn("relu0", 8)), "relu0"))
    result = bnfold.fold(model, verify=False)
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded"]
    assert "BatchNormalization" not in [node.op_type for node in result.model.graph.node]
