"""Several threads at once: results as one after the other, and nothing of the process is changed meanwhile."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_graphsurgeon.logger import G_LOGGER
from torch import nn

import bnfold
from bnfold.process.quiet import TURN, own_process, tracing
from tests.nets import Net

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def _module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    for norm in (net[1], net[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            norm.running_mean.normal_(0.2, 0.4), norm.running_var.uniform_(0.3, 2), norm.bias.normal_()
            norm.weight.uniform_(0.5, 1.5)[::2] *= -1
    return net.eval()


def _onnx(seed: int) -> Any:
    net = Net(seed)
    h = net.relu(net.bn(net.conv(net.input(), (3, 4), "first"), 4, "bn", "zeros"), "relu")
    net.output(net.bn(net.conv(h, (4, 4), "second"), 4, "other", "both"))
    return net.model()


def _numbers(result: bnfold.FoldResult) -> list[bytes]:
    """What tells one result from another: the verdicts, and the bytes of all weights."""
    model = result.model
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if isinstance(model, nn.Module):
        weights = [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]
    else:
        weights = [tensor.raw_data for tensor in model.graph.initializer]
    return [str(result.plan).encode(), *weights]


def _state() -> tuple[Any, ...]:
    """What other threads share with a fold; torch.export itself changes filters of warnings, and puts them back."""
    from torch._export.serde.serialize import GraphModuleDeserializer
    from torch.export.pt2_archive import _package

    return (
        warnings.showwarning, logging.root.manager.disable, sys.stdout, sys.stderr, torch.load,
        torch.export.load, pickle.loads, importlib.import_module, _package.load_pt2, _package._load_aoti,
        GraphModuleDeserializer.deserialize_node, tuple(torch.serialization.get_safe_globals()),
        torch.get_default_dtype(), torch.backends.cudnn.allow_tf32, G_LOGGER.severity,
    )  # fmt: skip


@contextmanager
def _watched() -> Iterator[list[tuple[Any, ...]]]:
    """States of the process that differ from the first, seen while the block runs."""
    first, seen, done, filters = _state(), list[tuple[Any, ...]](), threading.Event(), list(warnings.filters)

    def look() -> None:
        while not done.wait(0.002):
            if (now := _state()) != first:
                seen.append(now)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
    assert warnings.filters == filters


def _jobs(folder: Path) -> list[Callable[[], list[bytes]]]:
    """Folds of all kinds, and a check."""
    x = (torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)),)
    torch.export.save(torch.export.export(_module(7), x, strict=False), folder / "net.pt2")
    torch.save(_module(8), folder / "net.pt")
    bnfold.fold(_onnx(9), out=folder / "net.onnx")
    fold, first, third = bnfold.fold, _module(1), _module(3)  # random numbers are the process's own
    return [
        lambda: _numbers(fold(first, x)),
        lambda: _numbers(fold(_onnx(2))),
        lambda: _numbers(fold(third, x, verify=False)),
        lambda: _numbers(fold(_onnx(4), verify=False)),
        lambda: _numbers(fold(folder / "net.pt2", verify=False)),
        lambda: _numbers(fold(_onnx(5), leftovers="all")),
        lambda: _numbers(fold(folder / "net.pt", x, trust_pickle=True, verify=False)),
        lambda: [str(bnfold.verify(_onnx(9), folder / "net.onnx").passed).encode()],
    ]


@pytest.mark.slow
def test_a_hundred_folds_in_eight_threads(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path)
    expected = [job() for job in jobs]
    order = [2 * (i // 6 % 4) if i % 6 == 0 else 2 * (i % 4) + 1 for i in range(104)]  # PyTorch: even
    with _watched() as changed, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: jobs[i](), order))
    assert found == [expected[i] for i in order]
    assert not changed


def test_threads_fold_alike_and_leave_the_process_alone(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path)
    expected = [job() for job in jobs]
    with _watched() as changed, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda job: job(), jobs)) == expected
    assert not changed


def test_an_onnx_fold_does_not_wait_for_a_module() -> None:
    """A network whose forward waits until an ONNX model has been folded."""
    folded = threading.Event()

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _module(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert folded.wait(60), "nothing was folded meanwhile"
            result: torch.Tensor = self.body(x)
            return result

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(bnfold.fold, Waits().eval(), (torch.randn(1, 3, 12, 12),), verify=False)
        assert bnfold.fold(_onnx(1)).plan.counts()["folded"] == 2
        folded.set()
        assert other.result().plan.counts()["folded"] == 2


def test_bench_puts_the_number_of_threads_back() -> None:
    before, x = torch.get_num_threads(), (torch.randn(1, 3, 12, 12),)
    bnfold.bench(_module(1), _module(1), x, threads=before + 1, rounds=6, seconds=0.01)
    assert torch.get_num_threads() == before


def test_silence_ends_with_the_block() -> None:
    from bnfold.process.quiet import aside, quiet, tracing

    before = _state()
    with quiet(), tracing(), aside():
        np.zeros(1)
    assert _state() == before


def test_models_of_onnx_are_folded_at_once_and_those_of_pytorch_in_turn(tmp_path: Path) -> None:
    """Two folds of ONNX meet in the middle; those of PyTorch never do."""
    meeting, model = threading.Barrier(2, timeout=20), _onnx(2)
    onnx.save(_onnx(4), tmp_path / "net.onnx")

    def meet(stage: str) -> None:
        if stage == "folding":
            meeting.wait()

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda given: bnfold.fold(given, progress=meet), (model, tmp_path / "net.onnx")):
            assert result.plan.counts()["folded"] == 2

    working: list[int] = []

    def work(stage: str) -> None:
        working.append(threading.get_ident())

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: bnfold.fold(_module(seed), (X,), verify=False, progress=work), range(3)))
    assert len(working) > 3
    assert len(list(groupby(working))) == 3


def test_a_process_that_is_forked_while_another_thread_works_does_not_wait_for_it() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("fork is of Unix")
    held, done = threading.Event(), threading.Event()

    def work() -> None:
        with TURN:
            held.set()
            done.wait(20)

    worker = threading.Thread(target=work)
    worker.start()
    held.wait(20)
    child = os.fork()
    if not child:
        signal.alarm(5)
        with TURN, TURN:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    done.set()
    worker.join()
    assert status == 0


def test_silence_where_nobody_else_could_miss_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings and log lines of a library stay away in a program of one thread, and come through in one of several."""

    def said() -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with tracing():
                warnings.warn("said", stacklevel=1)
                print("said", file=sys.stderr)
        assert bool(caught) == bool(capsys.readouterr().err)
        return bool(caught)

    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    if all(thread.name == "tqdm_monitor" for thread in others):
        assert not said()
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert said()
        with own_process():
            assert not said()
    finally:
        done.set()
        other.join()


def test_a_program_of_operators_that_the_caller_has_made_is_read(tmp_path: Path) -> None:
    """They are known in this process only: a file is read in it, and not in a child."""
    name = f"bnfold_tests::doubled_{os.getpid()}"
    doubled = torch.library.custom_op(name, lambda x: x * 2, mutates_args=(), schema="(Tensor x) -> Tensor")
    doubled.register_fake(torch.empty_like)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _module(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(doubled(self.body(x)))

    net = Net().eval()
    torch.export.save(torch.export.export(net, (X,)), tmp_path / "net.pt2")
    result = bnfold.fold(tmp_path / "net.pt2", out=tmp_path / "out.pt2")
    assert result.plan.counts()["folded"] == 2
    torch.testing.assert_close(torch.export.load(tmp_path / "out.pt2").module()(X), net(X), rtol=1e-4, atol=1e-5)
