"""Ifs and Wheres whose condition is constant are decided before anything is folded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.onnx.store.skeleton import nested_graphs
from tests import test_bodies, test_rules
from tests.evaluate import evaluate
from tests.nets import Net, op_types

F64 = np.float64
BODY = ("N", 4, 6, 6)


def _body(net: Net, name: str, x: str, gamma: str) -> onnx.GraphProto:
    """A norm and a Relu, with weights of its own; all branches use the same names."""
    inner = Net(seed=len(name), dtype=F64)
    inner.output(inner.relu(inner.bn(x, 4, "inner", gamma), "act"), BODY)
    return inner.graph()


def _model(flag: str, taken: bool) -> ModelProto:
    """conv, If(bn, relu | bn, relu), conv, with the flag stored in one of several ways."""
    net = Net(dtype=F64)
    x = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "before")
    net.nodes.append(helper.make_node("Constant", [], ["stored"], value=numpy_helper.from_array(np.array(taken))))
    name = "stored"
    if flag == "computed":
        name = net.node("Not", [net.node("Not", ["stored"], "first")], "second")
    branches = {"then_branch": _body(net, "then", x, "positive"), "else_branch": _body(net, "otherwise", x, "zeros")}
    y = net.node("If", [name], "choice", **branches)
    net.output(net.conv(y, (4, 2), "after"), ("N", 2, 4, 4))
    model = net.model()
    if flag == "initializer":
        del model.graph.node[1]
        model.graph.initializer.append(numpy_helper.from_array(np.array(taken), "stored"))
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("flag", ["initializer", "node", "computed"])
def test_an_if_that_is_decided_gives_way_to_its_branch(flag: str, taken: bool) -> None:
    model = _model(flag, taken)
    result = bnfold.fold(model, verify=False)
    assert "If" not in op_types(result.model)
    assert result.plan.counts() == {"batch_norms": 1, "folded": 1, "reduced": 0, "kept": 0}
    onnx.checker.check_model(result.model, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    np.testing.assert_allclose(evaluate(result.model, x=x)[0], evaluate(model, x=x)[0], rtol=0, atol=1e-12)


def test_ifs_in_branches_that_are_taken_and_outputs_that_branches_hand_on() -> None:
    net = Net(dtype=F64)
    x = net.conv(net.input("x", ("N", 3, 8, 8)), (3, 4), "before")
    flag = net.node("Constant", [], "flag", value=numpy_helper.from_array(np.array([True])))
    deep = helper.make_node("If", [flag], ["deep"], then_branch=_body(net, "a", x, "both"),
                            else_branch=_body(net, "b", x, "both"))  # fmt: skip
    value = helper.make_tensor_value_info
    names = ("deep", "handed", "deep")
    outer = helper.make_graph([deep, helper.make_node("Identity", [x], ["handed"])], "outer", [],
                              [value(name, TensorProto.DOUBLE, None) for name in names])  # fmt: skip
    net.nodes.append(helper.make_node("If", [flag], ["y", "as_it_was", "again"], then_branch=outer, else_branch=outer))
    z = net.node("Sum", ["y", "as_it_was", "again"], "sum")
    net.output(net.conv(net.bn(z, 4, "behind"), (4, 2), "after"), ("N", 2, 4, 4))
    model = net.model()
    result = bnfold.fold(model, verify=False)
    assert "If" not in op_types(result.model)
    x_value = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    for before, after in zip(evaluate(model, x=x_value), evaluate(result.model, x=x_value), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-12)


def _decided(n: test_rules.Net, x: str, y: str, deep: int) -> list[onnx.NodeProto]:
    """An If in an If, `deep` of them, that always take a layer and a norm; weights and flags lie inside."""
    names = [f"{y}_{i}" for i in range(deep)] + [y]
    nodes, weights = test_bodies.block(n, x, names[0])
    flag = numpy_helper.from_array(np.array(True), "flag")
    for inner, outer in pairwise(names):
        abs_ = helper.make_node("Abs", [x], [f"{inner}_no"])
        no = helper.make_graph([abs_], "no", [], [test_bodies.value(f"{inner}_no", *n.shape)])
        yes = helper.make_graph(nodes, "yes", [], [test_bodies.value(inner, *n.shape)], weights)
        stored = helper.make_node("Constant", [], [f"{inner}_flag"], value=flag)
        nodes, weights = [stored, helper.make_node("If", stored.output, [outer], then_branch=yes, else_branch=no)], []
    return nodes


@pytest.mark.parametrize("deep", [1, 2])
@pytest.mark.parametrize("op", ["Loop", "If"])
def test_an_if_in_a_body_gives_way_to_its_branch(op: str, deep: int) -> None:
    n = test_rules.Net(2, 3, 5, 5)
    value, boolean = test_bodies.value, TensorProto.BOOL
    nodes = _decided(n, "state" if op == "Loop" else "x", "next", deep)
    if op == "Loop":
        keep = helper.make_node("Identity", ["going"], ["still"])
        given = [value("i", dtype=TensorProto.INT64), value("going", dtype=boolean), value("state", *n.shape)]
        body = helper.make_graph(
            [*nodes, keep], "body", given, [value("still", dtype=boolean), value("next", *n.shape)]
        )
        result = n.op("Loop", n.w(3, np.int64), n.w(True, np.bool_), "x", body=body)
    else:
        neg = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "neg", [], [value("z", *n.shape)])
        yes = helper.make_graph(nodes, "outer", [], [value("next", *n.shape)])
        choice = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.w(0.0))
        result = n.op("If", choice, then_branch=yes, else_branch=neg)
    model = test_bodies.finish(n, result)
    folded = bnfold.fold(model, verify=False)
    assert [norm.verdict for norm in folded.plan.batch_norms] == ["folded"]
    (outer,) = (node for node in folded.model.graph.node if node.op_type == op)
    inner = next(graph for graph in nested_graphs(outer) if graph.name in ("body", "outer"))
    left = [node.op_type for node in inner.node if node.op_type not in ("Constant", "Identity")]
    assert left == ["Conv", "Relu"]
    onnx.checker.check_model(folded.model, full_check=True)
    for sign in (1, -1):
        x = np.abs(np.random.default_rng(deep).standard_normal(n.shape)) * sign
        np.testing.assert_allclose(evaluate(folded.model, x=x)[0], evaluate(model, x=x)[0], rtol=0, atol=1e-12)


def test_a_flag_that_a_caller_may_override_decides_nothing() -> None:
    model = _model("initializer", True)
    model.graph.input.append(helper.make_tensor_value_info("stored", TensorProto.BOOL, []))
    assert "If" in op_types(bnfold.fold(model, verify=False).model)
    assert "If" not in op_types(bnfold.fold(model, verify=False, freeze_inputs=True).model)


@pytest.mark.parametrize(("condition", "gone"), [([True], 1), ([[False]], 1), ([[[True]], [[False]]], 0)])
def test_a_where_that_is_decided_carries_what_it_takes(condition: list[Any], gone: int) -> None:
    """The layer on the side that is taken takes the norm up, where what is on the other would hold its scale."""
    net = Net(dtype=F64)
    x = net.input("x", ("N", 3, 8, 8))
    layer = net.conv(x, (3, 2), "conv", k=1)
    curve = net.node("Sigmoid", [net.conv(x, (3, 2), "other", k=1)], "curve")
    mask = net.node("Constant", [], "mask", value=numpy_helper.from_array(np.array(condition)))
    sides = [layer, curve] if np.array(condition).any() else [curve, layer]
    y = net.bn(net.node("Where", [mask, *sides], "choice"), 2, "last")
    net.output(net.relu(y, "act"), ("N", 2, 8, 8))
    model = net.model()
    result = bnfold.fold(model, verify=False, leftovers="none")
    assert result.plan.counts()["folded"] == gone
    feed = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    np.testing.assert_allclose(evaluate(result.model, x=feed)[0], evaluate(model, x=feed)[0], rtol=0, atol=1e-12)
