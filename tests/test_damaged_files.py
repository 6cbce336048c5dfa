"""Valid files with damaged bytes through the command: clean errors only. BNFOLD_DAMAGED files, seed BNFOLD_SEED.

BNFOLD_DAMAGED=10000 python -m pytest tests/test_damaged_files.py
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

import bnfold
from bnfold.cli import main
from tests import random_forms, random_ops
from tests.random_files import RandomFile

ROOT = Path(__file__).parents[1]
COUNT = int(os.environ.get("BNFOLD_DAMAGED", "400"))
SEED = int(os.environ.get("BNFOLD_SEED", "0"))
PARTS = 4
PATIENCE = 20
"""Seconds that one file may take."""
Mutation = Callable[[bytearray, np.random.Generator], None]
assert random_forms
assert random_ops


def flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 20))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    """Bytes that protobuf reads as long varints, zeros, or anything."""
    size, at = int(rng.integers(1, 16)), int(rng.integers(len(data)))
    data[at : at + size] = [bytes([255] * size), bytes(size), rng.bytes(size)][int(rng.integers(3))]


def delete(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 64))]


def insert(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    data[at:at] = rng.bytes(int(rng.integers(1, 64)))


def duplicate(data: bytearray, rng: np.random.Generator) -> None:
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 256))
    data[at:at] = data[at : at + size]


def swap(data: bytearray, rng: np.random.Generator) -> None:
    size = int(rng.integers(1, 64))
    a, b = sorted(int(v) for v in rng.integers(0, max(1, len(data) - size), 2))
    if b >= a + size:
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


MUTATIONS: tuple[Mutation, ...] = (flip, overwrite, delete, insert, duplicate, swap, truncate)


@contextmanager
def patience() -> Iterator[None]:
    """AssertionError where the block takes too long."""

    def hangs(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback()
        raise AssertionError(f"more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sources(folder: Path) -> list[Path]:
    """Valid files: trained ones without most of their weights' bytes, and random ones of every dress."""
    files = []
    for seed in (1, 2, 3, 8, 20, 23, 27, 36):
        path = folder / f"valid{seed}.onnx"
        RandomFile(seed).save(path, TensorProto.FLOAT)
        files.append(path)
    return [*files, ROOT / "models/preact_resnet_mnist.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_get_clean_errors(part: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, part])
    valid = sources(tmp_path)
    model, out = tmp_path / "damaged.onnx", tmp_path / "out.onnx"
    listing = {path.name for path in tmp_path.iterdir()} | {model.name}
    codes: Counter[int] = Counter()
    for i in range(COUNT // PARTS):
        source = valid[int(rng.integers(len(valid)))]
        data = bytearray(source.read_bytes())
        for _ in range(int(rng.integers(1, 4))):
            if data:
                MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
        model.write_bytes(data)
        command = ["inspect", str(model)] if i % 5 == 0 else ["fold", str(model), "-o", str(out), "--no-verify"]
        with patience():
            result = CliRunner().invoke(main, [*command, "-q"])
        where = f"part {part}, file {i} of {source.name}: {result.stderr[-300:]!r}"
        assert result.exception is None or isinstance(result.exception, SystemExit), (where, result.exc_info)
        assert result.exit_code in (0, 1), where
        assert "internal error" not in result.stderr, where
        assert "Traceback" not in result.stderr, where
        assert result.exit_code == 0 or len(result.stderr.strip().splitlines()) == 1, where
        written = {path.name for path in tmp_path.iterdir()} - listing
        assert written <= {out.name, f"{out.name}.data"}, where
        assert (out.name in written) == (result.exit_code == 0 and command[0] == "fold"), where
        if out.exists():
            bnfold.inspect(out)
        for name in written:
            (tmp_path / name).unlink()
        codes[result.exit_code] += 1
    assert set(codes) == {0, 1}, codes


def test_every_mutation_changes_a_file() -> None:
    for mutation in MUTATIONS:
        changed = 0
        for seed in range(20):
            data = bytearray(np.random.default_rng(0).bytes(500))
            mutation(data, np.random.default_rng(seed))
            changed += bytes(data) != np.random.default_rng(0).bytes(500)
        assert changed > 8, mutation.__name__


def test_the_valid_files_are_valid(tmp_path: Path) -> None:
    for path in sources(tmp_path):
        onnx.checker.check_model(str(path))
