"""The documents say what is true: the example's numbers, the reason codes, the table of rules."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from bnfold.core.gauge.explain import Explainer
from bnfold.core.gauge.guard import solve_within
from bnfold.core.gauge.rules import RULES
from bnfold.limits import PRECISION_LIMIT
from bnfold.onnx.read.read import READERS, read
from bnfold.onnx.store.skeleton import skeleton

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-it-works.md").read_text()
TABLE = PAGE[PAGE.index("## The rules") : PAGE.index("## Solving")]
EXAMPLE = ROOT / "docs/examples/preactivation.py"


def _codes(swap: bool = False) -> set[str]:
    """The first argument of every `Reason(` in the source of folding, or of the swap of LRN."""
    files = [path for path in (ROOT / "bnfold").rglob("*.py") if (path.parent.name == "lrn") == swap]
    files = [
        path for path in files if not {"shrinking", "shrink.py"} & set(path.parts)
    ]  # docs/shrinking.md lists those
    text = "\n".join(path.read_text() for path in files)
    return set(re.findall(r"Reason\(\s*\"([a-z0-9-]+)\"", text))


def test_every_reason_code_is_documented() -> None:
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE[PAGE.index("## Reasons") :], re.M))
    assert listed == {code for code in _codes() if not code.startswith("merge-")}
    assert len(listed) > 15


def test_every_reason_of_the_swap_is_documented() -> None:
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs/lrn.md").read_text(), re.M))
    assert listed == _codes(swap=True)
    assert len(listed) == 5


def test_every_conflict_of_the_solvers_can_be_explained() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "bnfold/core/gauge").glob("*.py"))
    kinds = set(re.findall(r"Conflict\(\"([a-z]+)\"", text))
    assert kinds == {"constant", "scale", "sign", "shift", "dead", "precision", "centre", "range"}
    assert all(hasattr(Explainer, f"_{kind}") for kind in kinds)


def test_the_table_names_every_class_of_op() -> None:
    words = {
        "Linear": "Conv", "Affine": "BN", "Homogeneous": "Relu", "Select": "MaxPool", "Carry": "Identity",
        "Sum": "Add", "Gate": "gate", "Reshape": "Reshape", "Transpose": "Transpose", "Concat": "Concat",
        "Take": "Slice", "Broadcast": "Expand", "Clipped": "Clip", "Bound": "Where",
    }  # fmt: skip
    assert {rule.__name__ for rule in RULES} == set(words)
    assert all(word in TABLE for word in words.values())


def test_the_table_names_every_op_that_is_read_and_no_other() -> None:
    ops = re.findall(r"\b[A-Z]\w+", " ".join(re.findall(r"^\| ([^|]+) \|", TABLE, re.M)))
    words = {"BN", "SE", "If", "Loop"}
    assert set(ops) >= words
    read = {name.rpartition(".")[2] for name in READERS}
    assert set(ops) - words == read - {"BatchNormalization"}


def test_the_example_of_merging_prints_what_its_page_says() -> None:
    page, example = (ROOT / "docs/merging.md").read_text(), ROOT / "docs/examples/merging.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=True, cwd=ROOT)
    taps, bias = (re.search(rf"^wide_{part}: \[(.+)\]$", done.stdout, re.M) for part in ("weight", "bias"))
    row = re.search(r"merged: +(.+) +bias (.+)$", page, re.M)
    assert taps
    assert bias
    assert row
    assert [float(v) for v in taps[1].split(",")] == [float(v) for v in row[1].split()]
    assert float(bias[1]) == float(row[2])
    outputs = re.findall(r"^(?:original|merged): \[(.+)\]$", done.stdout, re.M)
    assert outputs[0] == outputs[1] == "3.0, 8.5, 18.0"
    assert "`3, 8.5, 18`" in page


def test_the_worked_example_prints_what_the_page_says() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True, cwd=ROOT)
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| [^|]+ \| (\S+) \| (\S+) \|$", PAGE, re.M)
    assert len(rows) == 4
    for name, weight, bias in rows:
        assert f"{name}: weight {weight}, bias {bias}\n" in done.stdout
    values = re.findall(r"^x = (\S+): original (\S+), folded (\S+)$", done.stdout, re.M)
    assert ("1", "12", "12") in values
    for x, before, after in values:
        assert before == after
        assert f"`x = {x}`" in PAGE
        assert f"`y = {before}`" in PAGE
    assert PAGE.count("`y = 12`") == 2
    assert "3 folded, 0 reduced, 0 kept" in done.stdout


PICTURE = {
    "x0 + 0.5": "stem.out", "x1 - 3": "x1", "x2 + 1": "x2", "0.5 · relu(bn1)": "bn1.relu", "relu(bn2)": "bn2.relu",
    "relu(bn3)": "bn3.relu", "conv1 - 3.5": "conv1.out", "conv2 + 4": "conv2.out", "y": "head.out",
}  # fmt: skip
"""What the picture writes at a tensor of the example."""


@pytest.mark.parametrize("written", PICTURE)
def test_the_picture_shows_the_gauge_that_is_solved(written: str) -> None:
    model = runpy.run_path(str(EXAMPLE))["network"]()
    solution = solve_within(read(model, skeleton(model), "example").graph, PRECISION_LIMIT)
    ids = solution.gauges[PICTURE[written]]
    assert ids is not None
    (p,), (q,) = solution.p[ids].ravel(), solution.q[ids].ravel()
    folded = (ROOT / "docs/gauges.svg").read_text().partition(">folded")[2]
    found = re.search(rf">{re.escape(written)}</text>\n<text [^>]+>p = (\S+), q = (\S+)</text>", folded)
    assert found is not None
    assert (float(found[1]), float(found[2])) == (p, q)
