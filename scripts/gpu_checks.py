"""Every check that needs a graphics card, in one call; a short table comes last.

    python -m scripts.gpu_checks                          # all of it
    python -m scripts.gpu_checks --out docs/gpu           # and a page named by date and card
    python -m scripts.gpu_checks --device cpu --few       # the same lines without a card, to try the script itself

The networks of the zoo and the files in models/ are folded, then judged on the card: by torch with TF32 off and on, and
by the CUDA provider of onnxruntime where it can be loaded. Each runner must refuse a folded network with one weight off
by a tenth. The exit code is 1 where anything failed, and where torch caught no fault; what could not be run is listed
with the reason.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

import bnfold
from bnfold.core.plan import Plan
from bnfold.errors import BnfoldError, VerificationError
from bnfold.judge.criteria.check import Check
from bnfold.judge.criteria.device import Device
from bnfold.judge.subjects.runners import OrtRunner
from tests.torch_zoo import ZOO, made
from tests.zoo import ZOO as ONNX_ZOO

MODELS = Path(__file__).parents[1] / "models"
FEW = 2
FAULT = "one weight off by a tenth"


@dataclass(frozen=True)
class Row:
    """One line of the table. `state`: "ok", "FAILED" or "skipped"."""

    name: str
    runner: str
    state: str
    norms: str = ""
    ratio: str = ""
    latency: str = ""
    note: str = ""


def verdict(name: str, check: Check, norms: str, latency: str = "", wanted: bool = True) -> Row:
    """A row for a verdict that should be `wanted`."""
    worst = check.worst
    ratio = worst.measure("error ratio") if worst else None
    state = "ok" if check.passed == wanted else "FAILED"
    note = "" if check.passed else check.message
    where = f"; {check.where}" if check.where and not wanted else ""
    return Row(name, check.runner, state, norms, "" if ratio is None else f"{ratio:.2f}", latency, note + where)


def folded(plan: Plan) -> str:
    """How many norms went. VerificationError where torch.export could not trace any: nothing would be compared."""
    if plan.notes and not plan.counts()["folded"]:
        raise VerificationError(f"nothing was folded: {plan.notes[0]}")
    return f"{plan.counts()['folded']} of {len(plan.batch_norms)}"


def torch_rows(device: str, few: bool) -> Iterator[Row]:
    """The zoo of PyTorch; the first network that can be made gets a fault, too."""
    checked = 0
    for name in ZOO:
        if few and checked == FEW:
            return
        try:
            module, inputs, _ = made(ZOO[name])
        except ImportError as error:
            yield Row(name, "torch", "skipped", note=str(error))
            continue
        checked += 1
        yield from guarded(name, f"torch {device}", torch_network(name, module, inputs, device, checked == 1))


def torch_network(
    name: str, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], device: str, plant: bool
) -> Iterator[Row]:
    """One network folded; `plant`: and with a fault."""
    result = bnfold.fold(module, inputs, ignore_hooks=True)
    norms = folded(result.plan)
    for tf32 in (False, True) if device == "cuda" else (False,):
        check = bnfold.verify(module, result.model, inputs, device=device, tf32=tf32)
        latency = ""
        if not tf32:
            ratio = bnfold.bench(module, result.model, inputs, device=device, seconds=1.0).ratio
            latency = f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
        yield verdict(name, check, norms, latency)
    if plant:
        wrong = result.model
        weight = next(p for n, p in wrong.named_parameters() if n.endswith("weight") and p.dim() > 2)
        with torch.no_grad():
            weight.view(-1)[weight.abs().argmax()] *= 1.1
        check = bnfold.verify(module, wrong, inputs, device=device)
        yield verdict(f"{name}, {FAULT}", check, norms, wanted=False)


def files(few: bool) -> Iterator[tuple[str, Path]]:
    """The models that ship, and the zoo of ONNX."""
    for path in sorted(MODELS.glob("*.onnx")):
        yield path.stem, path
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(ONNX_ZOO)[: FEW if few else None]:
            path = Path(folder) / f"{name}.onnx"
            onnx.save(ONNX_ZOO[name](), path)
            yield name, path


def onnx_rows(device: str, few: bool) -> Iterator[Row]:
    """The same in onnxruntime; one row that says why where its provider cannot be had."""
    if find_spec("onnx_graphsurgeon") is None:
        yield Row("all ONNX files", f"onnxruntime {device}", "skipped", note="onnx-graphsurgeon is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        out, wrong = Path(folder) / "folded.onnx", Path(folder) / "wrong.onnx"
        for i, (name, path) in enumerate(files(few)):
            if i == 0:
                try:
                    OrtRunner(path, Device(device))
                except BnfoldError as error:
                    yield Row("all ONNX files", f"onnxruntime {device}", "skipped", note=str(error))
                    return
            yield from guarded(name, f"onnxruntime {device}", onnx_network(name, path, (out, wrong), device, i == 0))


def onnx_network(name: str, path: Path, made: tuple[Path, Path], device: str, plant: bool) -> Iterator[Row]:
    """One file folded; `plant`: and with a fault. `made`: where to write both."""
    out, wrong = made
    norms = folded(bnfold.fold(path, out=out).plan)
    check = bnfold.verify(path, out, device=device)
    ratio = bnfold.bench(path, out, device=device, seconds=1.0).ratio
    yield verdict(name, check, norms, f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
    if plant:
        onnx.save(damaged(onnx.load(out)), wrong)
        check = bnfold.verify(path, wrong, device=device)
        yield verdict(f"{name}, {FAULT}", check, norms, wanted=False)


def damaged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The largest weight of a conv in the middle off by a tenth."""
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    name = convs[len(convs) // 2].input[1]
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value.flat[np.abs(value).argmax()] *= 1.1
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def guarded(name: str, runner: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of a part; whatever goes wrong in it is a row, and the other parts go on."""
    try:
        yield from rows
    except Exception as error:
        traceback.print_exc()
        yield Row(name, runner, "FAILED", note=f"{type(error).__name__}: {error}")


def table(rows: list[Row], card: str) -> str:
    """Versions, and the rows as Markdown."""
    failed, skipped = (sum(row.state == state for row in rows) for state in ("FAILED", "skipped"))
    versions = (
        f"bnfold {bnfold.__version__}, torch {torch.__version__} (CUDA {torch.version.cuda}), "
        f"onnxruntime {onnxruntime.__version__} ({', '.join(onnxruntime.get_available_providers())}), "
        f"onnx {onnx.__version__}, Python {platform.python_version()}"
    )
    lines = [
        f"# {card}, {date.today().isoformat()}", "", versions, "",
        f"{len(rows)} checks, {failed} failed, {skipped} could not be run.", "",
        "Error ratio: the folded network's error against float64 over the original's own, the worst of all inputs. "
        "Latency: folded over original, median and 95 % interval.", "",
        "| network | run by | | norms folded | error ratio | latency | |", "|---|---|---|---|---:|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r.name} | {r.runner} | {r.state} | {r.norms} | {r.ratio} | {r.latency} | {' '.join(r.note.split())} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """All checks; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--few", action="store_true", help="two networks of each kind")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write the page, too")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no card here; --device cpu --few tries the script without one", file=sys.stderr)
        return 1
    if find_spec("transformers") is None:
        print("transformers is not installed: its networks are left out", file=sys.stderr)
    card = torch.cuda.get_device_name() if given.device == "cuda" else platform.processor() or "CPU"
    rows = []
    for part in (torch_rows, onnx_rows):
        for row in guarded(part.__name__, given.device, part(given.device, given.few)):
            print(row.state, row.name, row.runner, row.note, flush=True)
            rows.append(row)
    text = table(rows, card)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        name = "-".join(card.lower().replace("/", " ").split())
        (given.out / f"{date.today().isoformat()}-{name}.md").write_text(text)
    print("\n" + text)
    return int(any(row.state == "FAILED" for row in rows) or not any(FAULT in row.name for row in rows))


if __name__ == "__main__":
    sys.exit(main())
