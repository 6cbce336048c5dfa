"""How the command ends when somebody stops it: exit codes as shells know them, files whole or absent, nobody blamed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nets import Net

STOPPED = """
import signal, sys, time
from pathlib import Path
import bnfold.api
from bnfold.__main__ import main
from bnfold.files import written

def half_way(model, out, **given):
    with written(out) as temporary:
        temporary.write_bytes(b"half a file")
        Path({ready!r}).touch()
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a job runs in the background
bnfold.api.fold = half_way
main()
"""


def _model(folder: Path) -> Path:
    net = Net(1)
    net.output(net.bn(net.conv(net.input(), (3, 4), "conv"), 4, "bn"))
    return net.save(folder / "net.onnx")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_own_exit_code(number: signal.Signals, code: int, tmp_path: Path) -> None:
    model, ready, out = _model(tmp_path), tmp_path / "ready", tmp_path / "out"
    out.mkdir()
    old = out / "folded.onnx"
    old.write_bytes(b"what was there")
    arguments = [sys.executable, "-c", STOPPED.format(ready=str(ready)), "fold", str(model), "-o", str(old)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if ready.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(number)
        said, complained = process.communicate(timeout=30)
    assert (process.returncode, said) == (code, "")
    assert "Traceback" not in complained
    assert "model" not in complained
    assert len(complained.strip().splitlines()) == 1
    assert [path.name for path in out.iterdir()] == ["folded.onnx"]
    assert old.read_bytes() == b"what was there"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_closed_pipe_ends_it_quietly(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "folded.onnx"
    arguments = [sys.executable, "-m", "bnfold", "fold", str(_model(tmp_path)), "-o", str(out), "--no-verify", *flags]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141
    assert out.exists()


def test_wrong_usage_still_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "bnfold", "fold"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage: bnfold fold" in done.stderr
    assert subprocess.run([sys.executable, "-m", "bnfold", "--version"], capture_output=True).returncode == 0
