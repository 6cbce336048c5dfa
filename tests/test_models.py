"""The trained networks that ship: no batch norm is left, and not one image is labelled otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import bnfold
from bnfold.torch.store.load import build

MODELS = Path(__file__).parents[1] / "models"
EXPECTED = {"preact_resnet_mnist": (25, 25, 0), "densenet_digits": (27, 15, 12)}
TESTS = {"preact_resnet_mnist": ("mnist_test.npz", 0.98), "densenet_digits": ("digits_test.npz", 0.99)}


def _logits(path: Path, name: str) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], float]:
    with np.load(MODELS / TESTS[name][0]) as data:
        images = data["images"].astype(np.float32) / np.float32(data["peak"])
        labels = data["labels"]
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return logits, float((logits.argmax(1) == labels).mean())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_trained_models_fold_completely_and_label_alike(name: str, tmp_path: Path) -> None:
    source, out = MODELS / f"{name}.onnx", tmp_path / "folded.onnx"
    result = bnfold.fold(source, out=out, leftovers="all")
    counts = result.plan.counts()
    assert (counts["batch_norms"], counts["folded"], counts["reduced"]) == EXPECTED[name]
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(out).graph.node)
    before, accuracy = _logits(source, name)
    after, same = _logits(out, name)
    assert accuracy == same >= TESTS[name][1]
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_the_network_with_lrn_has_the_accuracy_that_is_written() -> None:
    from safetensors.torch import load_file

    model = build(str(MODELS / "lrn_net.py:LrnNet"), None).eval()
    model.load_state_dict(load_file(MODELS / "lrn_mnist.safetensors"))
    assert sum(isinstance(module, torch.nn.LocalResponseNorm) for module in model.modules()) == 2
    with np.load(MODELS / "mnist_test.npz") as data, torch.no_grad():
        logits = model(torch.from_numpy(data["images"].astype(np.float32) / np.float32(data["peak"])))
        right = int((logits.argmax(1).numpy() == data["labels"]).sum())
    assert f"| test accuracy | {right} / 1000 |" in (MODELS / "README.md").read_text()


def test_they_are_small_and_name_no_machine() -> None:
    for path in (*MODELS.glob("*.onnx"), *MODELS.glob("*.safetensors")):
        data = path.read_bytes()
        assert len(data) < 2_000_000
        assert not any(word in data for word in (b"site-packages", b"/home/", b"/root", b"/tmp"))
