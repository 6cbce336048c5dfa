"""External data of more than 2 GB: copied, not loaded. And places for data that are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from bnfold.cli import main
from tests.nets import conv_bn

ROWS, WIDTH = 600_000, 1024
TABLE = 4 * ROWS * WIDTH
"""Bytes of a table of embeddings, more than 2 GB."""
MEASURED = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "bnfold", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def external(name: str, shape: list[int], location: str, offset: int) -> TensorProto:
    """A float32 tensor in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    length = 4 * int(np.prod(shape))
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.slow
@pytest.mark.skipif(shutil.disk_usage(".").free < 6e9, reason="needs 6 GB of disk where files have no holes")
def test_more_than_2_gb_are_copied_and_never_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32, 3, 3)).astype(np.float32)
    gamma, beta, mean, var = (rng.uniform(0.5, 2.0, 64).astype(np.float32) for _ in range(4))
    planted = {at: rng.bytes(64) for at in (0, 123_456_789, TABLE - 64)}
    with (tmp_path / "data.bin").open("wb") as file:
        for at, value in planted.items():
            file.seek(at)
            file.write(value)
        file.seek(TABLE)
        file.write(weight.tobytes())
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], "bn", epsilon=1e-3),
        helper.make_node("Gather", ["table", "tokens"], ["z"], "embed"),
    ]
    tensors = [external("table", [ROWS, WIDTH], "data.bin", 0), external("weight", [64, 32, 3, 3], "data.bin", TABLE)]
    vectors = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    tensors += [numpy_helper.from_array(value, name) for name, value in vectors.items()]
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32, "h", "w"]),
         helper.make_tensor_value_info("tokens", TensorProto.INT64, ["t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64, "h", "w"]),
         helper.make_tensor_value_info("z", TensorProto.FLOAT, ["t", WIDTH])],
    )  # fmt: skip
    graph = helper.make_graph(nodes, "big", ends[0], ends[1], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    arguments = ["fold", "in.onnx", "-o", "out.onnx", "--no-verify", "-q", "--json"]
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.strip().splitlines()[-1]) / 1024
    assert peak < 400, f"{peak:.0f} MiB"
    out = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert [node.op_type for node in out.graph.node] == ["Conv", "Gather"]
    places = {t.name: {e.key: e.value for e in t.external_data} for t in out.graph.initializer}
    assert places["table"]["location"] == "out.onnx.data"
    assert (tmp_path / "out.onnx.data").stat().st_size == TABLE + weight.nbytes
    inv = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + float(np.float32(1e-3)))
    with (tmp_path / "out.onnx.data").open("rb") as file:
        for at, value in planted.items():
            file.seek(at)
            assert file.read(64) == value
        file.seek(int(places["weight"]["offset"]))
        new = np.frombuffer(file.read(weight.nbytes), np.float32).reshape(weight.shape)
    expected = (weight.astype(np.float64) * inv.reshape(-1, 1, 1, 1)).astype(np.float32)
    assert np.array_equal(new, expected)


@pytest.mark.parametrize("where", ["../outside.bin", "{}/outside.bin", "link.bin", "sub/../../outside.bin"])
def test_data_outside_the_folder_of_the_model_are_refused(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(10_000))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    model = conv_bn().model()
    tensor = next(t for t in model.graph.initializer if t.name == "conv1_weight")
    tensor.CopyFrom(external(tensor.name, list(tensor.dims), where.format(tmp_path), 0))
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    result = CliRunner().invoke(main, ["fold", str(folder / "in.onnx"), "-o", str(folder / "out.onnx"), "-q"])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "outside the folder of the model" in result.stderr
    assert not (folder / "out.onnx").exists()
