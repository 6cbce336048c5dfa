"""ONNX networks trained by way of torch: the same function before, the same graph after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper
from sklearn.datasets import load_digits

import bnfold
from bnfold.cli import main
from bnfold.errors import DataError, ModelError, UsageError
from bnfold.judge.subjects.runners import OrtRunner
from bnfold.train.onnx_torch import OnnxNetwork, network, written_back
from tests.nets import Net
from tests.test_light_models import randomised
from tests.test_lrn_onnx import LIGHT, kinds

DIGITS = load_digits()
X = (DIGITS.images[:, None] / 8 - 1).astype(np.float32)
Y = DIGITS.target.astype(np.int64)
TRAIN = {"x": X[:1200], "y": Y[:1200]}


def classifier(softmax: bool = False, lrn: bool = True) -> ModelProto:
    """conv -> ReLU -> LRN -> MaxPool (asymmetric) -> conv -> BN -> ReLU -> mean -> Gemm."""
    net = Net(seed=3)
    x = net.relu(net.conv(net.input("x", ("N", 1, 8, 8)), (1, 8), "conv0", pad=1), "relu0")
    if lrn:
        x = net.node("LRN", [x], "lrn", size=3, alpha=0.5)
    x = net.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0])
    x = net.relu(net.bn(net.conv(x, (8, 16), "conv1", pad=1), 16, "bn"), "relu1")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "flat")
    bias = net.weight("fc_bias", np.zeros(10, np.float32))
    x = net.node("Gemm", [x, net.filter("fc_weight", 16, 10), bias], "fc", transB=0)
    net.output(net.node("Softmax", [x], "prob", axis=1) if softmax else x, ("N", 10))
    return net.model()


def accuracy(model: ModelProto, tmp_path: Path) -> float:
    path = tmp_path / "accuracy.onnx"
    onnx.save(model, path)
    (scores,) = OrtRunner(path).run({"x": X[1200:]}).values()
    return float((scores.argmax(1) == Y[1200:]).mean())


@pytest.mark.parametrize("softmax", [False, True])
def test_labels_raise_accuracy_and_the_graph_stays(softmax: bool, tmp_path: Path) -> None:
    model = classifier(softmax)
    onnx.save(model, tmp_path / "a.onnx")
    result = bnfold.retrain(tmp_path / "a.onnx", TRAIN, epochs=6, lr=0.1, out=tmp_path / "b.onnx")
    new = onnx.load(tmp_path / "b.onnx")
    assert accuracy(model, tmp_path) < 0.3
    assert accuracy(new, tmp_path) > 0.75
    assert [node.SerializeToString() for node in new.graph.node] == [n.SerializeToString() for n in model.graph.node]
    assert [(t.name, t.dims, t.data_type) for t in new.graph.initializer] == [
        (t.name, t.dims, t.data_type) for t in model.graph.initializer
    ]
    assert result.history.epochs[-1].loss is not None
    changed = {
        a.name for a, b in zip(model.graph.initializer, new.graph.initializer, strict=True)
        if not np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
    }  # fmt: skip
    assert changed == {t.name for t in model.graph.initializer}
    folded = bnfold.fold(new)  # the norms are norms still
    assert folded.plan.counts()["folded"] == 1


def test_a_swapped_network_learns_from_the_old_one_without_labels(tmp_path: Path) -> None:
    trained = bnfold.retrain(classifier(), TRAIN, epochs=3, lr=0.1).model
    onnx.save(trained, tmp_path / "old.onnx")
    swapped = bnfold.swap_lrn(tmp_path / "old.onnx", data=X[:200], out=tmp_path / "bn.onnx").model
    assert kinds(swapped)["BatchNormalization"] == 2

    def distance(model: ModelProto) -> float:
        onnx.save(model, tmp_path / "new.onnx")
        both = [next(iter(OrtRunner(tmp_path / f).run({"x": X[1200:]}).values())) for f in ("old.onnx", "new.onnx")]
        return float(((both[0] - both[1]) ** 2).mean())

    rest = bnfold.retrain(tmp_path / "bn.onnx", X[:1200], teacher=tmp_path / "old.onnx", epochs=2).model
    assert distance(rest) < 0.7 * distance(swapped)
    assert bnfold.fold(rest).plan.counts()["folded"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v1", "zfnet512", "resnet50", "shufflenet"])
def test_networks_of_the_onnx_package_give_the_same_in_torch(name: str, tmp_path: Path) -> None:
    model = randomised(onnx.load(LIGHT / f"light_{name}.onnx"))
    onnx.save(model, tmp_path / "a.onnx")
    defaults = {t.name for t in model.graph.initializer}
    (value,) = [v for v in model.graph.input if v.name not in defaults]
    rng = np.random.default_rng(0)
    x = rng.standard_normal([d.dim_value or 1 for d in value.type.tensor_type.shape.dim]).astype(np.float32)
    made = network(model, tmp_path / "a.onnx", {value.name: x})
    assert sum(p.numel() for p in made.parameters()) > 1e6
    assert written_back(model, made).SerializeToString() == model.SerializeToString()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    doubled = written_back(model, made)  # the weights are Constant nodes
    pairs = zip(model.graph.node, doubled.graph.node, strict=True)
    assert sum(a.SerializeToString() != b.SerializeToString() for a, b in pairs) >= sum(
        p.dim() > 1 for p in made.parameters()
    )


def test_what_torch_would_compute_otherwise_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.train import onnx_functions

    onnx.save(classifier(), tmp_path / "a.onnx")
    monkeypatch.setitem(onnx_functions.FUNCTIONS, "Relu", lambda a, i, t: torch.abs(i[0]))
    with pytest.raises(ModelError, match=r"a\.onnx: its form in torch gives another fc_out than onnxruntime"):
        bnfold.retrain(tmp_path / "a.onnx", TRAIN, out=tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_unknown_operators_are_named() -> None:
    net = Net()
    net.output(net.node("DepthToSpace", [net.conv(net.input("x", ("N", 1, 8, 8)), (1, 4), "c")], "d2s", blocksize=2))
    with pytest.raises(ModelError, match="DepthToSpace d2s: cannot be trained in torch: an operator that is not known"):
        bnfold.retrain(net.model(), TRAIN)
    net = Net()
    weight = net.node("Transpose", [net.filter("w", 1, 4, 3, 3)], "turned", perm=[1, 0, 2, 3])
    net.output(net.node("Conv", [net.input("x", ("N", 1, 8, 8)), weight], "c"))
    with pytest.raises(ModelError, match="Conv c: cannot be trained in torch: its weights are computed from others"):
        bnfold.retrain(net.model(), TRAIN)
    net = Net()
    net.output(net.node("MaxPool", [net.input("x", ("N", 1, 8, 8))], "p", kernel_shape=[2, 2], auto_pad="SAME_UPPER"))
    with pytest.raises(ModelError, match="auto_pad SAME_UPPER"):
        bnfold.retrain(net.model(), TRAIN)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"data": {"x": X[:20]}}, DataError, "no classes in it, and no teacher"),
        ({"data": {"x": X[:20, :, :4], "y": Y[:20]}}, DataError, "do not fit input 'x'"),
        ({"data": TRAIN, "inplace": True}, UsageError, "inplace is for PyTorch"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], error: Any, said: str) -> None:
    data = options.pop("data")
    with pytest.raises(error, match=said):
        bnfold.retrain(classifier(), data, **options)


def test_a_sample_whose_answer_depends_on_the_others_is_not_trained() -> None:
    net = Net(seed=3)
    x = net.conv(net.input("x", (4, 1, 8, 8)), (1, 2), "conv", pad=1)
    x = net.node("Reshape", [x, net.weight("shape", [4, 128])], "rows")
    x = net.node("Transpose", [net.node("Softmax", [net.node("Transpose", [x], "t")], "s")], "back")  # over the batch
    net.output(net.node("Gemm", [x, net.filter("w", 128, 10)], "fc"), (4, 10))
    with pytest.raises(ModelError, match="depends on the other samples"):
        bnfold.retrain(net.model(), TRAIN)


def test_a_reshaped_weight_is_trained_where_it_lies() -> None:
    net = Net(seed=3)
    x = net.relu(net.conv(net.input("x", ("N", 1, 8, 8)), (1, 8), "conv", pad=1), "relu")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "flat")
    weight = net.node("Reshape", [net.filter("w", 10, 8, 1, 1), net.weight("shape", [10, 8])], "rows")
    net.output(net.node("Gemm", [x, weight], "fc", transB=1), ("N", 10))
    model = net.model()
    new = bnfold.retrain(model, TRAIN, epochs=1, lr=0.1).model
    assert [node.op_type for node in new.graph.node] == [node.op_type for node in model.graph.node]
    old, now = (next(numpy_helper.to_array(t) for t in m.graph.initializer if t.name == "w") for m in (model, new))
    assert old.shape == now.shape
    assert np.abs(now - old).max() > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
def test_a_file_whose_lrn_an_exporter_wrote_out_teaches_and_learns(size: int, dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.LocalResponseNorm(size, 1.0),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10),
    ).eval()  # fmt: skip
    torch.onnx.export(net, (torch.from_numpy(X[:4]),), str(tmp_path / "lrn.onnx"), dynamo=dynamo)
    model = onnx.load(tmp_path / "lrn.onnx")
    assert "LRN" not in kinds(model)
    new = bnfold.retrain(model, TRAIN, epochs=1, lr=0.1).model
    assert kinds(new) == kinds(model)
    swapped = bnfold.swap_lrn(model, data=X[:200], init="standard").model
    assert kinds(swapped)["BatchNormalization"] == 1
    rest = bnfold.retrain(swapped, X[:1200], teacher=model, epochs=2).model
    wanted = net(torch.from_numpy(X[1200:1204])).detach().numpy()

    def distance(m: ModelProto) -> float:
        onnx.save(m, tmp_path / "m.onnx")
        (found,) = OrtRunner(tmp_path / "m.onnx").run({m.graph.input[0].name: X[1200:1204]}).values()
        return float(np.square(found - wanted).mean())

    assert distance(model) < 1e-10
    assert distance(rest) < distance(swapped)


def test_shared_weights_stay_shared() -> None:
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 1, 8, 8)), (1, 1), "conv", pad=1), "relu")
    net.output(net.node("Conv", [x, "conv_weight", "conv_bias"], "again", pads=[1, 1, 1, 1]), ("N", 1, 8, 8))
    made = OnnxNetwork(net.model())
    assert len(list(made.parameters())) == 2
    assert made.layers["0"].weight is made.layers["2"].weight


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(classifier(), "a.onnx")
    np.savez("train.npz", **TRAIN)
    arguments = ["retrain", "a.onnx", "-o", "b.onnx", "--data", "train.npz", "--epochs", "1", "--html", "r.html", "-q"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "wrote b.onnx" in done.stdout
    text = Path("r.html").read_text()
    assert "bnfold retrain" in text
    assert "<polyline" in text
