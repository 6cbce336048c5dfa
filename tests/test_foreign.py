"""Operators of domains that nothing here knows: norms elsewhere fold, and the check goes around them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.cli import main
from tests.test_rules import Net

QONNX = "qonnx.custom_op.general"


def quantised(imported: bool = True, typed: bool = True, ends: bool = False) -> onnx.ModelProto:
    """Conv, norm, Relu, Quant as Brevitas writes it, and the same again; `ends`: with a Quant as the graph output."""
    n = Net(2, 3, 8, 8)
    x = "x"
    for into, out in ((3, 4), (4, 5)):
        x = n.op("Relu", n.bn(n.conv(x, into, out, 3), out))
        if into == 3 or ends:
            x = n.op("Quant", x, n.w(0.1), n.w(0.0), n.w(8.0), domain=QONNX, signed=0, narrow=0, rounding_mode="ROUND")
    model = n.model(opset=13, domains=(QONNX,))
    model.graph.output.append(helper.make_tensor_value_info(x, TensorProto.DOUBLE, [2, 5, 4, 4]))
    if typed:
        model.graph.value_info.append(helper.make_tensor_value_info("quant3", TensorProto.DOUBLE, [2, 4, 6, 6]))
    if not imported:
        del model.opset_import[1:]
    return model


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("imported", [True, False])
def test_norms_fold_and_the_check_says_what_it_could_not_run(imported: bool, typed: bool, ends: bool) -> None:
    """onnx.checker refuses a file whose domain has no version; that alone stops nothing."""
    model = quantised(imported, typed, ends)
    result = bnfold.fold(model)
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded", "folded"]
    assert result.check is not None
    assert result.check.passed
    assert any(f"Quant ({QONNX}) cannot be run here" in warning for warning in result.check.warnings)
    outputs = {output.output for output in result.check.outputs}
    assert outputs == ({"Quant_0.in0", "Quant_1.in0"} if ends else {"Quant_0.in0", "relu6"})
    left = Counter(node.op_type for node in result.model.graph.node)
    assert left == {"Conv": 2, "Relu": 2, "Quant": 1 + ends}
    assert [opset.domain for opset in result.model.opset_import] == [opset.domain for opset in model.opset_import]


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_wrong_model_fails_on_either_side_of_what_cannot_be_run(place: str, tmp_path: Path) -> None:
    model = quantised()
    wrong = bnfold.fold(model, verify=False).model
    conv = [node for node in wrong.graph.node if node.op_type == "Conv"][place == "behind"]
    weight = next(t for t in wrong.graph.initializer if t.name == conv.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.001, weight.name))
    check = bnfold.verify(model, wrong)
    assert not check.passed
    assert ("Quant_0.in0" if place == "before" else "relu6") in check.message


@pytest.mark.parametrize("what", ["type", "attribute", "constant"])
def test_other_unknown_operators_are_no_match(what: str) -> None:
    other = quantised()
    quant = next(node for node in other.graph.node if node.op_type == "Quant")
    if what == "type":
        quant.op_type = "Trunc"
    elif what == "attribute":
        next(a for a in quant.attribute if a.name == "signed").i = 1
    else:
        scale = next(t for t in other.graph.initializer if t.name == quant.input[1])
        scale.CopyFrom(numpy_helper.from_array(np.array(0.2), scale.name))
    with pytest.raises(bnfold.VerificationError, match="other operators that nothing here can run"):
        bnfold.verify(quantised(), other)


def test_an_unknown_operator_without_a_shape_is_said(tmp_path: Path) -> None:
    """Nothing can be made up for what it gives; the result is written unverified only where that is asked for."""
    n = Net(2, 3, 8, 8)
    x = n.op("Relu", n.bn(n.conv("x", 3, 4, 3), 4))
    shape = n.op("Mystery", domain="example.ops")
    model = n.model(opset=13, domains=("example.ops",))
    n.nodes.clear()
    model.graph.output.append(helper.make_tensor_value_info(x, TensorProto.DOUBLE, [2, 4, 6, 6]))
    model.graph.output.append(helper.make_tensor_value_info(shape, TensorProto.DOUBLE, None))
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    refused = CliRunner().invoke(main, ["fold", str(path), "-o", str(out)])
    assert refused.exit_code == 1
    assert "no known shape" in refused.stderr
    assert "--no-verify" in refused.stderr
    assert not out.exists()
    done = CliRunner().invoke(main, ["fold", str(path), "-o", str(out), "--no-verify"])
    assert done.exit_code == 0
    assert "NOT VERIFIED" in done.stdout
    assert np.any([node.op_type == "Mystery" for node in onnx.load(out).graph.node])
