"""Recompute the test accuracy of ONNX files with onnxruntime and print it as a table.

python models/evaluate.py                  the networks of this folder
python models/evaluate.py a.onnx b.onnx    any files, for instance a network and its folded version
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
BATCH = 100
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
COLUMNS = ("file", "bytes", "BN nodes", "stored floats", "test set", "correct", "test accuracy", "max logit change")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TestSet:
    """Held-out images, float32 (n, 1, h, w) in [0, 1], and their labels, int64 (n,)."""

    name: str
    images: Floats
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Result:
    """What one file measured: its size, its content, and its logits (n, 10) on a test set."""

    path: Path
    batchnorms: int
    floats: int
    test: TestSet
    logits: Floats

    @property
    def correct(self) -> int:
        """Number of test images whose largest logit is the label's."""
        return int((self.logits.argmax(axis=1) == self.test.labels).sum())


def load_test_set(path: Path) -> TestSet:
    """Read a `*_test.npz`: uint8 images (n, 1, h, w), uint8 labels (n,), and the grey level `peak` of white."""
    with np.load(path) as data:
        images = data["images"].astype(np.float32) / np.float32(data["peak"])
        return TestSet(path.stem.removesuffix("_test"), images, data["labels"].astype(np.int64))


def matching_test_set(path: Path, model: onnx.ModelProto) -> TestSet:
    """Pick the test set of this folder whose images have the shape that the network takes."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = tuple(dim.dim_value for dim in dims)[1:]
    for candidate in sorted(HERE.glob("*_test.npz")):
        test = load_test_set(candidate)
        if test.images.shape[1:] == shape:
            return test
    raise SystemExit(f"{path}: no test set in {HERE.name}/ has images of shape {shape}; name one with --data")


def count_batchnorms(model: onnx.ModelProto) -> int:
    """Count the BatchNormalization nodes of the graph and of the model's local functions."""
    bodies = [model.graph, *model.functions]
    return sum(node.op_type == "BatchNormalization" for body in bodies for node in body.node)


def count_floats(model: onnx.ModelProto) -> int:
    """Count the floating-point values that the initializers store (weights and running statistics)."""
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in FLOATS)


def run_onnx(path: Path, images: Floats) -> Floats:
    """Return the logits (n, 10) of images (n, 1, h, w), computed batch by batch."""
    options = ort.SessionOptions()
    # onnxruntime folds batch norms on its own when it optimises; the graph must run as the file states it.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[i : i + BATCH]})[0] for i in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float32)


def measure(path: Path, data: Path | None) -> Result:
    """Load, inspect and run one file."""
    model = onnx.load(path)
    test = load_test_set(data) if data else matching_test_set(path, model)
    return Result(path, count_batchnorms(model), count_floats(model), test, run_onnx(path, test.images))


def logit_change(result: Result, results: list[Result]) -> str:
    """Largest logit difference to the first file listed on the same test set; '-' for that first file."""
    first = next(other for other in results if other.test.name == result.test.name)
    return "-" if first is result else f"{np.abs(first.logits - result.logits).max():.1e}"


def row(result: Result, results: list[Result]) -> tuple[str, ...]:
    """One table row, a cell per name in COLUMNS."""
    total = len(result.test.labels)
    return (
        result.path.name,
        f"{result.path.stat().st_size:,}",
        str(result.batchnorms),
        f"{result.floats:,}",
        result.test.name,
        f"{result.correct} / {total}",
        f"{100 * result.correct / total:.2f} %",
        logit_change(result, results),
    )


def table(rows: list[tuple[str, ...]]) -> str:
    """Lay rows out as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [COLUMNS, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def main() -> None:
    """Measure the files named on the command line, by default all of this folder."""
    parser = argparse.ArgumentParser(description="Test accuracy of ONNX files, recomputed with onnxruntime.")
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files (default: those beside this script)")
    parser.add_argument("--data", type=Path, help="test set to use (default: the one whose image shape fits)")
    options = parser.parse_args()
    results = [measure(path, options.data) for path in options.files or sorted(HERE.glob("*.onnx"))]
    print(table([row(result, results) for result in results]))


if __name__ == "__main__":
    main()
