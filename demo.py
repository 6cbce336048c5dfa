"""Fold the trained networks in models/, one from LRN by way of BN, verify them, compare accuracy on real images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent
OUT = ROOT / "demo-out"
INPUT = ["--input", "1x1x28x28"]


def run(shown: str, *command: str, quiet: bool = False) -> None:
    """Run a command in the project's folder, after showing it as a user would type it; `quiet`: without its output."""
    print(f"\n$ {shown}", flush=True)
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL if quiet else None)


def fold(model: Path) -> str:
    """Fold one model through the command; the path of the result."""
    folded = f"{OUT.name}/{model.stem}-folded.onnx"
    arguments = ["fold", f"models/{model.name}", "-o", folded, "--report", f"{OUT.name}/{model.stem}-report.json"]
    if "densenet" in model.name:  # norms that cannot go without a trace are to become a Max, at the price of some time
        arguments += ["--leftovers", "all"]
    run(f"bnfold {' '.join(arguments)}", "-m", "bnfold", *arguments)
    return folded


def swap() -> list[str]:
    """Put batch norms in the place of LRNs, calibrate, fold, verify; the network at each stage as an ONNX file."""
    network = ["--arch", "models/lrn_net.py:LrnNet"]
    first = "models/lrn_mnist.safetensors"
    names = ("bn", "calibrated", "folded")
    swapped, calibrated, folded = (f"{OUT.name}/lrn_mnist-{name}.safetensors" for name in names)
    data = ["--data", "models/mnist_calibration.npz"]
    for command in (
        ["swap-lrn", first, "-o", swapped, *data, *network],
        ["calibrate", swapped, "-o", calibrated, *data, "--order", "layerwise", *network],
        ["fold", calibrated, "-o", folded, *network, *INPUT],
        ["verify", calibrated, folded, *network, *INPUT],
    ):
        run(f"bnfold {' '.join(command)}", "-m", "bnfold", *command)
    files = []
    for stage in (first, calibrated, folded):
        files.append(f"{OUT.name}/{Path(stage).stem}.onnx")
        command = ["export", stage, "-o", files[-1], "--keep-bn", "--dynamic", "batch", *network, *INPUT]
        run(f"bnfold {' '.join(command)}", "-m", "bnfold", *command, quiet=True)
    return files


def main() -> None:
    """Fold every model in models/ and compare each with its original; then the same from LRN by way of batch norms."""
    OUT.mkdir(exist_ok=True)
    models = sorted((ROOT / "models").glob("*.onnx"))
    files = [name for model in models for name in (f"models/{model.name}", fold(model))]
    run(f"python models/evaluate.py {' '.join(files)}", "models/evaluate.py", *files)
    files = swap()
    run(f"python models/evaluate.py {' '.join(files)}", "models/evaluate.py", *files)


if __name__ == "__main__":
    main()
