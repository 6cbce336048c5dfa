"""Norms that stay and become depthwise convolutions: where, with which numbers, and where not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

import bnfold
from tests.nets import Net, node_named
from tests.torch_nets import alive
from tests.torch_zoo import Dense
from tests.zoo import ZOO

X = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)


def dense(channels: int = 36, end: str = "Conv", **settings: Any) -> Net:
    """Two norms that read one stream, which a Tanh reads too, so that neither can go; `end` reads the first."""
    net = Net(0, settings.pop("dtype", np.float32), **settings)
    x = net.input("x", ("N", 3, 8, 8))
    stream = net.conv(x, (3, channels), "stem")
    first, second = net.bn(stream, channels, "bn1", gamma="both"), net.bn(stream, channels, "bn2", gamma="zeros")
    if end == "Conv":
        net.output(net.conv(first, (channels, 4), "conv1", pad=1))
    else:
        net.output(net.node(end, [first], "end"))
    net.output(net.conv(net.relu(second, "relu2"), (channels, 4), "conv2", pad=1))
    net.output(net.node("Tanh", [stream], "tanh"))
    return net


def forms(model: Any, leftovers: str = "fast", **options: Any) -> dict[str, str]:
    plan = bnfold.inspect(model, leftovers=leftovers, **options)
    return {bn.name: bn.form or bn.verdict for bn in plan.batch_norms}


def outputs(model: onnx.ModelProto) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": X}))


@pytest.mark.parametrize("opset", [6, 9, 17])
def test_a_norm_between_convolutions_becomes_one(opset: int) -> None:
    net = dense(opset=opset)
    if opset < 7:
        for node in net.nodes:
            if node.op_type == "BatchNormalization":
                node.attribute.append(helper.make_attribute("is_test", 1))
    model = net.model()
    assert forms(model) == {"bn1": "conv", "bn2": "conv"}
    result = bnfold.fold(model)
    node = node_named(result.model, "bn1")
    assert (node.op_type, len(node.input)) == ("Conv", 3)
    assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == {"group": 36, "kernel_shape": [1, 1]}
    onnx.checker.check_model(result.model, full_check=True)
    if opset >= 7:  # onnxruntime has no norm of opset 6; the fold's own check ran elsewhere
        for before, after in zip(outputs(model), outputs(result.model), strict=True):
            np.testing.assert_allclose(before, after, atol=3e-5)
    for bn, code in zip(result.plan.batch_norms, ("zero-padding", "dead-channel"), strict=True):
        assert (bn.verdict, bn.into) == ("reduced", ())
        assert bn.reason is not None
        assert bn.reason.code == code


def test_other_readers_ask_for_whole_blocks_of_channels() -> None:
    assert forms(dense(36, "Sigmoid").model()) == {"bn1": "kept", "bn2": "conv"}
    assert forms(dense(32, "Sigmoid").model()) == {"bn1": "conv", "bn2": "conv"}
    assert forms(dense(36, "Sigmoid").model(), "all")["bn1"] == "conv"


def test_few_channels_keep_their_norms() -> None:
    assert forms(dense(12).model()) == {"bn1": "kept", "bn2": "kept"}
    assert forms(dense(20).model()) == {"bn1": "kept", "bn2": "conv"}  # a Relu behind it makes up for more


def test_channels_that_are_no_fours_keep_their_norms() -> None:
    assert forms(dense(42).model()) == {"bn1": "kept", "bn2": "kept"}
    assert forms(dense(44).model()) == {"bn1": "conv", "bn2": "conv"}


def test_blocks_come_from_convolutions() -> None:
    net = Net()
    x = net.node("Tanh", [net.input("x", ("N", 16, 8, 8))], "tanh")
    net.output(net.node("Sigmoid", [net.bn(x, 16, "bn")], "end"))
    assert forms(net.model()) == {"bn": "kept"}
    assert forms(net.model(), "all") == {"bn": "conv"}


def test_a_graph_output_is_read_by_others_too() -> None:
    net = dense()
    net.output("bn1_out")
    assert forms(net.model()) == {"bn1": "kept", "bn2": "conv"}


def test_exact_removal_leaves_norms() -> None:
    assert forms(dense().model(), "none") == {"bn1": "kept", "bn2": "kept"}
    assert forms(dense().model(), skip=["bn1"]) == {"bn1": "kept", "bn2": "conv"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_keep_their_norms(dtype: Any) -> None:
    assert forms(dense(dtype=dtype).model()) == {"bn1": "kept", "bn2": "kept"}


def test_a_mean_far_from_zero_keeps_its_norm() -> None:
    net = dense()
    net.weights["bn1_mean"] += np.float32(60.0)
    assert forms(net.model()) == {"bn1": "kept", "bn2": "conv"}
    assert forms(net.model(), precision_limit=1000.0) == {"bn1": "conv", "bn2": "conv"}


@pytest.mark.parametrize("shape", [(3, 20), (3, 4, 5, 6)])
def test_other_ranks_only_where_all_is_asked_for(shape: tuple[int, ...]) -> None:
    net = Net()
    x = net.node("Tanh", [net.input("x", ("N", *shape))], "tanh")
    net.output(net.node("Tanh", [net.bn(x, 3, "bn", gamma="both")], "end"), ("N", *shape))
    model = net.model()
    assert forms(model) == {"bn": "kept"}
    result = bnfold.fold(model, leftovers="all")
    assert result.plan.batch_norms[0].form == "conv"
    weight = next(t for t in result.model.graph.initializer if t.name == node_named(result.model, "bn").input[1])
    assert list(weight.dims) == [3, *[1] * len(shape)]


def test_a_matrix_has_no_convolution() -> None:
    net = Net()
    x = net.node("Tanh", [net.input("x", ("N", 5))], "tanh")
    net.output(net.node("Tanh", [net.bn(x, 5, "bn")], "end"), ("N", 5))
    assert forms(net.model(), "all") == {"bn": "kept"}


def test_densenet121_ends_with_no_batch_norm_by_default() -> None:
    result = bnfold.fold(ZOO["densenet121"](dtype=np.float32), verify=False)
    assert "BatchNormalization" not in {node.op_type for node in result.model.graph.node}
    assert Counter(bn.form or bn.verdict for bn in result.plan.batch_norms) == {"folded": 62, "conv": 59}


@pytest.mark.slow
def test_exported_networks_get_them_and_modules_do_not(tmp_path: Path) -> None:
    module, x = alive(Dense()), torch.randn(1, 3, 12, 12)
    exported = bnfold.export(module, (x,), out=tmp_path / "net.onnx")
    made = Counter(bn.form or bn.verdict for bn in exported.plan.batch_norms)
    assert made == {
        "folded": 1,
        "conv": 3,
        "kept": 1,
    }  # the last one is an output, of channels that are no whole blocks
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node)
    assert ops["BatchNormalization"] == 1
    folded = bnfold.fold(module, (x,))
    assert "conv" not in {bn.form for bn in folded.plan.batch_norms}
    assert folded.plan == bnfold.fold(module, (x,), leftovers="all").plan
