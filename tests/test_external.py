"""Weights in files beside the model that share bytes, have several readers, or lie in bodies and attributes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.cli import main
from bnfold.onnx.store.places import Place
from bnfold.onnx.write.sidefile import overlapping

from .nets import Net, node_named
from .test_onnx_file import agree, verdicts

Array = npt.NDArray[Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def send_out(tensor: TensorProto, offset: int, location: str = "w.bin", length: bool = True) -> None:
    """Let a tensor have its data in a file, from `offset` on."""
    raw = numpy_helper.to_array(tensor).tobytes()
    for part in ("raw_data", "float_data", "external_data"):
        tensor.ClearField(part)
    tensor.data_location = TensorProto.EXTERNAL
    places = {"location": location, "offset": str(offset)} | ({"length": str(len(raw))} if length else {})
    for key, value in places.items():
        tensor.external_data.add(key=key, value=value)


def tensors(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def fold_both(folder: Path, model: ModelProto) -> bnfold.FoldResult:
    """Fold a file, with the check and without; both compute what the original did."""
    path, out = folder / "m.onnx", folder / "out.onnx"
    path.write_bytes(model.SerializeToString())
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for verify in (True, False):
        result = bnfold.fold(path, out=out, verify=verify)
        onnx.checker.check_model(str(out))
        agree(onnx.load(path), onnx.load(out), "ort")
    assert {name: (folder / name).read_bytes() for name in before} == before
    return result


def two_convs(second: str = "Relu") -> Net:
    """conv1, bn1, an activation, conv2: both weights are of 40 x 40 x 3 x 3."""
    net = Net()
    x = net.bn(net.conv(net.input("x", ("N", 40, 8, 8)), (40, 40), "conv1"), 40, "bn1")
    net.output(net.conv(net.node(second, [x], "between"), (40, 40), "conv2"))
    return net


@pytest.mark.parametrize("also", [False, True], ids=["one_edited", "both_edited"])
@pytest.mark.parametrize("shift", [0, 4000, 57_596], ids=["same_bytes", "half", "one_number"])
def test_weights_that_share_bytes_are_edited_apart(folder: Path, shift: int, also: bool) -> None:
    net = two_convs()
    if also:
        net.outputs.clear()
        net.output(net.bn("conv2_out", 40, "bn2"))
    model = net.model()
    data = net.rng.standard_normal((57_600 + shift) // 4).astype(np.float32) / 20
    (folder / "w.bin").write_bytes(data.tobytes())
    for name, start in (("conv1_weight", 0), ("conv2_weight", shift)):
        send_out(tensors(model)[name], start)
    result = fold_both(folder, model)
    assert set(verdicts(result).values()) == {"folded"}
    size = (folder / "out.onnx.data").stat().st_size
    assert size <= 57_600 * (3 if also else 2) + shift + 2 * 4096


def test_a_weight_of_its_own_is_written_in_its_place(folder: Path) -> None:
    model = two_convs().model()
    data = b"".join(tensors(model)[f"conv{i}_weight"].raw_data for i in (1, 2))
    (folder / "w.bin").write_bytes(data)
    for name, start in (("conv1_weight", 0), ("conv2_weight", 57_600)):
        send_out(tensors(model)[name], start)
    fold_both(folder, model)
    new = (folder / "out.onnx.data").read_bytes()
    assert len(new) == len(data)
    assert new[57_600:] == data[57_600:]
    assert new[:57_600] != data[:57_600]


def test_a_weight_that_shares_bytes_with_one_in_a_body_is_edited_apart(folder: Path) -> None:
    net = two_convs()
    flag = net.input("flag", (), np.bool_)
    inner = helper.make_node("Conv", ["between_out", "inner_weight"], ["z"])
    tensor = numpy_helper.from_array(net.weights["conv1_weight"], "inner_weight")
    info = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    yes = helper.make_graph([inner], "yes", [], [info], [tensor])
    no = helper.make_graph([helper.make_node("Neg", ["between_out"], ["z2"])], "no", [], [_named(info, "z2")])
    net.output(net.node("If", [flag], "if", then_branch=yes, else_branch=no))
    model = net.model()
    (folder / "w.bin").write_bytes(tensors(model)["conv1_weight"].raw_data)
    send_out(tensors(model)["conv1_weight"], 0)
    (inner_tensor,) = (t for attribute in node_named(model, "if").attribute for t in attribute.g.initializer)
    send_out(inner_tensor, 0)
    assert verdicts(fold_both(folder, model)) == {"bn1": "folded"}


def _named(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(info)
    made.name = name
    return made


def test_a_constant_with_the_name_of_an_edited_weight_stays(folder: Path) -> None:
    """The tensor of a Constant node may have any name, that of a weight too."""
    net = two_convs()
    net.output(net.node("Constant", [], "constant", value=numpy_helper.from_array(np.zeros((40, 40, 3, 3), "f4"))))
    model = net.model()
    held = node_named(model, "constant").attribute[0].t
    held.name = "conv1_weight"
    values = net.filter("other", 40, 40, 3, 3)
    held.raw_data = net.weights[values].tobytes()
    (folder / "w.bin").write_bytes(tensors(model)["conv1_weight"].raw_data + held.raw_data)
    send_out(tensors(model)["conv1_weight"], 0)
    send_out(held, 57_600)
    assert verdicts(fold_both(folder, model)) == {"bn1": "folded"}


def test_folded_weights_in_constant_nodes_are_read_from_the_side_file(folder: Path) -> None:
    model = two_convs().model()
    weight = tensors(model)["conv1_weight"]
    node = helper.make_node("Constant", [], ["conv1_weight"], value=weight)
    model.graph.initializer.remove(weight)
    model.graph.node.insert(0, node)
    held = model.graph.node[0].attribute[0].t
    (folder / "w.bin").write_bytes(held.raw_data)
    send_out(held, 0)
    assert verdicts(fold_both(folder, model)) == {"bn1": "folded"}


def test_weights_that_a_function_holds_are_read_from_the_side_file(folder: Path) -> None:
    net = two_convs()
    net.domains["local"] = 1
    model = net.model()
    weight = tensors(model)["conv1_weight"]
    body = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    model.functions.append(helper.make_function("local", "Block", ["x", "b"], ["y"], body, model.opset_import))
    block = helper.make_node("Block", ["x", "conv1_bias"], ["conv1_out"], "conv1", domain="local")
    model.graph.node[0].CopyFrom(block)
    model.graph.initializer.remove(weight)
    held = model.functions[0].node[0].attribute[0].t
    (folder / "w.bin").write_bytes(held.raw_data)
    send_out(held, 0)
    assert verdicts(fold_both(folder, model)) == {"bn1": "folded"}


@pytest.mark.parametrize("op", ["Constant", "ConstantOfShape"])
def test_attributes_in_bodies_are_read_from_the_side_file(folder: Path, op: str) -> None:
    net = two_convs()
    flag = net.input("flag", (), np.bool_)
    value = net.rng.standard_normal(40 if op == "Constant" else 1).astype(np.float32)
    made = helper.make_node(op, ["size"] if op == "ConstantOfShape" else [], ["made"])
    made.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))
    net.weight("size", [1])
    nodes = [
        made,
        helper.make_node("Unsqueeze", ["made", "axes"], ["k"]),
        helper.make_node("Mul", ["between_out", "k"], ["z"]),
    ]
    net.weight("axes", [1, 2])
    shape = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    then = helper.make_graph(nodes, "then", [], [shape])
    otherwise = helper.make_graph([helper.make_node("Identity", ["between_out"], ["z"])], "else", [], [shape])
    net.output(net.node("If", [flag], "if", then_branch=then, else_branch=otherwise))
    model = net.model()
    held = next(a.g for a in model.graph.node[-1].attribute if a.name == "then_branch").node[0].attribute[0].t
    (folder / "w.bin").write_bytes(held.raw_data)
    send_out(held, 0)
    assert "folded" in verdicts(fold_both(folder, model)).values()


def dense(readers: str) -> Net:
    """A product and a norm behind it; its matrix of 96 x 96 is looked up in, or multiplied by, once more."""
    net = Net()
    x = net.input("x", (5, 96))
    net.weight("matrix", net.rng.standard_normal((96, 96)) / 10)
    net.weight("rows", np.arange(5))
    y = net.node("Gemm", [x, "matrix"], "gemm1")
    net.output(net.relu(net.bn(y, 96, "bn1"), "relu1"), (5, 96))
    if readers == "gather":
        net.output(net.node("Gather", ["matrix", "rows"], "gather"), (5, 96))
    elif readers == "gemm":
        net.output(net.node("Gemm", [x, "matrix"], "gemm2"), (5, 96))
    else:
        net.output(net.bn(net.node("Gemm", [x, "matrix"], "gemm2"), 96, "bn2"), (5, 96))
    return net


@pytest.mark.parametrize("stale", [False, True], ids=["nothing_there", "stale_side_file"])
@pytest.mark.parametrize("readers", ["gather", "gemm", "gemm_and_norm"])
def test_a_weight_with_another_reader_is_read_from_its_own_file(folder: Path, readers: str, stale: bool) -> None:
    net = dense(readers)
    onnx.save(net.model(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=4096)
    if stale:
        net.rng.standard_normal(2 * 96 * 96).astype(np.float32).tofile(folder / "out.onnx.data")
    for verify in (False, True):
        result = bnfold.fold(folder / "m.onnx", out=folder / "out.onnx", verify=verify)
        assert set(verdicts(result).values()) == {"folded"}
        agree(net.model(), onnx.load(folder / "out.onnx"), "ort")
    completed = result.model
    onnx.external_data_helper.load_external_data_for_model(completed, str(folder))
    agree(net.model(), completed, "ort")


def test_large_new_tensors_of_a_model_with_external_data_lie_beside_it_too(folder: Path) -> None:
    """One file can hold 2 GiB. Here a Transpose makes the weight that is folded, and nothing is left of the old one."""
    net = Net()
    x = net.node("Transpose", [net.weight("matrix", net.rng.standard_normal((96, 96)) / 10)], "turned")
    net.output(net.bn(net.node("Gemm", [net.input("x", (5, 96)), x], "gemm1"), 96, "bn1"), (5, 96))
    onnx.save(net.model(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=4096)
    for verify in (False, True):
        bnfold.fold(folder / "m.onnx", out=folder / "out.onnx", verify=verify)
        assert (folder / "out.onnx").stat().st_size < 4096
        assert (folder / "out.onnx.data").stat().st_size == 96 * 96 * 4
        agree(net.model(), onnx.load(folder / "out.onnx"), "ort")


def test_side_files_of_which_no_length_is_said_can_be_joined(folder: Path) -> None:
    model = two_convs().model()
    for i in (1, 2):
        weight = tensors(model)[f"conv{i}_weight"]
        (folder / f"w{i}.bin").write_bytes(weight.raw_data)
        send_out(weight, 0, f"w{i}.bin", length=False)
    fold_both(folder, model)


def test_data_of_which_no_length_is_said_end_where_shape_and_type_say(folder: Path) -> None:
    """As onnxruntime reads them; onnx's own loader takes the rest of the file."""
    model = two_convs().model()
    weight = tensors(model)["conv1_weight"]
    (folder / "w.bin").write_bytes(weight.raw_data + b"and more")
    send_out(weight, 0, length=False)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    bnfold.fold(folder / "m.onnx", out=folder / "out.onnx")
    agree(two_convs().model(), onnx.load(folder / "out.onnx"), "ort")


def test_data_in_a_file_of_two_names_are_read(folder: Path) -> None:
    """Installers link files; onnx's own loader refuses those that have a second name."""
    model = two_convs().model()
    weight = tensors(model)["conv1_weight"]
    (folder / "cache").mkdir()
    (folder / "cache" / "w.bin").write_bytes(weight.raw_data)
    (folder / "w.bin").hardlink_to(folder / "cache" / "w.bin")
    send_out(weight, 0)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    result = bnfold.fold(folder / "m.onnx", out=folder / "out.onnx")
    assert set(verdicts(result).values()) == {"folded"}
    agree(two_convs().model(), onnx.load(folder / "out.onnx"), "ort")


@pytest.mark.parametrize(("side", "out"), [("o.onnx.data", "o.onnx"), ("w.bin", "w.bin"), ("o.onnx.data", "link")])
def test_an_output_in_the_place_of_the_models_own_data_is_refused(folder: Path, side: str, out: str) -> None:
    model = two_convs().model()
    weight = tensors(model)["conv1_weight"]
    (folder / side).write_bytes(weight.raw_data)
    send_out(weight, 0, side)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "link").symlink_to(folder / "o.onnx")
    before = {name: (folder / name).read_bytes() for name in (side, "m.onnx")}
    with pytest.raises(bnfold.UsageError, match="holds weights of the model"):
        bnfold.fold(folder / "m.onnx", out=folder / out)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_no_command_writes_over_the_models_own_data(folder: Path) -> None:
    """Names that end in .onnx too, which the other commands insist on; and a report in place of the data."""
    model = two_convs().model()
    weight = tensors(model)["conv1_weight"]
    (folder / "w.onnx").write_bytes(weight.raw_data)
    send_out(weight, 0, "w.onnx")
    path, out = folder / "m.onnx", folder / "w.onnx"
    path.write_bytes(model.SerializeToString())
    data = np.zeros((4, 40, 8, 8), np.float32)
    calls: list[Callable[[], object]] = [
        lambda: bnfold.calibrate(path, data, out=out),
        lambda: bnfold.swap_lrn(path, data=data, out=out),
        lambda: bnfold.retrain(path, data, teacher=path, out=out),
    ]
    for call in calls:
        with pytest.raises(bnfold.UsageError, match="holds weights of the model"):
            call()
    for args in (["fold", str(path), "-o", str(folder / "o.onnx")], ["verify", str(path), str(path)]):
        done = CliRunner().invoke(main, [*args, "--report", str(out)])
        assert (done.exit_code, "this command reads it" in done.stderr) == (2, True)
    assert out.read_bytes() == numpy_helper.to_array(tensors(two_convs().model())["conv1_weight"]).tobytes()


def test_types_that_share_bytes_need_half_of_them(folder: Path) -> None:
    """128 numbers of 4 bits lie in 64 bytes."""
    net = two_convs()
    net.opset, net.ir = 21, 10
    model = net.model()
    packed = TensorProto(name="q", data_type=TensorProto.INT4, dims=[128], data_location=TensorProto.EXTERNAL)
    packed.external_data.add(key="location", value="q.bin")
    (folder / "q.bin").write_bytes(net.rng.bytes(64))
    model.graph.initializer.append(packed)
    fold_both(folder, model)
    assert (folder / "out.onnx.data").read_bytes() == (folder / "q.bin").read_bytes()


def test_overlaps_are_found_as_by_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        places = [Place(Path("ab"[rng.integers(2)]), *map(int, rng.integers(0, (40, 9)))) for _ in range(8)]
        pairs = [(i, j) for i in range(8) for j in range(8) if i != j and _meet(places[i], places[j])]
        assert overlapping(places) == {i for pair in pairs for i in pair}


def _meet(a: Place, b: Place) -> bool:
    common = range(max(a.offset, b.offset), min(a.offset + a.length, b.offset + b.length))
    return a.path == b.path and len(common) > 0
