"""Operators of onnxruntime's own, in files that it wrote: layers with their activation, products with a factor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.test_rules import Net

MS = "com.microsoft"
GAMMA = [1.3, -0.6, 0.0, 1e-41]
GOOD = [1.3, 0.6, 0.9, 0.4]


def fused_conv(n: Net, activation: str, other: bool = False) -> str:
    weight, bias = n.w(n.rng.normal(size=(4, 3, 3, 3)) / 5), n.w(n.rng.normal(size=4))
    z = [n.conv("x", 3, 4, 3)] if other else []
    more: dict[str, Any] = {"activation_params": [0.2]} if activation == "LeakyRelu" else {}
    return str(n.op("FusedConv", "x", weight, bias, *z, domain=MS, activation=activation, pads=[0] * 4, **more))


def nhwc_conv(n: Net) -> str:
    weight, bias = n.w(n.rng.normal(size=(4, 3, 3, 3)) / 5), n.w(n.rng.normal(size=4))
    y = n.op("NhwcConv", n.op("Transpose", "x", perm=[0, 2, 3, 1]), weight, bias, domain=MS)
    return str(n.op("Transpose", y, perm=[0, 3, 1, 2]))


def fused_gemm(n: Net, activation: str) -> str:
    x, weight = n.op("Flatten", "x"), n.w(n.rng.normal(size=(4, 192)) / 9)
    return str(n.op("FusedGemm", x, weight, n.w(n.rng.normal(size=4)), domain=MS, transB=1, alpha=0.5, beta=2.0,
                    activation=activation))  # fmt: skip


def fused_matmul(n: Net, across: int) -> str:
    weight = n.rng.normal(size=(4, 8) if across else (8, 4))
    y = n.op("FusedMatMul", "x", n.w(weight), domain=MS, alpha=-0.7, transB=across)
    return str(n.op("Transpose", y, perm=[0, 3, 1, 2]))


Build = Callable[[Net], str]
MODELS: dict[str, tuple[Build, list[float], str]] = {
    "FusedConv, Relu": (lambda n: fused_conv(n, "Relu"), GAMMA, "folded"),
    "FusedConv, LeakyRelu": (lambda n: fused_conv(n, "LeakyRelu"), GOOD, "folded"),
    "FusedConv, Relu, sum": (lambda n: fused_conv(n, "Relu", True), GOOD, "folded"),
    "FusedConv, Sigmoid": (lambda n: fused_conv(n, "Sigmoid"), GAMMA, "folded"),
    "FusedGemm, Relu": (lambda n: fused_gemm(n, "Relu"), GAMMA, "folded"),
    "FusedMatMul": (lambda n: fused_matmul(n, 0), GAMMA, "folded"),
    "FusedMatMul, transposed": (lambda n: fused_matmul(n, 1), GAMMA, "folded"),
}


def finished(n: Net, y: str, gammas: list[float]) -> onnx.ModelProto:
    """A norm and a layer behind, which takes the norm up; float32, as runtimes have these operators."""
    y = n.bn(y, 4, gammas)
    dense = n.nodes[-2].op_type == "FusedGemm"
    y = n.op("Gemm", y, n.w(n.rng.normal(size=(4, 2)))) if dense else n.conv(y, 4, 2, 1)
    model = n.model(opset=17, domains=(MS,))
    model.graph.output.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, None))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return model


def run(model: onnx.ModelProto, x: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_norm_behind_goes(name: str) -> None:
    build, gammas, verdict = MODELS[name]
    n = Net(2, 3, 8, 8)
    model = finished(n, build(n), gammas)
    result = bnfold.fold(model)
    assert [bn.verdict for bn in result.plan.batch_norms] == [verdict]
    assert "BatchNormalization" not in [node.op_type for node in result.model.graph.node]
    x = n.rng.normal(size=n.shape).astype(np.float32)
    old, new = run(model, x), run(result.model, x)
    np.testing.assert_allclose(new, old, rtol=0, atol=3e-6 * np.abs(old).max())


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """NhwcConvs as what they are: this runtime has none on CPUs."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for i, node in reversed(list(enumerate(made.graph.node))):
        if node.op_type == "NhwcConv":
            inner = [f"{node.output[0]}_in", f"{node.output[0]}_out"]
            parts = [
                helper.make_node("Transpose", [node.input[0]], inner[:1], perm=[0, 3, 1, 2]),
                helper.make_node("Conv", [inner[0], *node.input[1:]], inner[1:]),
                helper.make_node("Transpose", inner[1:], list(node.output), perm=[0, 2, 3, 1]),
            ]
            del made.graph.node[i]
            for part in reversed(parts):
                made.graph.node.insert(i, part)
    return made


def test_a_norm_behind_a_convolution_of_channels_last_goes() -> None:
    n = Net(2, 3, 8, 8)
    model = finished(n, nhwc_conv(n), [1.3, -0.6, 0.0, 0.4])
    result = bnfold.fold(model, verify=False)
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded"]
    x = n.rng.normal(size=n.shape).astype(np.float32)
    old, new = run(plain(model), x), run(plain(result.model), x)
    np.testing.assert_allclose(new, old, rtol=0, atol=3e-6 * np.abs(old).max())


@pytest.mark.parametrize(("activation", "gone"), [("Relu", True), ("Sigmoid", False)])
def test_the_layer_itself_takes_a_scale_through_its_activation(activation: str, gone: bool) -> None:
    """Behind it stands an op that takes nothing, so the norm can only go into the layer."""
    n = Net(2, 3, 8, 8)
    y = fused_conv(n, activation)
    y = n.op("Sigmoid", n.bn(y, 4, GOOD))
    model = n.model(opset=17, domains=(MS,))
    model.graph.output.append(helper.make_tensor_value_info(y, TensorProto.DOUBLE, None))
    (norm,) = bnfold.inspect(model, leftovers="all").batch_norms
    assert (norm.verdict, norm.form) == (("reduced", "add") if gone else ("kept", ""))


def test_a_file_that_onnxruntime_optimised_folds(tmp_path: Path) -> None:
    """It makes FusedConvs of Convs and Relus; norms behind these go as they did before."""
    n = Net(2, 3, 8, 8)
    model = finished(n, n.op("Relu", n.conv("x", 3, 4, 3, True)), GAMMA)
    written = tmp_path / "optimised.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(written)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "FusedConv" in {node.op_type for node in onnx.load(written).graph.node}
    result = bnfold.fold(written, out=tmp_path / "folded.onnx")
    assert all(bn.verdict == "folded" for bn in result.plan.batch_norms)
    x = n.rng.normal(size=n.shape).astype(np.float32)
    old, new = run(model, x), run(result.model, x)
    np.testing.assert_allclose(new, old, rtol=0, atol=3e-6 * np.abs(old).max())


@pytest.mark.parametrize("depth", [1, 1500])
def test_ranks_come_back_from_the_layers_behind(depth: int) -> None:
    """An operator that nobody knows hides the rank of what it gives; the convolution behind says it."""
    n = Net(2, 3, 8, 8)
    y = n.bn(n.op("Mystery", "x", domain="example.ops"), 4, GOOD)
    for _ in range(depth):
        y = n.op("Relu", y)
    y = n.op("MaxPool", y, kernel_shape=[2, 2])
    y = n.conv(y, 4, 5, 3)
    model = n.model(opset=17, domains=("example.ops",))
    model.graph.output.append(helper.make_tensor_value_info(y, TensorProto.DOUBLE, None))
    (norm,) = bnfold.inspect(model, leftovers="all").batch_norms
    assert norm.reason is None or norm.reason.code != "unknown-shape"
    assert norm.channels == 4
