"""Constants that bnfold cannot compute (sparse tensors): only norms beside them stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, SparseTensorProto, helper, numpy_helper

import bnfold

from .nets import FLOAT, Net, node_named
from .test_onnx_file import agree, reasons, verdicts


def fold(model: ModelProto, folder: Path) -> bnfold.FoldResult:
    """Fold a file and check the result. onnx's full check is of no use: it refuses every sparse initializer."""
    path, out = folder / "model.onnx", folder / "folded.onnx"
    path.write_bytes(model.SerializeToString())
    result = bnfold.fold(path, out=out)
    assert onnx.load(out) == result.model == bnfold.fold(model, verify=False).model
    agree(model, result.model, "ort")
    return result


def sparse(net: Net, name: str, *shape: int) -> SparseTensorProto:
    """Half of its numbers are zero."""
    size = int(np.prod(shape))
    at = np.flatnonzero(net.rng.random(size) < 0.5)
    values = numpy_helper.from_array(net.rng.standard_normal(at.size).astype(np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(at, f"{name}_at"), shape)


def elsewhere(net: Net) -> None:
    """A conv and a norm that fold."""
    net.output(net.relu(net.bn(net.conv("x", (3, 40), "conv1"), 40, "bn1"), "relu1"))


def sparse_weight(place: str) -> tuple[Net, ModelProto]:
    """A conv with a sparse weight, a norm behind it."""
    net = Net()
    net.input()
    elsewhere(net)
    weight = sparse(net, "sparse", 4, 3, 3, 3)
    name = net.node("Constant", [], "sparse", sparse_value=weight) if place == "constant" else "sparse"
    y = net.bn(net.node("Conv", ["x", name], "conv2"), 4, "bn2")
    net.output(net.node("Sigmoid", [y], "sigmoid"))
    model = net.model()
    if place == "initializer":
        model.graph.sparse_initializer.append(weight)
    return net, model


MODELS = {
    "sparse initializer": lambda: sparse_weight("initializer"),
    "sparse constant": lambda: sparse_weight("constant"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_norm_elsewhere_folds_and_one_beside_it_stays(case: str, tmp_path: Path) -> None:
    _, model = MODELS[case]()
    result = fold(model, tmp_path)
    assert verdicts(result) == {"bn1": "folded", "bn2": "kept"}
    assert reasons(result) == {"bn2": "scale-fixed"}
    (reason,) = (bn.reason for bn in result.plan.batch_norms if bn.reason)
    assert "computes its input" in reason.text
    assert bnfold.inspect(model).batch_norms == result.plan.batch_norms
    assert result.model.graph.sparse_initializer == model.graph.sparse_initializer
    if "sparse" in {node.name for node in model.graph.node}:
        assert node_named(result.model, "sparse") == node_named(model, "sparse")


@pytest.mark.parametrize("part", ["gamma", "var"])
def test_sparse_statistics_are_no_plain_constants(part: str, tmp_path: Path) -> None:
    net = Net()
    net.output(net.relu(net.bn(net.conv(net.input(), (3, 6), "conv1"), 6, "bn1"), "relu1"))
    values = numpy_helper.from_array(net.weights.pop(f"bn1_{part}"), f"bn1_{part}")
    model = net.model()
    at = numpy_helper.from_array(np.arange(6), "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [6]))
    assert reasons(fold(model, tmp_path)) == {"bn1": "not-constant"}


@pytest.mark.parametrize(("op", "verdict"), [("Add", "kept"), ("Mul", "folded")])
def test_a_sparse_operand_keeps_its_numbers(op: str, verdict: str, tmp_path: Path) -> None:
    """A scale passes a product with it, and no sum."""
    net = Net()
    y = net.node(op, [net.conv(net.input(), (3, 6), "conv1"), "sparse"], "joined")
    net.output(net.relu(net.bn(y, 6, "bn1") if op == "Add" else y, "relu1"))
    if op == "Mul":
        y = net.bn("conv1_out", 6, "bn1")
        net.nodes[1].input[0] = y
        net.nodes.insert(1, net.nodes.pop())
    model = net.model()
    model.graph.sparse_initializer.append(sparse(net, "sparse", 1, 6, 1, 1))
    assert verdicts(fold(model, tmp_path)) == {"bn1": verdict}


@pytest.mark.parametrize("place", ["constant", "initializer"])
@pytest.mark.parametrize("k", [1, 5], ids=["small", "large"])
def test_sparse_weights_in_a_body_stay_and_the_other_body_folds(k: int, place: str, tmp_path: Path) -> None:
    net = Net()
    flag = net.input("flag", (), np.bool_)
    net.input()
    bodies = []
    for i in (1, 2):
        y = net.bn(net.conv("x", (3, 4), f"conv{i}", k=k), 4, f"bn{i}")
        nodes = [net.nodes.pop() for _ in range(2)][::-1]
        nodes.append(helper.make_node("Relu", [y], [f"y{i}"]))
        info = helper.make_tensor_value_info(f"y{i}", FLOAT, None)
        bodies.append(helper.make_graph(nodes, f"body{i}", [], [info]))
    weight = sparse(net, "sparse", 4, 3, k, k)
    bodies[1].node[0].input[1] = "sparse"
    if place == "constant":
        bodies[1].node.insert(0, helper.make_node("Constant", [], ["sparse"], sparse_value=weight))
    else:
        bodies[1].sparse_initializer.append(weight)
    net.output(net.node("If", [flag], "if", then_branch=bodies[0], else_branch=bodies[1]))
    result = fold(net.model(), tmp_path)
    assert verdicts(result) == {"bn1": "folded", "bn2": "kept"}
    assert reasons(result) == {"bn2": "scale-fixed"}


@pytest.mark.parametrize("source", ["number", "x"])
def test_casts_that_name_their_type_in_text_do_no_harm(source: str) -> None:
    """Before opset 6 `to` is a string."""
    net = Net(opset=5, ir=3)
    net.weight("number", np.ones(3, np.float32))
    net.node("Cast", [source], "cast", to="DOUBLE")
    net.output("cast_out", (3,) if source == "number" else (1, 3, 8, 8), np.float64)
    net.output(net.conv(net.input("x", (1, 3, 8, 8)), (3, 4), "conv1"), (1, 4, 6, 6))
    model = net.model()
    model.graph.input.extend(helper.make_tensor_value_info(n, FLOAT, v.shape) for n, v in net.weights.items())
    assert bnfold.fold(model, verify=False).model == model
