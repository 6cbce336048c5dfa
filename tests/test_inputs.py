"""What models are compared on: a user's data, images, and made-up inputs in their valid range."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper
from PIL import Image

import bnfold
from bnfold.cli import main
from bnfold.errors import DataError, UsageError
from bnfold.judge.criteria.inputs import KINDS, Inputs, InputSpec
from bnfold.judge.subjects.runners import input_specs
from tests.nets import Net, conv_bn


def spec(*shape: Any, dtype: npt.DTypeLike = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def feeds(inputs: Inputs, *specs: InputSpec) -> list[tuple[str, dict[str, Any]]]:
    return list(next(iter(inputs.choices(list(specs)))).feeds())


def test_data_go_through_in_batches_and_the_last_is_filled_up() -> None:
    data = np.arange(10, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    found = feeds(Inputs(data=data), spec(4, 3))
    assert [kind for kind, _ in found] == ["data"] * 3
    assert [feed["x"][:, 0].tolist() for _, feed in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert [feed["x"].shape for _, feed in feeds(Inputs(data=data), spec("N", 3))] == [(8, 3), (8, 3)]
    assert [feed["x"].shape for _, feed in feeds(Inputs(data=data[:5]), spec("N", 3))] == [(5, 3)]
    assert len(feeds(Inputs(data=data, samples=4), spec(4, 3))) == 1
    assert len(feeds(Inputs(data=np.zeros((300, 3), np.float32)), spec(4, 3))) == 16  # 64 samples, unless told


def test_arrays_in_a_file_go_by_the_names_of_inputs(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, b=np.ones((4, 2)), a=np.zeros((4, 3)), y=np.arange(4))
    (_, feed), *_ = feeds(Inputs(data=path), spec(2, 3, name="a"), spec(2, 2, name="b", dtype=np.float16))
    assert (feed["a"].dtype.name, feed["b"].dtype.name) == ("float32", "float16")
    assert feed["b"].all()
    assert not feed["a"].any()
    with pytest.raises(DataError, match=r"no array for input 'c'; found: a, b"):
        feeds(Inputs(data=path), spec(2, 3, name="a"), spec(2, 2, name="c"))


def test_inputs_without_a_batch_axis_are_the_same_for_all_samples(tmp_path: Path) -> None:
    path, anchors = tmp_path / "data.npz", np.arange(12.0).reshape(4, 3)
    np.savez(path, x=np.arange(20.0).reshape(10, 2), scale=np.float32(0.5), anchors=anchors)
    specs = spec("N", 2, name="x"), spec(name="scale"), spec(4, 3, name="anchors")
    found = [feed for _, feed in feeds(Inputs(data=path), *specs)]
    assert [feed["x"].shape for feed in found] == [(8, 2), (8, 2)]
    assert all(feed["scale"].shape == () and feed["scale"] == 0.5 for feed in found)
    assert all(np.array_equal(feed["anchors"], anchors) for feed in found)
    once = feeds(Inputs(data={"x": np.ones((1, 2)), "anchors": anchors}), spec(1, 2, name="x"), specs[2])
    assert [{name: value.shape for name, value in feed.items()} for _, feed in once] == [
        {"x": (1, 2), "anchors": (4, 3)}
    ]
    assert [feed["scale"].shape for _, feed in feeds(Inputs(data={"scale": np.array(2.0)}), specs[1])] == [()]
    with pytest.raises(
        DataError, match=r"different numbers of samples \(x: 10, anchors: 5\); .* own shape: .*anchors 4x3"
    ):
        feeds(Inputs(data={"x": np.ones((10, 2)), "anchors": np.ones((5, 3)), "scale": np.array(1.0)}), *specs)
    with pytest.raises(DataError, match="scale holds NaN"):
        feeds(Inputs(data={"x": np.ones((10, 2)), "anchors": anchors, "scale": np.array(np.nan)}), *specs)


@pytest.mark.parametrize(
    ("data", "shape", "said"),
    [
        (np.zeros((4, 3, 8, 8)), ("N", 3, 9, 9), "samplesx3x8x8 does not fit input 'x', which is Nx3x9x9"),
        (np.zeros((4, 3, 8)), ("N", 3, 8, 8), "samplesx3x8 does not fit"),
        (np.zeros((0, 3, 8, 8)), ("N", 3, 8, 8), "no samples in it"),
        (np.full((4, 3), np.nan), ("N", 3), "sample 0 of x holds NaN or infinity"),
        (np.array(3.0), ("N", 3), "no arrays in it"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: Any, shape: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        feeds(Inputs(data=data), spec(*shape))


def test_fractions_are_no_indices() -> None:
    with pytest.raises(DataError, match="takes int64, float64 found"):
        feeds(Inputs(data=np.zeros((4, 3))), spec("N", 3, dtype=np.int64))


@pytest.mark.parametrize(
    ("value", "said"), [(300, "takes uint8, 300 found"), (-1, "takes uint8, -1 found"), (1j, "takes uint8, complex128")]
)
def test_numbers_that_an_input_cannot_hold_are_refused(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        feeds(Inputs(data=np.full((4, 3), value)), spec("N", 3, dtype=np.uint8))


def test_imaginary_parts_are_not_dropped() -> None:
    with pytest.raises(DataError, match="takes float32, complex128 found"):
        feeds(Inputs(data=np.full((4, 3), 1j)), spec("N", 3))


def picture(path: Path, size: tuple[int, int], colour: Any, mode: str = "RGB") -> None:
    Image.new(mode, size, colour).save(path)


def test_images_get_the_layout_the_size_and_the_scale_of_the_input(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (20, 10), (255, 0, 51))
    picture(tmp_path / "b.jpg", (8, 8), (255, 255, 255))
    (_, feed), *_ = feeds(Inputs(data=tmp_path, mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 0.2)), spec("N", 3, 4, 6))
    assert feed["x"].shape == (2, 3, 4, 6)
    assert feed["x"][0, :, 2, 3].tolist() == pytest.approx([1.0, 0.0, 1.0])
    (_, feed), *_ = feeds(Inputs(data=tmp_path), spec(1, 4, 6, 3))
    assert feed["x"].shape == (1, 4, 6, 3)
    (_, feed), *_ = feeds(Inputs(data=tmp_path), spec("N", 1, 4, 6))
    assert feed["x"].shape == (2, 1, 4, 6)
    (_, feed), *_ = feeds(Inputs(data=tmp_path), spec("N", 4, 6, 3, dtype=np.uint8))
    assert feed["x"][0, 0, 0].tolist() == [255, 0, 51]
    (_, feed), *_ = feeds(Inputs(data=tmp_path, shapes={"": (2, 3, 5, 5)}), spec("N", 3, "h", "w"))
    assert feed["x"].shape == (2, 3, 5, 5)


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples in it"):
        feeds(Inputs(data=tmp_path), spec("N", 3, 4, 4))
    picture(tmp_path / "a.png", (20, 10), 0)
    picture(tmp_path / "b.png", (8, 8), 0)
    with pytest.raises(DataError, match="images of different sizes"):
        feeds(Inputs(data=tmp_path), spec("N", 3, "h", "w"))
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"c\.png: no image that can be read"):
        feeds(Inputs(data=tmp_path), spec("N", 3, 4, 4))


def test_samples_ask_for_more_draws_of_each_kind() -> None:
    once, more = feeds(Inputs(), spec(2, 3)), feeds(Inputs(samples=5), spec(2, 3))
    assert [kind for kind, _ in once] == list(KINDS)
    assert [kind for kind, _ in more] == list(KINDS) * 3
    assert np.array_equal(once[0][1]["x"], more[0][1]["x"])
    assert not np.array_equal(more[0][1]["x"], more[len(KINDS)][1]["x"])
    assert {kind for kind, _ in feeds(Inputs(kinds=("image", "zeros")), spec(2, 3))} == {"image", "zeros"}


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"samples": 0}, {"kinds": ("odd",)}])
def test_wrong_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        Inputs(**wrong)


def lookup(rows: int) -> ModelProto:
    net = Net()
    index = net.node("Cast", [net.input("ids", ("N", 6), np.int32)], "wide", to=7)
    net.output(net.node("Gather", [net.weight("table", net.rng.standard_normal((rows, 4))), index], "row"))
    return net.model()


def test_indices_lie_inside_the_table_that_they_look_up(tmp_path: Path) -> None:
    assert [s.high for s in input_specs(lookup(5))] == [5]
    assert [s.high for s in input_specs(lookup(500))] == [500]
    onnx.save(lookup(3), tmp_path / "small.onnx")
    check = bnfold.verify(tmp_path / "small.onnx", tmp_path / "small.onnx")
    assert check.passed
    assert check.warnings == ()
    net = Net()
    net.output(net.node("Cast", [net.input("pixels", ("N", 3), np.uint8)], "wide", to=1))
    assert [s.high for s in input_specs(net.model())] == [256]


def test_unknown_sizes_are_those_that_layers_ask_for() -> None:
    """Some converters write no size at all."""
    net = Net(opset=13)
    image, last, row, pair = (net.input(name, (None,) * rank) for name, rank in zip("abcd", (4, 4, 2, 3), strict=True))
    net.output(net.conv(net.relu(net.bn(image, 6, "bn"), "relu"), (6, 4), "conv1"))
    net.output(net.conv(net.node("Transpose", [last], "turned", perm=[0, 3, 1, 2]), (3, 4), "conv2", group=1))
    net.output(net.node("Gemm", [row, net.filter("matrix", 7, 5)], "gemm", transB=1), (None, 7))
    net.output(net.node("MatMul", [pair, net.filter("other", 9, 2)], "matmul"), (None, None, 2))
    shapes = [spec.shape for spec in input_specs(net.model())]
    assert shapes == [(None, 6, None, None), (None, None, None, 3), (None, 5), (None, None, 9)]
    result = bnfold.fold(net.model())
    assert result.check is not None
    assert result.check.passed


@pytest.mark.parametrize("carrier", ["Constant", "Cast", "DequantizeLinear"])
def test_tables_that_nodes_hold_or_carry_are_tables(carrier: str) -> None:
    net = Net()
    table = net.rng.standard_normal((5, 4)).astype(np.float32)
    if carrier == "Constant":
        held = net.node("Constant", [], "held", value=numpy_helper.from_array(table))
    elif carrier == "Cast":
        net.weights["table"] = table.astype(np.float16)
        held = net.node("Cast", ["table"], "held", to=1)
    else:
        net.weights["table"] = np.ones((5, 4), np.int8)
        held = net.node("DequantizeLinear", ["table", net.weight("scale", 0.5)], "held")
    net.output(net.node("Gather", [held, net.input("ids", ("N", 6), np.int32)], "row"))
    assert [s.high for s in input_specs(net.model())] == [5]


def test_a_fault_is_found_on_a_users_data(tmp_path: Path) -> None:
    conv_bn(seed=0).save(tmp_path / "a.onnx")
    conv_bn(seed=1).save(tmp_path / "b.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32))
    for other, code in (("a.onnx", 0), ("b.onnx", 1)):
        arguments = ["verify", str(tmp_path / "a.onnx"), str(tmp_path / other), "--data", str(tmp_path / "x.npy")]
        done = CliRunner().invoke(main, [*arguments, "--json", "-q"])
        assert done.exit_code == code, done.output
        assert {entry["kind"] for entry in json.loads(done.stdout)["outputs"]} == {"data"}
    missing = CliRunner().invoke(main, ["verify", *[str(tmp_path / "a.onnx")] * 2, "--data", str(tmp_path / "z.npy")])
    assert missing.exit_code == 1
    assert "z.npy: no such file or folder" in missing.stderr
