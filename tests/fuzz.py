"""The differential fuzzer: random files through the command, compared in float64 and in onnxruntime.

    python -m tests.fuzz START END      prints what is wrong, a count of what was tried, and exits with 1 where any was

Each seed is folded twice through the command: in float64, where the outputs must agree to 5e-12, and in float32,
float16 or bfloat16, where the command's own judge must pass it and, for float32, onnxruntime without optimisations must
be as near to the float64 outputs as it was with the original. A file that chooses between tensors by comparing numbers
is judged in float32: in a shorter type the numbers lie within a rounding of each other too often.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from click.testing import CliRunner
from onnx import TensorProto, helper

from bnfold.cli import main
from bnfold.limits import LEFTOVERS
from tests import random_forms, random_ops
from tests.evaluate import evaluate
from tests.random_files import RandomFile

Array = npt.NDArray[Any]
NOBODY = "--no-verify writes without a check"
"""The end of the message where neither onnxruntime nor the reference evaluator runs the original."""
TYPES = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
assert random_forms  # more makers
assert random_ops


def fold(path: Path, out: Path, *options: str) -> str:
    """Fold through the command; what went wrong, or ""."""
    result = CliRunner().invoke(main, ["fold", str(path), "-o", str(out), "--json", *options])
    if result.exit_code == 0:
        return ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    return f"exit {result.exit_code}: {result.stderr.strip()[-300:]}"


def run(path: Path, x: Array) -> list[Array]:
    """The outputs in onnxruntime without optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


def apart(a: list[Array], b: list[Array]) -> float:
    """The largest difference, relative to the largest magnitude; NaN and infinity must agree."""
    worst = 0.0
    for p, q in zip(a, b, strict=True):
        p, q = p.astype(np.float64), q.astype(np.float64)
        if p.shape != q.shape or not np.array_equal(np.isfinite(p), np.isfinite(q)):
            return float("inf")
        live = np.isfinite(p)
        if live.any():
            worst = max(worst, float(np.abs(p - q)[live].max() / max(np.abs(p[live]).max(), 1.0)))
    return worst


def chooses(model: onnx.ModelProto) -> bool:
    """Whether a Where in it, in a body or a function too, takes what a comparison of data gives."""
    graphs = [model.graph, *(function for function in model.functions)]
    for graph in graphs:  # grows
        made = {name: node.op_type for node in graph.node for name in node.output}
        if any(node.op_type == "Where" and made.get(node.input[0]) == "Greater" for node in graph.node):
            return True
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return False


def check(seed: int, folder: Path) -> Iterator[str]:
    """What is wrong with the folds of one seed."""
    file = RandomFile(seed)
    x = np.random.default_rng(seed).standard_normal(file.shape)
    options = ["--leftovers", LEFTOVERS[seed % 3], *(["--freeze-inputs"] if seed % 7 == 0 else [])]
    source, out = folder / "in.onnx", folder / "out.onnx"
    model = file.save(source)
    problem = fold(source, out, "--no-verify", *options)
    if problem:
        yield f"float64: {problem}"
        return
    folded = onnx.load(out)
    onnx.checker.check_model(folded, full_check=True)
    truth = evaluate(model, x=x)
    error = apart(truth, evaluate(folded, x=x))
    if not error < 5e-12:
        yield f"float64: error {error:.1e}"
    dtype = TensorProto.FLOAT if chooses(model) else TYPES[seed % len(TYPES)]
    file.save(source, dtype)
    problem = fold(source, out, *options)
    unknown = NOBODY in problem and dtype != TensorProto.FLOAT
    if unknown or ("did not pass" in problem and _only_rounding(file, source, out, dtype, x, options)):
        return
    if problem:
        yield f"type {dtype}: {problem}"
    elif dtype == TensorProto.FLOAT:
        single = x.astype(np.float32)
        truth = evaluate(model, x=single.astype(np.float64))
        before, after = (apart(truth, run(path, single)) for path in (source, out))
        if not after <= 10 * before + 2e-5:
            yield f"float32: error {after:.1e}, the original's {before:.1e}"


def _only_rounding(file: RandomFile, source: Path, out: Path, dtype: int, x: Array, options: list[str]) -> bool:
    """Whether a fold that the judge did not pass is about as near to the float64 outputs as the original."""
    if fold(source, out, "--no-verify", *options):
        return False
    given = x.astype(helper.tensor_dtype_to_np_dtype(dtype))
    truth = evaluate(file.model(), x=given.astype(np.float64))
    if dtype == TensorProto.FLOAT:
        before, after = (apart(truth, run(path, given)) for path in (source, out))
        return after <= 10 * before + 2e-5
    before, after = (apart(truth, evaluate(onnx.load(path), x=given)) for path in (source, out))
    return after <= 4 * before + 2.0**-9


def campaign(seeds: range) -> tuple[list[str], Counter[str]]:
    """Problems with their seeds, and what was tried."""
    problems: list[str] = []
    tried: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            folder = Path(name) / str(seed)
            folder.mkdir()
            try:
                tried.update(RandomFile(seed).traits)
                problems += [f"seed {seed}: {problem}" for problem in check(seed, folder)]
            except Exception as error:
                problems.append(f"seed {seed}: {type(error).__name__}: {error}"[:400])
            for path in folder.iterdir():
                path.unlink()
    return problems, tried


if __name__ == "__main__":
    found, counts = campaign(range(int(sys.argv[1]), int(sys.argv[2])))
    print("\n".join(found))
    print(f"{len(found)} problems in {int(sys.argv[2]) - int(sys.argv[1])} files", dict(sorted(counts.items())))
    sys.exit(bool(found))
