"""Norms in the bodies of If, Loop and Scan, and in local functions: folded inside, with weights of their own or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.onnx.store.loops import infer_shapes
from bnfold.onnx.store.skeleton import skeleton
from tests.evaluate import evaluate
from tests.test_rules import Net

Array = npt.NDArray[Any]
DOUBLE = TensorProto.DOUBLE


def value(name: str, *shape: int | str, dtype: int = DOUBLE) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def block(n: Net, x: str, y: str, around: bool = False) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """conv -> bn -> relu from x to y: its nodes, and its weights unless they are to lie `around` (in n)."""
    inner = Net(*n.shape)
    inner.rng, inner.weights = n.rng, n.weights if around else []
    last = inner.op("Relu", inner.bn(inner.conv(x, 3, 3, k=3, bias=True, pads=[1] * 4), 3))
    inner.nodes[-1].output[0] = y
    assert last
    if not around:
        rename(inner)
    return inner.nodes, [] if around else inner.weights


def rename(inner: Net) -> None:
    """Names of weights that the main graph does not have: a body must not hide a name around it."""
    for tensor in inner.weights:
        for node in inner.nodes:
            node.input[:] = [f"inner_{name}" if name == tensor.name else name for name in node.input]
        tensor.name = f"inner_{tensor.name}"


def finish(n: Net, *outputs: str) -> onnx.ModelProto:
    model = n.model()
    model.graph.output.extend(value(name, *n.shape) for name in outputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def if_with_weights_inside() -> onnx.ModelProto:
    """Both branches use the same names."""
    n = Net(2, 3, 5, 5)
    bodies = []
    for name in ("yes", "no"):
        nodes, weights = block(n, "x", "y")
        bodies.append(helper.make_graph(nodes, name, [], [value("y", *n.shape)], weights))
    flag = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.w(0.0))
    return finish(n, n.op("If", flag, then_branch=bodies[0], else_branch=bodies[1]))


def if_with_weights_around() -> onnx.ModelProto:
    """The weights lie in the main graph, where another conv reads one of them too."""
    n = Net(2, 3, 5, 5)
    nodes, _ = block(n, "x", "y", around=True)
    yes = helper.make_graph(nodes, "yes", [], [value("y", *n.shape)])
    no = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "no", [], [value("z", *n.shape)])
    flag = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.w(0.0))
    other = n.op("Conv", "x", nodes[0].input[1], pads=[1] * 4)
    return finish(n, n.op("If", flag, then_branch=yes, else_branch=no), other)


def if_behind_a_fold_that_shares_its_weight() -> onnx.ModelProto:
    """A conv outside and one inside share a weight; both are folded, differently."""
    n = Net(2, 3, 5, 5)
    outer = n.bn(n.conv("x", 3, 3, k=3, bias=True, pads=[1] * 4), 3)
    first = n.nodes[0]
    inner = Net(*n.shape)
    inner.bn("inner_conv", 3, [0.5, 2.0, -1.0])
    rename(inner)
    inner.nodes[-1].output[0] = "inner_bn"
    inner.nodes.insert(0, helper.make_node("Conv", ["x", *first.input[1:]], ["inner_conv"], pads=[1] * 4))
    yes = helper.make_graph(inner.nodes, "yes", [], [value("inner_bn", *n.shape)], inner.weights)
    no = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "no", [], [value("z", *n.shape)])
    flag = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.w(0.0))
    return finish(n, n.op("If", flag, then_branch=yes, else_branch=no), n.op("Relu", outer))


def nested_ifs() -> onnx.ModelProto:
    """A body in a body, which reads a weight of the main graph and a tensor of the body around it."""
    n = Net(2, 3, 5, 5)
    nodes, _ = block(n, "half", "y", around=True)
    deep = helper.make_graph(nodes, "deep", [], [value("y", *n.shape)])
    other = helper.make_graph([helper.make_node("Abs", ["half"], ["a"])], "other", [], [value("a", *n.shape)])
    half = helper.make_node("Mul", ["x", n.w(0.5)], ["half"])
    flag = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.w(0.0))
    inner_if = helper.make_node("If", [flag], ["deep_out"], "inner", then_branch=deep, else_branch=other)
    yes = helper.make_graph([half, inner_if], "yes", [], [value("deep_out", *n.shape)])
    no = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "no", [], [value("z", *n.shape)])
    return finish(n, n.op("If", flag, then_branch=yes, else_branch=no))


def loop() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    nodes, weights = block(n, "state", "next")
    keep = helper.make_node("Identity", ["going"], ["still"])
    body = helper.make_graph(
        [*nodes, keep],
        "body",
        [value("i", dtype=TensorProto.INT64), value("going", dtype=TensorProto.BOOL), value("state", *n.shape)],
        [value("still", dtype=TensorProto.BOOL), value("next", *n.shape)],
        weights,
    )
    return finish(n, n.op("Loop", n.w(3, np.int64), n.w(True, np.bool_), "x", body=body))


def scan() -> onnx.ModelProto:
    """Over the batch axis: BN -> Gemm on the rows."""
    n = Net(4, 3)
    inner = Net(1, 3)
    row = inner.op("Unsqueeze", "row", inner.w([0], np.int64))
    y = inner.op("Gemm", inner.bn(row, 3), inner.w(inner.rng.standard_normal((3, 3))))
    y = inner.op("Squeeze", y, inner.w([0], np.int64))
    total = inner.op("Add", "sum", y)
    rename(inner)
    body = helper.make_graph(
        inner.nodes, "body", [value("sum", 3), value("row", 3)], [value(total, 3), value(y, 3)], inner.weights
    )
    start = n.w(np.zeros(3))
    outputs = n.op("Scan", start, "x", outputs=2, num_scan_inputs=1, body=body)
    model = n.model()
    model.graph.output.extend([value(outputs[0], 3), value(outputs[1], 4, 3)])
    return model


def function_with_a_norm() -> onnx.ModelProto:
    """Called twice, with other weights; the convs stand outside."""
    n = Net(2, 3, 5, 5)
    outs = []
    for _ in range(2):
        stats = [n.w(v) for v in (n.rng.normal(size=3), n.rng.normal(size=3), n.rng.normal(size=3), [0.5, 2.0, 3.0])]
        outs.append(n.op("Block", n.conv("x", 3, 3), *stats, domain="local"))
    model = n.model(domains=("local",))
    names = ["x", "g", "b", "m", "v"]
    norm = helper.make_node("BatchNormalization", names, ["y"], name="inner", epsilon=1e-3)
    model.functions.append(helper.make_function("local", "Block", names, ["y"], [norm], [helper.make_opsetid("", 17)]))
    model.graph.output.extend(value(name, *n.shape) for name in outs)
    return model


def function_with_a_conv() -> onnx.ModelProto:
    """The norm stands outside and can go only when the function is inlined."""
    n = Net(2, 3, 5, 5)
    y = n.bn(n.op("Block", "x", n.w(n.rng.standard_normal((3, 3, 1, 1))), domain="local"), 3)
    model = n.model(domains=("local",))
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="inner")
    function = helper.make_function("local", "Block", ["x", "w"], ["y"], [conv], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    model.graph.output.append(value(y, *n.shape))
    return model


CASES: dict[Callable[[], onnx.ModelProto], list[str]] = {
    if_with_weights_inside: ["folded", "folded"],
    if_with_weights_around: ["folded"],
    if_behind_a_fold_that_shares_its_weight: ["folded", "folded"],
    nested_ifs: ["folded"],
    loop: ["folded"],
    scan: ["folded"],
    function_with_a_norm: ["folded", "folded"],
    function_with_a_conv: ["folded"],
}


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_norms_fold_inside_bodies_and_functions(build: Callable[[], onnx.ModelProto]) -> None:
    model = build()
    untouched = model.SerializeToString()
    result = bnfold.fold(model, verify=False)
    assert [bn.verdict for bn in result.plan.batch_norms] == CASES[build]
    assert model.SerializeToString() == untouched
    onnx.checker.check_model(result.model, full_check=True)
    assert "BatchNormalization" not in str(result.model)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    for seed, middle in ((0, 0.5), (1, -0.5)):  # both branches
        x = np.random.default_rng(seed).standard_normal(shape) + middle
        for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * max(1.0, np.abs(before).max()))


def test_a_weight_with_the_name_of_one_around_the_body_stays() -> None:
    """onnx.checker accepts it, and runtimes do not agree which of the two is meant."""
    model = if_with_weights_inside()
    body = model.graph.node[-1].attribute[0].g
    hiding = next(t for t in body.initializer if len(t.dims) == 4)
    other = np.random.default_rng(5).standard_normal(hiding.dims)
    model.graph.initializer.append(numpy_helper.from_array(other, hiding.name))
    model.graph.node.append(helper.make_node("Conv", ["x", hiding.name], ["z"], pads=[1] * 4))
    model.graph.output.append(value("z", 2, 3, 5, 5))
    onnx.checker.check_model(model, full_check=True)
    result = bnfold.fold(model, verify=False)
    assert {bn.verdict for bn in result.plan.batch_norms} == {"kept"}
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5))
    for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
        np.testing.assert_array_equal(after, before)


def test_defaults_that_a_caller_may_override_are_named_in_bodies_too() -> None:
    model = if_with_weights_around()
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    norm = next(n for body in bodies for n in body.node if n.op_type == "BatchNormalization")
    model.graph.input.append(value(norm.input[3], 3))
    plan = bnfold.inspect(model)
    assert [bn.reason.code for bn in plan.batch_norms if bn.reason] == ["overridable"]
    assert any(norm.input[3] in note and "--freeze-inputs" in note for note in plan.notes)
    assert bnfold.inspect(model, freeze_inputs=True).counts()["folded"] == 1


def test_a_function_that_is_not_in_the_way_stays() -> None:
    n = Net(2, 3, 5, 5)
    y = n.op("Relu", n.bn(n.conv("x", 3, 3), 3))
    y = n.op("Gelu", y, domain="local")
    model = n.model(domains=("local",))
    body = [helper.make_node("Tanh", ["x"], ["t"]), helper.make_node("Mul", ["x", "t"], ["y"])]
    model.functions.append(helper.make_function("local", "Gelu", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    model.graph.output.append(value(y, *n.shape))
    folded = bnfold.fold(model, verify=False).model
    assert folded.functions == model.functions
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu", "Gelu"]


def test_a_body_in_float32_passes_the_judge() -> None:
    model = if_with_weights_inside()
    for graph in (model.graph, *(a.g for a in model.graph.node[-1].attribute)):
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float64:
                tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
        for info in (*graph.input, *graph.output):
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    result = bnfold.fold(model)
    assert result.check is not None
    assert result.check.passed
    assert result.plan.counts()["folded"] == 2


def carrying(*after: onnx.NodeProto, declared: bool = True) -> onnx.ModelProto:
    """A Loop that carries a tensor of 3 channels, a norm on that tensor in the body, and another behind the Loop.

    `after`: what the body does with the tensor `f` that it would carry, to get `next`.
    """
    n = Net(2, 3, 5, 5)
    inner = Net(*n.shape)
    inner.rng = n.rng
    inner.bn("state", 3, [0.5, 2.0, -1.0])
    inner.conv(inner.nodes[-1].output[0], 3, 3, bias=True)
    inner.nodes[-1].output[0] = "f"
    rename(inner)
    last = "next" if after else "f"
    keep = helper.make_node("Identity", ["going"], ["still"])
    size = n.shape if declared else None
    given = [value("i", dtype=TensorProto.INT64), value("going", dtype=TensorProto.BOOL)]
    given.append(helper.make_tensor_value_info("state", DOUBLE, size))
    out = [value("still", dtype=TensorProto.BOOL), helper.make_tensor_value_info(last, DOUBLE, size)]
    body = helper.make_graph([*inner.nodes, *after, keep], "body", given, out, inner.weights)
    y = n.op("Loop", n.w(3, np.int64), n.w(True, np.bool_), "x", body=body)
    last = n.conv(n.bn(y, 3, [0.5, -1.5, 2.0]), 3, 2)
    model = n.model()
    model.graph.output.append(value(last, 2, 2, 5, 5))
    return model


@pytest.mark.parametrize("declared", [True, False])
def test_what_a_loop_carries_has_the_rank_that_its_body_keeps(declared: bool) -> None:
    model = carrying(declared=declared)
    result = bnfold.fold(model, verify=False)
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded", "folded"]
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5))
    for before, after in zip(evaluate(model, x=x), evaluate(result.model, x=x), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())


@pytest.mark.parametrize(
    ("op", "attributes", "carried"),
    [("Transpose", {"perm": [3, 1, 2, 0]}, [0, 3, 5, 0]), ("Concat", {"axis": 0}, [0, 3, 5, 5]),
     ("Concat", {"axis": 1}, [2, 0, 5, 5]), ("NonZero", {}, []), ("Mystery", {"domain": "custom"}, [])],
)  # fmt: skip
def test_what_a_body_does_not_keep_is_not_assumed(op: str, attributes: dict[str, Any], carried: list[int]) -> None:
    """Sizes along other axes may change; of another rank, or behind an unknown operator, nothing is known."""
    inputs = ["f", "f"] if op == "Concat" else ["f"]
    model = carrying(helper.make_node(op, inputs, ["next"], **attributes), declared=False)
    model.opset_import.append(helper.make_opsetid("custom", 1))
    inferred = infer_shapes(skeleton(model).model).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    assert shapes[model.graph.node[0].output[0]] == carried


def test_a_loop_in_a_loop_keeps_the_rank_too() -> None:
    """What the outer body gives back is known only once the inner Loop is."""
    model = carrying(declared=False)
    inner = model.graph.node[0]
    body = inner.attribute[0].g
    deep = helper.make_node("Loop", ["i_count", "", "f"], ["next"], body=helper.make_graph(
        [helper.make_node("Relu", ["deep"], ["deeper"]), helper.make_node("Identity", ["on"], ["off"])], "deep_body",
        [value("j", dtype=TensorProto.INT64), value("on", dtype=TensorProto.BOOL),
         helper.make_tensor_value_info("deep", DOUBLE, None)],
        [value("off", dtype=TensorProto.BOOL), helper.make_tensor_value_info("deeper", DOUBLE, None)],
    ))  # fmt: skip
    body.node.append(deep)
    body.initializer.append(numpy_helper.from_array(np.array(2), "i_count"))
    body.output[1].name = "next"
    result = bnfold.fold(model, verify=False)
    assert "unknown-shape" not in {bn.reason.code for bn in result.plan.batch_norms if bn.reason}
    assert result.plan.batch_norms[-1].verdict == "folded"
