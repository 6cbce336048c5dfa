"""What one reader or rule trips over costs what it touches, and not the model; and a note names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.core.gauge import rules
from bnfold.core.gauge.equations import Equations
from bnfold.core.graph import Affine, Linear, Op
from bnfold.errors import ModelError
from bnfold.onnx.read import evaluators, read

from .nets import Net

RULES = rules.RULES
READERS = read.READERS


def varied() -> onnx.ModelProto:
    """A node for most rules between two parts that do not depend on them, each a conv and a norm behind a sigmoid."""
    net = Net(3)
    x = net.input("x", (2, 3, 8, 8))
    y = net.bn(net.conv(x, (3, 4), "conv1", pad=1), 4, "bn1", "both")
    y = net.node("Sigmoid", [y], "wall1")
    y = net.bn(net.conv(y, (4, 4), "conv2", pad=1), 4, "bn2")
    y = net.node("Concat", [net.relu(y, "relu"), net.node("LeakyRelu", [y], "leaky")], "concat", axis=1)
    y = net.node("Add", [y, net.node("MaxPool", [y], "pool", kernel_shape=[1, 1])], "add")
    y = net.node("Mul", [y, net.node("GlobalAveragePool", [y], "mean")], "gate")
    turned = net.node("Transpose", [y], "turned", perm=[0, 2, 3, 1])
    y = net.node("Gather", [turned, net.weight("i", [3, 1, 0, 6])], "part", axis=3)
    y = net.node("Reshape", [y, net.weight("shape", [2, 8, 8, 4])], "reshape")
    y = net.node("Clip", [y, net.weight("low", 0.0), net.weight("high", 6.0)], "clip")
    y = net.node("Max", [y, net.weight("least", 0.1)], "max")
    y = net.node("Transpose", [y], "back", perm=[0, 3, 1, 2])
    y = net.node("Expand", [y, net.weight("wide", [2, 4, 8, 8])], "expand")
    y = net.node("Sigmoid", [net.bn(y, 4, "bn3")], "wall2")
    net.output(net.bn(net.conv(y, (4, 3), "conv4"), 3, "bn4"), (2, 3, 6, 6))
    return net.model()


def fates(result: bnfold.FoldResult) -> dict[str, str]:
    return {bn.name: bn.verdict for bn in result.plan.batch_norms}


def folded(model: onnx.ModelProto) -> bnfold.FoldResult:
    result = bnfold.fold(model)
    assert result.check is not None
    assert result.check.passed
    return result


def broken(function: Callable[..., Any], early: bool) -> Callable[..., Any]:
    """The same, ending in an error, before or after it has done what it does."""

    def fail(*arguments: Any) -> Any:
        if not early:
            function(*arguments)
        raise IndexError("tuple index\nout of range")

    return fail


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kind", list(RULES), ids=lambda kind: kind.__name__)
def test_a_rule_that_fails(kind: type[Op], early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, kind, broken(RULES[kind], early))
    result = folded(varied())
    (note,) = result.plan.notes
    assert "could not be handled (IndexError: tuple index out of range)" in note
    assert "please report it with this model" in note
    if kind is Affine:
        assert set(fates(result).values()) == {"kept"}
        assert {bn.reason.code for bn in result.plan.batch_norms if bn.reason} == {"internal"}
    elif kind is not Linear:
        assert {name: fates(result)[name] for name in ("bn1", "bn4")} == {"bn1": "folded", "bn4": "folded"}


def test_norms_that_cannot_be_handled() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(READERS, "BatchNormalization", broken(READERS["BatchNormalization"], True))
        reasons = [bn.reason for bn in bnfold.inspect(varied()).batch_norms]
    assert {reason.code for reason in reasons if reason} == {"internal"}
    assert all(reason and "IndexError" in reason.text and "report" in reason.hint for reason in reasons)


@pytest.mark.parametrize("op", ["Conv", "Relu", "Add", "Mul", "Clip", "Concat", "Reshape", "BatchNormalization", "Max"])
def test_a_reader_that_fails(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, op, broken(READERS[op], True))
    result = folded(varied())
    (note,) = result.plan.notes
    names = [node.name for node in varied().graph.node if node.op_type == op]
    assert re.match(rf"{op} {re.escape(', '.join(names[:3]))}( and \d+ more)? could not be handled \(IndexError", note)
    if op == "BatchNormalization":
        assert {bn.reason.code for bn in result.plan.batch_norms if bn.reason} == {"internal"}
    elif op != "Conv":
        assert {name: fates(result)[name] for name in ("bn1", "bn4")} == {"bn1": "folded", "bn4": "folded"}


def test_the_bias_of_a_product_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(0)
    product = net.node("MatMul", [net.input("x", ("N", 3)), net.filter("w", 3, 4)], "product")
    net.output(net.bn(net.node("Add", [product, net.weight("b", np.arange(4.0))], "add"), 4, "bn"), ("N", 4))
    monkeypatch.setattr("bnfold.onnx.read.linear.bias_of", broken(lambda *given: False, True))
    folded(net.model())


@pytest.mark.parametrize("skip", [True, False], ids=["left alone", "not read"])
def test_a_product_whose_bias_stays_keeps_its_input(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two are read as one layer; without it nothing may change what the product reads."""
    net = Net(0)
    y = net.bn(net.input("x", ("N", 3)), 3, "bn", "both")
    y = net.node("MatMul", [y, net.filter("w", 3, 4)], "product")
    net.output(net.node("Add", [y, net.weight("b", np.arange(4.0))], "add"), ("N", 4))
    if not skip:
        monkeypatch.setitem(READERS, "Add", broken(READERS["Add"], True))
    result = bnfold.fold(net.model(), skip=["add"] if skip else [])
    assert result.check is not None
    assert result.check.passed
    assert fates(result) == {"bn": "folded" if skip else "kept"}


def test_a_constant_that_cannot_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the weight of one conv; all others fold."""
    monkeypatch.setitem(evaluators.EVALUATORS, "Exp", broken(np.exp, True))
    net = Net(0)
    x = net.input("x", ("N", 3, 8, 8))
    weight = net.node("Exp", [net.filter("w", 4, 3, 1, 1)], "exp")
    y = net.node("Sigmoid", [net.bn(net.node("Conv", [x, weight], "odd"), 4, "bn1")], "wall")
    net.output(net.bn(net.conv(y, (4, 3), "conv"), 3, "bn2"), ("N", 3, 6, 6))
    result = folded(net.model())
    assert fates(result) == {"bn1": "kept", "bn2": "folded"}
    assert any(note.startswith("Conv odd could not be handled (ModelError: node 'exp'") for note in result.plan.notes)


def test_a_model_whose_shapes_do_not_fit_is_blamed_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = varied()
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([2, 8, 8, 5]), "shape"))
    monkeypatch.setitem(READERS, "Relu", broken(READERS["Relu"], True))
    with pytest.raises(ModelError, match="shapes do not fit together"):
        bnfold.inspect(model)


def test_no_memory_is_no_fault_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setitem(RULES, Linear, exhausted)
    with pytest.raises(MemoryError):
        bnfold.inspect(varied())


def test_equations_are_taken_back() -> None:
    eqs = Equations()
    op = Op("op", (), ())
    x = eqs.fresh([3])
    eqs.pin(x[:1], op, "holds")
    before = {name: value if isinstance(value, int) else len(value) for name, value in vars(eqs).items()}
    mark = eqs.mark()
    y = eqs.fresh([3])
    eqs.same(x, y, op)
    eqs.hold(y, op, "holds", zeros=True)
    eqs.demand_positive(y, op, "holds")
    eqs.shared["w"] = object()  # type: ignore[assignment]
    eqs.undo(mark)
    assert {name: value if isinstance(value, int) else len(value) for name, value in vars(eqs).items()} == before


def test_arithmetic_on_numbers_of_rank_0_beside_a_network() -> None:
    """Some of it goes into the layer that gives the number, as single numbers do; the outputs stay of rank 0."""
    net = Net(0)
    x = net.input("x", (2, 3, 8, 8))
    net.output(net.relu(net.bn(net.conv(x, (3, 4), "conv"), 4, "bn", "both"), "relu"), (2, 4, 6, 6))
    number = net.node("ReduceMax", [x], "largest", keepdims=0)
    last = net.node("Gemm", [net.node("ReduceMean", [net.node("Flatten", [x], "flat")], "row", axes=[0]),
                             net.filter("w", 192, 1), net.weight("b", [0.3])], "gemm")  # fmt: skip
    inner = net.node("Reshape", [last, net.weight("none", np.zeros(0, np.int64))], "scalar")
    for start, name in ((number, "free"), (inner, "layer")):
        for k, op in enumerate(("Mul", "Add", "Sub", "Div", "Max", "Min", "Clip", "PRelu")):
            start = net.node(op, [start, net.weight(f"{name}_{k}_c", 0.7 + k / 10)], f"{name}_{k}")
        for op in ("Neg", "Relu", "Abs", "LeakyRelu", "Identity", "Sigmoid"):
            start = net.node(op, [start], f"{name}_{op}")
        net.output(start, ())
    both = net.node(
        "Where", [net.node("Greater", ["free_Sigmoid_out", "layer_Sigmoid_out"], "which"), number, inner], "where"
    )
    net.output(net.node("Sum", [both, net.weight("one", 1.0), number], "sum"), ())
    result = folded(net.model())
    assert fates(result) == {"bn": "folded"}
    assert not result.plan.notes
    onnx.checker.check_model(result.model, full_check=True)
