"""What a fold leaves alone in an ONNX model, and what it does to weights that several nodes share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

import bnfold

from .evaluate import evaluate
from .nets import FLOAT, Net, conv_bn, initializer, input_bn, node_named, op_types

Array = npt.NDArray[Any]
WIDTHS = pytest.mark.parametrize("width", [6, 160], ids=["small", "large"])
"""Weights of few and of many elements: large ones are written as they are computed."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def fold(model: ModelProto, folder: Path, runs: str = "ort", **options: Any) -> bnfold.FoldResult:
    """Fold a file and check what always holds: the input is left alone, the output is a valid model, is the same as
    that of a fold in memory, computes the same, and has nothing left to fold.

    `runs`: "ort", "float64" (the evaluator of tests) or "" (nothing here runs it).
    """
    source, target = folder / "model.onnx", folder / "folded.onnx"
    data = model.SerializeToString()
    source.write_bytes(data)
    result = bnfold.fold(source, out=target, verify=bool(runs), **options)
    assert source.read_bytes() == data
    written = onnx.load(target)
    assert written == result.model
    onnx.checker.check_model(written, full_check=True)
    in_memory = bnfold.fold(model, verify=False, **options)
    assert model.SerializeToString() == data
    assert in_memory.model == written
    if runs:
        agree(model, written, runs)
    again = bnfold.fold(written, verify=False, **options)
    assert again.plan.edits == ()
    assert again.model == written
    return result


def agree(before: ModelProto, after: ModelProto, runs: str) -> None:
    """The same numbers come out of two models, to the precision of their type."""
    feed = {value.name: _numbers(value) for value in before.graph.input if value.name not in _initializers(before)}
    limit = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2}
    for a, b in zip(_outputs(before, feed, runs), _outputs(after, feed, runs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        x, y = a.astype(np.float64), b.astype(np.float64)
        assert np.isfinite(x).all()
        assert np.abs(x - y).max() <= limit.get(a.dtype.name, 0.0) * np.abs(x).max()


def _initializers(model: ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def _numbers(value: onnx.ValueInfoProto) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [dim.dim_value or (6 if axis else 2) for axis, dim in enumerate(value.type.tensor_type.shape.dim)]
    rng = np.random.default_rng(len(value.name))
    return np.asarray(rng.random(shape) < 0.5 if dtype == np.bool_ else rng.standard_normal(shape).astype(dtype))


def _outputs(model: ModelProto, feed: dict[str, Array], runs: str) -> list[Array]:
    if runs == "float64":
        return evaluate(model, **feed)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feed)]


def verdicts(result: bnfold.FoldResult) -> dict[str, str]:
    return {bn.name: bn.verdict for bn in result.plan.batch_norms}


def reasons(result: bnfold.FoldResult) -> dict[str, str]:
    return {bn.name: bn.reason.code for bn in result.plan.batch_norms if bn.reason}


def _bytes(messages: Iterable[Any], field: str, left_out: set[str]) -> list[bytes]:
    return [m.SerializeToString(deterministic=True) for m in messages if getattr(m, field) not in left_out]


def assert_untouched(before: ModelProto, after: ModelProto, nodes: set[str], tensors: set[str]) -> None:
    """Everything but the named nodes and tensors is the same bit by bit, in the same order."""
    listed = {"node": "name", "initializer": "name", "value_info": "name", "quantization_annotation": "tensor_name"}
    for field, key in listed.items():
        left_out = nodes if field == "node" else tensors
        old, new = (_bytes(getattr(model.graph, field), key, left_out) for model in (before, after))
        assert old == new, field
    rest = []
    for model in (before, after):
        bare = ModelProto()
        bare.CopyFrom(model)
        for field in listed:
            bare.graph.ClearField(field)
        rest.append(bare)
    for descriptor, value in rest[0].ListFields():
        assert getattr(rest[1], descriptor.name) == value, descriptor.name
    assert rest[0].SerializeToString(deterministic=True) == rest[1].SerializeToString(deterministic=True)


# --- a model with a bit of everything


def _every_attribute(node: NodeProto) -> None:
    """One attribute of each type."""
    tensor = numpy_helper.from_array(np.arange(3.0, dtype=np.float32), "inner")
    graph = helper.make_graph([helper.make_node("Constant", [], ["b"], value=tensor)], "body", [], [])
    sparse = _sparse("sparse_inner")
    kind = helper.make_tensor_type_proto(FLOAT, [1, "N"])
    values: dict[str, Any] = {
        "f": 1.5, "i": 3, "s": b"text", "t": tensor, "g": graph, "sp": sparse, "tp": kind, "fs": [0.5, 2.5],
        "is": [1, 2], "ss": [b"a", b"b"], "ts": [tensor], "gs": [graph], "sps": [sparse], "tps": [kind],
    }  # fmt: skip
    node.attribute.extend(helper.make_attribute(name, value, f"about {name}") for name, value in values.items())
    found = {attribute.type for attribute in node.attribute}
    assert found == set(AttributeProto.AttributeType.values()) - {AttributeProto.UNDEFINED}


def _sparse(name: str) -> SparseTensorProto:
    values = helper.make_tensor(name, FLOAT, [2], [0.5, -1.5])
    return helper.make_sparse_tensor(values, helper.make_tensor(f"{name}_at", TensorProto.INT64, [2], [1, 3]), [5])


def rich(width: int) -> ModelProto:
    """Two inputs, three outputs, one branch that folds, and everything else that a file can hold."""
    net = Net(opset=21, ir=10)
    net.domains.update({"com.example": 3, "com.example.unused": 1})
    x = net.input("x", ("batch", 3, "height", "width"))
    z = net.input("z", ("batch", 5))
    x = net.bn(net.conv(x, (3, width), "conv1", pad=1), width, "bn1")
    x = net.relu(x, "relu1")
    net.weight("unused", [1.0, 2.0])
    first = net.conv(x, (width, width), "conv2")
    second = net.node("Plus", [z, net.weight("offset", [0.5, 1.0, 2.0, -1.0, 0.0])], "plus", domain="com.example")
    net.node("Exp", [second], "dead")
    third = net.node("Sigmoid", [net.bn(second, 5, "bn2")], "sigmoid")
    net.output(third, ("batch", 5))
    net.output(net.bn(first, width, "bn3"), ("batch", width, "h", "w"))
    net.output(second, ("batch", 5))
    model = net.model()
    graph = model.graph
    plus = helper.make_function(
        "com.example", "Plus", ["a", "b"], ["c"], [helper.make_node("Add", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    plus.doc_string = "adds"
    model.functions.append(plus)
    graph.sparse_initializer.append(_sparse("sparse"))
    model.producer_name, model.producer_version, model.model_version = "somebody", "1.2.3", 7
    model.domain, model.doc_string = "com.example", "a model with\neverything"
    graph.name, graph.doc_string = "the graph", "what it does"
    graph.input[0].doc_string, graph.output[1].doc_string = "an image", "a map"
    graph.input[0].type.denotation = "IMAGE"
    for owner in (model, graph, *graph.node, graph.input[1], *graph.initializer):
        owner.metadata_props.add(key="made by", value=f"hand {type(owner).__name__}")
    for node in graph.node:
        node.doc_string = f"this is {node.name}"
    for tensor in graph.initializer:
        tensor.doc_string = f"numbers of {tensor.name}"
    for name in ("relu1_out", "conv1_out", "bn1_out"):
        graph.value_info.append(
            helper.make_tensor_value_info(name, FLOAT, ["batch", width, "height", "width"], f"about {name}")
        )
    graph.value_info.append(helper.make_tensor_value_info("bn2_out", FLOAT, ["batch", 5], "about bn2_out"))
    for name in ("bn2_out", "conv1_out"):
        note = graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    training = model.training_info.add()
    training.initialization_binding.add(key="conv2_weight", value="start")
    return model


GONE = {"bn1", "bn3"}
CHANGED = {"conv1", "conv2", *GONE}
VECTORS = {f"{bn}_{part}" for bn in GONE for part in ("gamma", "beta", "mean", "var")}
TENSORS = VECTORS | {
    "conv1_weight", "conv1_bias", "conv1_out", "conv2_weight", "conv2_bias", "conv2_out", "bn1_out", "bn3_out",
}  # fmt: skip


@WIDTHS
def test_nothing_that_no_edit_names_is_lost_or_changed(folder: Path, width: int) -> None:
    model = rich(width)
    onnx.checker.check_model(model, full_check=True)
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded", "bn2": "kept", "bn3": "folded"}
    assert any("training information" in note for note in result.plan.notes)
    assert_untouched(model, result.model, CHANGED, TENSORS)
    kept = [node.name for node in model.graph.node if node.name not in GONE]
    assert [node.name for node in result.model.graph.node] == kept


@WIDTHS
def test_the_nodes_that_an_edit_changes_keep_their_text_and_attributes(folder: Path, width: int) -> None:
    model = rich(width)
    folded = fold(model, folder).model
    for name in ("conv1", "conv2"):
        before, after = node_named(model, name), node_named(folded, name)
        for field in ("name", "op_type", "domain", "doc_string", "attribute", "metadata_props", "overload"):
            assert getattr(before, field) == getattr(after, field)
    for tensor in folded.graph.initializer:
        if tensor.name in TENSORS:
            assert tensor.doc_string == f"numbers of {tensor.name}"
            assert tensor.metadata_props[0].key == "made by"


@WIDTHS
def test_nothing_is_left_of_what_is_gone(folder: Path, width: int) -> None:
    folded = fold(rich(width), folder).model
    assert not VECTORS & _initializers(folded)
    alive = {name for node in folded.graph.node for name in (*node.input, *node.output)}
    alive |= _initializers(folded)
    assert {value.name for value in folded.graph.value_info} <= alive
    assert {note.tensor_name for note in folded.graph.quantization_annotation} <= alive


def test_attributes_of_every_type_on_another_node_stay(folder: Path) -> None:
    net = conv_bn()
    net.domains["com.example"] = 1
    net.node("Everything", ["bn1_out", "", "conv1_out"], "everything", domain="com.example", doc_string="all of it")
    net.nodes[-1].output.extend(["", "second"])
    _every_attribute(net.nodes[-1])
    net.output("second")
    model = net.model()
    result = fold(model, folder, runs="")
    assert verdicts(result) == {"bn1": "kept", "bn2": "folded"}
    assert node_named(result.model, "everything") == node_named(model, "everything")
    vectors = {f"bn2_{part}" for part in ("gamma", "beta", "mean", "var")}
    assert_untouched(model, result.model, {"conv2", "bn2"}, {"conv2_weight", "conv2_bias", "conv2_out", *vectors})


@pytest.mark.parametrize("place", ["model", "graph", "node", "tensor", "attribute"])
@WIDTHS
def test_fields_of_a_newer_format_stay(folder: Path, place: str, width: int) -> None:
    """A field that this version of onnx does not know: number 500, holding text."""
    net = Net()
    x = net.relu(net.bn(net.conv(net.input(), (3, width), "conv1"), width, "bn1"), "relu1")
    net.output(net.bn(net.conv(x, (width, width), "conv2"), width, "bn2"))
    model = net.model()
    news = b"\xa2\x1f\x04news"
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1_weight")
    conv = node_named(model, "conv1")
    {
        "model": model, "graph": model.graph, "node": conv, "tensor": weight, "attribute": conv.attribute[0],
    }[place].MergeFromString(news)  # fmt: skip
    data = model.SerializeToString()
    assert data.count(news) == 1
    source, target = folder / "model.onnx", folder / "folded.onnx"
    source.write_bytes(data)
    result = bnfold.fold(source, out=target)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    assert target.read_bytes().count(news) == 1
    agree(model, onnx.load(target), "ort")


def test_a_model_without_norms_comes_out_as_it_went_in(folder: Path) -> None:
    net = Net()
    net.output(net.relu(net.conv(net.input(), (3, 64), "conv"), "relu"))
    model = net.model()
    for name in ("b", "a"):
        model.metadata_props.add(key=name, value=name)
    result = fold(model, folder)
    assert (folder / "folded.onnx").read_bytes() == model.SerializeToString()
    assert result.plan.batch_norms == ()


# --- shared weights


def _values(model: ModelProto, node: str, position: int) -> Array:
    """The constant that a node reads."""
    return initializer(model, node_named(model, node).input[position])


@WIDTHS
@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (8, 3)], ids=["ir8", "ir3"])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_tensor_shared_with_another_conv_keeps_its_values_there(
    folder: Path, part: str, opset: int, ir: int, width: int
) -> None:
    net = Net(opset=opset, ir=ir)
    x = net.input()
    a = net.bn(net.conv(x, (3, width), "conv1"), width, "bn1")
    b = net.conv(x, (3, width), "conv2")
    at = 1 if part == "weight" else 2
    net.nodes[-1].input[at] = f"conv1_{part}"
    net.output(net.relu(a, "relu1"))
    net.output(b)
    model = net.model()
    if ir < 4:
        _as_inputs(model)
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded"}
    assert np.array_equal(_values(result.model, "conv2", at), initializer(model, f"conv1_{part}"))
    assert node_named(result.model, "conv1").input[at] != f"conv1_{part}"
    assert {value.name for value in result.model.graph.input} <= {value.name for value in model.graph.input}
    assert node_named(result.model, "conv2") == node_named(model, "conv2")


@pytest.mark.parametrize(
    "width",
    [6, 160],
    ids=["small", "large"],
)
def test_a_tensor_that_both_folded_convs_share_is_right_for_each(folder: Path, width: int) -> None:
    net = Net()
    x = net.input()
    for i in (1, 2):
        net.output(net.relu(net.bn(net.conv(x, (3, width), f"conv{i}"), width, f"bn{i}"), f"relu{i}"))
    for at, part in ((1, "weight"), (2, "bias")):
        node_named_in(net, "conv2").input[at] = f"conv1_{part}"
    result = fold(net.model(), folder)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    assert not np.array_equal(_values(result.model, "conv1", 1), _values(result.model, "conv2", 1))


def node_named_in(net: Net, name: str) -> NodeProto:
    return next(node for node in net.nodes if node.name == name)


def test_norms_that_share_their_vectors_both_fold(folder: Path) -> None:
    net = Net()
    x = net.input()
    x = net.relu(net.bn(net.conv(x, (3, 6), "conv1"), 6, "bn1"), "relu1")
    net.output(net.bn(net.conv(x, (6, 6), "conv2"), 6, "bn2"))
    net.weights = {name: value for name, value in net.weights.items() if not name.startswith("bn2")}
    del node_named_in(net, "bn2").input[1:]
    node_named_in(net, "bn2").input.extend(node_named_in(net, "bn1").input[1:])
    result = fold(net.model(), folder)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    assert not any(name.startswith("bn") for name in _initializers(result.model))


def test_a_vector_that_is_the_bias_of_a_conv_and_of_a_norm_stays_right(folder: Path) -> None:
    net = Net()
    x = net.bn(net.conv(net.input(), (3, 6), "conv1"), 6, "bn1")
    node_named_in(net, "bn1").input[2] = "conv1_bias"
    node_named_in(net, "bn1").input[3] = "conv1_bias"
    net.output(net.relu(x, "relu1"))
    assert verdicts(fold(net.model(), folder)) == {"bn1": "folded"}


@WIDTHS
def test_a_weight_that_is_a_graph_output_too_keeps_its_values_there(folder: Path, width: int) -> None:
    net = Net()
    net.output(net.relu(net.bn(net.conv(net.input(), (3, width), "conv1"), width, "bn1"), "relu1"))
    net.output("conv1_weight", (width, 3, 3, 3))
    model = net.model()
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded"}
    assert np.array_equal(initializer(result.model, "conv1_weight"), initializer(model, "conv1_weight"))


def test_a_statistic_that_another_node_reads_stays(folder: Path) -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input(), (3, 6), "conv1"), 6, "bn1"))
    net.output(net.node("Sqrt", ["bn1_var"], "sqrt"), (6,))
    model = net.model()
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded"}
    assert initializer(result.model, "bn1_var").tolist() == initializer(model, "bn1_var").tolist()
    assert "bn1_mean" not in _initializers(result.model)


# --- constants that are no initializers


def _as_constants(model: ModelProto, inner_name: str = "") -> None:
    """Turn every initializer into a Constant node."""
    for tensor in reversed(model.graph.initializer):
        output = tensor.name
        tensor.name = inner_name or output
        model.graph.node.insert(0, helper.make_node("Constant", [], [output], value=tensor))
    del model.graph.initializer[:]


@WIDTHS
@pytest.mark.parametrize("inner_name", ["", "value"])
def test_weights_in_constant_nodes_fold(folder: Path, inner_name: str, width: int) -> None:
    net = Net()
    x = net.relu(net.bn(net.conv(net.input(), (3, width), "conv1"), width, "bn1"), "relu1")
    net.output(net.bn(net.conv(x, (width, width), "conv2", bias=False), width, "bn2", gamma="both"))
    model = net.model()
    _as_constants(model, inner_name)
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    read = {name for node in result.model.graph.node for name in node.input}
    assert {node.output[0] for node in result.model.graph.node if node.op_type == "Constant"} <= read


def test_a_constant_node_whose_tensor_has_the_name_of_a_weight_is_left_alone(folder: Path) -> None:
    net = Net()
    x = net.bn(net.conv(net.input(), (3, 192), "conv1"), 192, "bn1")
    net.output(net.relu(x, "relu1"))
    model = net.model()
    other = numpy_helper.from_array(np.ones((192, 3, 3, 3), np.float32), "conv1_weight")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["other"], name="other", value=other))
    model.graph.output.append(helper.make_tensor_value_info("other", FLOAT, [192, 3, 3, 3]))
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded"}
    assert node_named(result.model, "other") == node_named(model, "other")


def _subgraph(net: Net, name: str, value: Array) -> str:
    """A constant as torch's exporter leaves it without its optimiser: computed from small pieces."""
    if value.ndim > 1:
        turned = net.weight(f"{name}_turned", value.transpose(1, 0, *range(2, value.ndim)))
        flipped = net.node("Transpose", [turned], f"{name}_t", perm=[1, 0, *range(2, value.ndim)])
        return net.node("Identity", [flipped], f"{name}_i")
    half = net.weight(f"{name}_vector", value)
    wide = net.node("Cast", [half], f"{name}_wide", to=TensorProto.DOUBLE)
    like = net.node("CastLike", [wide, half], f"{name}_like")
    return net.node("Identity", [like], f"{name}_i")


@WIDTHS
def test_weights_that_small_subgraphs_compute_fold(folder: Path, width: int) -> None:
    net = Net(opset=18)
    x = net.input("x", ("N", 3, 8, 8))
    weight = _subgraph(net, "weight", net.rng.standard_normal((width, 3, 3, 3)) / 5)
    shape = net.weight("shape", np.array([width]))
    scalar = net.node("ConstantOfShape", [net.weight("none", np.zeros(0, np.int64))], "fill")
    net.nodes[-1].attribute.append(helper.make_attribute("value", helper.make_tensor("v", FLOAT, [1], [0.25])))
    bias = net.node("Expand", [scalar, shape], "expand")
    x = net.node("Conv", [x, weight, bias], "conv1", kernel_shape=[3, 3])
    vectors = [net.rng.uniform(0.5, 2.0, width) for _ in range(4)]
    x = net.node("BatchNormalization", [x, *(_subgraph(net, f"v{i}", v) for i, v in enumerate(vectors))], "bn1")
    net.output(net.relu(x, "relu1"))
    result = fold(net.model(), folder)
    assert verdicts(result) == {"bn1": "folded"}
    assert op_types(result.model) == ["Conv", "Relu"]
    assert len(result.model.graph.initializer) == 2


def test_a_subgraph_that_another_node_reads_too_stays(folder: Path) -> None:
    net = Net()
    weight = _subgraph(net, "weight", net.rng.standard_normal((6, 3, 3, 3)) / 5)
    x = net.node("Conv", [net.input(), weight], "conv1")
    net.output(net.relu(net.bn(x, 6, "bn1"), "relu1"))
    net.output(net.node("Neg", [weight], "neg"), (6, 3, 3, 3))
    result = fold(net.model(), folder)
    assert verdicts(result) == {"bn1": "folded"}
    assert op_types(result.model) == ["Transpose", "Identity", "Conv", "Relu", "Neg"]


# --- initializers that are graph inputs


def _as_inputs(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


@WIDTHS
@pytest.mark.parametrize("bias", [True, False])
def test_in_ir_3_initializers_leave_the_inputs_with_their_values_and_no_input_comes(
    folder: Path, width: int, bias: bool
) -> None:
    net = Net(opset=8, ir=3)
    x = net.relu(net.bn(net.conv(net.input(), (3, width), "conv1", bias=bias), width, "bn1"), "relu1")
    net.output(net.bn(net.conv(x, (width, width), "conv2", bias=bias), width, "bn2"))
    model = net.model()
    _as_inputs(model)
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    before, after = ([value.name for value in m.graph.input] for m in (model, result.model))
    assert set(after) == {"x"} | _initializers(result.model)
    assert after == [name for name in before if not name.startswith("bn")]
    assert result.model.ir_version == 3


def test_in_ir_8_a_default_that_a_caller_may_override_is_kept_with_a_reason(folder: Path) -> None:
    model = conv_bn().model()
    model.graph.input.append(helper.make_tensor_value_info("bn1_gamma", FLOAT, [6]))
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "kept", "bn2": "folded"}
    assert reasons(result) == {"bn1": "overridable"}
    reason = result.plan.batch_norms[0].reason
    assert reason is not None
    assert "bn1_gamma" in reason.text
    assert "--freeze-inputs" in reason.hint


def test_freeze_inputs_folds_what_a_caller_might_override(folder: Path) -> None:
    model = conv_bn().model()
    model.graph.input.append(helper.make_tensor_value_info("bn1_gamma", FLOAT, [6]))
    result = fold(model, folder, freeze_inputs=True)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    assert [value.name for value in result.model.graph.input] == ["x"]


def test_in_ir_8_a_weight_that_a_caller_may_override_keeps_its_values(folder: Path) -> None:
    model = conv_bn().model()
    for name, shape in (("conv1_weight", [6, 3, 3, 3]), ("conv2_weight", [4, 6, 3, 3])):
        model.graph.input.append(helper.make_tensor_value_info(name, FLOAT, shape))
    result = fold(model, folder)
    for name in ("conv1_weight", "conv2_weight"):
        assert np.array_equal(initializer(result.model, name), initializer(model, name))
    assert [value.name for value in result.model.graph.input] == ["x", "conv1_weight", "conv2_weight"]
    given = {name: 2 * initializer(model, name) for name in ("conv1_weight", "conv2_weight")}
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, after = (_outputs(m, {"x": x, **given}, "ort")[0] for m in (model, result.model))
    assert np.allclose(before, after, rtol=1e-4, atol=1e-5)


def test_freeze_inputs_takes_a_frozen_weight_from_the_inputs(folder: Path) -> None:
    """Nobody may override a weight that holds a norm now: it would be the wrong weight."""
    model = conv_bn().model()
    model.graph.input.append(helper.make_tensor_value_info("conv1_weight", FLOAT, [6, 3, 3, 3]))
    result = fold(model, folder, freeze_inputs=True)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    assert [value.name for value in result.model.graph.input] == ["x"]


# --- norms at the edges of the graph


def test_a_norm_between_input_and_output_stays(folder: Path) -> None:
    model = input_bn().model()
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "kept"}
    assert result.model == model


def test_a_norm_that_does_nothing_between_input_and_output_goes_or_stays_but_both_names_do(folder: Path) -> None:
    net = input_bn()
    net.weights.update({"bn1_gamma": np.ones(3, np.float32), "bn1_beta": np.zeros(3, np.float32)})
    net.weights.update({"bn1_mean": np.zeros(3, np.float32), "bn1_var": np.ones(3, np.float32)})
    next(n for n in net.nodes).attribute.append(helper.make_attribute("epsilon", 0.0))
    result = fold(net.model(), folder)
    assert ([v.name for v in result.model.graph.input], [v.name for v in result.model.graph.output]) == (
        ["x"],
        ["bn1_out"],
    )


def test_the_output_of_a_norm_that_is_a_graph_output_keeps_its_name(folder: Path) -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn"), ("N", 4, "h", "w"))
    model = net.model()
    result = fold(model, folder)
    assert verdicts(result) == {"bn": "folded"}
    assert result.model.graph.output == model.graph.output
    assert node_named(result.model, "conv").output[0] == "bn_out"


def test_the_input_of_a_norm_that_is_a_graph_output_keeps_its_values(folder: Path) -> None:
    net = Net()
    x = net.conv(net.input(), (3, 4), "conv1")
    net.output(x)
    x = net.relu(net.bn(x, 4, "bn1"), "relu1")
    net.output(net.conv(x, (4, 5), "conv2"))
    result = fold(net.model(), folder)
    assert node_named(result.model, "conv1") == node_named(net.model(), "conv1")
    assert result.plan.batch_norms[0].verdict != "folded"
    assert result.plan.batch_norms[0].reason is not None


def test_a_norm_before_a_conv_folds_forward_between_two_graph_outputs(folder: Path) -> None:
    net = Net()
    x = net.relu(net.conv(net.input(), (3, 4), "conv1"), "relu1")
    net.output(x)
    net.output(net.conv(net.bn(x, 4, "bn"), (4, 5), "conv2"))
    result = fold(net.model(), folder)
    assert verdicts(result) == {"bn": "folded"}
    assert node_named(result.model, "conv2").input[0] == "relu1_out"


# --- subgraphs


def _if(reads: str, negative: str, channels: int) -> NodeProto:
    """An If whose branches read `reads` from outside, and its negative one a weight too."""
    value = helper.make_tensor_value_info("inner", FLOAT, ["N", channels, "h", "w"])
    yes = helper.make_graph([helper.make_node("Sigmoid", [reads], ["inner"])], "yes", [], [value])
    scaled = helper.make_node("Mul", [reads, negative], ["scaled"])
    no = helper.make_graph([scaled, helper.make_node("Neg", ["scaled"], ["inner"])], "no", [], [value])
    return helper.make_node("If", ["flag"], ["if_out"], name="if", then_branch=yes, else_branch=no)


@pytest.mark.parametrize("reads", ["bn_out", "conv_out", "relu_out"])
def test_what_the_body_of_an_if_reads_keeps_its_values_and_its_name(folder: Path, reads: str) -> None:
    net = Net()
    x = net.input()
    net.input("flag", (), np.bool_)
    x = net.bn(net.conv(x, (3, 4), "conv"), 4, "bn")
    x = net.relu(x, "relu")
    net.output(net.conv(x, (4, 5), "last"))
    net.nodes.append(_if(reads, net.weight("factor", [0.5]), 4))
    net.output("if_out")
    model = net.model()
    result = fold(model, folder)
    assert node_named(result.model, "if") == node_named(model, "if")
    assert verdicts(result) == {"bn": "kept" if reads == "conv_out" else "folded"}


def test_a_weight_that_the_body_of_an_if_reads_keeps_its_values(folder: Path) -> None:
    net = Net()
    x = net.input()
    net.input("flag", (), np.bool_)
    x = net.relu(net.bn(net.conv(x, (3, 4), "conv", k=1), 4, "bn"), "relu")
    net.output(x)
    net.weight("factor", np.ones((1, 1, 1, 1)))
    net.weights["conv_weight"] = net.weights["conv_weight"][:, :, :1, :1].copy()
    kernel = net.node("ReduceMean", ["conv_weight"], "mean", keepdims=1)
    net.nodes.append(_if("relu_out", "conv_bias4", 4))
    net.weights["conv_bias4"] = net.weights["conv_bias"].reshape(4, 1, 1).copy()
    net.output("if_out")
    net.output(kernel, (1, 1, 1, 1))
    model = net.model()
    result = fold(model, folder)
    assert verdicts(result) == {"bn": "folded", "if.else_branch/Mul_0": "kept"}
    assert np.array_equal(initializer(result.model, "conv_weight"), initializer(model, "conv_weight"))
    assert np.array_equal(initializer(result.model, "conv_bias4"), initializer(model, "conv_bias4"))


def hidden_norms() -> ModelProto:
    """An If with a norm in each branch."""
    net = Net()
    x = net.input()
    net.input("flag", (), np.bool_)
    x = net.conv(x, (3, 4), "conv")
    value = helper.make_tensor_value_info("inner", FLOAT, ["N", 4, "h", "w"])
    inside = Net(seed=5)
    inside.bn(x, 4, "hidden")
    bodies = []
    for name in ("yes", "no"):
        graph = inside.graph()
        graph.name = name
        graph.node[0].output[0] = "inner"
        graph.output.append(value)
        for tensor in graph.initializer:
            tensor.name = f"{name}_{tensor.name}"
        for i in range(1, 5):
            graph.node[0].input[i] = f"{name}_{graph.node[0].input[i]}"
        bodies.append(graph)
    net.nodes.append(helper.make_node("If", ["flag"], ["out"], name="if", then_branch=bodies[0], else_branch=bodies[1]))
    net.output("out")
    return net.model()


def test_norms_between_tensors_that_must_stay_are_left_alone_and_listed(folder: Path) -> None:
    model = hidden_norms()
    assert fold(model, folder).model == model
    norms = bnfold.inspect(model).batch_norms
    assert [(bn.name, bn.verdict) for bn in norms] == [("hidden", "kept")] * 2
    assert all(bn.reason for bn in norms)


# --- types


@pytest.mark.parametrize(("dtype", "runs"), [(np.float16, "ort"), (np.float64, "float64")])
@WIDTHS
def test_weights_keep_their_type(folder: Path, dtype: npt.DTypeLike, runs: str, width: int) -> None:
    net = Net(dtype=dtype)
    x = net.relu(net.bn(net.conv(net.input(), (3, width), "conv1", pad=1), width, "bn1"), "relu1")
    net.output(net.bn(net.conv(x, (width, 4), "conv2", bias=False), 4, "bn2", gamma="both"), ("N", 4, 6, 6))
    result = fold(net.model(), folder, runs=runs)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    assert {numpy_helper.to_array(t).dtype for t in result.model.graph.initializer} == {np.dtype(dtype)}


def test_float32_statistics_of_a_float16_model_are_used_as_they_are(folder: Path) -> None:
    net = Net(dtype=np.float16, opset=17)
    x = net.bn(net.conv(net.input(), (3, 6), "conv1"), 6, "bn1", epsilon=1e-7)
    net.weights["bn1_var"] = np.full(6, 1e-6, np.float32)
    net.weights["bn1_mean"] = net.rng.normal(0.0, 1e-3, 6).astype(np.float32)
    net.weights["bn1_gamma"] = np.full(6, 1e-3, np.float16)
    net.output(x)
    result = fold(net.model(), folder)
    assert verdicts(result) == {"bn1": "folded"}
    expected = net.weights["conv1_weight"].astype(np.float64) * (float(np.float16(1e-3)) / np.sqrt(1e-6 + 1e-7))
    assert np.allclose(initializer(result.model, "conv1_weight"), expected, rtol=2**-10)


@pytest.mark.parametrize("field", ["raw", "typed"])
def test_typed_data_fields_are_read_and_replaced(folder: Path, field: str) -> None:
    model = conv_bn().model()
    if field == "typed":
        for i, tensor in enumerate(model.graph.initializer):
            value = numpy_helper.to_array(tensor)
            typed = helper.make_tensor(tensor.name, FLOAT, value.shape, value.ravel().tolist())
            model.graph.initializer[i].CopyFrom(typed)
    result = fold(model, folder)
    assert verdicts(result) == {"bn1": "folded", "bn2": "folded"}
    for tensor in result.model.graph.initializer:
        assert not (tensor.HasField("raw_data") and tensor.float_data)


# --- the input, and what is imported


def test_the_model_that_is_passed_in_is_left_alone() -> None:
    model = rich(48)
    before = model.SerializeToString()
    result = bnfold.fold(model)
    assert model.SerializeToString() == before
    assert result.model is not model
    result.model.graph.node[0].name = "changed"
    assert model.SerializeToString() == before


def test_a_fold_without_an_output_writes_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.onnx").write_bytes(conv_bn().model().SerializeToString())
    result = bnfold.fold("model.onnx")
    assert result.check is not None
    assert result.check.passed
    assert [p.name for p in folder.iterdir()] == ["model.onnx"]


def test_folding_twice_changes_nothing_the_second_time(folder: Path) -> None:
    first = fold(rich(6), folder).model
    second = bnfold.fold(first)
    assert second.plan.edits == ()
    assert second.model == first


@pytest.mark.parametrize("model", [3, None, b"bytes", GraphProto()])
def test_what_is_no_model_is_a_usage_error(model: Any) -> None:
    with pytest.raises(bnfold.UsageError, match=type(model).__name__):
        bnfold.fold(model)


def _python(code: str, *arguments: str) -> str:
    root = str(Path(__file__).parent.parent)
    program = f"import sys; sys.path.insert(0, {root!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folding_a_file_never_imports_torch(folder: Path) -> None:
    conv_bn().save(folder / "model.onnx")
    code = """
import bnfold
result = bnfold.fold(sys.argv[1], out=sys.argv[2])
assert result.check.passed and result.model.graph.node
bnfold.inspect(sys.argv[1])
from bnfold.cli import main
main(["fold", sys.argv[1], "-o", sys.argv[2]], standalone_mode=False)
print([name for name in sys.modules if name.split(".")[0] == "torch"])
"""
    out = _python(code, str(folder / "model.onnx"), str(folder / "folded.onnx"))
    assert out.endswith("[]\n")


def test_the_functions_stay_functions_after_a_fold(folder: Path) -> None:
    conv_bn().save(folder / "model.onnx")
    code = """
import bnfold
bnfold.fold(sys.argv[1], out=sys.argv[2])
print(bnfold.verify(sys.argv[1], sys.argv[2]).passed)
"""
    assert _python(code, str(folder / "model.onnx"), str(folder / "folded.onnx")) == "True\n"


def test_importing_bnfold_is_cheap() -> None:
    code = "import bnfold\nprint({'onnx', 'numpy', 'torch', 'onnxruntime', 'rich', 'click'} & set(sys.modules))"
    assert _python(code) == "set()\n"


@pytest.mark.parametrize("verify", [True, False])
def test_external_data_of_untouched_weights_reach_another_folder(folder: Path, verify: bool) -> None:
    net = Net()
    x = net.relu(net.bn(net.conv(net.input(), (3, 6), "conv1"), 6, "bn1"), "relu1")
    net.output(net.conv(net.node("Sigmoid", [x], "sigmoid"), (6, 4), "conv2"))
    (folder / "here").mkdir()
    (folder / "there").mkdir()
    onnx.save(net.model(), folder / "here/m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    bnfold.fold(folder / "here/m.onnx", out=folder / "there/m.onnx", verify=verify)
    agree(net.model(), onnx.load(folder / "there/m.onnx"), "ort")


def _external(folder: Path) -> tuple[Path, ModelProto]:
    """A model whose weights lie in a file beside it, one of them large."""
    net = Net()
    x = net.relu(net.bn(net.conv(net.input(), (3, 40), "conv1", k=3, pad=1), 40, "bn1"), "relu1")
    net.output(net.bn(net.conv(x, (40, 40), "conv2", k=3), 40, "bn2"))
    model = net.model()
    folder.mkdir()
    onnx.save(net.model(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "m.onnx", model


def test_external_data_come_along_folded(folder: Path) -> None:
    path, model = _external(folder / "a")
    before = (folder / "a/w.bin").read_bytes()
    out = folder / "out.onnx"
    result = bnfold.fold(path, out=out)
    assert result.check is not None
    assert result.check.passed
    assert sorted(p.name for p in folder.iterdir()) == ["a", "out.onnx", "out.onnx.data"]
    assert (folder / "a/w.bin").read_bytes() == before
    agree(model, onnx.load(out), "ort")


def test_external_data_in_memory_is_refused(folder: Path) -> None:
    path, _ = _external(folder / "a")
    with pytest.raises(bnfold.UsageError, match="out="):
        bnfold.fold(path)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "missing.bin"])
def test_external_data_outside_the_folder_or_missing_are_refused(folder: Path, location: str) -> None:
    path, _ = _external(folder / "a")
    (folder / "w.bin").write_bytes((folder / "a/w.bin").read_bytes())
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(bnfold.ModelError, match=r"outside the folder|missing"):
        bnfold.fold(path, out=folder / "out.onnx")
    assert not (folder / "out.onnx").exists()


def test_a_truncated_side_file_is_refused(folder: Path) -> None:
    path, _ = _external(folder / "a")
    side = folder / "a/w.bin"
    side.write_bytes(side.read_bytes()[:-100])
    with pytest.raises(bnfold.ModelError, match="truncated"):
        bnfold.fold(path, out=folder / "out.onnx")
    assert sorted(p.name for p in folder.iterdir()) == ["a"]


def test_quantization_annotations_stay_where_they_still_hold(folder: Path) -> None:
    """A stream that two norms read, of which the folded model holds another multiple or sum."""
    net = Net(3, np.float64)
    stream = net.conv(net.input(), (3, 6), "stem")
    for i in (1, 2):
        inner = net.conv(net.relu(net.bn(stream, 6, f"bn{i}"), f"relu{i}"), (6, 6), f"conv{i}", pad=1)
        stream = net.node("Add", [stream, inner], f"add{i}")
    net.output(net.relu(net.conv(stream, (6, 4), "head"), "relu3"))
    model = net.model()
    made = [node.output[0] for node in model.graph.node]
    for name in (*made, "stem_weight", "head_weight"):
        note = model.graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    result = fold(model, folder, "float64")
    assert set(verdicts(result).values()) == {"folded"}
    assert any("annotations" in note for note in result.plan.notes)
    left = [note.tensor_name for note in result.model.graph.quantization_annotation]
    same = {t.name for t in result.model.graph.initializer if t in model.graph.initializer}
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8))}
    before, after = (_inner_values(m, feed) for m in (model, result.model))
    same |= {n for n in made if n in after and np.abs(before[n] - after[n]).max() < 1e-9 * np.abs(before[n]).max()}
    assert set(left) == same & {*made, "stem_weight", "head_weight"}
    assert 0 < len(left) < len(made)


def _inner_values(model: ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    """What each node gives."""
    open_model = ModelProto()
    open_model.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node]
    del open_model.graph.output[:]
    open_model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in names)
    return dict(zip(names, evaluate(open_model, **feed), strict=True))
