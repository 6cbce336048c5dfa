"""What a process has once: warnings, log lines, stderr, and the tracer of PyTorch, which two threads cannot share.

Libraries are silenced only while no other thread runs, since their warnings and log lines are silenced for all of the
process: what they have to say is in the errors that are raised. Whatever traces, runs or loads modules of PyTorch takes
its turn; what works on ONNX files alone runs at once with everything.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Turn:
    """A lock that its holder may take again. A process that was forked meanwhile has a new one."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


TURN = _Turn()
"""Held by whoever traces, runs or loads modules of PyTorch: torch.export and torch.load keep state for the process."""


_owned = False


@contextmanager
def own_process() -> Iterator[None]:
    """The process is the command's own: nobody else's threads run in it, whatever their number."""
    global _owned
    before, _owned = _owned, True
    try:
        yield
    finally:
        _owned = before


def _shared() -> bool:
    """Whether other threads may work here; the monitor of tqdm, which torch imports, only looks at progress bars."""
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    return not _owned and any(not type(thread).__module__.startswith("tqdm") for thread in others)


def in_turn(work: Callable[P, T]) -> Callable[P, T]:
    """`work`, by one thread at a time."""

    @wraps(work)
    def taken(*args: P.args, **kwargs: P.kwargs) -> T:
        with TURN:
            return work(*args, **kwargs)

    return taken


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of libraries inside the block, unless other threads would miss theirs."""
    if _shared():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def aside() -> Iterator[None]:
    """What libraries print to stdout, where results go, goes to stderr, unless other threads print too."""
    with redirect_stdout(sys.stderr) if not _shared() else nullcontext():
        yield


@contextmanager
def tracing() -> Iterator[None]:
    """The same, and nothing on stderr, where torch.export prints the whole graph when it fails."""
    with quiet(), redirect_stderr(io.StringIO()) if not _shared() else nullcontext():
        yield
