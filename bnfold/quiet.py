"""Silence while libraries work: what they have to say is in the errors that they raise."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of libraries inside the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def tracing() -> Iterator[None]:
    """The same, and nothing on stderr, where torch.export prints the whole graph when it fails."""
    with quiet(), redirect_stderr(io.StringIO()):
        yield
