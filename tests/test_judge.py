"""The judge must be able to fail: what it lets through, what it does not, and what it says about itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.api import fold, verify
from bnfold.cli import main
from bnfold.errors import ModelError, UsageError, VerificationError
from bnfold.judge.criteria.check import Check, Measure, OutputError
from bnfold.judge.criteria.criterion import INTEGER_LIMIT, LIMITS, PARTS, PEAK, Criterion, Errors, apart, beside, facts
from bnfold.judge.criteria.inputs import KINDS, RESIZED, Inputs, InputSpec, feeds, shape_choices
from bnfold.judge.criteria.parts import worst_part
from bnfold.judge.judge import ROUNDING
from bnfold.judge.subjects.runners import OrtRunner, ReferenceRunner, input_specs
from bnfold.judge.subjects.widen import widened
from bnfold.report.data import to_json

from .nets import Net, conv_bn, elem_type, initializer, node_named

Array = npt.NDArray[Any]


def network() -> ModelProto:
    """Two padded convs with norms, pooling, a classifier; one channel of the second norm has a small variance."""
    net = Net(seed=3)
    x = net.input("image", ("N", 3, 10, 10))
    x = net.relu(net.bn(net.conv(x, (3, 8), "conv1", pad=1), 8, "bn1"), "relu1")
    x = net.bn(net.conv(x, (8, 8), "conv2", pad=1), 8, "bn2", gamma="both", epsilon=1e-5)
    net.weights["bn2_var"][5], net.weights["bn2_mean"][5] = 1e-3, 0.0
    net.weights["bn2_gamma"][5] = 0.05
    x = net.node("GlobalAveragePool", [net.relu(x, "relu2")], "pool")
    x = net.node("Flatten", [x], "flatten")
    inputs = [x, net.filter("fc_weight", 5, 8), net.weight("fc_bias", net.rng.normal(0, 1, 5))]
    net.output(net.node("Gemm", inputs, "fc", transB=1), ("N", 5))
    return net.model()


def judged(tmp_path: Path, reference: ModelProto, candidate: ModelProto, **options: Any) -> Check:
    """Two models, through files."""
    paths = tmp_path / "reference.onnx", tmp_path / "candidate.onnx"
    for path, model in zip(paths, (reference, candidate), strict=True):
        path.write_bytes(model.SerializeToString())
    return verify(*paths, **options)


def copied(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other


def put(model: ModelProto, name: str, value: Array) -> None:
    """Another value for an initializer."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def append(model: ModelProto, op: str, *constants: npt.ArrayLike, **attributes: Any) -> None:
    """One more node behind the output, under the output's name."""
    output = model.graph.output[0].name
    producer = next(node for node in model.graph.node if output in node.output)
    producer.output[0] = "inner"
    names = []
    for i, constant in enumerate(constants):
        names.append(f"extra_{i}")
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), names[-1]))
    model.graph.node.append(helper.make_node(op, ["inner", *names], [output], name="extra", **attributes))


# --- what passes


def test_an_exact_copy_passes_without_any_error(tmp_path: Path) -> None:
    check = judged(tmp_path, network(), network())
    assert check.passed
    assert check.message == ""
    assert check.warnings == ()
    assert {entry.kind for entry in check.outputs} == {*KINDS, RESIZED}
    assert all(entry.error == 0.0 and entry.passed and entry.scale > 0 for entry in check.outputs)
    assert check.shapes == {"image": (2, 3, 10, 10)}
    assert "onnxruntime" in check.runner


def test_the_folded_model_passes_far_below_the_limit(tmp_path: Path) -> None:
    folded = fold(network(), verify=False)
    assert folded.plan.counts()["folded"] == 2
    check = judged(tmp_path, network(), folded.model)
    assert check.passed
    worst = check.worst
    assert worst is not None
    assert worst.own is not None
    assert worst.found is not None
    assert worst.own > 0
    assert 0 < worst.found < 2 * worst.own
    assert 0 < worst.strain < 0.5


def test_models_in_memory_are_judged_as_files_are(tmp_path: Path) -> None:
    original = conv_bn().model()
    result = bnfold.fold(original)
    assert bnfold.verify(original, result.model).passed
    assert bnfold.verify(conv_bn().save(tmp_path / "a.onnx"), result.model).passed
    assert not bnfold.verify(original, conv_bn(seed=1).model()).passed
    wrong = copy.deepcopy(result.model)
    wrong.graph.initializer[0].raw_data = b"\0" * len(wrong.graph.initializer[0].raw_data)
    assert not bnfold.verify(original, wrong).passed
    assert bnfold.bench(original, result.model, rounds=6).rounds == 6
    with pytest.raises(bnfold.UsageError, match=r"an onnx.ModelProto.* expected, int found"):
        bnfold.verify(original, 3)


def test_a_model_that_another_tool_folded_passes(tmp_path: Path) -> None:
    (tmp_path / "original.onnx").write_bytes(network().SerializeToString())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(tmp_path / "original.onnx"), options, providers=["CPUExecutionProvider"])
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert verify(tmp_path / "original.onnx", tmp_path / "optimised.onnx").passed


# --- what does not pass


def _weight_scaled(model: ModelProto) -> None:
    put(model, "conv1_weight", initializer(model, "conv1_weight") * np.float32(1.01))


def _channels_swapped(model: ModelProto) -> None:
    put(model, "conv2_weight", initializer(model, "conv2_weight")[[1, 0, 2, 3, 4, 5, 6, 7]])


def _bias_missing(model: ModelProto) -> None:
    del node_named(model, "conv1").input[2]


def _bias_of_one_channel_off(model: ModelProto) -> None:
    bias = initializer(model, "conv2_bias").copy()
    bias[2] += 0.05
    put(model, "conv2_bias", bias)


def _eps_ten_times_as_large(model: ModelProto) -> None:
    node_named(model, "bn2").attribute[0].f = 1e-4


def _eps_underflowed(model: ModelProto) -> None:
    node_named(model, "bn2").attribute[0].f = 0.0


def _mean_forgotten(model: ModelProto) -> None:
    put(model, "bn1_mean", np.zeros(8, np.float32))


def _scale_of_one_channel_with_the_wrong_sign(model: ModelProto) -> None:
    gamma = initializer(model, "bn2_gamma").copy()
    gamma[5] = -gamma[5]
    put(model, "bn2_gamma", gamma)


def _border_padded_with_edge_values(model: ModelProto) -> None:
    conv = node_named(model, "conv2")
    next(a for a in conv.attribute if a.name == "pads").ints[:] = [0, 0, 0, 0]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"))
    pad = helper.make_node("Pad", [conv.input[0], "pads"], ["padded"], mode="edge")
    conv.input[0] = "padded"
    model.graph.node.insert([node.name for node in model.graph.node].index("conv2"), pad)


def _relu_forgotten(model: ModelProto) -> None:
    node_named(model, "relu2").op_type = "Identity"


def _nan_in_a_weight(model: ModelProto) -> None:
    weight = initializer(model, "conv1_weight").copy()
    weight[0, 0, 0, 0] = np.nan
    put(model, "conv1_weight", weight)


def _infinity_in_a_bias(model: ModelProto) -> None:
    put(model, "fc_bias", np.array([0, 0, np.inf, 0, 0], np.float32))


def _outputs_scaled(model: ModelProto) -> None:
    append(model, "Mul", np.float32(1.9))


def _outputs_shifted(model: ModelProto) -> None:
    append(model, "Add", np.float32(0.01))


def _outputs_zero(model: ModelProto) -> None:
    append(model, "Mul", np.float32(0.0))


def _classes_in_another_order(model: ModelProto) -> None:
    append(model, "Gather", np.array([1, 0, 2, 3, 4]), axis=1)


def _output_renamed(model: ModelProto) -> None:
    model.graph.output[0].name = node_named(model, "fc").output[0] = "scores"


def _output_replaced(model: ModelProto) -> None:
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("pool_out", TensorProto.FLOAT, ["N", 8, 1, 1])  # an inner tensor
    )


def _output_of_another_rank(model: ModelProto) -> None:
    append(model, "Unsqueeze", np.array([2]))
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1


def _fewer_classes(model: ModelProto) -> None:
    append(model, "Gather", np.array([0, 1, 2, 3]), axis=1)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4


def _output_of_another_type(model: ModelProto) -> None:
    append(model, "Cast", to=TensorProto.DOUBLE)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _input_renamed(model: ModelProto) -> None:
    model.graph.input[0].name = node_named(model, "conv1").input[0] = "picture"


def _another_size_wanted(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 12


Fault = Callable[[ModelProto], None]
FAULTS: list[tuple[Fault, str]] = [
    *((fault, "fc_out differs on") for fault in (
        _weight_scaled, _channels_swapped, _bias_missing, _bias_of_one_channel_off, _eps_ten_times_as_large,
        _eps_underflowed, _mean_forgotten, _scale_of_one_channel_with_the_wrong_sign, _border_padded_with_edge_values,
        _relu_forgotten, _outputs_scaled, _outputs_shifted, _outputs_zero, _classes_in_another_order,
    )),
    (_nan_in_a_weight, "NaN or infinity"),
    (_infinity_in_a_bias, "NaN or infinity"),
    (_output_renamed, "missing"),
    (_output_replaced, "missing"),
    (_output_of_another_rank, "float32[2, 5] expected, float32[2, 5, 1] found"),
    (_fewer_classes, "float32[2, 5] expected, float32[2, 4] found"),
    (_output_of_another_type, "float32[2, 5] expected, float64[2, 5] found"),
    (_input_renamed, "cannot be run"),
    (_another_size_wanted, "cannot be run"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "word"), FAULTS, ids=[fault.__name__.strip("_") for fault, _ in FAULTS])
def test_a_fault_is_found_and_named(tmp_path: Path, fault: Fault, word: str) -> None:
    candidate = network()
    fault(candidate)
    onnx.checker.check_model(candidate)
    check = judged(tmp_path, network(), candidate)
    assert not check.passed
    assert word in check.message


@pytest.mark.parametrize(("fault", "word"), FAULTS[:14], ids=[fault.__name__.strip("_") for fault, _ in FAULTS[:14]])
def test_a_fault_of_a_folded_model_is_found_with_any_seed(tmp_path: Path, fault: Fault, word: str) -> None:
    faulty = network()
    fault(faulty)
    folded = fold(faulty, verify=False).model
    for seed in (1, 2, 3):
        check = judged(tmp_path, network(), folded, seed=seed)
        assert not check.passed, seed
        assert check.worst is not None
        assert check.worst.strain > 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_fault_is_found_in_every_type(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    model = conv_bn(dtype=dtype).model()
    assert judged(tmp_path, model, fold(model, verify=False).model).passed
    candidate = copied(model)
    scaled = initializer(candidate, "conv2_weight").astype(np.float64) * 1.05
    put(candidate, "conv2_weight", scaled.astype(dtype))
    assert not judged(tmp_path, model, candidate).passed


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_how_small_a_difference_may_pass_as_rounding_is_said(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    """Half a network's digits hide a weight that is off by a hundredth; a warning says that they may."""
    model = conv_bn(dtype=dtype).model()
    check = judged(tmp_path, model, fold(model, verify=False).model)
    assert check.passed
    ((name, finest),) = check.resolution.items()
    short = dtype == np.float16
    assert finest > 1e-3 if short else finest < 1e-4
    assert any("small faults cannot be seen" in warning for warning in check.warnings) == short
    assert check.to_dict()["resolution"] == {name: finest}
    for entry in check.outputs:
        if entry.resolution is not None and entry.found is not None:
            assert entry.measure("error ratio") == pytest.approx(8 * entry.found / entry.scale / entry.resolution)


def test_nothing_is_said_of_rounding_where_bounds_are_given(tmp_path: Path) -> None:
    model = conv_bn(dtype=np.float16).model()
    check = judged(tmp_path, model, fold(model, verify=False).model, atol=1.0)
    assert check.resolution == {}
    assert check.warnings == ()


def test_a_candidate_that_is_no_valid_model_fails(tmp_path: Path) -> None:
    candidate = network()
    node_named(candidate, "relu1").op_type = "Melt"
    check = judged(tmp_path, network(), candidate)
    assert not check.passed
    assert "the candidate cannot be loaded" in check.message
    assert check.outputs == ()
    assert check.worst is None


def test_a_file_that_is_no_model_raises(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(network().SerializeToString())
    bad.write_bytes(b"no model")
    for pair in ((good, bad), (bad, good), (good, tmp_path / "missing.onnx")):
        with pytest.raises(ModelError):
            verify(*pair)


def test_one_output_of_several_is_enough_to_fail(tmp_path: Path) -> None:
    net = conv_bn()
    net.output("relu1_out", ("N", 6, 8, 8))
    candidate = net.model()
    append(candidate, "Mul", np.float32(1.001))
    check = judged(tmp_path, net.model(), candidate)
    assert not check.passed
    assert {entry.output for entry in check.outputs if not entry.passed} == {"bn2_out"}
    assert {entry.output for entry in check.outputs if entry.passed} == {"relu1_out"}


# --- numbers that are none


def _with(op: str, *, offset: float, factor: float = 0.0) -> ModelProto:
    """`x + factor * op(x + offset)`: with factor 0 the same as x, as long as op gives a number."""
    net = Net()
    x = net.input("x", ("N", 3, 8, 8))
    shifted = net.node("Add", [x, net.weight("offset", [offset])], "shifted")
    inner = net.node("Mul", [net.node(op, [shifted], "inner"), net.weight("factor", [factor])], "product")
    net.output(net.node("Add", [x, inner], "y"), ("N", 3, 8, 8))
    return net.model()


def test_nan_in_the_candidate_on_one_kind_of_input_does_not_pass(tmp_path: Path) -> None:
    check = judged(tmp_path, _with("Abs", offset=50.0), _with("Log", offset=50.0))
    assert not check.passed
    assert {entry.kind for entry in check.outputs if not entry.passed} == {"large"}
    assert "y_out differs on large inputs: NaN or infinity where the reference is finite" in check.message


def test_elements_that_the_reference_has_no_number_for_are_left_out_and_no_others(tmp_path: Path) -> None:
    model = _with("Log", offset=50.0)
    check = judged(tmp_path, model, model)
    assert check.passed
    assert all(entry.note == "" for entry in check.outputs)
    wrong = copied(model)
    append(wrong, "Clip", np.float32(-60.0), np.float32(60.0))  # differs on large inputs only, beside the NaN
    check = judged(tmp_path, model, wrong)
    assert {entry.kind for entry in check.outputs if not entry.passed} == {"large"}
    for x, y, passed in ((np.inf, 5.0, True), (1.0, np.inf, False), (np.nan, np.nan, True), (1.0, np.nan, False)):
        a, b = (np.array([value, 1.0], np.float32) for value in (x, y))
        entry = facts("y", "normal", a, b)
        assert (entry.note == "" and entry.error == 0.0) == passed


def test_a_kind_on_which_the_reference_is_nowhere_finite_is_left_out(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ("N", 3, 8, 8))
    total = net.node("Reciprocal", [net.node("ReduceMax", [net.node("Abs", [x], "abs")], "most", keepdims=1)], "one")
    net.output(net.node("Mul", [x, total], "scaled"), ("N", 3, 8, 8))  # 0 / 0 on zeros
    check = judged(tmp_path, net.model(), net.model())
    assert check.passed
    assert [(entry.kind, entry.passed) for entry in check.outputs if entry.note == "skipped"] == [("zeros", False)]


@pytest.mark.parametrize("op", ["Log", "Reciprocal"])
def test_a_reference_that_never_gives_a_number_proves_nothing(tmp_path: Path, op: str) -> None:
    net = Net()
    x = net.node("Mul", [net.input("x", ("N", 3, 8, 8)), net.weight("zero", [0.0])], "zero")
    net.output(net.node(op, [x], "y"), ("N", 3, 8, 8))
    check = judged(tmp_path, net.model(), net.model())
    assert not check.passed
    assert check.message == "the reference gives no finite y_out on any input"


def test_every_output_needs_a_number_once(tmp_path: Path) -> None:
    net = conv_bn()
    zero = net.node("Mul", ["relu1_out", net.weight("zero", [0.0])], "zero_times")
    net.output(net.node("Log", [zero], "never"), ("N", 6, 8, 8))
    check = judged(tmp_path, net.model(), net.model())
    assert not check.passed
    assert "no finite never_out" in check.message


def test_an_output_without_elements_proves_nothing(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ("N", 3, 8, 8))
    below = net.node("Less", [net.node("Abs", [x], "abs"), net.weight("zero", [0.0])], "below")
    net.output(net.node("NonZero", [below], "places"), (4, "K"), np.int64)
    check = judged(tmp_path, net.model(), net.model())
    assert not check.passed
    assert check.message == "no output has any element to compare"
    net.output(net.relu(x, "relu"), ("N", 3, 8, 8))
    assert judged(tmp_path, net.model(), net.model()).passed


def test_a_model_without_outputs_proves_nothing(tmp_path: Path) -> None:
    model = network()
    del model.graph.output[:]
    check = judged(tmp_path, model, model)
    assert not check.passed


# --- integers, sequences


def _argmax(seed: int) -> ModelProto:
    net = conv_bn(seed)
    net.outputs.clear()
    net.output(net.node("ArgMax", ["bn2_out"], "labels", axis=1), ("N", 1, 6, 6), np.int64)
    return net.model()


def test_labels_are_compared_one_by_one(tmp_path: Path) -> None:
    assert judged(tmp_path, _argmax(0), _argmax(0)).passed
    assert judged(tmp_path, _argmax(0), fold(_argmax(0), verify=False).model).passed
    check = judged(tmp_path, _argmax(0), _argmax(1))
    assert not check.passed
    assert all(entry.measures[0].bound == INTEGER_LIMIT for entry in check.outputs)


def test_a_small_share_of_labels_may_flip() -> None:
    labels = np.zeros(4000, np.int64)
    for flips, passes in ((0, True), (4, True), (5, False)):
        other = labels.copy()
        other[:flips] = 1
        (entry,) = [facts("y", "normal", labels, other)]
        assert entry.passed is passes
        assert entry.error == flips / 4000


def test_a_sequence_is_compared_member_by_member(tmp_path: Path) -> None:
    def parts(sizes: list[int]) -> ModelProto:
        net = Net()
        x = net.input("x", ("N", 4, 8, 8))
        net.node("SplitToSequence", [x, net.weight("sizes", np.array(sizes))], "parts", axis=1)
        element = helper.make_tensor_type_proto(elem_type(np.float32), ["N", None, 8, 8])
        net.outputs.append(helper.make_value_info("parts_out", helper.make_sequence_type_proto(element)))
        return net.model()

    assert judged(tmp_path, parts([2, 2]), parts([2, 2])).passed
    assert not judged(tmp_path, parts([2, 2]), parts([1, 3])).passed
    assert not judged(tmp_path, parts([2, 2]), parts([2, 1, 1])).passed
    assert not judged(tmp_path, parts([2, 1, 1]), parts([2, 2])).passed


# --- limits


def test_the_limit_of_each_type_holds_at_its_edge() -> None:
    for name, limit in LIMITS.items():
        if name == "bfloat16":
            continue
        expected = np.array([-2.0, 1.0], name)
        for factor, passes in ((0.5, True), (4.0, False)):
            found = expected + np.array([0.0, factor * limit * 2.0]).astype(name)
            entry = Criterion().measure(expected, found, facts("y", "normal", expected, found))
            assert (entry.passed, entry.measures[0].bound, entry.scale) == (passes, limit, 2.0)


def test_a_given_limit_takes_the_place_of_the_others(tmp_path: Path) -> None:
    candidate = network()
    _weight_scaled(candidate)
    check = judged(tmp_path, network(), candidate, limit=0.5)
    assert check.passed
    assert {entry.measures[0].bound for entry in check.outputs} == {0.5}
    folded = fold(network(), verify=False).model
    assert not judged(tmp_path, network(), folded, limit=1e-12).passed
    assert judged(tmp_path, network(), network(), limit=0.0).passed


def test_where_the_reference_is_zero_only_zero_passes() -> None:
    zero = np.zeros(3, np.float32)
    same, other = (
        Criterion().measure(zero, found, facts("y", "normal", zero, found))
        for found in (zero, zero + np.float32(1e-30))
    )
    assert same.passed
    assert not other.passed
    assert other.relative == pytest.approx(1e-30)


# --- what the judge says about itself


def test_outputs_that_do_not_depend_on_the_inputs_are_named(tmp_path: Path) -> None:
    net = conv_bn()
    zero = net.node("Mul", ["bn2_out", net.weight("zero", [0.0])], "zeroed")
    net.output(net.node("Add", [zero, net.weight("one", [1.0])], "same"), ("N", 4, 6, 6))
    check = judged(tmp_path, net.model(), net.model())
    assert check.passed
    (warning,) = check.warnings
    assert warning.startswith("the reference gives the same same_out on all inputs")
    assert "bn2_out" not in warning


def test_softmax_that_is_saturated_by_weights_near_zero_is_warned_of(tmp_path: Path) -> None:
    model = network()
    put(model, "fc_weight", np.full((5, 8), 1e-9, np.float32))
    append(model, "Softmax", axis=1)
    assert len(judged(tmp_path, model, model).warnings) == 1


def test_there_is_no_warning_where_there_is_nothing_to_vary(tmp_path: Path) -> None:
    net = Net()
    net.output(net.relu(net.weight("numbers", [-1.0, 0.0, 2.0]), "relu"), (3,))
    check = judged(tmp_path, net.model(), net.model())
    assert check.passed
    assert check.warnings == ()


def test_warnings_are_in_the_table_the_json_and_the_report(tmp_path: Path) -> None:
    net = Net()
    x = net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "first")
    x = net.bn(net.node("Mul", [x, net.weight("zero", [0.0])], "zeroed"), 4, "bn")
    net.output(x, ("N", 4, 6, 6))
    source, target, report = (str(tmp_path / name) for name in ("model.onnx", "out.onnx", "report.json"))
    Path(source).write_bytes(net.model().SerializeToString())
    shown = CliRunner().invoke(main, ["fold", source, "-o", target, "--report", report])
    assert shown.exit_code == 0, shown.output
    assert "warning: the reference gives the same bn_out on all inputs" in shown.stdout
    assert len(json.loads(Path(report).read_text())["verification"]["warnings"]) == 1
    plain = CliRunner().invoke(main, ["verify", source, target, "--json"])
    assert len(json.loads(plain.stdout)["warnings"]) == 1


def test_a_kind_that_the_reference_cannot_take_is_left_out_with_a_warning(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ("N", 3, 8, 8))
    index = net.node("Cast", [net.node("Abs", [x], "abs")], "index", to=TensorProto.INT64)
    table = net.weight("table", net.rng.standard_normal(12))
    net.output(net.node("Gather", [table, index], "looked_up"), ("N", 3, 8, 8))
    check = judged(tmp_path, net.model(), net.model())
    assert check.passed
    assert "large" not in {entry.kind for entry in check.outputs}
    assert any("cannot be run on large inputs" in warning for warning in check.warnings)


def test_a_failed_check_is_plain_json(tmp_path: Path) -> None:
    candidate = network()
    _nan_in_a_weight(candidate)
    check = judged(tmp_path, network(), candidate)
    data = json.loads(to_json(check.to_dict()))
    assert data["worst"]["error"] == "inf"
    assert data["outputs"][0]["note"] == "NaN or infinity where the reference is finite"


def test_the_worst_entry_is_the_one_furthest_beyond_its_limit() -> None:
    def entry(name: str, error: float, passed: bool) -> OutputError:
        return OutputError(name, "normal", error, 1.0, passed, "", (Measure("relative error", error, 0.1),))

    entries = (entry("a", 0.05, True), entry("b", 0.3, False), entry("c", 0.2, False))
    worst = Check(False, "", 0, {}, entries).worst
    assert worst is not None
    assert worst.output == "b"
    passed = Check(True, "", 0, {}, entries[:1]).worst
    assert passed is not None
    assert passed.output == "a"


# --- what nothing can run


def test_a_reference_that_nothing_can_run_raises(tmp_path: Path) -> None:
    net = Net()
    net.domains["com.microsoft"] = 1
    net.output(net.node("Mystery", [net.input()], "mystery", domain="com.microsoft"))
    with pytest.raises(VerificationError, match=r"nothing here can run the original model .*Mystery"):
        judged(tmp_path, net.model(), net.model())


def test_sizes_that_do_not_fit_are_a_usage_error(tmp_path: Path) -> None:
    for shapes in ({"image": (1, 3, 10)}, {"image": (1, 4, 10, 10)}, {"image": (0, 3, 10, 10)}, {"other": (1,)}):
        with pytest.raises(UsageError, match="--shape"):
            judged(tmp_path, network(), network(), shapes=shapes)


# --- inputs


def test_sizes_are_looked_for_until_the_reference_runs(tmp_path: Path) -> None:
    """A classifier with a fixed flatten: only images of 32x32 fit."""
    net = Net()
    x = net.conv(net.input("x", ("N", 3, "h", "w")), (3, 2), "conv", pad=1)
    flat = net.node("Flatten", [x], "flat")
    net.output(net.node("Gemm", [flat, net.filter("fc", 2 * 32 * 32, 4)], "gemm"), ("N", 4))
    check = judged(tmp_path, net.model(), net.model())
    assert check.passed
    assert check.shapes == {"x": (2, 3, 32, 32)}
    with pytest.raises(VerificationError, match="--shape"):
        judged(tmp_path, net.model(), net.model(), shapes={"x": (1, 3, 16, 16)})


def test_a_batch_of_one_is_taken_where_two_do_not_fit(tmp_path: Path) -> None:
    net = Net()
    x = net.node("Reshape", [net.input("x", ("N", 3, 4, 4)), net.weight("shape", np.array([1, 48]))], "flat")
    net.output(x, (1, 48))
    assert judged(tmp_path, net.model(), net.model()).shapes == {"x": (1, 3, 4, 4)}


def test_scalars_flags_and_indices_are_made_up_too(tmp_path: Path) -> None:
    net = Net()
    index = net.input("index", ("N",), np.int64)
    flag = net.input("flag", (), np.bool_)
    factor = net.input("factor", ())
    row = net.node("Gather", [net.weight("table", net.rng.standard_normal((8, 4))), index], "row")
    net.output(net.node("Where", [flag, row, net.node("Mul", [row, factor], "mul")], "chosen"), ("N", 4))
    check = judged(tmp_path, net.model(), net.model())
    assert check.passed
    assert "onnxruntime" in check.runner
    assert check.shapes == {"index": (2,), "flag": (), "factor": ()}


def test_inputs_are_the_same_for_the_same_seed_and_differ_between_kinds_and_seeds() -> None:
    specs = [InputSpec("x", np.dtype(np.float32), ("N", 3, 4, 4)), InputSpec("i", np.dtype(np.int64), (5,))]
    shapes = next(shape_choices(specs, {"x": (1, 3, 4, 4)}))
    once, again, other = (list(feeds(specs, shapes, seed)) for seed in (0, 0, 1))
    assert [kind for kind, _ in once] == list(KINDS)
    for (kind, a), (_, b), (_, c) in zip(once, again, other, strict=True):
        assert np.array_equal(a["x"], b["x"])
        assert np.array_equal(a["x"], c["x"]) == (kind == "zeros")
        assert (a["x"].dtype.name, a["x"].shape) == ("float32", (1, 3, 4, 4))
        assert (a["i"].dtype.name, a["i"].shape) == ("int64", (5,))
        assert 0 <= a["i"].min() <= a["i"].max() < 8
    kinds = dict(once)
    assert kinds["uniform"]["x"].min() >= 0
    assert (kinds["image"]["x"][..., 0] == 1).all()
    assert np.abs(kinds["large"]["x"]).max() > 10
    assert np.ptp(kinds["constant"]["x"]) == 0


# --- the second hearing


def _saturated(bias: float, weight: float = 1.0) -> ModelProto:
    """conv -> BN -> Sigmoid, far to the left: what comes out has few digits."""
    net = Net()
    x = net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn")
    net.weights["bn_beta"] = np.full(4, bias, np.float32)
    net.weights["conv_weight"] = net.weights["conv_weight"] * np.float32(weight)
    net.output(net.node("Sigmoid", [x], "sigmoid"))
    return net.model()


def test_few_digits_are_no_fault(tmp_path: Path) -> None:
    """A Sigmoid near 0 rounds to steps of 6e-8: one step is half of what comes out, and still not a difference."""
    result = bnfold.fold(_saturated(-14.0), verify=True)
    assert result.check is not None
    assert result.check.passed


def test_a_wrong_model_fails_the_second_hearing_too(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.onnx", tmp_path / "wrong.onnx"
    onnx.save(_saturated(-9.0), right)
    onnx.save(_saturated(-9.0, 1.05), wrong)
    assert not bnfold.verify(right, wrong).passed


def test_the_second_hearing_is_for_the_default_limits_only(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.onnx", tmp_path / "wrong.onnx"
    onnx.save(_saturated(0.0), right)
    onnx.save(_saturated(0.0, 1 + 3e-7), wrong)
    assert bnfold.verify(right, wrong).passed
    assert not bnfold.verify(right, wrong, limit=1e-9).passed


def test_a_reference_of_zeros_allows_one_unit_in_the_last_place_of_the_inputs(tmp_path: Path) -> None:
    def zeros(value: float) -> ModelProto:
        net = Net()
        x = net.node("Mul", [net.input("x", ("N", 3, 4, 4)), net.weight("none", [0.0])], "zeroed")
        net.output(net.node("Add", [x, net.weight("value", [value])], "sum"), ("N", 3, 4, 4))
        return net.model()

    # the smallest inputs have a magnitude of 1 at least: a unit in the last place is 1.2e-7
    for value, passed in ((3e-8, True), (3e-7, False), (np.nan, False)):
        assert judged(tmp_path, zeros(0.0), zeros(value)).passed == passed


@pytest.mark.parametrize("opset", [7, 9, 13, 14])
def test_the_reference_evaluator_takes_stored_statistics_in_every_opset(tmp_path: Path, opset: int) -> None:
    """In float64 nothing else runs the model; onnx's own BN of opsets 7 to 13 computes those of the batch."""
    net = Net(dtype=np.float64, opset=opset)
    net.output(net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn", gamma="both"), ("N", 4, 6, 6))
    model = net.model()
    result = fold(model)
    assert result.check is not None
    assert result.check.passed
    assert result.check.runner == "onnx.reference"
    wrong = copied(result.model)
    put(wrong, "conv_bias", initializer(wrong, "conv_bias") * 1.0001)
    assert not judged(tmp_path, model, wrong).passed


def test_the_reference_evaluator_takes_them_in_functions_too(tmp_path: Path) -> None:
    net = Net(dtype=np.float64, opset=13)
    vectors = [net.weight(f"v{i}", net.rng.uniform(0.5, 2.0, 4)) for i in range(4)]
    net.domains["local"] = 1
    net.output(net.node("Block", [net.conv(net.input(), (3, 4), "conv"), *vectors], "block", domain="local"))
    names = ["x", "gamma", "beta", "mean", "var"]
    norm = helper.make_node("BatchNormalization", names, ["y"], name="hidden")
    model = net.model()
    model.functions.append(helper.make_function("local", "Block", names, ["y"], [norm], [helper.make_opsetid("", 13)]))
    result = fold(model)
    assert result.plan.counts()["folded"] == 1
    assert result.check is not None
    assert result.check.passed


def test_errors_are_compared_against_float64_and_not_with_each_other() -> None:
    rng = np.random.default_rng(0)
    exact = rng.uniform(1.0, 2.0, 1000)
    signs = rng.choice([-1.0, 1.0], 1000)
    a = (exact + 1e-4 * signs).astype(np.float32)
    own = Errors.of(a, exact)
    assert own.rms == pytest.approx(1e-4, rel=1e-2)
    for factor, passed in ((-1.0, True), (7.9, True), (-7.9, True), (8.1, False), (-8.1, False)):
        b = (exact + factor * 1e-4 * signs).astype(np.float32)
        entry = beside(facts("y", "normal", a, b), a, own, Errors.of(b, exact), 8.0)
        assert entry.passed == passed, factor
        assert entry.measure("error ratio") == pytest.approx(abs(factor), rel=2e-2)
    for size, passed in ((0.9, True), (1.1, False)):
        b = a.copy()
        b[7] = exact[7] + size * 8.0 * PEAK * own.peak  # one element, which the root mean square hardly sees
        entry = beside(facts("y", "normal", a, b), a, own, Errors.of(b, exact), 8.0)
        assert entry.passed == passed
        assert entry.measures[0].passed


def test_a_reference_without_own_error_still_allows_some_units_in_the_last_place() -> None:
    exact = np.linspace(1.0, 2.0, 100).astype(np.float32).astype(np.float64)
    a = exact.astype(np.float32)
    own = Errors.of(a, exact)
    assert own == Errors(0.0, 0.0)
    for units, passed in ((1.0, True), (8.0, False)):
        b = (exact + units * 2.0**-22).astype(np.float32)
        entry = beside(facts("y", "normal", a, b), a, own, Errors.of(b, exact), 8.0)
        assert entry.passed == passed


def test_a_large_difference_never_passes_however_large_the_own_error() -> None:
    exact = np.ones(100)
    a, b = (np.full(100, value, np.float32) for value in (1.05, 0.9))
    entry = beside(facts("y", "normal", a, b), a, Errors.of(a, exact), Errors.of(b, exact), 8.0)
    assert entry.measures[0].passed
    assert not entry.passed


def test_a_model_in_float64_has_the_same_numbers_and_no_rounding(tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    wide = widened(path)
    assert wide is not None
    assert {t.data_type for t in wide.graph.initializer} == {TensorProto.DOUBLE}
    before, after = (initializer(m, "conv1_weight") for m in (model, wide))
    assert np.array_equal(before.astype(np.float64), after)
    x = np.random.default_rng(0).standard_normal((2, 3, 10, 10)).astype(np.float32)
    exact = ReferenceRunner(wide).run({"image": x.astype(np.float64)})["fc_out"]
    single = OrtRunner(path).run({"image": x})["fc_out"]
    assert exact.dtype == np.float64
    assert 0 < np.abs(single - exact).max() < 1e-5


def test_a_weight_off_by_a_hundredth_is_no_rounding(tmp_path: Path) -> None:
    """Small beside the outputs, large beside the rounding."""
    model = network()
    wrong = copied(model)
    put(wrong, "fc_bias", initializer(wrong, "fc_bias") * np.float32(1.003))
    check = judged(tmp_path, model, wrong)
    assert not check.passed
    assert max(entry.error / entry.scale for entry in check.outputs) < 0.1


# --- parts of an output, and what else a single number for all of it hides


def boxes_and_scores(wrong: float = 0.0) -> ModelProto:
    """A detector's head: boxes in hundreds and scores below 1 in one tensor; `wrong`: by how much one weight is off."""
    net = Net(seed=4)
    x = net.relu(net.conv(net.input("image", ("N", 3, 12, 12)), (3, 8), "conv", pad=1), "relu")
    boxes = net.conv(x, (8, 4), "boxes", k=1)
    scores = net.conv(x, (8, 6), "scores", k=1)
    net.weights["boxes_weight"] *= 300
    net.weights["scores_weight"].flat[7] *= 1 + wrong
    net.output(net.node("Concat", [boxes, net.node("Sigmoid", [scores], "sigmoid")], "both", axis=1), ("N", 10, 12, 12))
    return net.model()


@pytest.mark.parametrize("last", [False, True])
def test_scores_beside_boxes_are_judged_by_their_own_rounding(tmp_path: Path, last: bool) -> None:
    sound, wrong = boxes_and_scores(), boxes_and_scores(1e-3)
    if last:
        for model in (sound, wrong):
            append(model, "Transpose", perm=[0, 2, 3, 1])
            del model.graph.output[0].type.tensor_type.shape.dim[:]
            model.graph.output[0].type.tensor_type.ClearField("shape")
    assert judged(tmp_path, sound, copied(sound)).passed
    check = judged(tmp_path, sound, wrong)
    assert not check.passed
    worst = check.worst
    assert worst is not None
    assert worst.relative < 1e-6  # of the boxes
    assert (worst.measure("part ratio") or 0) > 8 * PARTS
    assert check.where is not None
    assert check.where.tensor == "scores_out"


def test_channels_that_cancel_to_one_number_are_no_parts() -> None:
    """A channel that is one number may be small by accident, and its own error too."""
    exact = np.random.default_rng(0).normal(0, 1, (2, 4, 6, 6))
    exact[:, 2] = 1e-5
    a, b = exact.astype(np.float32), exact.astype(np.float32)
    b[:, 2] += np.float32(1e-8)
    assert apart(a, b, exact, "float32") < 2
    exact[:, 2] *= np.random.default_rng(1).normal(0, 1, (2, 6, 6))
    a, b = exact.astype(np.float32), exact.astype(np.float32)
    b[:, 2] += np.float32(1e-8)
    assert apart(a, b, exact, "float32") > 1000


def test_parts_are_the_same_however_many_are_compared_at_a_time() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(0, 1, (3, 5, 7, 4)) * rng.uniform(0.1, 10, (5, 1, 1))
    a, b = exact.astype(np.float32), (exact + rng.normal(0, 1e-6, exact.shape)).astype(np.float32)
    b[0, 0, 0, 0] = np.nan
    whole = worst_part(a, b, exact, 1e-9, 1 << 20)
    assert worst_part(a, b, exact, 1e-9, 50) == pytest.approx(whole)
    assert worst_part(a, b, exact, 1e-9, 50, np.full(exact.shape, 1e-6)) < 2 < whole


def test_a_float64_run_that_gives_no_number_is_no_excuse(tmp_path: Path) -> None:
    """0.1 * 10 is 1 in float32, and a little more in float64, where the root of 1 less that is NaN."""

    def model(factor: float) -> ModelProto:
        net = Net(seed=0)
        product = net.node("Mul", [net.weight("a", np.float32(0.1)), net.weight("b", np.float32(10))], "product")
        root = net.node("Sqrt", [net.node("Sub", [net.weight("one", np.float32(1)), product], "sub")], "root")
        y = net.node("Add", [net.input("x", ("N", 5)), root], "add")
        net.output(net.node("Mul", [y, net.weight("factor", np.float32(factor))], "mul"), ("N", 5))
        return net.model()

    check = judged(tmp_path, model(1.0), model(1.05))
    assert not check.passed
    assert "NaN or infinite where the reference is not" in " ".join(check.warnings)
    assert judged(tmp_path, model(1.0), model(1.00001)).passed


def test_texts_are_compared_whatever_bounds_numbers_have(tmp_path: Path) -> None:
    def model(names: list[str]) -> ModelProto:
        net = Net(seed=0)
        best = net.node("ArgMax", [net.input("x", ("N", 4))], "best", axis=1, keepdims=0)
        table = numpy_helper.from_array(np.array(names, object), "table")
        net.output(net.node("Gather", ["table", best], "label"), ("N",))
        made = net.model()
        made.graph.initializer.append(table)
        made.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
        return made

    sound = model(["a", "b", "c", "d"])
    assert judged(tmp_path, sound, copied(sound), atol=1e-3).passed
    assert not judged(tmp_path, sound, model(["b", "a", "d", "c"]), atol=1e-3).passed


def test_random_whole_numbers_are_refused_too(tmp_path: Path) -> None:
    net = Net(seed=0)
    x = net.input("x", ("N", 40))
    noisy = net.node("Add", [x, net.node("RandomNormalLike", [x], "random")], "noisy")
    net.output(net.node("ArgMax", [noisy], "best", axis=1, keepdims=0), ("N",))
    model = net.model()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    check = judged(tmp_path, model, copied(model), samples=20)
    assert "another best_out when it runs again" in check.message


def test_agreement_is_that_of_all_samples(tmp_path: Path) -> None:
    """One sample of ten has another class, and sits in a batch of two."""
    net = Net(seed=0)
    net.output(net.node("Identity", [net.input("x", (2, 3))], "same"), (2, 3))
    sound = net.model()
    wrong = copied(sound)
    append(wrong, "Add", np.array([0, 0, 10], np.float32))
    x = np.zeros((10, 3), np.float32)
    x[:, 2] = 20
    x[3] = [5, 0, 0]
    shares = {share: judged(tmp_path, sound, wrong, data=x, top_k=1, agreement=share) for share in (0.9, 0.91)}
    assert shares[0.9].passed
    assert not shares[0.91].passed
    (entry,) = shares[0.9].outputs
    assert entry.measure("top-1 disagreement") == pytest.approx(0.1)


# --- sizes, inputs and outputs that one of the two models does not have


def resizing(sizes: list[int] | None = None) -> ModelProto:
    """A conv and a Resize to the size of its input, or to fixed sizes."""
    net = Net(seed=2)
    x = net.conv(net.input("image", ("N", 3, "H", "W")), (3, 4), "conv", pad=1)
    wanted = net.node("Shape", [x], "shape") if sizes is None else net.weight("sizes", np.array(sizes))
    net.output(net.node("Resize", [x, "", "", wanted], "resize", mode="linear"))
    return net.model()


def test_sizes_that_the_candidate_holds_fixed_are_tried_with_others(tmp_path: Path) -> None:
    check = judged(tmp_path, resizing(), resizing())
    assert check.passed
    assert [entry.kind for entry in check.outputs][-1] == RESIZED
    check = judged(tmp_path, resizing(), resizing([2, 4, 64, 64]))
    assert not check.passed
    assert "resized inputs (image 3x3x96x96; --shape holds" in check.message
    assert judged(tmp_path, resizing(), resizing([2, 4, 64, 64]), shapes={"image": (2, 3, 64, 64)}).passed


def test_other_sizes_are_those_that_the_reference_takes(tmp_path: Path) -> None:
    net = Net(seed=2)
    flat = net.node("Reshape", [net.input("x", ("N", "M")), net.weight("shape", np.array([-1, 64]))], "flat")
    net.output(net.node("MatMul", [flat, net.weight("w", net.rng.normal(0, 1, (64, 2)))], "y"), ("N", 2))
    check, specs = judged(tmp_path, net.model(), net.model()), input_specs(net.model())
    assert check.passed
    (entry,) = [entry for entry in check.outputs if entry.kind == RESIZED]
    (found,) = [c for c in Inputs().resized(specs, {"x": (2, 64)}, {"x": {0, 1}}) if c.shapes["x"] == (3, 64)]
    assert entry.passed
    assert found.shapes == {"x": (3, 64)}
    assert list(Inputs().resized(specs, {"x": (2, 64)}, {"x": set()})) == []


def test_sizes_of_one_name_are_the_same(tmp_path: Path) -> None:
    net = Net(seed=0)
    x, y = net.input("x", ("N", "K")), net.input("y", ("K", 3))
    net.output(net.node("MatMul", [x, y], "product"), ("N", 3))
    check = judged(tmp_path, net.model(), net.model())
    assert check.passed
    assert check.shapes == {"x": (2, 64), "y": (64, 3)}
    assert [entry.kind for entry in check.outputs][-1] == RESIZED


def test_a_file_is_tried_with_other_sizes_where_the_reference_is_a_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net, x = torch.nn.Conv2d(3, 4, 1).eval(), torch.randn(2, 3, 64, 64)
    weight, bias = (p.detach().numpy() for p in (net.weight, net.bias))

    def model(sizes: list[int] | None) -> Path:
        made = resizing(sizes)
        conv = next(node for node in made.graph.node if node.op_type == "Conv")
        del conv.attribute[:]
        put(made, "conv_weight", weight)
        put(made, "conv_bias", bias)
        onnx.save(made, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    assert verify(net, model(None), (x,)).passed
    check = verify(net, model([2, 4, 64, 64]), (x,))
    assert not check.passed
    assert "resized inputs" in check.message


def test_inputs_and_outputs_of_one_model_only_are_named(tmp_path: Path) -> None:
    def model(more: bool) -> ModelProto:
        net = Net(seed=0)
        x = net.input("x", ("N", 4))
        if not more:
            net.input("idle", ("N", 4))
        net.output(net.relu(x, "relu"), ("N", 4))
        if more:
            net.output(net.node("Neg", [x], "neg"), ("N", 4))
        return net.model()

    check = judged(tmp_path, model(False), model(True))
    assert check.passed
    assert check.warnings == (
        "the candidate lacks inputs that the reference has: idle",
        "the candidate has outputs that the reference lacks: neg_out",
    )


def test_one_batch_is_enough_to_see_that_outputs_vary(tmp_path: Path) -> None:
    assert judged(tmp_path, network(), network(), kinds=["normal"]).warnings == ()
    steady = network()
    put(steady, "fc_weight", np.zeros((5, 8), np.float32))
    (said,) = judged(tmp_path, steady, copied(steady), kinds=["normal"]).warnings
    assert "the same fc_out on all inputs" in said


def test_modules_in_train_mode_are_named() -> None:
    torch = pytest.importorskip("torch")
    net, x = torch.nn.BatchNorm2d(3), (torch.randn(2, 3, 4, 4),)
    check = verify(net.train(), net, x)
    assert check.passed
    assert check.warnings == tuple(
        f"the {which} has norms or dropout in train mode, and was run like that" for which in ("reference", "candidate")
    )
    assert verify(net.eval(), net, x).warnings == ()


def test_complex_outputs_are_judged_by_their_rounding() -> None:
    torch = pytest.importorskip("torch")

    class Spectrum(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, before: float, after: float) -> None:
            super().__init__()
            self.before, self.after = before, after

        def forward(self, x: Any) -> Any:
            return torch.fft.fft(x * self.before) * self.after

    x = (torch.randn(2, 64),)
    assert verify(Spectrum(1, 1), Spectrum(3, 1 / 3), x).passed
    assert not verify(Spectrum(1, 1), Spectrum(1, 1.001), x).passed


def test_whole_numbers_may_flip_as_far_as_rounding_flips_them(tmp_path: Path) -> None:
    def model(factor: float) -> ModelProto:
        net = Net(seed=0)
        scaled = net.node("Mul", [net.input("x", (2, 500)), net.weight("factor", np.float32(factor))], "scaled")
        net.output(net.node("Cast", [scaled], "whole", to=TensorProto.INT64), (2, 500))
        made = net.model()
        made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
        return made

    check = judged(tmp_path, model(2.0**20), model(2.0**20 * (1 + 2.0**-23)), kinds=["normal", "zeros"])
    assert check.passed
    assert check.outputs[0].note == ROUNDING
    assert INTEGER_LIMIT < (check.outputs[0].measure("flips") or 0) < 0.5
    assert not judged(tmp_path, model(2.0**20), model(2.0**20 * (1 + 2.0**-20)), kinds=["normal"]).passed
    assert not judged(tmp_path, model(2.0**24), model(2.0**24 * (1 + 2.0**-20)), kinds=["normal"]).passed


def test_masks_are_made_up_of_zeros_and_ones(tmp_path: Path) -> None:
    net = Net(seed=0)
    mask = net.input("attention_mask", (2, 50), np.int64)
    net.output(net.node("Cast", [mask], "cast", to=TensorProto.FLOAT), (2, 50))
    (spec,) = input_specs(net.model())
    assert spec.high == 2
    (entry,) = judged(tmp_path, net.model(), net.model(), kinds=["normal"]).outputs
    assert entry.scale == 1
