"""Fold the trained networks in models/, verify them, and compare accuracy before and after on real images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent
OUT = ROOT / "demo-out"


def run(shown: str, *command: str) -> None:
    """Run a command in the project's folder, after showing it as a user would type it."""
    print(f"\n$ {shown}", flush=True)
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def fold(model: Path) -> str:
    """Fold one model through the command; the path of the result."""
    folded = f"{OUT.name}/{model.stem}-folded.onnx"
    arguments = ["fold", f"models/{model.name}", "-o", folded, "--report", f"{OUT.name}/{model.stem}-report.json"]
    if "densenet" in model.name:  # norms that cannot go without a trace are to become a Max, at the price of some time
        arguments += ["--leftovers", "all"]
    run(f"bnfold {' '.join(arguments)}", "-m", "bnfold", *arguments)
    return folded


def main() -> None:
    """Fold every model in models/, then compare each with its original."""
    OUT.mkdir(exist_ok=True)
    models = sorted((ROOT / "models").glob("*.onnx"))
    files = [name for model in models for name in (f"models/{model.name}", fold(model))]
    run(f"python models/evaluate.py {' '.join(files)}", "models/evaluate.py", *files)


if __name__ == "__main__":
    main()
