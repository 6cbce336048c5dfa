"""The command: what it prints where, what it writes, and what it does with input that is no good."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, helper

import bnfold
from bnfold.cli import main
from bnfold.core.plan import Plan, Rescale
from bnfold.errors import BnfoldError, ModelError
from bnfold.judge.criteria.inputs import KINDS

from .nets import Net, conv_bn, input_bn, node_named, op_types

COMMANDS = ("inspect", "fold", "verify")
API = import_module("bnfold.doors.onnx")
FILES = import_module("bnfold.onnx.files")
JUDGE = import_module("bnfold.judge.judge")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own, which holds `model.onnx` with two norms that fold."""
    monkeypatch.chdir(tmp_path)
    conv_bn().save(tmp_path / "model.onnx")
    return tmp_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnfold", *arguments]
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **environment}, check=False
    )


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its content, hidden ones too; folders with None."""
    return {p.name: p.read_bytes() if p.is_file() else None for p in folder.iterdir()}


def refused(here: Path, code: int, *arguments: str | Path) -> str:
    """Run what must fail: `code`, one line on stderr, nothing on stdout, no file touched. The line."""
    before = listing(here)
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    line = result.stderr
    assert line.startswith("bnfold: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    assert listing(here) == before
    return line


def write(model: ModelProto, name: str = "model.onnx") -> None:
    Path(name).write_bytes(model.SerializeToString())


# --- help


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_page(command: str, option: str) -> None:
    result = run(command, option)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {command} [OPTIONS]")
    for word in ("--json", "--quiet", "--debug", "--help"):
        assert word in result.stdout
    assert result.stderr == ""


def test_the_help_page_names_every_command_and_the_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in COMMANDS)
    assert "Exit codes" in result.stdout


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout.strip() == f"bnfold, version {bnfold.__version__}"


@pytest.mark.parametrize("arguments", [(), ("fold", "model.onnx"), ("inspect",), ("verify", "model.onnx"), ("melt",)])
def test_wrong_usage_exits_with_2_and_says_so_on_stderr(here: Path, arguments: tuple[str, ...]) -> None:
    before = listing(here)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")
    assert result.stdout == ""
    assert listing(here) == before


# --- inspect


def test_inspect_prints_a_table_and_writes_nothing(here: Path) -> None:
    before = listing(here)
    result = run("inspect", "model.onnx")
    assert result.exit_code == 0
    for word in ("model.onnx", "bn1", "conv1_out -> bn1_out", "bn2", "2 batch norms: 2 folded, 0 reduced, 0 kept"):
        assert word in result.stdout
    assert result.stderr == ""
    assert listing(here) == before


def test_inspect_says_when_there_is_no_norm() -> None:
    net = Net()
    net.output(net.conv(net.input(), (3, 4), "conv"))
    write(net.model())
    assert run("inspect", "model.onnx").stdout == "model.onnx: no batch norms\n"


def test_inspect_json_has_the_documented_keys_and_nothing_else_on_stdout() -> None:
    net = Net()
    x = net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn1", gamma="zeros", epsilon=1e-3)
    x = net.node("LRN", [x], "lrn", size=3)
    net.output(net.bn(x, 4, "bn2"), ("N", 4, 6, 6))
    write(net.model())
    result = run("inspect", "model.onnx", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    data = json.loads(result.stdout)
    assert list(data) == [
        "schema",
        "bnfold",
        "model",
        "summary",
        "batch_norms",
        "others",
        "notes",
        "merges",
        "drops",
        "shrunk",
        "output",
        "verification",
    ]
    assert (data["schema"], data["bnfold"], data["model"]) == (1, bnfold.__version__, "model.onnx")
    assert data["summary"] == {"batch_norms": 2, "folded": 1, "reduced": 0, "kept": 1}
    assert (data["output"], data["verification"]) == (None, None)
    first, second = data["batch_norms"]
    assert {key: first[key] for key in ("name", "op_type", "input", "output", "channels")} == {
        "name": "bn1", "op_type": "BatchNormalization", "input": "conv_out", "output": "bn1_out", "channels": 4,
    }  # fmt: skip
    assert (first["verdict"], first["form"], first["into"], first["reason"]) == ("folded", "", ["conv"], None)
    assert first["conditioning"]["dead_channels"] == 2
    assert first["conditioning"]["min_var"] > 0.3
    assert (second["verdict"], second["into"]) == ("kept", [])
    assert second["reason"]["code"]
    assert "lrn" in second["reason"]["text"]
    assert data["others"] == [{"name": "lrn", "op_type": "LRN", "input": "bn1_out", "output": "lrn_out"}]


def test_the_table_lists_other_norms_and_the_reason_of_a_kept_one() -> None:
    net = Net()
    x = net.node("LRN", [net.input()], "lrn", size=3)
    net.output(net.bn(x, 3, "bn"), ("N", 3, 8, 8))
    write(net.model())
    text = run("inspect", "model.onnx").stdout
    assert "LRN" in text
    assert "[scale-fixed]" in text
    assert "1 batch norm: 0 folded, 0 reduced, 1 kept; 1 other norm" in text


def test_of_two_norms_in_a_row_each_names_the_layer_that_took_it() -> None:
    net = Net()
    x = net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn1")
    net.output(net.bn(x, 4, "bn2"))
    write(net.model())
    norms = json.loads(run("inspect", "model.onnx", "--json").stdout)["batch_norms"]
    assert [(bn["verdict"], bn["into"]) for bn in norms] == [("folded", ["conv"])] * 2


def test_names_with_markup_or_any_letters_come_out_as_they_are() -> None:
    model = conv_bn().model()
    node_named(model, "bn1").name = "[bold]größe[/bold]"
    node_named(model, "conv1").name = "[red]层1"
    write(model)
    text = run("inspect", "model.onnx").stdout
    assert "[bold]größe[/bold]" in text
    assert "[red]层1" in text


def test_a_terminal_that_knows_ascii_only_gets_escapes(here: Path) -> None:
    model = conv_bn().model()
    node_named(model, "bn1").name = "层1"
    write(model)
    result = run_process("inspect", "model.onnx", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 0, result.stderr
    assert "\\u5c421" in result.stdout


def test_skip_leaves_norms_alone_by_name_and_by_pattern() -> None:
    for pattern, kept in (("bn1", ["bn1"]), ("bn*", ["bn1", "bn2"]), ("bn?", ["bn1", "bn2"])):
        data = json.loads(run("inspect", "model.onnx", "--json", "--skip", pattern).stdout)
        found = [bn["name"] for bn in data["batch_norms"] if bn["verdict"] == "kept"]
        assert found == kept, pattern
        codes = {bn["reason"]["code"] for bn in data["batch_norms"] if bn["reason"]}
        assert codes <= {"skipped"}


@pytest.mark.parametrize("command", ["inspect", "fold"])
def test_a_name_to_skip_that_no_norm_has_is_wrong_usage(here: Path, command: str) -> None:
    output = ["-o", "out.onnx"] if command == "fold" else []
    for name, said in (("BN1", "near names: bn1"), ("bnn2", "near names: bn2"), ("conv1", "it has bn1, bn2")):
        assert said in refused(here, 2, command, "model.onnx", *output, "--skip", "bn1", "--skip", name)
    net = Net(0)
    net.output(net.relu(net.input(), "relu"), ("N", 3, 8, 8))
    net.save(here / "none.onnx")
    assert "it has none" in refused(here, 2, command, "none.onnx", *output, "--skip", "bn1")


# --- fold


def test_fold_writes_a_model_without_norms_and_says_what_became_of_them(here: Path) -> None:
    result = run("fold", "model.onnx", "-o", "out.onnx")
    assert result.exit_code == 0, result.output
    assert op_types(onnx.load("out.onnx")) == ["Conv", "Relu", "Conv"]
    assert sorted(listing(here)) == ["model.onnx", "out.onnx"]
    for word in ("2 batch norms: 2 folded", "verification", "passed", "wrote out.onnx"):
        assert word in result.stdout
    assert "NOT VERIFIED" not in result.stdout
    assert result.stderr == ""


def test_fold_json_prints_one_report_and_nothing_else() -> None:
    result = run("fold", "model.onnx", "-o", "out.onnx", "--json", "--seed", "7", "--shape", "x=3x3x8x8")
    assert result.exit_code == 0
    assert result.stderr == ""
    data = json.loads(result.stdout)
    assert data["output"] == "out.onnx"
    check = data["verification"]
    assert (check["verified"], check["passed"], check["seed"], check["message"]) == (True, True, 7, "")
    assert check["shapes"] == {"x": [3, 3, 8, 8]}
    assert check["warnings"] == []
    assert "onnxruntime" in check["runner"]
    assert {entry["kind"] for entry in check["outputs"]} == set(KINDS)
    assert all(entry["passed"] and entry["relative"] < 1e-5 for entry in check["outputs"])
    assert check["worst"] in check["outputs"]


def test_the_report_file_holds_what_json_prints() -> None:
    result = run("fold", "model.onnx", "-o", "out.onnx", "--json", "--report", "report.json")
    assert result.exit_code == 0
    assert Path("report.json").read_text() == result.stdout


def test_no_verify_is_said_on_stdout_and_in_the_report() -> None:
    result = run("fold", "model.onnx", "-o", "out.onnx", "--no-verify", "--report", "report.json")
    assert result.exit_code == 0
    assert "NOT VERIFIED (--no-verify)" in result.stdout
    assert json.loads(Path("report.json").read_text())["verification"] == {"verified": False}
    data = json.loads(run("fold", "model.onnx", "-o", "out.onnx", "--no-verify", "--json").stdout)
    assert data["verification"] == {"verified": False}


def test_the_same_call_gives_the_same_bytes() -> None:
    for name in ("one.onnx", "two.onnx"):
        assert run("fold", "model.onnx", "-o", name).exit_code == 0
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_a_shape_without_a_name_is_that_of_the_only_input() -> None:
    data = json.loads(run("fold", "model.onnx", "-o", "out.onnx", "--json", "--shape", "5x3x8x8").stdout)
    assert data["verification"]["shapes"] == {"x": [5, 3, 8, 8]}


def test_progress_goes_to_stderr_and_only_on_a_terminal(here: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "bnfold", "fold", str(here / "model.onnx"), "-o", "out.onnx"]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "TERM": "xterm"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, env=environment, cwd=here, check=False)
    os.close(slave)
    progress = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 0, progress
    assert any(stage in progress for stage in ("starting", "reading", "planning", "folding", "comparing"))
    assert b"\x1b" not in done.stdout
    assert b"wrote out.onnx" in done.stdout
    for stage in (b"reading", b"planning", b"comparing"):
        assert stage not in done.stdout


def test_nothing_to_fold_is_no_error() -> None:
    input_bn().save(Path("model.onnx"))
    result = run("fold", "model.onnx", "-o", "out.onnx")
    assert result.exit_code == 0
    assert "1 kept" in result.stdout
    assert Path("out.onnx").read_bytes() == Path("model.onnx").read_bytes()


# --- verify


def test_verify_exits_with_0_for_the_same_function_and_1_for_another() -> None:
    run("fold", "model.onnx", "-o", "out.onnx")
    same = run("verify", "model.onnx", "out.onnx")
    assert same.exit_code == 0
    assert "passed" in same.stdout
    conv_bn(seed=1).save(Path("other.onnx"))
    other = run("verify", "model.onnx", "other.onnx")
    assert other.exit_code == 1
    assert "FAILED: bn2_out differs on normal inputs" in other.stdout
    assert other.stderr == ""


def test_verify_json_is_the_check(here: Path) -> None:
    conv_bn(seed=1).save(Path("other.onnx"))
    before = listing(here)
    result = run("verify", "model.onnx", "other.onnx", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["passed"] is False
    assert any(measure["value"] > measure["bound"] for measure in data["worst"]["measures"])
    assert data["where"]["tensor"]
    assert listing(here) == before


def test_verify_takes_a_limit() -> None:
    conv_bn(seed=1).save(Path("other.onnx"))
    assert run("verify", "model.onnx", "other.onnx", "--limit", "1e3").exit_code == 0
    assert run("verify", "model.onnx", "model.onnx", "--limit", "0").exit_code == 0
    run("fold", "model.onnx", "-o", "out.onnx")
    assert run("verify", "model.onnx", "out.onnx", "--limit", "1e-12").exit_code == 1
    assert run("verify", "model.onnx", "model.onnx", "--limit", "-1").exit_code == 2


# --- input that is no model

JUNK: dict[str, bytes] = {
    "empty": b"",
    "text": b"This is not a model.\n" * 20,
    "picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 8,
    "zeros": bytes(4096),
    "json": json.dumps({"graph": {"node": []}}).encode(),
    "other protobuf": helper.make_tensor("t", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]).SerializeToString(),
    "no graph": ModelProto(ir_version=8).SerializeToString(),
}


def each_command(model: str) -> list[tuple[str, ...]]:
    """Every way to hand a model to the command."""
    return [
        ("inspect", model), ("inspect", model, "--json"), ("fold", model, "-o", "out.onnx", "--report", "r.json"),
        ("fold", model, "-o", "out.onnx", "--json", "--no-verify"), ("verify", model, "model.onnx"),
        ("verify", "model.onnx", model),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", JUNK)
def test_a_file_that_is_no_model_is_refused(here: Path, kind: str) -> None:
    Path("junk.onnx").write_bytes(JUNK[kind])
    for arguments in each_command("junk.onnx"):
        line = refused(here, 1, *arguments)
        assert "junk.onnx: not an ONNX model" in line


def test_a_missing_file_is_refused(here: Path) -> None:
    for arguments in each_command("missing.onnx"):
        assert refused(here, 1, *arguments) == "bnfold: missing.onnx: no such file\n"


def test_a_folder_as_model_is_refused(here: Path) -> None:
    Path("folder").mkdir()
    for arguments in each_command("folder"):
        assert refused(here, 1, *arguments) == "bnfold: folder: a folder, a model file expected\n"


def test_a_truncated_model_is_refused_at_every_length(here: Path) -> None:
    data = Path("model.onnx").read_bytes()
    for length in [*range(0, len(data), 61), len(data) - 1, len(data) - 2, len(data) - 5]:
        Path("short.onnx").write_bytes(data[:length])
        assert "short.onnx" in refused(here, 1, "fold", "short.onnx", "-o", "out.onnx", "--no-verify")


@pytest.mark.slow
def test_a_model_with_damaged_bytes_never_ends_in_a_traceback(here: Path) -> None:
    data = bytearray(Path("model.onnx").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 2):
            damaged[place] = rng.integers(256)
        Path("damaged.onnx").write_bytes(damaged)
        result = run("fold", "damaged.onnx", "-o", "out.onnx")
        assert result.exit_code in (0, 1)
        assert "internal error" not in result.stderr
        assert Path("out.onnx").exists() == (result.exit_code == 0)
        Path("out.onnx").unlink(missing_ok=True)
        assert sorted(listing(here)) == ["damaged.onnx", "model.onnx"]


def _rename_output(model: ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def _reverse(model: ModelProto) -> None:
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _close_a_cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def _wrong_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("group", "one"))


def _unknown_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("colour", 1))


def _short_weight(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _short_bias(model: ModelProto) -> None:
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-4]


def _negative_shape(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-6, -27]


def _unknown_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 999


def _same_output_twice(model: ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def _no_opset(model: ModelProto) -> None:
    del model.opset_import[:]


def _unknown_op(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Melt"


def _newer_format(model: ModelProto) -> None:
    model.ir_version = 999


BROKEN: list[tuple[Callable[[ModelProto], None], str]] = [
    (_rename_output, "nowhere"),
    (_reverse, "topologically sorted"),
    (_close_a_cycle, "topologically sorted"),
    (_wrong_attribute, "conv1 : group"),
    (_unknown_attribute, "colour"),
    (_short_weight, "conv1_weight"),
    (_short_bias, "conv1_bias"),
    (_negative_shape, "conv1_weight"),
    (_unknown_type, "999"),
    (_same_output_twice, "conv1_out"),
    (_no_opset, "opset_import"),
    (_unknown_op, "Melt"),
    (_newer_format, "999"),
]


@pytest.mark.parametrize(("damage", "word"), BROKEN, ids=[damage.__name__.strip("_") for damage, _ in BROKEN])
def test_a_model_that_is_not_valid_is_refused_with_the_reason(
    here: Path, damage: Callable[[ModelProto], None], word: str
) -> None:
    model = conv_bn().model()
    damage(model)
    write(model, "broken.onnx")
    for arguments in each_command("broken.onnx")[:4]:
        assert word in refused(here, 1, *arguments)


def test_names_that_are_not_utf8_are_refused(here: Path) -> None:
    data = Path("model.onnx").read_bytes()
    Path("model.onnx").write_bytes(data.replace(b"bn1_out", b"bn1_\xff\xfe\xfd"))
    assert "not UTF-8" in refused(here, 1, "fold", "model.onnx", "-o", "out.onnx")


def test_a_weight_of_the_wrong_rank_is_refused_or_kept_with_a_reason(here: Path) -> None:
    model = conv_bn().model()
    model.graph.initializer[0].dims[:] = [6 * 27]
    write(model)
    assert "internal error" not in run("inspect", "model.onnx").stderr


# --- places that cannot be written


def test_a_missing_output_folder_is_refused(here: Path) -> None:
    assert "does not exist" in refused(here, 2, "fold", "model.onnx", "-o", "no/where/out.onnx")
    assert "does not exist" in refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--report", "no/r.json")


def test_an_output_below_a_file_is_refused(here: Path) -> None:
    Path("file").write_bytes(b"")
    Path("file").chmod(0o777)
    assert "file is not a folder" in refused(here, 2, "fold", "model.onnx", "-o", "file/out.onnx")


def test_a_folder_as_output_is_refused(here: Path) -> None:
    Path("folder").mkdir()
    for name in ("folder", ".", "folder/"):
        assert "a folder" in refused(here, 2, "fold", "model.onnx", "-o", name)


def test_a_device_is_not_replaced_by_a_file(here: Path) -> None:
    if not Path(os.devnull).is_char_device():
        pytest.skip("no character device here")
    assert "not a regular file" in refused(here, 2, "fold", "model.onnx", "-o", os.devnull)
    assert "not a regular file" in refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--report", os.devnull)
    assert Path(os.devnull).is_char_device()


def test_a_folder_without_write_permission_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("locked").mkdir(mode=0o500)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    assert "locked is not writable" in refused(here, 1, "fold", "model.onnx", "-o", "locked/out.onnx")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_really_locked_is_refused(here: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    assert "locked is not writable" in refused(here, 1, "fold", "model.onnx", "-o", "locked/out.onnx")


def test_the_model_itself_as_output_is_refused_by_any_name(here: Path) -> None:
    Path("folder").mkdir()
    Path("link.onnx").symlink_to("model.onnx")
    Path("hard.onnx").hardlink_to("model.onnx")
    for name in ("model.onnx", "./folder/../model.onnx", str(here / "model.onnx"), "link.onnx", "hard.onnx"):
        assert "the output is the model itself" in refused(here, 2, "fold", "model.onnx", "-o", name)
    assert "the output is the model itself" in refused(here, 2, "fold", "link.onnx", "-o", "model.onnx")


def test_the_report_is_no_other_file_of_the_call(here: Path) -> None:
    for report in ("out.onnx", "./out.onnx", str(here / "out.onnx")):
        assert "same file" in refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--report", report)
    refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--report", "model.onnx")


@pytest.mark.parametrize(
    "shape", ["", "x=", "x=axb", "1x3x8x", "x=1,3,8,8", "x=-1x3x8x8", "x=0x3x8x8", "x=1.5x3x8x8", "x=²x3x8x8"]
)
def test_a_shape_that_is_none_is_wrong_usage(here: Path, shape: str) -> None:
    before = listing(here)
    result = run("fold", "model.onnx", "-o", "out.onnx", "--shape", shape)
    assert result.exit_code == 2
    assert "sizes such as 1x3x224x224 expected" in result.stderr
    assert result.stdout == ""
    assert listing(here) == before


def test_a_shape_for_an_unknown_input_or_of_the_wrong_size_is_refused(here: Path) -> None:
    line = refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--shape", "image=1x3x8x8")
    assert "no input 'image'; its inputs: x" in line
    line = refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--shape", "x=1x4x8x8")
    assert "input 'x' is Nx3x8x8, 1x4x8x8 does not fit" in line
    refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--shape", "x=1x3x8")
    refused(here, 2, "verify", "model.onnx", "model.onnx", "--shape", "y=1x3x8x8")


def test_a_shape_needs_a_name_where_there_are_several_inputs(here: Path) -> None:
    net = Net()
    net.output(net.node("Add", [net.input("a"), net.input("b")], "add"))
    net.save(Path("model.onnx"))
    line = refused(here, 2, "fold", "model.onnx", "-o", "out.onnx", "--shape", "1x3x8x8")
    assert "2 inputs, so their names must be given" in line


def test_a_negative_seed_is_wrong_usage() -> None:
    assert run("fold", "model.onnx", "-o", "out.onnx", "--seed", "-1").exit_code == 2
    with pytest.raises(bnfold.UsageError, match="seed -1"):
        bnfold.fold("model.onnx", seed=-1)


# --- --debug


def test_debug_raises_where_the_plain_command_prints_a_line(here: Path) -> None:
    assert "no such file" in refused(here, 1, "fold", "missing.onnx", "-o", "out.onnx")
    result = run("fold", "missing.onnx", "-o", "out.onnx", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, ModelError)


def test_a_traceback_is_shown_with_debug_only() -> None:
    plain = run_process("inspect", "missing.onnx")
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr == "bnfold: missing.onnx: no such file\n"
    debug = run_process("inspect", "missing.onnx", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "ModelError: missing.onnx: no such file" in debug.stderr


def test_a_fault_of_bnfold_itself_is_one_line_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> Plan:
        raise KeyError("of\nmine")

    monkeypatch.setattr(API, "plan_that_fits", broken)
    assert "internal error (KeyError" in refused(here, 1, "fold", "model.onnx", "-o", "out.onnx")
    assert isinstance(run("fold", "model.onnx", "-o", "out.onnx", "--debug").exception, KeyError)


def test_too_little_memory_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*given: object) -> Plan:
        raise MemoryError

    monkeypatch.setattr(API, "plan_that_fits", greedy)
    assert "not enough memory" in refused(here, 1, "fold", "model.onnx", "-o", "out.onnx")


# --- whole or not at all


def test_an_existing_output_is_replaced_and_keeps_its_permissions(here: Path) -> None:
    Path("out.onnx").write_bytes(b"old")
    Path("out.onnx").chmod(0o640)
    assert run("fold", "model.onnx", "-o", "out.onnx").exit_code == 0
    assert op_types(onnx.load("out.onnx")) == ["Conv", "Relu", "Conv"]
    assert stat.S_IMODE(Path("out.onnx").stat().st_mode) == 0o640
    assert sorted(listing(here)) == ["model.onnx", "out.onnx"]


def test_a_new_output_has_the_permissions_that_any_new_file_gets() -> None:
    Path("plain").write_bytes(b"")
    run("fold", "model.onnx", "-o", "out.onnx", "--report", "report.json")
    plain = Path("plain").stat().st_mode
    assert Path("out.onnx").stat().st_mode == plain
    assert Path("report.json").stat().st_mode == plain


def test_an_output_that_is_a_link_stays_one(here: Path) -> None:
    Path("store").mkdir()
    Path("store/real.onnx").write_bytes(b"old")
    Path("out.onnx").symlink_to("store/real.onnx")
    assert run("fold", "model.onnx", "-o", "out.onnx").exit_code == 0
    assert Path("out.onnx").is_symlink()
    assert op_types(onnx.load("store/real.onnx")) == ["Conv", "Relu", "Conv"]
    assert [p.name for p in Path("store").iterdir()] == ["real.onnx"]


def test_a_long_output_name_works() -> None:
    name = "m" * 245 + ".onnx"
    assert run("fold", "model.onnx", "-o", name).exit_code == 0
    assert Path(name).exists()


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_output_and_no_leftover(
    here: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    def half(model: object, path: Path, folder: object = None) -> None:
        path.write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if existing:
        Path("out.onnx").write_bytes(b"old")
    monkeypatch.setattr(FILES, "dump", half)
    for more in ((), ("--no-verify",)):
        line = refused(here, 1, "fold", "model.onnx", "-o", "out.onnx", "--report", "report.json", *more)
        assert "out.onnx: cannot be written (No space left on device)" in line


def test_a_failing_rename_leaves_no_leftover(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", forbidden)
    assert "out.onnx: cannot be written" in refused(here, 1, "fold", "model.onnx", "-o", "out.onnx")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_end_while_verifying_leaves_nothing_behind(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise error

    Path("out.onnx").write_bytes(b"old")
    before = listing(here)
    monkeypatch.setattr(JUDGE, "judge", interrupted)
    result = run("fold", "model.onnx", "-o", "out.onnx", "--report", "report.json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert listing(here) == before


def _corrupt(plan: Plan) -> Plan:
    """A plan in which one layer is scaled by 1.01 too much."""
    edits = [
        dataclasses.replace(edit, p_out=edit.p_out * 1.01)
        if isinstance(edit, Rescale) and edit.name == "conv2" and edit.p_out is not None
        else edit
        for edit in plan.edits
    ]
    assert edits != list(plan.edits)
    return dataclasses.replace(plan, edits=tuple(edits))


@pytest.fixture
def corrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = API.plan_that_fits
    monkeypatch.setattr(API, "plan_that_fits", lambda *given: _corrupt(made(*given)))


@pytest.mark.usefixtures("corrupted")
def test_a_result_that_fails_its_check_is_not_written(here: Path) -> None:
    Path("out.onnx").write_bytes(b"old")
    before = listing(here)
    result = run("fold", "model.onnx", "-o", "out.onnx")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "wrote" not in result.stdout
    assert result.stderr.startswith("bnfold: the folded model did not pass, nothing was written: bn2_out differs")
    assert listing(here) == before


@pytest.mark.usefixtures("corrupted")
def test_the_report_of_a_failed_check_is_written(here: Path) -> None:
    result = run("fold", "model.onnx", "-o", "out.onnx", "--json", "--report", "report.json")
    assert result.exit_code == 1
    assert sorted(listing(here)) == ["model.onnx", "report.json"]
    assert Path("report.json").read_text() == result.stdout
    data = json.loads(result.stdout)
    assert data["output"] is None
    assert (data["verification"]["verified"], data["verification"]["passed"]) == (True, False)
    largest = max(entry["relative"] for entry in data["verification"]["outputs"])
    assert largest == pytest.approx(0.01, rel=0.5)


def test_verify_finds_a_faulty_result_that_was_written_without_a_check(corrupted: None) -> None:
    assert run("fold", "model.onnx", "-o", "out.onnx", "--no-verify").exit_code == 0
    assert run("verify", "model.onnx", "out.onnx").exit_code == 1


# --- what nothing here can run


def mystery(domain: str = "com.example") -> Net:
    """Norms on both sides of an op of another domain."""
    net = Net()
    net.domains[domain] = 1
    x = net.bn(net.conv(net.input(), (3, 4), "conv1"), 4, "bn1")
    x = net.node("Mystery", [x], "mystery", domain=domain, strength=3)
    x = net.conv(net.bn(x, 4, "bn2"), (4, 5), "conv2")
    net.output(net.bn(x, 5, "bn3"))
    return net


def test_norms_around_an_op_of_another_domain_are_folded_or_kept_with_a_reason() -> None:
    model = mystery().model()
    model.graph.value_info.append(helper.make_tensor_value_info("mystery_out", 1, ["N", 4, 6, 6]))
    write(model)
    result = run("fold", "model.onnx", "-o", "out.onnx", "--no-verify", "--json")
    assert result.exit_code == 0
    verdicts = {bn["name"]: bn["verdict"] for bn in json.loads(result.stdout)["batch_norms"]}
    assert verdicts == {"bn1": "folded", "bn2": "folded", "bn3": "folded"}
    folded = onnx.load("out.onnx")
    assert op_types(folded) == ["Conv", "Mystery", "Conv"]
    kept = node_named(folded, "mystery")
    assert kept.domain == "com.example"
    assert [(a.name, a.i) for a in kept.attribute] == [("strength", 3)]


def test_behind_an_op_of_unknown_shape_norms_are_folded_or_kept_with_a_reason() -> None:
    mystery().save(Path("model.onnx"))
    data = json.loads(run("fold", "model.onnx", "-o", "out.onnx", "--no-verify", "--json").stdout)
    assert data["batch_norms"][0]["verdict"] == "folded"
    assert all(bn["verdict"] == "folded" or bn["reason"]["code"] for bn in data["batch_norms"])


def test_what_nothing_here_can_run_is_not_written_and_no_verify_is_named(here: Path) -> None:
    mystery("com.microsoft").save(Path("model.onnx"))  # which runtimes have, but for this operator
    line = refused(here, 1, "fold", "model.onnx", "-o", "out.onnx")
    assert "--no-verify" in line
    assert "Mystery" in line
    assert "Mystery" in refused(here, 1, "verify", "model.onnx", "model.onnx")


def test_an_opset_newer_than_the_library_leaves_every_norm_with_a_reason(here: Path) -> None:
    conv_bn(opset=99).save(Path("model.onnx"))
    for more in ((), ("--no-verify",)):
        result = run("fold", "model.onnx", "-o", "out.onnx", "--json", *more)
        assert result.exit_code == 0
        reasons = [bn["reason"] for bn in json.loads(result.stdout)["batch_norms"]]
        assert [reason["code"] for reason in reasons] == ["unknown-opset"] * 2
        assert "opset 99" in reasons[0]["text"]
        assert Path("out.onnx").read_bytes() == Path("model.onnx").read_bytes()


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16])
def test_types_without_kernels_in_onnxruntime_are_judged_by_the_reference_evaluator(dtype: Any) -> None:
    conv_bn(dtype=dtype, opset=22, ir=10).save(Path("model.onnx"))
    data = json.loads(run("fold", "model.onnx", "-o", "out.onnx", "--json").stdout)
    assert data["summary"]["folded"] == 2
    assert data["verification"]["passed"]
    assert data["verification"]["runner"] == "onnx.reference"
    folded = onnx.load("out.onnx")
    types = {t.data_type for t in folded.graph.initializer}
    assert types == {helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}


# --- names


@pytest.mark.parametrize("names", ["same", ""])
def test_nodes_may_share_a_name_or_have_none(names: str) -> None:
    model = conv_bn().model()
    for node in model.graph.node:
        node.name = names
    write(model)
    data = json.loads(run("fold", "model.onnx", "-o", "out.onnx", "--json").stdout)
    assert data["summary"] == {"batch_norms": 2, "folded": 2, "reduced": 0, "kept": 0}
    assert data["verification"]["passed"]
    found = [bn["name"] for bn in data["batch_norms"]]
    assert found == (["same", "same"] if names else ["BatchNormalization_1", "BatchNormalization_4"])
    assert [node.name for node in onnx.load("out.onnx").graph.node] == [names] * 3


def test_an_optional_input_may_be_left_out_by_an_empty_name() -> None:
    net = Net()
    x = net.conv(net.input(), (3, 4), "conv", bias=False)
    net.nodes[-1].input.append("")
    x = net.node("Clip", [net.bn(x, 4, "bn"), "", ""], "clip")
    net.output(net.node("Resize", [x, "", net.weight("scales", [1.0, 1.0, 2.0, 2.0])], "resize"), ("N", 4, 12, 12))
    net.save(Path("model.onnx"))
    result = run("fold", "model.onnx", "-o", "out.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["summary"]["folded"] == 1
    assert len([name for name in node_named(onnx.load("out.onnx"), "conv").input if name]) == 3


# --- the command as a process


def test_the_module_runs_as_a_command(here: Path) -> None:
    done = run_process("fold", "model.onnx", "-o", "out.onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["verification"]["passed"]
    differs = run_process("verify", "model.onnx", str(conv_bn(1).save(here / "other.onnx")))
    assert differs.returncode == 1
    assert differs.stderr == ""
    wrong = run_process("fold", "model.onnx", "-o", "model.onnx")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1


def test_every_error_says_its_exit_code() -> None:
    def tree(cls: type[BnfoldError]) -> list[type[BnfoldError]]:
        return [cls, *(below for child in cls.__subclasses__() for below in tree(child))]

    assert {cls.__name__: cls.exit_code for cls in tree(BnfoldError)} == {
        "BnfoldError": 1, "UsageError": 2, "ModelError": 1, "OutputError": 1, "VerificationError": 1, "PlanError": 1,
        "DataError": 1, "TrainingError": 1, "InternalError": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ([], ""),
        (["--leftovers", "fast"], ""),
        (["--only-exact-removal"], ""),
        (["--leftovers", "none"], ""),
        (["--leftovers", "all"], "add"),
    ],
)
def test_leftovers_are_the_users_choice(here: Path, options: list[str], form: str) -> None:
    """A norm in front of a padded conv, which can leave an Add."""
    net = Net()
    x = net.relu(net.input(), "relu")
    net.output(net.conv(net.bn(x, 3, "bn"), (3, 4), "conv", pad=1), ("N", 4, 8, 8))
    onnx.save(net.model(), "model.onnx")
    result = run("fold", "model.onnx", "-o", "out.onnx", "--json", *options)
    assert result.exit_code == 0, result.stderr
    (norm,) = json.loads(result.stdout)["batch_norms"]
    assert norm["form"] == form
    assert norm["verdict"] == ("reduced" if form else "kept")
    ops = [node.op_type for node in onnx.load("out.onnx").graph.node]
    assert ops == ["Relu", "Add" if form else "BatchNormalization", "Conv"]
    assert ("--leftovers all" in norm["reason"]["hint"]) == (not form)


def test_an_unknown_choice_of_leftovers_is_wrong_usage(here: Path) -> None:
    assert run("fold", "model.onnx", "-o", "out.onnx", "--leftovers", "some").exit_code == 2
