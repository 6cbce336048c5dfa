"""Commands that are stopped while they work, each in a forked process of its own: `python -m tests.ending FOLDER`.

What became of each is printed as JSON: the exit code, what it said, which files there are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bnfold.doors.onnx  # and all that is forked need not be imported again
import bnfold.judge.judge
from bnfold.__main__ import main

FOLD = ("fold", "model.onnx", "-o", "out.onnx", "--report", "report.json")
JUDGE: Any = bnfold.judge.judge
OS: Any = os


def kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def checking(code: Callable[[], object]) -> None:
    """Let code of somebody run in the middle of the check."""
    plain = JUDGE.judge

    def judge(*given: Any) -> Any:
        code()
        return plain(*given)

    JUDGE.judge = judge


def turned() -> None:
    """Code that makes an error of its own of everything."""
    try:
        kill(signal.SIGINT)
    except BaseException as error:
        raise ValueError("something is wrong with the network") from error


def ended() -> None:
    try:
        kill(signal.SIGTERM)
    except BaseException:
        sys.exit(7)


def swallowed() -> None:
    with suppress(BaseException):
        kill(signal.SIGTERM)


def executed() -> None:
    exec("kill(number)", {"kill": kill, "number": signal.SIGTERM})


def imported() -> None:
    """A module that a signal meets: it is read to its end first."""
    text = "import os, signal, sys\nos.kill(os.getpid(), signal.SIGTERM)\nprint('whole', file=sys.stderr)\n"
    Path("meets_a_signal.py").write_text(text)
    sys.path.insert(0, "")
    __import__("meets_a_signal")
    signal.pause()


def placing() -> None:
    """A signal after the first file has its place."""
    plain = os.replace

    def replace(source: Any, target: Any) -> None:
        plain(source, target)
        if Path(target).name == "out.onnx":
            kill(signal.SIGTERM)

    OS.replace = replace


def twice() -> None:
    """A second signal while the temporary files go."""
    import shutil

    plain = shutil.rmtree

    def rmtree(*given: Any, **named: Any) -> None:
        kill(signal.SIGTERM)
        plain(*given, **named)

    shutil.rmtree = rmtree  # type: ignore[assignment]
    checking(lambda: kill(signal.SIGINT))


def deaf() -> None:
    """As nohup starts a program."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    checking(lambda: kill(signal.SIGHUP))


def unread() -> None:
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def unheard() -> None:
    unread()
    os.dup2(1, 2)


def full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


CASES: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "Ctrl-C": (lambda: checking(lambda: kill(signal.SIGINT)), FOLD),
    "SIGTERM": (lambda: checking(lambda: kill(signal.SIGTERM)), FOLD),
    "SIGHUP": (lambda: checking(lambda: kill(signal.SIGHUP)), FOLD),
    "another error": (lambda: checking(turned), FOLD),
    "an end": (lambda: checking(ended), FOLD),
    "swallowed": (lambda: checking(swallowed), FOLD),
    "through exec": (lambda: checking(executed), FOLD),
    "in an import": (lambda: checking(imported), FOLD),
    "between two files": (placing, FOLD),
    "two signals": (twice, FOLD),
    "nohup": (deaf, FOLD),
    "code that ends": (lambda: checking(lambda: sys.exit(143)), FOLD),
    "a pipe": (unread, FOLD),
    "a pipe for JSON": (unread, ("inspect", "model.onnx", "--json")),
    "a pipe for a table": (unread, ("inspect", "model.onnx")),
    "a pipe for help": (unread, ("fold", "--help")),
    "a pipe for errors": (unheard, ("inspect", "nowhere.onnx")),
    "a full disk": (full, ("inspect", "model.onnx")),
}


def outcome(name: str, folder: Path) -> dict[str, Any]:
    """What became of one case, in a folder of its own."""
    (place := folder / name.replace(" ", "_")).mkdir()
    (place / "model.onnx").symlink_to(folder / "model.onnx")
    child = os.fork()
    if not child:
        os.chdir(place)
        for stream in (1, 2):
            os.dup2(os.open(f"{stream}.txt", os.O_CREAT | os.O_WRONLY), stream)
        prepare, sys.argv[1:] = CASES[name]
        prepare()
        main()
    status = os.waitpid(child, 0)[1]
    files = sorted(path.name for path in place.iterdir() if path.suffix != ".txt" and path.name != "model.onnx")
    said = (place / "2.txt").read_text()
    return {"code": os.waitstatus_to_exitcode(status), "said": said, "files": files}


if __name__ == "__main__":
    for ignored in (signal.SIGHUP, signal.SIGINT):  # as by jobs in the background
        signal.signal(ignored, signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL)
    here = Path(sys.argv[1])
    print(json.dumps({name: outcome(name, here) for name in CASES}))
