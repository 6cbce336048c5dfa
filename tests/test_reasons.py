"""Every reason code can be reached, is documented, and nothing else is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from benchmarks.precision import hostile
from tests import test_faults as faults
from tests import test_norm_act as norm_act
from tests import test_torch_traps as traps
from tests.test_rules import CASES, Net

ROOT = Path(__file__).parents[1]
RULES = {case.name: case.build for case in CASES}


def _behind_a_custom_op() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    y = n.op("Mystery", n.bn(n.op("Mystery", "x", domain="com.example"), 3), domain="com.example")
    model = n.model(domains=("com.example",))
    model.graph.output.append(helper.make_tensor_value_info(y, TensorProto.DOUBLE, [2, 3, 4, 4]))
    return model


def _future() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    model = n.model(n.bn(n.conv("x", 3, 3), 3))
    model.opset_import[0].version = 999
    return model


def _spatial_0() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    stats = [n.w(np.full((3, 4, 4), v)) for v in (1.5, 0.2, 0.3, 2.0)]
    model = n.model(opset=7)
    model.graph.node.append(helper.make_node("BatchNormalization", ["x", *stats], ["y"], spatial=0))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2, 3, 4, 4]))
    return model


def _rank_1() -> onnx.ModelProto:
    n = Net(4)
    return n.model(n.bn("x", 1))


def _overridable() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    model = n.model(n.bn(n.conv("x", 3, 3), 3))
    mean = model.graph.node[-1].input[3]
    model.graph.input.append(helper.make_tensor_value_info(mean, TensorProto.DOUBLE, [3]))
    return model


def _in_a_body() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    inner = Net(2, 3, 4, 4)
    y = inner.bn("x", 3)
    out = [helper.make_tensor_value_info(y, TensorProto.DOUBLE, [2, 3, 4, 4])]
    body = helper.make_graph(inner.nodes, "body", [], out, inner.weights)
    y = n.op("Repeat", "x", body=body, domain="custom")
    model = n.model(domains=("custom",))
    model.graph.output.append(helper.make_tensor_value_info(y, TensorProto.DOUBLE, [2, 3, 4, 4]))
    return model


def _in_a_function() -> onnx.ModelProto:
    n = Net(2, 3, 4, 4)
    stats = [n.w(np.full(3, v)) for v in (1.5, 0.2, 0.3, 2.0)]
    y = n.op("Block", "x", *stats, domain="local")
    model = n.model(opset=18, domains=("local",))
    model.graph.output.append(helper.make_tensor_value_info(y, TensorProto.DOUBLE, [2, 3, 4, 4]))
    names = ["x", "g", "b", "m", "v"]
    norm = helper.make_node("BatchNormalization", names, ["y"], name="inner")
    split = helper.make_node("Split", ["x"], ["half", "rest"], axis=2)  # another operator in opset 18
    half = helper.make_tensor_value_info("half", TensorProto.DOUBLE, None)
    body = helper.make_graph([split], "body", [], [half])
    unread = helper.make_node("If", ["yes"], ["unread"], then_branch=body, else_branch=body)
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    nodes = [yes, unread, norm]
    model.functions.append(helper.make_function("local", "Block", names, ["y"], nodes, [helper.make_opsetid("", 17)]))
    return model


def _half_precision() -> onnx.ModelProto:
    n = Net(2, 3, 5, 5)
    y = n.op("Relu", n.conv("x", 3, 4))
    for _ in range(4):
        y = n.op(
            "Relu", n.op("Add", n.conv(n.op("Relu", n.conv(y, 4, 4, 3, pads=[1] * 4)), 4, 4), n.bn(y, 4, [1e-3] * 4))
        )
    model = n.model(n.conv(y, 4, 2))
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), tensor.name))
    for value_info in (*model.graph.input, *model.graph.output):
        value_info.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "scale-fixed": RULES["pinned_on_both_sides"],
    "scale-cycle": RULES["a_branch_that_meets_its_own_input"],
    "channels-tied": RULES["linear_on_the_last_axis_is_not_the_axis_of_bn"],
    "sign": RULES["negative_gamma_on_a_stream_before_relu"],
    "zero-padding": RULES["bn_then_zero_padded_conv"],
    "shift-taken": RULES["two_readers_that_need_different_offsets_before_padded_convs"],
    "shift-fixed": RULES["no_more_biases_than_norms"],
    "dead-channel": RULES["dead_channel_that_meets_zero_padding_as_a_positive_constant"],
    "precision": lambda: hostile("resnetv2_50", "gamma", 4),
    "range": _half_precision,
    "not-constant": RULES["statistics_computed_from_data"],
    "overridable": _overridable,
    "training-mode": RULES["batch_statistics"],
    "spatial-0": _spatial_0,
    "bad-statistics": RULES["a_negative_variance"],
    "unknown-shape": _behind_a_custom_op,
    "unknown-opset": _future,
    "no-channels": _rank_1,
    "in-subgraph": _in_a_body,
    "in-function": _in_a_function,
    "skipped": RULES["conv_then_bn"],
}


MODULES: dict[str, Callable[..., None]] = {
    "hook": traps.test_a_forward_pre_hook_of_a_norm,
    "in-code": traps.test_a_norm_with_an_activation_in_its_code_stays,
    "autocast": traps.test_norms_under_autocast_stay,
    "shared": traps.test_a_norm_called_twice_behind_different_convs_stays_whole_or_goes_whole,
    "in-place": traps.test_an_in_place_function_behind_a_removed_norm_gets_a_copy,
    "internal": faults.test_norms_that_cannot_be_handled,
    "undecided": norm_act.test_norms_that_the_search_did_not_reach_stay_undecided,
    "uncooperative-code": traps.test_one_norm_that_the_code_does_not_let_go_stays_and_others_fold,
    "untraced": traps.test_parts_are_folded_where_the_whole_cannot_be_traced,
}
"""Codes of PyTorch, and of faults, and the tests that reach them."""


@pytest.mark.parametrize("code", sorted(MODULES))
def test_the_code_of_pytorch_is_reached(code: str, request: pytest.FixtureRequest) -> None:
    test: Any = MODULES[code]
    assert f'"{code}"' in inspect.getsource(test)
    test(**{name: request.getfixturevalue(name) for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("code", sorted(MODELS))
def test_the_code_is_reached(code: str) -> None:
    plan = bnfold.inspect(MODELS[code](), skip=["*"] if code == "skipped" else [], leftovers="all")
    found = [bn.reason for bn in plan.batch_norms if bn.reason]
    assert code in {reason.code for reason in found}
    assert all(reason.text and not reason.text.endswith(".") for reason in found)


def test_exactly_the_codes_of_the_source_are_documented() -> None:
    text = "\n".join(
        path.read_text() for path in (ROOT / "bnfold").rglob("*.py") if not {"lrn", "shrinking"} & set(path.parts)
    )
    source = set(re.findall(r"Reason\(\s*\"([a-z0-9-]+)\"", text))
    page = re.findall(r"^\| `([a-z0-9-]+)` \| (.+?) \|", (ROOT / "docs/reasons.md").read_text(), re.M)
    norms, documented = ({code for code in codes if not code.startswith("merge-")} for codes in (source, dict(page)))
    assert norms == {*MODELS, *MODULES} == documented  # tests/test_merging.py has those of layers


def test_a_layer_without_room_for_an_offset_is_not_said_to_pad_with_zeros() -> None:
    """BN -> two MatMuls: the scale could go into the matrices, the offset would cost more than the norm."""
    n = Net(2, 4)
    x = n.bn("x", 4)
    ends = [n.op("Relu", n.op("MatMul", x, n.w(np.random.default_rng(i).standard_normal((4, 3))))) for i in range(2)]
    (bn,) = bnfold.inspect(n.model(*ends)).batch_norms
    assert bn.reason is not None
    assert bn.reason.code == "shift-fixed"
    assert "no bias" in bn.reason.text
