"""How a command ends that is stopped from outside: by a signal, or since nobody reads what it prints.

The exit code is what a shell makes of a program that such a signal ended: 130 after Ctrl-C, 143 after SIGTERM, 129
after SIGHUP, and 141 (SIGPIPE) where a pipe is closed. Unlike that program, a command takes its temporary files away
first.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
PIPE = 141
PATIENCE = 2.0
"""Seconds for which an import may go on, and in which no further signal hinders the tidying up."""
AGAIN = 0.02
"""Seconds after which to look whether the import is over."""


class _Stops:
    """The signals that came, when the first did, and when the last interruption followed."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.first, self.raised = math.inf, -math.inf

    def interruption(self) -> KeyboardInterrupt:
        """One that is about to be raised."""
        self.raised = monotonic()
        return KeyboardInterrupt()


_stops = _Stops()


def run(command: Callable[[], int]) -> int:
    """The exit code of a command, which gets KeyboardInterrupt where a signal stops it."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup wants it ignored
    for number in heard:
        signal.signal(number, _stop)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda number, frame: _interrupt(frame))
    try:
        code = _finished(command)
    except KeyboardInterrupt:  # between two lines of ours
        code = _code()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in heard:
        signal.signal(number, signal.SIG_DFL)
    exec("")  # an interruption that came through exec makes Python end itself by SIGINT, unless another follows
    return code


def _finished(command: Callable[[], int]) -> int:
    """What became of a command, once all that it printed is out."""
    try:
        with blameless():
            code = command()
    except BrokenPipeError:
        code = PIPE
    except KeyboardInterrupt:
        code = _code()
        word = "interrupted" if code == 128 + signal.SIGINT else "terminated"
        _said(f"{word}; files are whole or as they were")
    except OSError as error:
        code = _unwritten(error)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    return _flushed(code)


def _stop(number: int, frame: FrameType | None) -> None:
    _stops.signals.append(number)
    _interrupt(frame)


def _interrupt(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but once in a while only, and later where a module is being imported.

    Modules written in C do not all survive it meanwhile.
    """
    now = monotonic()
    _stops.first = min(_stops.first, now)
    if now - _stops.first < PATIENCE and _importing(frame) and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    elif now - _stops.raised >= PATIENCE:
        raise _stops.interruption()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def heed() -> None:
    """KeyboardInterrupt where a signal came and code that ran since has lost it."""
    if _stops.signals:
        raise _stops.interruption()


def _code() -> int:
    """The exit code after an interruption; of Ctrl-C where no signal was heard of."""
    return 128 + (_stops.signals[0] if _stops.signals else signal.SIGINT)


@contextmanager
def blameless() -> Iterator[None]:
    """An interruption stays one, and so does a closed pipe, whatever code makes of it: an error, or an end (`rich`)."""
    try:
        yield
        heed()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if _stops.signals:
            raise _stops.interruption() from error
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise


def _flushed(code: int) -> int:
    """The exit code, with all that was printed gone out: `PIPE` or 1 where it does not, which is then dropped."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # so that Python does not try again
            if isinstance(error, BrokenPipeError):
                code = code if _stops.signals else PIPE
            elif code == 0:
                code = _unwritten(error)
    return code


def _unwritten(error: OSError) -> int:
    """The exit code where results cannot be printed, which is said."""
    _said(f"the results cannot be printed ({error.strerror or error})")
    return 1


def _said(text: str) -> None:
    with suppress(OSError, ValueError):  # where nobody hears it
        if sys.__stderr__ is not None:
            sys.__stderr__.write(f"bnfold: {text}\n")
