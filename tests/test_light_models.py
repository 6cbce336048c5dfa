"""The real graphs that the onnx package ships: through the command as they are, and with random weights in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import bnfold
from bnfold.cli import main

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
EXPECTED = {  # norms, folded; Caffe's Scale layers (a Mul and an Add behind each BN) are listed too
    "light_resnet50": (53, 53),
    "light_shufflenet": (49, 49),
    "light_inception_v2": (207, 207),
    "light_densenet121": (363, 304),
    "light_bvlc_alexnet": (0, 0),
}


def randomised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Random weights of sensible size in place of the constants, whose outputs would not depend on the input."""
    rng = np.random.default_rng(11)
    uses = {name: (node, i) for node in model.graph.node for i, name in enumerate(node.input)}
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for i, node in enumerate(model.graph.node):
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        reader, position = uses[node.output[0]]
        value = _value(rng, reader.op_type, position, shape).astype(np.float32)
        name = node.output[0]
        model.graph.node[i].CopyFrom(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))
        )
    return model


def _value(
    rng: np.random.Generator, op: str, position: int, shape: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if op == "BatchNormalization":
        if position == 4:
            return np.asarray(np.exp(rng.uniform(-0.7, 0.7, shape)))
        return np.asarray(np.abs(rng.normal(1, 0.3, shape)) + 0.1 if position == 1 else rng.normal(0.1, 0.3, shape))
    if op in ("Conv", "Gemm") and len(shape) > 1:
        fan = np.prod(shape[1:]) if op == "Conv" else shape[1]
        return np.asarray(rng.standard_normal(shape) * np.sqrt(2.0 / fan))
    if op == "Unsqueeze":  # Caffe's Scale: read by Mul or Add behind an Unsqueeze
        return np.asarray(np.abs(rng.normal(1, 0.2, shape)) + 0.2)
    return rng.normal(0, 0.1, shape)


def _fold(path: Path, tmp_path: Path) -> tuple[dict[str, object], onnx.ModelProto]:
    out = tmp_path / "out.onnx"
    result = CliRunner().invoke(
        main, ["fold", str(path), "-o", str(out), "--json", "--leftovers", "all"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), onnx.load(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_light_model_as_it_is(name: str, tmp_path: Path) -> None:
    report, folded = _fold(LIGHT / f"{name}.onnx", tmp_path)
    verification = report["verification"]
    assert isinstance(verification, dict)
    assert verification["passed"]
    original = onnx.load(LIGHT / f"{name}.onnx")
    kept = {t.name for t in original.graph.initializer}
    real_inputs = [v.name for v in original.graph.input if v.name not in kept]
    still = {t.name for t in folded.graph.initializer}
    assert [v.name for v in folded.graph.input if v.name not in still] == real_inputs
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["light_inception_v2", "light_resnet50", "light_shufflenet"])
def test_a_norm_with_a_scale_behind_it_goes_however_small_the_scale(name: str) -> None:
    """Caffe's norm and Scale on a tensor that nobody else reads, in models whose weights are all 0.02, say."""
    plan = bnfold.inspect(LIGHT / f"{name}.onnx")
    assert plan.counts()["folded"] == len(plan.batch_norms)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"light_bvlc_alexnet"}))
def test_light_model_with_random_weights(name: str, tmp_path: Path) -> None:
    path = tmp_path / "random.onnx"
    onnx.save(randomised(onnx.load(LIGHT / f"{name}.onnx")), path)
    report, _ = _fold(path, tmp_path)
    summary = report["summary"]
    assert isinstance(summary, dict)
    assert (summary["batch_norms"], summary["folded"]) == EXPECTED[name]
