"""Commands that are stopped end with the code that shells expect, blame nobody, and leave whole files or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bnfold
from bnfold.files import at_once, together, written

from .nets import conv_bn

ROOT = Path(__file__).parents[1]
BOTH = ["out.onnx", "report.json"]
CODES = {
    "Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129, "another error": 130, "an end": 143, "swallowed": 143,
    "through exec": 143, "in an import": 143, "between two files": 143, "two signals": 130, "nohup": 0,
    "code that ends": 1, "a pipe": 141, "a pipe for JSON": 141, "a pipe for a table": 141, "a pipe for help": 141,
    "a pipe for errors": 141, "a full disk": 1,
}  # fmt: skip
FILES = {"in an import": ["meets_a_signal.py"], "between two files": BOTH, "nohup": BOTH, "a pipe": BOTH}
STOPPED = {130: "bnfold: interrupted; files are whole or as they were",
           129: "bnfold: terminated; files are whole or as they were",
           143: "bnfold: terminated; files are whole or as they were"}  # fmt: skip
SAID = {"code that ends": "bnfold: the code of the model ended the program (sys.exit(143))",
        "a full disk": "bnfold: the results cannot be printed (No space left on device)"}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of all of them, in one process that forks one for each."""
    if not hasattr(os, "fork") or not Path("/dev/full").exists():
        pytest.skip("signals of Unix")
    folder = tmp_path_factory.mktemp("ends")
    conv_bn().save(folder / "model.onnx")
    command = [sys.executable, "-m", "tests.ending", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "folder": folder}


@pytest.mark.parametrize("case", CODES)
def test_a_command_that_is_stopped(outcomes: dict[str, Any], case: str) -> None:
    found = outcomes[case]
    assert found["code"] == CODES[case]
    assert found["files"] == FILES.get(case, [])
    said = SAID.get(case, STOPPED.get(CODES[case], ""))
    assert found["said"].replace("whole\n", "", case == "in an import").strip() == said


def test_what_was_written_is_right(outcomes: dict[str, Any]) -> None:
    for case, files in FILES.items():
        folder = outcomes["folder"] / case.replace(" ", "_")
        if "out.onnx" in files:
            assert bnfold.verify(folder / "model.onnx", folder / "out.onnx").passed
            assert json.loads((folder / "report.json").read_text())["summary"]["folded"] == 2


def test_files_of_one_command_appear_together_or_not_at_all(tmp_path: Path) -> None:
    def write(fail: bool) -> None:
        with together():
            for name in "ab":
                with written(tmp_path / name) as temporary:
                    temporary.write_text(name)
                    temporary.with_name(f"{name}.data").write_text("beside")
            with at_once(), written(tmp_path / "checkpoint") as temporary:
                temporary.write_text("c")
            assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["checkpoint"]
            assert not fail, "stopped"

    with pytest.raises(AssertionError, match="stopped"):
        write(True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    write(False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.data", "b", "b.data", "checkpoint"]
    assert (tmp_path / "b").read_text() == "b"


def test_wrong_usage_still_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "bnfold", "fold"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage: bnfold fold" in done.stderr
