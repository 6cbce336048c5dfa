"""A plan is a value: it compares by content, goes to JSON and back, and prints."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import onnx
import pytest
from rich.console import Console

import bnfold
from bnfold.core.gauge.planner import plan as make_plan
from bnfold.core.graph import Reason
from bnfold.core.plan import BatchNorm, ChannelDrop, Conditioning, LayerMerge, OtherNorm, Plan, Remove, Replace, Rescale
from bnfold.errors import PlanError
from bnfold.onnx.read.read import read
from bnfold.onnx.store.skeleton import skeleton
from bnfold.onnx.write.apply import apply
from bnfold.report.page import to_html
from bnfold.report.table import plan_table
from tests.evaluate import evaluate
from tests.test_rules import Net
from tests.zoo import ZOO

NORM = BatchNorm("bn", "BatchNormalization", "x", "y", 3, "reduced", "add", ("conv",), Reason("sign", "why", "n", "h"),
                 Conditioning(0.1, 1, 2.5, 1.5))  # fmt: skip
PLAN = Plan(
    "m.onnx",
    (NORM, BatchNorm("b2", "Mul", "y", "z", 1, "folded")),
    (OtherNorm("lrn", "LRN", "a", "b"),),
    (
        Rescale(3, "conv", np.array([0.1, -1 / 3]), None, None, np.array([5e-324, 1e300])),
        Remove(4, "bn", "input"),
        Replace(5, "b", "add", 1, np.ones(2), np.array([0.1, 0.2])),
    ),
)


def test_json_and_back_is_the_same_bit_by_bit() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize("leftovers", ["fast", "all"])
@pytest.mark.parametrize("name", ["densenet121", "resnetv2_50", "convmixer", "fastvit", "repvit"])
def test_real_plans_survive_json(name: str, leftovers: str) -> None:
    plan = bnfold.inspect(ZOO[name](dtype=np.float32), leftovers=leftovers)
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_from_json_applies_like_the_one_that_was_made() -> None:
    """Every kind of edit, the merging of identity branches among them."""
    model = ZOO["fastvit"](dtype=np.float64)
    copies = [_copy(model), _copy(model)]
    sources = [read(copy, skeleton(copy), "fastvit") for copy in copies]
    plan = make_plan(sources[0].graph)
    assert {type(edit).__name__ for edit in plan.edits} >= {"Rescale", "Remove", "Merge"}
    plans = [plan, Plan.from_json(plan.to_json())]
    made = [apply(*parts).complete() for parts in zip(copies, sources, plans, strict=True)]
    assert made[0] == made[1]
    assert made[0] != model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def test_equality_is_by_content() -> None:
    same = Plan.from_dict(PLAN.to_dict())
    assert same == PLAN
    edit = PLAN.edits[0]
    assert isinstance(edit, Rescale)
    assert edit.p_out is not None
    for other in (
        replace(PLAN, model="other"),
        replace(PLAN, batch_norms=PLAN.batch_norms[:1]),
        replace(PLAN, others=()),
        replace(PLAN, edits=PLAN.edits[1:]),
        replace(PLAN, edits=(replace(edit, p_out=np.nextafter(edit.p_out, 9)), *PLAN.edits[1:])),
        replace(PLAN, edits=(replace(edit, u_in=np.ones(2)), *PLAN.edits[1:])),
        replace(PLAN, batch_norms=(replace(NORM, verdict="kept"), PLAN.batch_norms[1])),
    ):
        assert other != PLAN


def test_the_same_model_gives_the_same_plan() -> None:
    a, b = (bnfold.inspect(ZOO["dpn68"](dtype=np.float32)) for _ in range(2))
    assert a == b
    assert a != bnfold.inspect(ZOO["dpn68"](dtype=np.float32, seed=1))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1}', "nonsense", '{"schema": 1, "model": 3}']
)
def test_other_text_is_a_plan_error(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_an_unknown_edit_is_a_plan_error() -> None:
    data = json.loads(PLAN.to_json())
    data["edits"][0]["kind"] = "explode"
    with pytest.raises(PlanError):
        Plan.from_dict(data)


def test_it_prints_a_line_for_each_norm() -> None:
    lines = str(PLAN).splitlines()
    assert lines[0] == "m.onnx: 1 batch norm and 1 constant like them: 1 folded, 1 reduced, 0 kept"
    assert Plan("m").headline() == "0 batch norms: 0 folded, 0 reduced, 0 kept"
    assert lines[1] == "  bn: reduced to add into conv [sign] why"
    assert replace(NORM, form="conv").said == "reduced to depthwise conv"
    assert lines[2] == "  b2: folded"


def test_a_plan_for_another_model_is_refused() -> None:
    from bnfold.onnx.read.read import read
    from bnfold.onnx.store.skeleton import skeleton
    from bnfold.onnx.write.apply import apply

    model = ZOO["mlp"](dtype=np.float32)
    source = read(model, skeleton(model), "mlp")
    with pytest.raises(PlanError, match="was the plan made for this model"):
        apply(model, source, bnfold.inspect(ZOO["resnetv2_50"](dtype=np.float32)))


def _constant(name: str, kind: str, ends: tuple[str, str], verdict: str = "folded", channels: int = 4) -> BatchNorm:
    why = None if verdict == "folded" else Reason("shift-fixed", "why")
    return BatchNorm(name, kind, *ends, channels, verdict, into=("conv",) if verdict == "folded" else (), reason=why)


def test_constants_in_a_row_are_one_line() -> None:
    """They stand for one norm; what reads another tensor, or has other channels, or is a norm itself, does not."""
    row = [_constant("mul", "Mul", ("x", "y")), _constant("add", "Add", ("y", "z"), "kept")]
    apart = [
        _constant("far", "Mul", ("a", "b")),
        _constant("bn", "BatchNormalization", ("b", "c")),
        _constant("sub", "Sub", ("c", "d"), "kept"),
        _constant("wide", "Add", ("d", "e"), channels=8),
    ]
    forks = [_constant("one", "Mul", ("e", "f"), channels=8), *(_constant(n, "Add", ("f", n)) for n in ("g", "h"))]
    plan = Plan("m", (row[0], apart[0], row[1], *apart[1:], *forks))
    names = ["mul + add", "far", "bn", "sub", "wide + one", "g", "h"]
    assert [line.name for line in plan.lines] == names
    assert plan.headline() == "1 batch norm and 6 constants like them: 5 folded, 1 reduced, 1 kept"
    assert plan.counts() == {"batch_norms": 9, "folded": 7, "reduced": 0, "kept": 2}
    assert str(plan).splitlines()[1] == "  mul + add: reduced to add into conv [shift-fixed] why"
    assert (plan.lines[0].op_type, plan.lines[0].output) == ("Mul, Add", "z")


def _dense(kind: str) -> tuple[Net, str]:
    """A dense layer and the Add that is its bias."""
    n = Net(4, 6)
    y = n.op("Gemm" if kind == "Gemm" else "MatMul", "x", n.w(n.rng.standard_normal((6, 5))))
    y = n.op("Reshape", y, n.w([2, 2, 5], np.int64)) if kind == "reshaped" else y
    return n, n.op("Add", y, n.w(n.rng.normal(0.4, 1.0, 5)))


@pytest.mark.parametrize("dense", ["Gemm", "MatMul", "reshaped"])
def test_the_bias_of_a_dense_layer_is_no_norm(dense: str) -> None:
    n, y = _dense(dense)
    alone = bnfold.inspect(n.model(n.op("Sigmoid", y)))
    assert alone.counts()["batch_norms"] == 0
    assert not any("one number" in note for note in alone.notes)
    n, y = _dense(dense)
    y = n.op("Add", n.op("Mul", y, n.w([0.5, -2.0, 0.0, 1e-41, 1.5])), n.w(n.rng.normal(0.4, 1.0, 5)))
    model = n.model(n.op("Sigmoid", y))
    result = bnfold.fold(model, verify=False)
    assert result.plan.headline() == "0 batch norms and 1 constant like them: 1 folded, 0 reduced, 0 kept"
    assert [node.op_type for node in result.model.graph.node if node.op_type != "Reshape"] in (
        ["MatMul", "Add", "Sigmoid"],
        ["Gemm", "Sigmoid"],
    )
    x = np.random.default_rng(0).standard_normal((4, 6))
    np.testing.assert_allclose(evaluate(result.model, x=x)[0], evaluate(model, x=x)[0], rtol=0, atol=1e-12)


def test_a_bias_of_its_own_makes_an_addition_a_constant_like_a_norm() -> None:
    n = Net(4, 6)
    y = n.op("Gemm", "x", n.w(n.rng.standard_normal((6, 5))), n.w(n.rng.normal(0.4, 1.0, 5)))
    assert bnfold.inspect(n.model(n.op("Add", y, n.w(n.rng.normal(0.4, 1.0, 5))))).counts()["batch_norms"] == 1


def test_merges_and_drops_print_and_go_to_json() -> None:
    why = Reason("merge-stride", "their strides differ")
    merges = (
        LayerMerge("sum", ("a", "b", "add"), "merged", "b", None, (200, 150), (80, 60)),
        LayerMerge("chain", ("c", "d"), "left", "", why, (7, 7), (5, 5)),
    )
    drops = (ChannelDrop("t", ("a", "c"), 48, 20, 16, "dropped", Reason("blocks", "why"), (90, 40), (30, 20)),)
    plan = Plan("m", (NORM,), merges=merges, drops=drops, shrunk=((1000, 600), (400, 300)))
    assert Plan.from_json(plan.to_json()) == plan
    assert (plan.changed, plan.merged, plan.dropped) == (True, merges[:1], drops)
    assert plan.gains() == [
        "layers merged in 1 group: multiplications 200 -> 150, bytes 80 -> 60",
        "16 of 48 channels dropped: multiplications 1,000 -> 600, bytes of weights 400 -> 300",
    ]
    page = to_html([("pair", None, plan)])
    for said in (
        "Merged layers",
        "a, b, add",
        "[merge-stride] their strides differ",
        "Channels that carry nothing",
        "48",
    ):
        assert said in page
    console = Console(width=80, record=True, file=StringIO())
    console.print(plan_table(plan))
    table = console.export_text()
    assert all(said in table for said in ("a, b, add", "16 of 48 channels", "1,000 -> 600"))
    assert "c, d" not in table


def test_an_inspection_says_what_a_fold_would_be_refused_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise PlanError("conv1: the folded weights exceed the range of float32")

    monkeypatch.setattr("bnfold.onnx.write.apply.apply", refuse)
    plan = bnfold.inspect(ZOO["mlp"](dtype=np.float32))
    assert plan.counts()["batch_norms"] > 0
    assert any("a fold would be refused: conv1" in note for note in plan.notes)
