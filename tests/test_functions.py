"""Local functions whose attributes have defaults: what a call does not say holds when the function is inlined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, helper

import bnfold
from bnfold.judge.subjects.runners import ReferenceRunner
from bnfold.judge.subjects.widen import widened
from bnfold.onnx.read.functions import called, inline, inlined

from .nets import FLOAT, Net
from .test_onnx_file import fold, verdicts

NORM = ["x", "gamma", "beta", "mean", "var"]


def refer(node: NodeProto, name: str, outer: str) -> NodeProto:
    """The node with an attribute that is the function's attribute `outer`."""
    node.attribute.append(AttributeProto(name=name, ref_attr_name=outer, type=AttributeProto.FLOAT))
    return node


def function(name: str, inputs: list[str], nodes: list[NodeProto], **attributes: float | None) -> FunctionProto:
    """A function from `inputs` to y; attributes with a default, or None for those that a call must give."""
    defaults = [helper.make_attribute(key, value) for key, value in attributes.items() if value is not None]
    needed = [key for key, value in attributes.items() if value is None]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function(
        "local", name, inputs, ["y"], nodes, opsets, attributes=needed, attribute_protos=defaults
    )


def norm(eps: float | None = 0.5) -> FunctionProto:
    node = refer(helper.make_node("BatchNormalization", NORM, ["y"], name="inner"), "epsilon", "eps")
    return function("Norm", NORM, [node], eps=eps)


def block(node: NodeProto, **attributes: float | None) -> FunctionProto:
    """A function around a call of another."""
    return function("Block", NORM, [node], **attributes)


def call() -> NodeProto:
    return helper.make_node("Norm", NORM, ["y"], domain="local")


def network(outermost: str, *functions: FunctionProto, **attributes: Any) -> ModelProto:
    """conv -> function -> relu, twice: once as the defaults have it, once with `attributes`."""
    net = Net()
    net.domains["local"] = 1
    x = net.input()
    for i, given in enumerate([{}, attributes] if attributes else [{}], 1):
        net.bn(net.conv(x, (3, 6), f"conv{i}"), 6, f"bn{i}")
        y = net.node(outermost, list(net.nodes.pop().input), f"call{i}", domain="local", **given)
        net.output(net.relu(y, f"relu{i}"))
    model = net.model()
    model.functions.extend(functions)
    onnx.checker.check_model(model, full_check=True)
    return model


def body_in_a_function() -> ModelProto:
    """The call stands in a branch of an If in a function."""
    info = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("yes", "no")]
    inner = call()
    inner.output[0] = "yes"
    branches = [
        helper.make_graph([inner], "yes", [], info[:1]),
        helper.make_graph([helper.make_node("Neg", ["x"], ["no"])], "no", [], info[1:]),
    ]
    flag = helper.make_node("Constant", [], ["f"], value=helper.make_tensor("f", onnx.TensorProto.BOOL, [], [True]))
    either = helper.make_node("If", ["f"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return network("Block", norm(), function("Block", NORM, [flag, either]))


def call_in_a_body() -> ModelProto:
    """The function is called in a branch of an If of the graph."""
    model = network("Norm", norm())
    (position,) = (i for i, node in enumerate(model.graph.node) if node.op_type == "Norm")
    inner = NodeProto()
    inner.CopyFrom(model.graph.node[position])
    name, inner.output[0] = inner.output[0], "yes"
    branch: list[GraphProto] = [
        helper.make_graph([node], "g", [], [helper.make_tensor_value_info(out, FLOAT, None)])
        for node, out in ((inner, "yes"), (helper.make_node("Neg", [inner.input[0]], ["no"]), "no"))
    ]
    model.graph.node[position].CopyFrom(
        helper.make_node("If", ["flag"], [name], then_branch=branch[0], else_branch=branch[1])
    )
    model.graph.input.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    return model


CASES = {
    "default": lambda: network("Norm", norm()),
    "default and given": lambda: network("Norm", norm(), eps=0.25),
    "nested": lambda: network("Block", norm(), block(call())),
    "the caller has it": lambda: network("Block", norm(), block(refer(call(), "eps", "own"), own=0.75), own=0.125),
    "the caller was not given it": lambda: network("Block", norm(), block(refer(call(), "eps", "own"), own=None)),
    "three deep": lambda: network(
        "Top", norm(), block(refer(call(), "eps", "own"), own=0.75),
        function("Top", NORM, [helper.make_node("Block", NORM, ["y"], domain="local")]),
    ),
    "body in a function": body_in_a_function,
    "call in a body": call_in_a_body,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_defaults_of_a_function_hold_when_it_is_inlined(case: str, tmp_path: Path) -> None:
    result = fold(CASES[case](), tmp_path)
    fate = "kept" if case == "call in a body" else "folded"  # the convs stand outside
    assert set(verdicts(result).values()) == {fate}
    assert bool(result.model.functions) == (fate == "kept")  # where nothing goes nothing is changed


@pytest.mark.parametrize("case", CASES)
def test_the_judge_inlines_with_defaults_too(case: str, tmp_path: Path) -> None:
    model = CASES[case]()
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    wide = widened(path)
    assert wide is not None
    feed: dict[str, Any] = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    if len(model.graph.input) > 1:
        feed["flag"] = np.array(True)
    folded = bnfold.fold(model, verify=False).model
    expected = ReferenceRunner(folded).run(feed)
    exact = ReferenceRunner(wide).run({key: v.astype(np.float64) if key == "x" else v for key, v in feed.items()})
    for name, value in ReferenceRunner(path).run(feed).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max())
        np.testing.assert_allclose(exact[name], expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max())


def test_what_the_inliner_refuses_stays_a_call() -> None:
    """A function of another opset than the model, where norms are others; one that calls it is inlined in part."""
    model = network("Block", norm(), block(call()))
    next(f for f in model.functions if f.name == "Norm").opset_import[0].version = 8
    before = model.SerializeToString()
    assert not inline(model, called(model))
    assert model.SerializeToString() == before
    partly = inlined(model)
    assert [node.op_type for node in partly.graph.node] == ["Conv", "Norm", "Relu"]
    assert model.SerializeToString() == before


@pytest.mark.parametrize("version", [15, 18])
def test_a_function_of_another_opset_in_which_all_operators_are_the_same(version: int, tmp_path: Path) -> None:
    model = network("Block", norm(), block(call()))
    for function in model.functions:
        function.opset_import[0].version = version
    assert set(verdicts(fold(model, tmp_path)).values()) == {"folded"}


def test_names_of_weights_are_not_taken_by_what_is_inlined(tmp_path: Path) -> None:
    inner = [helper.make_node("Neg", NORM[:1], ["conv1_weight"]), helper.make_node("Neg", ["conv1_weight"], ["z"])]
    normed = call()
    normed.input[0] = "z"
    result = fold(network("Block", norm(), function("Block", NORM, [*inner, normed])), tmp_path)
    assert set(verdicts(result).values()) == {"folded"}
