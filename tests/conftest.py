"""Fixtures that several files share. Two processes run the tests, each on one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded: its networks here are too small for more threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches for the norms to blame end after so many trials, and not after so many seconds."""
    if "torch" in sys.modules:
        from bnfold.doors import torch_modules as modulefolding

        monkeypatch.setattr(modulefolding, "clock", lambda: 0.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, and seeded: small networks run no faster on more, and far slower where cores are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
