"""What the command says beside its verdicts: names, sizes, bounds, and nothing that libraries print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import nn

import bnfold
from bnfold.calibration.report import CalibrationReport, CalibrationResult
from bnfold.judge.criteria.check import Measure, OutputError
from bnfold.judge.criteria.criterion import Criterion
from bnfold.lrn.report import SwapReport, SwapResult
from bnfold.report.table import check_table
from bnfold.train.history import History

from .nets import Net, conv_bn, input_bn
from .test_cli import here, refused, run, run_process

assert here


@pytest.mark.parametrize("name", ["out.pth", "out.PT", "out.pt2", "out.safetensors"])
def test_an_onnx_model_is_not_written_under_a_name_of_pytorch(here: Path, name: str) -> None:
    assert "an ONNX model is written" in refused(here, 2, "fold", "model.onnx", "-o", name)


def test_a_name_to_skip_that_no_norm_of_a_module_has() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    example = (torch.zeros(2, 3, 8, 8),)
    assert bnfold.inspect(module, example, skip=["1"]).counts()["kept"] == 1
    for name in ("2", "bn"):
        with pytest.raises(bnfold.UsageError, match=rf"skip '{name}': no norm of Sequential .*it has 1"):
            bnfold.fold(module, example, skip=[name])


def test_two_reports_in_one_file_are_wrong_usage(here: Path) -> None:
    for other in ("r.x", "./r.x"):
        line = refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--report", "r.x", "--html", other)
        assert "two reports in the same file" in line


def test_a_page_without_a_check_says_so_and_names_no_error() -> None:
    assert run("fold", "model.onnx", "-o", "out.onnx", "--no-verify", "--html", "r.html").exit_code == 0
    page = Path("r.html").read_text().partition("</style>")[2]
    assert ">not verified</span>" in page
    assert "error" not in page
    assert "passed" not in page


def test_what_was_written_is_named_with_its_side_file_and_sizes(here: Path) -> None:
    result = run("fold", "model.onnx", "-o", "out.onnx")
    sizes = [Path(name).stat().st_size / 1000 for name in ("out.onnx", "model.onnx")]
    assert result.stdout.endswith(f"wrote out.onnx, {sizes[0]:.3g} kB (model.onnx: {sizes[1]:.3g} kB)\n")
    net = Net(0)
    y = net.node("Sigmoid", [net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn")], "sigmoid")
    net.output(net.conv(y, (4, 4), "untouched"), ("N", 4, 4, 4))
    onnx.save(net.model(), "large.onnx", save_as_external_data=True, location="large.bin", size_threshold=0)
    result = run("fold", "large.onnx", "-o", "out.onnx")
    before, after = (sum(Path(name).stat().st_size for name in names) / 1000
                     for names in (("large.onnx", "large.bin"), ("out.onnx", "out.onnx.data")))  # fmt: skip
    line = result.stdout.splitlines()[-1]
    assert line == f"wrote out.onnx and out.onnx.data, {after:.3g} kB (large.onnx: {before:.3g} kB)"


def test_a_pointer_of_git_lfs_is_called_that(here: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("model.onnx", "model.pth", "model.safetensors"):
        Path(name).write_text(text)
        assert "a Git LFS pointer" in refused(here, 1, "inspect", name)
    assert "a Git LFS pointer" in refused(here, 1, "verify", "model.onnx", "model.onnx")


def test_a_file_that_cannot_be_read_exits_as_one_that_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read everything sees no refusal of the system's, so it is played here."""
    opened = Path.open

    def denied(path: Path, *args: Any, **more: Any) -> Any:
        if path.name == "locked.onnx":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **more)

    conv_bn().save(here / "locked.onnx")
    monkeypatch.setattr(os, "access", lambda path, mode, **more: Path(path).name != "locked.onnx")
    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr("tests.test_cli.listing", lambda folder: sorted(os.listdir(folder)))
    for arguments in (("inspect",), ("fold", "-o", "out.onnx"), ("verify", "model.onnx")):
        line = refused(here, 1, arguments[0], *arguments[1:], "locked.onnx")
        assert line == "bnfold: locked.onnx: cannot be read (Permission denied)\n"


def test_what_libraries_print_past_python_is_not_on_stdout(here: Path) -> None:
    """onnx warns of experimental operators on the file descriptor."""
    net = Net(0, opset=9, ir=4)
    y = net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn")
    net.output(net.node("Affine", [y], "affine", alpha=1.0, beta=0.0), ("N", 4, 6, 6))
    net.save(here / "old.onnx")
    done = run_process("inspect", "old.onnx", "--json")
    assert json.loads(done.stdout)["summary"]["folded"] == 1
    assert "experimental" in done.stderr


def test_what_is_changed_in_a_model_without_norms_is_listed(here: Path) -> None:
    """Single numbers beside a layer go into it; elsewhere the file stays byte for byte."""
    rng = np.random.default_rng(0)
    net = Net(0)
    y = net.node("Sub", [net.input("x", (5, 2, 4)), net.weight("half", 0.5)], "sub")
    y = net.node("Mul", [y, net.weight("two", 2.0)], "mul")
    weights = [net.weight(name, rng.normal(size=shape)) for name, shape in (("w", (1, 9, 4)), ("r", (1, 9, 3)))]
    net.output(net.node("GRU", [y, *weights], "gru", hidden_size=3), (5, 1, 2, 3))
    net.save(here / "gru.onnx")
    result = run("fold", "gru.onnx", "-o", "out.onnx")
    assert "no batch norms, but constants that are one number: Sub sub, Mul mul went into gru" in result.stdout
    assert [node.op_type for node in onnx.load("out.onnx").graph.node] == ["GRU"]
    plain = Net(0)
    plain.output(plain.relu(plain.conv(plain.input(), (3, 4), "conv"), "relu"), ("N", 4, 6, 6))
    plain.save(here / "plain.onnx")
    assert "plain.onnx: no batch norms" in run("fold", "plain.onnx", "-o", "out.onnx").stdout
    assert Path("out.onnx").read_bytes() == Path("plain.onnx").read_bytes()


def test_where_every_norm_was_kept_the_answer_begins_with_that(here: Path) -> None:
    input_bn().save(here / "kept.onnx")
    for arguments in (("inspect", "kept.onnx"), ("fold", "kept.onnx", "-o", "out.onnx")):
        assert run(*arguments).stdout.splitlines()[0] == "no batch norm was folded or reduced"
    assert "no batch norm" not in run("inspect", "model.onnx").stdout


def test_lines_stay_whole_in_a_pipe_and_numbers_in_80_columns() -> None:
    check = bnfold.fold("model.onnx").check
    assert check is not None
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(check_table(check))
    rows = [line for line in captured.get().splitlines() if line.startswith("bn2_out")]
    assert len(rows) == len(check.outputs)
    assert all(
        f"{o.error:.2e}" in row and row.rstrip().endswith("ok") for o, row in zip(check.outputs, rows, strict=True)
    )
    line = run("fold", "model.onnx", "-o", "out.onnx").stdout.splitlines()[-2]
    assert line.startswith("passed (")
    assert line.endswith(")")


def test_the_last_line_names_the_bound_that_was_used() -> None:
    def entry(error: float, own: float | None, *measures: Measure) -> OutputError:
        return OutputError("y", "normal", error, 1.0, True, "", measures, own)

    fixed, told = Measure("relative error", 1e-7, 1e-4), Measure("error ratio", 0.9, 8.0)
    rule, limit = str(Criterion()), "largest difference at most 0.0001 of the largest magnitude"
    assert Criterion().used([entry(1e-7, 1e-8, told)]) == rule
    assert Criterion().used([entry(1e-7, None, fixed)]) == limit
    assert (
        Criterion().used([entry(1e-7, 1e-8, told), entry(1e-7, None, fixed)]).startswith(f"{rule}; where that is not")
    )
    assert Criterion().used([entry(0.0, None, fixed)]) == "no difference"
    assert Criterion(limit=1e-3).used([entry(1e-7, None, fixed)]) == str(Criterion(limit=1e-3))
    assert "no difference" in run("verify", "model.onnx", "model.onnx").stdout.splitlines()[-1]


def test_results_have_a_short_representation() -> None:
    folded = bnfold.fold("model.onnx")
    results: list[Any] = [
        folded, folded.plan, folded.check, bnfold.fold("model.onnx", verify=False), SwapResult(None, SwapReport(())),
        CalibrationResult(None, CalibrationReport("population", "joint", 8, ())), History(),
        bnfold.bench("model.onnx", "model.onnx", rounds=6, shapes={"x": (1, 3, 8, 8)}),
    ]  # fmt: skip
    for result in results:
        assert repr(result).startswith(f"{type(result).__name__}(")
        assert len(repr(result)) < 150
        assert "\n" not in repr(result)
    assert "2 folded" in repr(folded)
    assert "passed" in repr(folded)


def test_a_tensor_that_nothing_gives_is_named(here: Path) -> None:
    model = onnx.load("model.onnx")
    del model.graph.initializer[next(i for i, t in enumerate(model.graph.initializer) if t.name == "bn1_mean")]
    Path("model.onnx").write_bytes(model.SerializeToString())
    line = refused(here, 1, "inspect", "model.onnx")
    assert "node 'bn1' (BatchNormalization) reads 'bn1_mean', and no initializer" in line


def test_norms_in_the_wrong_order_are_still_the_checkers_matter(here: Path) -> None:
    model = onnx.load("model.onnx")
    first = model.graph.node.pop(0)
    model.graph.node.append(first)
    Path("model.onnx").write_bytes(model.SerializeToString())
    assert "topologically sorted" in refused(here, 1, "inspect", "model.onnx")


def test_statistics_of_another_length_than_the_input_are_counted(here: Path) -> None:
    net = Net(0)
    net.output(net.relu(net.bn(net.input(), 5, "bn"), "relu"), ("N", None, 8, 8))
    (norm,) = bnfold.inspect(net.model()).batch_norms
    assert norm.reason is not None
    assert (norm.reason.code, norm.reason.text) == ("bad-statistics", "its vectors are for 5 channels, and x has 3")


def test_a_norm_of_rank_1_has_no_channels() -> None:
    net = Net(0)
    net.output(net.bn(net.input("x", (4,)), 1, "bn"), (4,))
    (norm,) = bnfold.inspect(net.model()).batch_norms
    assert norm.reason is not None
    assert norm.reason.code == "no-channels"
    assert "x has rank 1" in norm.reason.text


def test_without_space_statistics_for_each_pixel_are_those_of_channels() -> None:
    net = Net(0, opset=7)
    gemm = [net.input("x", ("N", 3)), net.filter("w", 3, 4), net.weight("b", np.arange(4.0))]
    net.output(net.relu(net.bn(net.node("Gemm", gemm, "gemm"), 4, "bn", spatial=0), "relu"), ("N", 4))
    result = bnfold.fold(net.model())
    assert [bn.verdict for bn in result.plan.batch_norms] == ["folded"]


@pytest.mark.parametrize(("gammas", "code"), [([1.2, -0.7, 0.5, 0.9], "sign"), ([1.2, 0.0, 0.5, 0.9], "dead-channel")])
def test_quantised_layers_are_named_for_what_they_cannot_take(gammas: list[float], code: str) -> None:
    """Integers that the model computes cannot be written."""
    net = Net(0)
    integers = np.random.default_rng(0).integers(-99, 99, (4, 3, 1, 1)).astype(np.int8)
    net.nodes.append(helper.make_node("Identity", ["q"], ["moved"]))
    dequantize = helper.make_node("DequantizeLinear", ["moved", net.weight("s", np.full(4, 0.01))], ["d"], axis=0)
    net.nodes.append(dequantize)
    y = net.bn(net.node("Conv", [net.input(), "d"], "conv"), 4, "bn")
    net.weights["bn_gamma"] = np.array(gammas, np.float32)
    net.output(net.relu(y, "relu"), ("N", 4, 8, 8))
    model = net.model()
    model.graph.initializer.append(numpy_helper.from_array(integers, "q"))
    (norm,) = bnfold.inspect(model).batch_norms
    assert norm.reason is not None
    assert norm.reason.code == code
    assert "conv has quantised weights, whose scale is positive" in norm.reason.text
    assert ("relu lets only positive scales through" in norm.reason.text) == (code == "sign")
    assert "other readers" not in norm.reason.text


@pytest.mark.parametrize("inference", [True, False], ids=["inferred", "nothing inferred"])
def test_a_reshape_to_a_list_of_known_length_gives_the_rank(inference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exporters flatten space: Concat(batch, channels, height * width), each size computed."""
    if not inference:
        monkeypatch.setattr("bnfold.onnx.read.read.infer_shapes", lambda model: model)
    net = Net(0)
    conv = net.conv(net.input("x", ("N", 3, "H", "W")), (3, 4), "conv", k=1)
    shape = net.node("Shape", [conv], "shape")
    sizes = [net.node("Gather", [shape, net.weight(f"i{k}", [k])], f"size{k}") for k in (0, 2, 3)]
    space = net.node("Mul", [*sizes[1:]], "space")
    parts = [sizes[0], net.weight("four", [4]), net.node("Cast", [space], "cast", to=TensorProto.INT64)]
    whole = net.node("Concat", parts, "whole", axis=0)
    y = net.bn(net.node("Reshape", [conv, whole], "reshape"), 4, "bn")
    net.output(net.node("Conv", [y, net.filter("w", 2, 4, 1)], "last"), ("N", 2, None))
    assert bnfold.inspect(net.model()).counts()["folded"] == 1
