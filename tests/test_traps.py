"""The traps that other folders fell into, a named test each: never wrong, folded or kept with the right reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.evaluate import evaluate
from tests.test_rules import Net

Array = npt.NDArray[Any]
GAMMA = [0.5, -1.0, 0.0, 2.0]


def fates(result: bnfold.FoldResult) -> list[str]:
    """Verdict of each norm, with its reason where it has one."""
    return [bn.verdict + (f":{bn.reason.code}" if bn.reason else "") for bn in result.plan.batch_norms]


def folded(model: onnx.ModelProto, *expected: str, **options: Any) -> onnx.ModelProto:
    """Fold, compare the verdicts, and both models in float64 on inputs that differ."""
    result = bnfold.fold(model, verify=False, **options)
    assert fates(result) == list(expected)
    folded: onnx.ModelProto = result.model
    onnx.checker.check_model(folded, full_check=True)
    real = {t.name for t in model.graph.initializer}
    (given,) = [v for v in model.graph.input if v.name not in real]
    shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal(shape) * (1 + seed)
        for a, b in zip(evaluate(model, x=x), evaluate(folded, x=x), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * max(1.0, np.abs(a).max()))
    return folded


def test_a_conv_called_twice_with_and_without_bn() -> None:
    """One weight, two calls; only one has a norm behind it."""
    n = Net(2, 3, 6, 6)
    first = n.conv("x", 3, 3, k=3, bias=True, pads=[1] * 4)
    second = n.op("Conv", n.op("Relu", "x"), *n.nodes[0].input[1:], pads=[1] * 4)
    folded(n.model(n.op("Relu", n.bn(first, 3)), second), "folded")


def test_a_conv_called_twice_with_two_different_bns() -> None:
    n = Net(2, 3, 6, 6)
    first = n.conv("x", 3, 3, k=3, bias=True, pads=[1] * 4)
    second = n.op("Conv", n.op("Relu", "x"), *n.nodes[0].input[1:], pads=[1] * 4)
    folded(n.model(n.bn(first, 3), n.bn(second, 3, GAMMA[:3])), "folded", "folded")


def test_one_conv_output_read_by_two_different_bns() -> None:
    n = Net(2, 3, 6, 6)
    y = n.conv("x", 3, 4)
    made = n.op("Sigmoid", n.bn(y, 4)), n.op("Sigmoid", n.bn(y, 4))
    result = bnfold.fold(n.model(*made), verify=False)
    assert fates(result)[0] == "folded"
    assert fates(result)[1].startswith("kept:")


def test_a_conv_output_with_a_second_reader() -> None:
    n = Net(2, 3, 6, 6)
    y = n.conv("x", 3, 4)
    folded(n.model(n.op("Sigmoid", n.bn(y, 4, GAMMA)), n.op("Tanh", y)), "kept:scale-fixed")


def test_a_conv_output_that_is_a_graph_output() -> None:
    n = Net(2, 3, 6, 6)
    y = n.conv("x", 3, 4)
    folded(n.model(n.op("Sigmoid", n.bn(y, 4, GAMMA)), y), "kept:scale-fixed")


def test_a_conv_output_that_the_body_of_an_if_reads() -> None:
    n = Net(2, 3, 6, 6)
    y = n.conv("x", 3, 4)
    z = n.op("Sigmoid", n.bn(y, 4, GAMMA))
    bodies = {}
    for name, op in (("then_branch", "Tanh"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.DOUBLE, [2, 4, 6, 6])
        bodies[name] = helper.make_graph([helper.make_node(op, [y], [f"{name}_out"])], name, [], [out])
    flag = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.w(0.0))
    folded(n.model(z, n.op("If", flag, **bodies)), "kept:scale-fixed")


def test_tied_weights_of_two_layers() -> None:
    n = Net(5, 4)
    weight = n.w(n.rng.standard_normal((4, 4)))
    y = n.bn(n.op("Gemm", "x", weight), 4, GAMMA)
    made = folded(n.model(n.op("Gemm", n.op("Relu", y), weight, transB=1)), "folded")
    assert len({node.input[1] for node in made.graph.node if node.op_type == "Gemm"}) == 2


def test_linear_and_bn1d_on_n_c_l_of_equal_sizes() -> None:
    """The matrix works on the last axis, the norm on axis 1, and both have 4 entries."""
    n = Net(2, 4, 4)
    y = n.op("Add", n.op("MatMul", "x", n.w(n.rng.standard_normal((4, 4)))), n.w(n.rng.normal(size=4)))
    folded(n.model(n.op("Relu", n.bn(y, 4))), "kept:channels-tied")


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", ["none", "scalar", "vector", "row", "matrix"])
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_gemm_with_all_its_attributes(trans_a: int, trans_b: int, bias: str, beta: float) -> None:
    n = Net(4, 4)
    sizes: dict[str, tuple[int, ...]] = {"scalar": (), "vector": (4,), "row": (1, 4), "matrix": (4, 4)}
    c = [n.w(n.rng.normal(size=sizes[bias]))] if bias in sizes else []
    y = n.op("Gemm", n.bn("x", 4) if not trans_a else "x", n.w(n.rng.standard_normal((4, 4))), *c,
             alpha=0.7, beta=beta, transA=trans_a, transB=trans_b)  # fmt: skip
    folded(n.model(n.bn(y, 4, GAMMA)), *["folded"] * (2 - trans_a))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_transpose_grouped_and_depthwise(groups: int) -> None:
    n = Net(2, 4, 5, 5)
    weight = n.w(n.rng.standard_normal((4, 4 // groups, 3, 3)))
    y = n.op("ConvTranspose", "x", weight, n.w(n.rng.normal(size=4)), group=groups, strides=[2, 2], pads=[1] * 4)
    folded(n.model(n.bn(y, 4, GAMMA)), "folded")


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_same_when_folding_forward(auto_pad: str) -> None:
    n = Net(2, 3, 6, 6)
    y = n.conv(n.bn("x", 3), 3, 4, k=3, auto_pad=auto_pad)
    folded(n.model(y), "kept:zero-padding")
    folded(n.model(y), "reduced:zero-padding", leftovers="all")


@pytest.mark.parametrize("by", ["Flatten", "Reshape"])
def test_bn_then_flatten_then_gemm(by: str) -> None:
    """Every channel covers 9 features."""
    n = Net(2, 4, 3, 3)
    y = n.bn("x", 4, [0.5, -1.0, 1.5, 2.0])
    y = n.op("Flatten", y) if by == "Flatten" else n.op("Reshape", y, n.w([2, -1], np.int64))
    folded(n.model(n.op("Gemm", y, n.w(n.rng.standard_normal((36, 5))))), "folded")


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (2, 1, 1, 1)], ids=["W", "H", "batch"])
def test_a_constant_along_another_axis_than_the_channels(op: str, shape: tuple[int, ...]) -> None:
    n = Net(2, 6, 6, 6)
    y = n.op(op, n.bn(n.conv("x", 6, 6, bias=True), 6), n.w(n.rng.normal(1.5, 0.3, shape)))
    model = folded_any(n.model(n.conv(y, 6, 2)))
    assert op in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_constant_that_raises_the_rank(op: str) -> None:
    n = Net(2, 3, 4)
    y = n.op(op, n.op("Conv", "x", n.w(n.rng.normal(size=(3, 3, 1)))),
             n.w(n.rng.normal(1.5, 0.3, (3, 1, 1, 1))))  # fmt: skip
    folded_any(n.model(n.op("Relu", y)))


def folded_any(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold and compare, whatever the verdicts."""
    return folded(model, *fates(bnfold.fold(model, verify=False)))


def _stats(n: Net, size: int = 3) -> list[str]:
    return [n.w(v) for v in (GAMMA[:size], n.rng.normal(size=size), n.rng.normal(size=size), [0.5, 2.0, 3.0])]


def test_training_mode_1() -> None:
    n = Net(2, 3, 5, 5)
    y, *_ = n.op("BatchNormalization", n.conv("x", 3, 3), *_stats(n), outputs=3, training_mode=1)
    assert fates(bnfold.fold(n.model(y), verify=False)) == ["kept:training-mode"]


@pytest.mark.parametrize(("opset", "outputs"), [(9, 5), (13, 5), (15, 3)])
def test_norms_with_three_or_five_outputs(opset: int, outputs: int) -> None:
    """Statistics that somebody reads are those of the batch."""
    n = Net(2, 3, 5, 5)
    attrs = {"training_mode": 1} if outputs == 3 else {}
    made = n.op("BatchNormalization", n.conv("x", 3, 3), *_stats(n), outputs=outputs, **attrs)
    model = n.model(opset=opset)
    model.graph.output.append(helper.make_tensor_value_info(made[0], TensorProto.DOUBLE, [2, 3, 5, 5]))
    model.graph.output.append(helper.make_tensor_value_info(made[1], TensorProto.DOUBLE, [3]))
    assert fates(bnfold.fold(model, verify=False)) == ["kept:training-mode"]


@pytest.mark.parametrize(("opset", "fate"), [(6, "folded"), (9, "kept:training-mode"), (13, "kept:training-mode")])
def test_five_outputs_that_nobody_reads(opset: int, fate: str) -> None:
    """From opset 7 to 13 they mean the statistics of the batch, read or not; before, is_test says what is meant."""
    n = Net(2, 3, 5, 5)
    attrs = {"is_test": 1} if opset < 7 else {}
    made = n.op("BatchNormalization", n.conv("x", 3, 3), *_stats(n), outputs=5, **attrs)
    model = n.model(opset=opset)
    model.graph.output.append(helper.make_tensor_value_info(made[0], TensorProto.DOUBLE, [2, 3, 5, 5]))
    assert fates(bnfold.fold(model, verify=False)) == [fate]


def test_spatial_0_of_opset_7() -> None:
    n = Net(2, 3, 4, 4)
    stats = [n.w(np.abs(n.rng.normal(size=(3, 4, 4))) + 0.5) for _ in range(4)]
    model = n.model(opset=7)
    model.graph.node.append(helper.make_node("BatchNormalization", ["x", *stats], ["y"], spatial=0))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2, 3, 4, 4]))
    assert fates(bnfold.fold(model, verify=False)) == ["kept:spatial-0"]


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("is_test", [0, 1])
def test_is_test_and_consumed_inputs_of_old_opsets(opset: int, is_test: int) -> None:
    n = Net(2, 3, 5, 5)
    attrs: dict[str, Any] = {"is_test": is_test, **({"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {})}
    made = n.op("BatchNormalization", n.conv("x", 3, 3), *_stats(n), **attrs)
    model = n.model(opset=opset)
    model.graph.output.append(helper.make_tensor_value_info(made, TensorProto.DOUBLE, [2, 3, 5, 5]))
    result = bnfold.fold(model, verify=False)
    assert fates(result) == (["folded"] if is_test else ["kept:training-mode"])
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5))
    np.testing.assert_allclose(evaluate(result.model, x=x)[0], evaluate(model, x=x)[0], rtol=0, atol=1e-12)


def test_an_empty_optional_input() -> None:
    """A Conv whose bias is "", a Clip without a lower bound."""
    n = Net(2, 3, 5, 5)
    y = n.op("Conv", "x", n.w(n.rng.standard_normal((4, 3, 1, 1))), "")
    y = n.op("Clip", n.bn(y, 4, GAMMA), "", n.w(0.4))
    folded(n.model(n.conv(y, 4, 2)), "folded")


@pytest.mark.parametrize(
    ("ir", "options", "expected"),
    [
        (3, {}, "folded"),
        (8, {}, "folded"),  # all of them are: an old exporter's file
        (8, {"some": True}, "kept:overridable"),
        (8, {"some": True, "freeze_inputs": True}, "folded"),
        (8, {"keep_inputs": True}, "kept:overridable"),
    ],
    ids=str,
)
def test_initializers_that_are_graph_inputs(ir: int, options: dict[str, bool], expected: str) -> None:
    n = Net(2, 3, 5, 5)
    model = n.model(n.op("Relu", n.bn(n.conv("x", 3, 3), 3)))
    model.ir_version = ir
    given = {name: value for name, value in options.items() if name != "some"}
    for tensor in list(model.graph.initializer)[1 if "some" in options else 0 :]:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.DOUBLE, list(tensor.dims)))
    result = bnfold.fold(model, **given)  # type: ignore[arg-type]
    assert fates(result) == [expected]
    names = {value.name for value in result.model.graph.input}
    if ir > 3 and expected == "folded":
        assert names == {"x"}
        assert any("are constants now" in note and "--keep-inputs" in note for note in result.plan.notes)
    else:
        assert len(names) > 1
        assert not any("constants now" in note for note in result.plan.notes)
    with pytest.raises(bnfold.UsageError, match="opposite"):
        bnfold.inspect(model, freeze_inputs=True, keep_inputs=True)


def test_float16_statistics_in_which_eps_would_underflow() -> None:
    """eps = 1e-5 is hardly anything in float16, and var + eps is not var."""
    n = Net(2, 3, 5, 5)
    y = n.op("BatchNormalization", n.conv("x", 3, 3), n.w([1e-3, -2e-3, 1e-3]), n.w([0.1, 0.2, -0.3]),
             n.w([0.0, 1e-3, -1e-3]), n.w([2e-6, 1e-6, 4e-6]), epsilon=1e-5)  # fmt: skip
    model = n.model(n.op("Relu", y))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = bnfold.fold(model)
    assert fates(result) == ["folded"]
    w, gamma, _, _, var = (numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    expected = w * (gamma / np.sqrt(var + 1e-5)).reshape(-1, 1, 1, 1)
    new = next(t for t in result.model.graph.initializer if t.dims == [3, 3, 1, 1])
    np.testing.assert_allclose(numpy_helper.to_array(new), expected, rtol=2**-10)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float16)
    runs = [ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
            for m in (model, result.model)]  # fmt: skip
    np.testing.assert_allclose(runs[1], runs[0], rtol=0.01, atol=2e-3)


def test_pairs_by_data_flow_and_not_by_order_or_name() -> None:
    """conv1 feeds bn2 and conv2 feeds bn1; declared in the order of the names."""
    n = Net(2, 3, 5, 5)
    convs = [n.conv("x", 3, 4), n.conv("x", 3, 4)]
    norms = [n.bn(convs[1], 4, GAMMA), n.bn(convs[0], 4)]
    for i, node in enumerate(n.nodes):
        node.name = ("conv1", "conv2", "bn1", "bn2")[i]
    result = bnfold.fold(n.model(*norms), verify=False)
    assert [bn.into for bn in result.plan.batch_norms] == [("conv2",), ("conv1",)]
    folded(n.model(*norms), "folded", "folded")


BUILDERS: list[Callable[[], None]] = [value for name, value in globals().items() if name.startswith("test_")]


def test_the_list_is_long_enough() -> None:
    assert len(BUILDERS) >= 22
