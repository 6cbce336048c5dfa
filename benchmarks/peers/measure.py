"""How exact and how fast a file is in onnxruntime, whatever its inputs and outputs are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

WARM_UP = 3
Array = npt.NDArray[Any]
Values = dict[str, Array]
FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}


def session(path: Path, optimise: bool, threads: int = 0) -> ort.InferenceSession:
    """The file on the CPU."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # the idle threads of one session must not keep the cores from the next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def random_inputs(path: Path, seed: int = 0) -> Values:
    """Values for all inputs without a default: normal ones, or 0 and 1, which every index and mask may be."""
    rng = np.random.default_rng(seed)
    feed: Values = {}
    for value in session(path, optimise=False).get_inputs():
        # onnxruntime gives dynamic sizes as names, None or -1
        dims = [d if isinstance(d, int) and d > 0 else None for d in value.shape]
        shape = [d or (1 if i == 0 else 64) for i, d in enumerate(dims)]
        if value.type in FLOATS:
            feed[value.name] = rng.standard_normal(shape).astype(FLOATS[value.type])
        else:
            feed[value.name] = rng.integers(0, 2, shape).astype(INTEGERS[value.type])
    return feed


def outputs(path: Path, feed: Values) -> Values:
    """All outputs by name, with onnxruntime's own optimisations off."""
    runner = session(path, optimise=False)
    names = [value.name for value in runner.get_outputs()]
    found = runner.run(names, {value.name: feed[value.name] for value in runner.get_inputs()})
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}


def deviation(truth: Array, found: Array) -> float:
    """The largest difference over the largest magnitude; infinite where shapes or infinite values differ."""
    if truth.shape != found.shape:
        return float("inf")
    a, b = truth.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(same, 0.0, np.abs(a - b)).max(initial=0.0)
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return float(difference / (scale or 1.0)) if np.isfinite(difference) else float("inf")


def error(path: Path, truth: Values, feed: Values) -> float | None:
    """The largest deviation of an output, None where the file cannot be run, infinite where an output is gone."""
    try:
        found = outputs(path, feed)
    except Exception:
        return None
    gone = float("inf")
    return max((deviation(array, found[name]) if name in found else gone for name, array in truth.items()), default=0.0)


def latencies(paths: Mapping[str, Path], feed: Values, threads: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of a run of each file, run in turn; without those that onnxruntime's optimisations break."""
    runners = {name: found for name, path in paths.items() if (found := _runner(path, feed, threads)) is not None}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _runner(path: Path, feed: Values, threads: int) -> Callable[[], object] | None:
    """One run of the file, optimisations on; None where they fail. It has run a few times before."""
    try:
        loaded = session(path, optimise=True, threads=threads)
        run = partial(loaded.run, None, {value.name: feed[value.name] for value in loaded.get_inputs()})
        for _ in range(WARM_UP):
            run()
    except Exception:
        return None
    return run
