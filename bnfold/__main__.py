"""The command: `bnfold`, or `python -m bnfold`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from .cli import main as commands
from .cli.output import PipeClosedError

INTERRUPTED, TERMINATED, CLOSED = (128 + number for number in (2, 15, 13))
"""What shells call a process that SIGINT, SIGTERM or SIGPIPE ended."""


class _Terminated(BaseException):
    """SIGTERM: raised, so that temporary files go, and of no kind that the code of a model catches."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run a command. A signal or a closed pipe ends it with the exit code that shells know, and blames nobody."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run()
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        code = _ended("interrupted", INTERRUPTED)
    except _Terminated:
        code = _ended("terminated", TERMINATED)
    except (BrokenPipeError, PipeClosedError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer is flushed at exit
        code = CLOSED
    sys.exit(code)


def _run() -> int:
    try:
        code = commands.main(prog_name="bnfold", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code if isinstance(code, int) else 0


def _ended(word: str, code: int) -> int:
    click.echo(f"bnfold: {word}; files are whole or as they were", err=True)
    return code


if __name__ == "__main__":
    main()
