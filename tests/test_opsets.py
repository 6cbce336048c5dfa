"""Batch norm in every version of the operator, with the broadcasting rules of its time, against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.evaluate import evaluate

Array = npt.NDArray[Any]
EPS = float(np.float32(1e-3))  # attributes are float32
WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((4, 3, 1, 1)),
    "gamma": np.array([1.0, -0.5, 0.0, 2.0]),
    "beta": np.array([0.3, -0.2, 0.7, 0.1]),
    "mean": np.array([0.5, -0.4, 0.2, -0.9]),
    "var": np.array([0.4, 2.5, 1.3, 0.7]),
    "scale": np.array([0.6, 1.7, -1.2, 0.9]),
    "offset": np.array([-0.5, 0.8, 0.2, 1.1]),
    "w2": np.random.default_rng(1).standard_normal((2, 4, 1, 1)),
}


def _model(opset: int, **norm: Any) -> onnx.ModelProto:
    """conv, BN, Caffe's Scale, Relu, BN, conv; before opset 7 Mul and Add say by `axis` where the vector stands."""
    old: dict[str, Any] = {"broadcast": 1, "axis": 1} if opset < 7 else {}
    weights = {k: v.reshape(4, 1, 1) if not old and k in ("scale", "offset") else v for k, v in WEIGHTS.items()}
    statistics = ["gamma", "beta", "mean", "var"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *statistics], ["n"], epsilon=EPS, **norm),
        helper.make_node("Mul", ["n", "scale"], ["s"], **old),
        helper.make_node("Add", ["s", "offset"], ["o"], **old),
        helper.make_node("Relu", ["o"], ["r"]),
        helper.make_node("BatchNormalization", ["r", *statistics], ["n2"], epsilon=EPS, **norm),
        helper.make_node("Conv", ["n2", "w2"], ["y"]),
    ]
    f64 = TensorProto.DOUBLE
    inputs = [helper.make_tensor_value_info("x", f64, [2, 3, 4, 4])]
    inputs += [helper.make_tensor_value_info(k, f64, v.shape) for k, v in weights.items()]  # as IR 3 wants it
    outputs = [helper.make_tensor_value_info("y", f64, [2, 2, 4, 4])]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "old", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)


def _expected(x: Array) -> Array:
    def along(name: str) -> Array:
        return WEIGHTS[name].reshape(1, -1, 1, 1)

    def norm(z: Array) -> Array:
        return np.asarray(along("gamma") * (z - along("mean")) / np.sqrt(along("var") + EPS) + along("beta"))

    z = norm(np.einsum("nchw,oc->nohw", x, WEIGHTS["w"][:, :, 0, 0])) * along("scale") + along("offset")
    return np.asarray(np.einsum("nchw,oc->nohw", norm(np.maximum(z, 0)), WEIGHTS["w2"][:, :, 0, 0]))


@pytest.mark.parametrize(
    ("opset", "norm"),
    [(1, {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}), (6, {"is_test": 1})]
    + [(opset, {}) for opset in (7, 8, 9, 11, 13, 14, 15, 17, 20)],
)
def test_every_version_folds(opset: int, norm: dict[str, Any]) -> None:
    result = bnfold.fold(_model(opset, **norm), verify=False)
    assert result.plan.counts() == {"batch_norms": 4, "folded": 4, "reduced": 0, "kept": 0}
    assert [node.op_type for node in result.model.graph.node if node.op_type != "Constant"] == ["Conv", "Relu", "Conv"]
    assert result.model.graph.input[0].name == "x"
    onnx.checker.check_model(result.model)
    x = np.random.default_rng(2).standard_normal((2, 3, 4, 4))
    np.testing.assert_allclose(evaluate(result.model, x=x)[0], _expected(x), rtol=0, atol=1e-12)


def test_a_file_from_before_versions_were_written_is_verified() -> None:
    """Of IR 2, which says no opset: the first is meant."""
    model = _model(1, is_test=1, consumed_inputs=[0, 0, 0, 1, 1])
    model.ir_version = 2
    model.ClearField("opset_import")
    del model.graph.node[-2:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("r", TensorProto.DOUBLE, [2, 4, 4, 4]))
    result = bnfold.fold(model)
    assert result.check is not None
    assert result.check.passed
    assert result.plan.counts() == {"batch_norms": 3, "folded": 3, "reduced": 0, "kept": 0}


@pytest.mark.parametrize("opset", [1, 6])
def test_old_norms_without_is_test_use_batch_statistics(opset: int) -> None:
    norm = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {}
    plan = bnfold.inspect(_model(opset, **norm))
    kept = [bn for bn in plan.batch_norms if bn.op_type == "BatchNormalization"]
    assert [bn.reason.code for bn in kept if bn.reason] == ["training-mode"] * 2
