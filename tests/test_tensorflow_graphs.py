"""Graphs as tf2onnx writes the classical layers of TensorFlow: channels last, norms written out, branches by a flag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.evaluate import evaluate
from tests.test_rules import Net

CHANNELS = 4
GAMMA = np.array([1.3, -0.6, 0.0, 1e-41])
BETA = np.array([0.4, -1.1, 0.8, 0.2])
MEAN = np.array([0.7, -0.3, 1.9, -0.5])
VAR = np.array([0.3, 2.4, 0.9, 1.6])
EPS = 1e-3
"""tf.keras.layers.BatchNormalization's."""
NCHW, NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
Norm = Callable[[Net, str], str]


def conv(n: Net, x: str, into: int, out: int, k: int = 3, **attrs: Any) -> str:
    """A Conv between Transposes, as a Conv2D of NHWC becomes one."""
    y = n.op("Transpose", x, perm=NCHW)
    return str(n.op("Transpose", n.conv(y, into, out, k, **attrs), perm=NHWC))


def fused(n: Net, x: str) -> str:
    """FusedBatchNormV3 at inference: the operator, between Transposes."""
    y = n.op("Transpose", x, perm=NCHW)
    parts = [n.w(part) for part in (GAMMA, BETA, MEAN, VAR)]
    return str(n.op("Transpose", n.op("BatchNormalization", y, *parts, epsilon=EPS), perm=NHWC))


def _scale(n: Net, gamma: bool = True) -> str:
    """`rsqrt(var + eps) * gamma`, as nodes that compute it from the variables."""
    root = n.op("Reciprocal", n.op("Sqrt", n.op("Add", n.w(VAR), n.w(np.array(EPS)))))
    return str(n.op("Mul", root, n.w(GAMMA)) if gamma else root)


def written_out(n: Net, x: str) -> str:
    """tf.nn.batch_normalization: `x * inv + (beta - mean * inv)`, all of it computed in the graph."""
    inv = _scale(n)
    return str(n.op("Add", n.op("Mul", x, inv), n.op("Sub", n.w(BETA), n.op("Mul", n.w(MEAN), inv))))


def frozen(n: Net, x: str) -> str:
    """The same after TensorFlow folded its constants: a Mul and an Add."""
    inv = GAMMA / np.sqrt(VAR + EPS)
    return str(n.op("Add", n.op("Mul", x, n.w(inv)), n.w(BETA - MEAN * inv)))


def differences(n: Net, x: str) -> str:
    """Old Keras: `(x - mean) * inv`, then beta."""
    return str(n.op("Add", n.op("Mul", n.op("Sub", x, n.w(MEAN)), _scale(n)), n.w(BETA)))


def without_scale(n: Net, x: str) -> str:
    """`scale=False`."""
    inv = _scale(n, gamma=False)
    return str(n.op("Add", n.op("Mul", x, inv), n.op("Sub", n.w(BETA), n.op("Mul", n.w(MEAN), inv))))


def without_offset(n: Net, x: str) -> str:
    """`center=False`: `x * inv - mean * inv`."""
    inv = _scale(n)
    return str(n.op("Add", n.op("Mul", x, inv), n.op("Neg", n.op("Mul", n.w(MEAN), inv))))


NORMS: list[Norm] = [fused, written_out, frozen, differences, without_scale, without_offset]


def classical(norm: Norm) -> Net:
    """Conv2D, norm, ReLU, twice, a pooling over space, a dense layer: NHWC all along."""
    n = Net(2, 9, 8, 3)
    x = n.op("Relu", norm(n, conv(n, "x", 3, CHANNELS, pads=[1] * 4)))
    x = n.op("Relu", norm(n, conv(n, x, CHANNELS, CHANNELS, pads=[0, 0, 1, 1], strides=[2, 2])))
    x = n.op("Squeeze", n.op("GlobalAveragePool", n.op("Transpose", x, perm=NCHW)), axes=[2, 3])
    n.op("Softmax", n.op("Add", n.op("MatMul", x, n.w(n.rng.normal(size=(CHANNELS, 3)))), n.w(n.rng.normal(size=3))))
    return n


def dense(norm: Norm, bias: bool) -> Net:
    """A dense layer with or without a bias, and a norm of its outputs."""
    n = Net(5, 6)
    x = n.op("MatMul", "x", n.w(n.rng.normal(size=(6, CHANNELS))))
    x = n.op("Add", x, n.w(n.rng.normal(size=CHANNELS))) if bias else x
    n.op("Sigmoid", n.op("MatMul", n.op("Relu", norm(n, x)), n.w(n.rng.normal(size=(CHANNELS, 2)))))
    return n


def model_of(n: Net, opset: int) -> onnx.ModelProto:
    """The net's model; axes of a Squeeze are an input from opset 13 on."""
    for node in n.nodes:
        if node.op_type == "Squeeze" and opset >= 13:
            (axes,) = (list(a.ints) for a in node.attribute)
            del node.attribute[:]
            node.input.append(n.w(np.array(axes), np.int64))
    return n.model(n.nodes[-1].output[0], opset=opset)


def folds_to(model: onnx.ModelProto, allowed: Counter[str], frozen_inputs: bool = False) -> None:
    """No operator is left but these, names of inputs and outputs stay, and so do the numbers."""
    result = bnfold.fold(model, freeze_inputs=frozen_inputs, verify=False)
    left = Counter(node.op_type for node in result.model.graph.node)
    assert {op: count for op, count in left.items() if count > allowed[op]} == {}
    assert result.plan.counts()["folded"] == result.plan.counts()["batch_norms"]
    assert [v.name for v in result.model.graph.output] == [v.name for v in model.graph.output]
    fed = {v.name for v in result.model.graph.input} - {t.name for t in result.model.graph.initializer}
    assert fed == {"x"}
    x = np.random.default_rng(0).normal(size=[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim])
    np.testing.assert_allclose(evaluate(result.model, x=x)[0], evaluate(model, x=x)[0], rtol=0, atol=1e-12)


ENDS = Counter({"Transpose": 9, "Conv": 2, "Relu": 2, "GlobalAveragePool": 1, "Squeeze": 1, "Softmax": 1, "MatMul": 1,
                "Add": 1})  # fmt: skip


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
def test_the_classical_layer_folds_to_nothing(norm: Norm, opset: int) -> None:
    folds_to(model_of(classical(norm), opset), ENDS)


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [n for n in NORMS if n is not fused], ids=lambda norm: norm.__name__)
def test_a_norm_behind_a_dense_layer_ends_as_its_bias(norm: Norm, bias: bool, opset: int) -> None:
    folds_to(model_of(dense(norm, bias), opset), Counter({"MatMul": 2, "Add": 1, "Relu": 1, "Sigmoid": 1}))


def by_flag(opset: int, given: str) -> onnx.ModelProto:
    """Conv2D, and an If by a training flag: a norm, or the statistics of the batch and new averages."""
    n = Net(2, 9, 8, 3)
    x = conv(n, "x", 3, CHANNELS)
    branches = []
    for training in (True, False):
        inner = Net(2, 9, 8, 3)
        inner.weights = []
        inner.nodes = []
        if training:
            axes = [0, 1, 2]
            mean = inner.op("ReduceMean", x, axes=axes, keepdims=0) if opset < 18 else inner.op(
                "ReduceMean", x, inner.w(np.array(axes), np.int64), keepdims=0)  # fmt: skip
            old = inner.op("Mul", inner.w(MEAN), inner.w(np.array(0.99)))
            average = inner.op("Add", old, inner.op("Mul", mean, inner.w(np.array(0.01))))
            y = inner.op("Sub", x, average)
        else:
            y = written_out(inner, x)
        y = inner.op("Identity", y)
        name = "training" if training else "inference"
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in inner.nodes]
        renamed = {out: f"{name}_{out}" for node in nodes for out in node.output}
        renamed |= {t.name: f"{name}_{t.name}" for t in inner.weights}
        for node in nodes:
            node.input[:] = [renamed.get(i, i) for i in node.input]
            node.output[:] = [renamed[o] for o in node.output]
        for tensor in inner.weights:
            tensor.name = renamed[tensor.name]
        out = helper.make_tensor_value_info(renamed[y], TensorProto.DOUBLE, None)
        branches.append(helper.make_graph(nodes, name, [], [out], inner.weights))
    flag = numpy_helper.from_array(np.array(False), "keras_learning_phase")
    n.weights.append(flag)
    y = n.op("If", flag.name, then_branch=branches[0], else_branch=branches[1])
    model = n.model(n.op("Relu", y), opset=opset)
    if given == "input":
        model.graph.input.append(helper.make_tensor_value_info(flag.name, TensorProto.BOOL, []))
    return model


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("given", ["constant", "input"])
def test_a_branch_by_a_training_flag_gives_way(given: str, opset: int) -> None:
    """A flag that is a graph input with a default may be set by callers: it is constant where they say so."""
    model = by_flag(opset, given)
    folds_to(model, Counter({"Transpose": 2, "Conv": 1, "Relu": 1, "Identity": 1}), frozen_inputs=given == "input")
