"""Build every network, check it, run it, and print what it is: `python -m tests.zoo.check`.

Each is built twice: as by default, and (`+/-0`) with a third of the gammas negative and a tenth of them zero.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from . import EXPECTED_BN, ZOO

LINEAR = {"Conv", "ConvTranspose", "Gemm"}
VARIANTS: dict[str, dict[str, Any]] = {"": {}, " +/-0": {"signs": "both", "zero_gamma": 0.1}}
COLUMNS = f"{'network':<26}{'BN':>5}{'expect':>8}{'direct':>8}{'rms':>9}{'max':>9}{'varies':>9}{'KiB':>7}  faults"


@dataclass(frozen=True)
class Figures:
    """What is printed of one network; `varies` is the part of the output's rms that depends on the input."""

    name: str
    variant: str
    bn: int
    direct: int
    rms: float
    peak: float
    varies: float
    kib: int

    def faults(self) -> list[str]:
        """Name everything that makes the network unfit as a test."""
        checks = {
            "BN count": self.bn != EXPECTED_BN[self.name],
            "not finite": not np.isfinite(self.peak),
            "collapsed": self.rms < 1e-2,
            "exploded": self.peak > 1e4,
            "ignores its input": self.varies < 1e-3,
            "too large": self.kib > 8 * 1024,
        }
        return [fault for fault, found in checks.items() if found]

    def row(self) -> str:
        """Format one line of the table."""
        counts = f"{self.name + self.variant:<26}{self.bn:>5}{EXPECTED_BN[self.name]:>8}{self.direct:>8}"
        sizes = f"{self.rms:>9.3g}{self.peak:>9.3g}{self.varies:>9.3g}{self.kib:>7}"
        return f"{counts}{sizes}  {', '.join(self.faults()) or '-'}"


def direct_pairs(model: onnx.ModelProto) -> int:
    """Count the BNs that are the only reader of a linear layer's output."""
    nodes = model.graph.node
    producer = {output: node.op_type for node in nodes for output in node.output}
    readers = Counter(name for node in nodes for name in node.input)
    readers.update(output.name for output in model.graph.output)
    sources = [node.input[0] for node in nodes if node.op_type == "BatchNormalization"]
    return sum(producer.get(source) in LINEAR and readers[source] == 1 for source in sources)


def run(model: onnx.ModelProto, batch: int = 3) -> npt.NDArray[np.float32]:
    """Run the model on standard normal inputs, with the graph left as it is."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (feed,) = session.get_inputs()
    x = np.random.default_rng(1).standard_normal((batch, *feed.shape[1:])).astype(np.float32)
    return np.asarray(session.run(None, {feed.name: x})[0])


def measure(name: str, variant: str = "") -> Figures:
    """Build one network in both precisions, check both, run the float32 one."""
    onnx.checker.check_model(ZOO[name](dtype=np.float64, **VARIANTS[variant]), full_check=True)
    model = ZOO[name](**VARIANTS[variant])
    onnx.checker.check_model(model, full_check=True)
    y = run(model).astype(np.float64)
    rms = float(np.sqrt(np.mean(y**2)))
    return Figures(
        name=name,
        variant=variant,
        bn=sum(node.op_type == "BatchNormalization" for node in model.graph.node),
        direct=direct_pairs(model),
        rms=rms,
        peak=float(np.abs(y).max()),
        varies=float(np.sqrt(np.mean(np.var(y, axis=0)))) / rms,
        kib=model.ByteSize() // 1024,
    )


def main() -> int:
    """Print the table; return 1 when any network has a fault."""
    print(COLUMNS)
    rows = []
    for name in ZOO:
        for variant in VARIANTS:
            rows.append(measure(name, variant))
            print(rows[-1].row(), flush=True)
    return int(any(row.faults() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
