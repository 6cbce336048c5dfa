"""The precision guard: folds that would cost other readers their digits are taken back, and only those."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

import bnfold
from benchmarks.precision import hostile, ratio
from tests.test_hostile import spelled_out
from tests.test_rules import Net
from tests.zoo import ZOO


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gamma", "gamma and deviation"])
@pytest.mark.parametrize("k", [2, 4, 6])
@pytest.mark.parametrize("name", ["resnetv2_50", "densenet121", "repvgg_a0", "resnet50"])
def test_error_stays_within_three_times_the_originals(name: str, kind: str, k: int) -> None:
    error, _ = ratio(hostile(name, kind, k), 32.0)
    assert error <= 3.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gamma", "gamma and deviation"])
def test_merged_layers_of_unlike_scales_round_within_the_bound_of_the_check(kind: str) -> None:
    """Branches whose scales differ by a million are rounded together; the check allows eight times the original's."""
    error, _ = ratio(hostile("repvgg_a0", kind, 6), 32.0, merge=True)
    assert error <= 8.0


def test_without_the_guard_the_error_is_large() -> None:
    """The network of the test above does need the guard."""
    error, folded = ratio(hostile("resnetv2_50", "gamma", 6), float("inf"))
    assert folded == 49
    assert error > 1000


def test_what_is_taken_back_has_the_reason() -> None:
    plan = bnfold.inspect(hostile("resnetv2_50", "gamma", 4), leftovers="all")
    back = [bn for bn in plan.batch_norms if bn.verdict != "folded"]
    assert back
    assert {bn.reason.code for bn in back if bn.reason} == {"precision"}
    assert all(bn.form == "add" for bn in back)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_ordinary_statistics_never_meet_the_guard(name: str) -> None:
    plan = bnfold.inspect(ZOO[name](dtype=np.float32, seed=9))
    assert not {"precision", "range"} & {bn.reason.code for bn in plan.batch_norms if bn.reason}


@pytest.mark.parametrize("name", ["preact_resnet18", "resnetv2_50", "densenet121"])
def test_ordinary_norms_written_as_arithmetic_never_meet_the_guard(name: str) -> None:
    plan = bnfold.inspect(spelled_out(ZOO[name](dtype=np.float32, seed=9)))
    assert plan.counts()["folded"] > 0
    assert not {"precision", "range"} & {bn.reason.code for bn in plan.batch_norms if bn.reason}


def _stream_of_arithmetic(n: Net, gamma: float) -> str:
    """Two pre-activation blocks whose norms are a Mul and an Add; one channel of the second has another gamma."""
    x = n.conv("x", 3, 4, bias=True)
    for sizes in ([1.0, 0.9, 1.1, 1.2], [1.0, gamma, 1.0, 0.8]):
        scaled = n.op("Mul", x, n.w(np.array(sizes).reshape(4, 1, 1)))
        moved = n.op("Add", scaled, n.w(np.array([0.3, 0.5, -0.4, 0.2]).reshape(4, 1, 1)))
        x = n.op("Add", x, n.conv(n.op("Relu", moved), 4, 4, bias=True))
    return n.conv(n.op("Relu", x), 4, 2)


@pytest.mark.parametrize(("gamma", "codes"), [(0.7, set()), (1e-5, {"precision"})])
def test_a_tiny_factor_on_a_stream_leaves_its_offset(gamma: float, codes: set[str]) -> None:
    """No statistics say how wide the channel is, but the other readers of the stream do."""
    n = Net(2, 3, 5, 5)
    plan = bnfold.inspect(n.model(_stream_of_arithmetic(n, gamma)))
    stays = [bn for bn in plan.batch_norms if bn.verdict != "folded"]
    assert {bn.reason.code for bn in stays if bn.reason} == codes
    assert {bn.op_type for bn in stays} <= {"Add"}


@pytest.mark.parametrize("leftovers", ["fast", "all"])
def test_a_mean_that_a_layer_would_have_to_take_out_stays(leftovers: str) -> None:
    """A mean of 2,000 deviations before a conv, and on a branch beside one: no Add or Mul takes the norm's place."""
    n = Net(2, 4, 5, 5)
    vectors = [np.ones(4), np.zeros(4), np.array([0.1, 2e3, -0.2, 0.3]), np.ones(4)]
    first = n.op("BatchNormalization", n.op("Relu", n.conv("x", 4, 4)), *map(n.w, vectors))
    x = n.op("Relu", n.conv(first, 4, 4))
    branch = n.op("BatchNormalization", x, *map(n.w, vectors))
    y = n.op("Add", n.conv(x, 4, 4, 3, pads=[1] * 4), branch)
    plan = bnfold.inspect(n.model(n.conv(n.op("Relu", y), 4, 2)), leftovers=leftovers)
    assert [bn.verdict for bn in plan.batch_norms] == ["kept", "kept"]
    assert {bn.reason.code for bn in plan.batch_norms if bn.reason} == {"precision"}
    assert all("deviations" in str(bn.reason) for bn in plan.batch_norms)


def test_a_single_reader_may_be_moved_however_far() -> None:
    """conv -> BN with a tiny gamma: nobody else reads the conv, and behind the BN the values are what they were."""
    n = Net(2, 3, 5, 5)
    model = n.model(n.op("Relu", n.bn(n.conv("x", 3, 4), 4, [1.0, 1e-9, 0.5, 2.0])))
    assert bnfold.inspect(model).counts()["folded"] == 1


def _identity_branch(gamma: float) -> Net:
    """relu(conv(relu(conv(x))) + bn(x)): the shortcut couples the scale of x to that of the output."""
    n = Net(2, 3, 5, 5)
    y = n.op("Relu", n.conv("x", 3, 4))
    for _ in range(4):
        y = n.op(
            "Relu", n.op("Add", n.conv(n.op("Relu", n.conv(y, 4, 4, 3, pads=[1] * 4)), 4, 4), n.bn(y, 4, [gamma] * 4))
        )
    n.conv(y, 4, 2)
    return n


@pytest.mark.parametrize(("gamma", "code"), [(1e-3, "range"), (0.8, None)])
def test_float16_keeps_to_its_range(gamma: float, code: str | None) -> None:
    n = _identity_branch(gamma)
    model = n.model(n.nodes[-1].output[0])
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float64:
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), tensor.name))
    for value_info in (*model.graph.input, *model.graph.output):
        value_info.type.tensor_type.elem_type = 10
    codes = {bn.reason.code if bn.reason else None for bn in bnfold.inspect(model).batch_norms}
    assert code in codes
