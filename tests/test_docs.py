"""The documents say what is true: the example's numbers, the reason codes, the table of rules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bnfold.gauge.explain import Explainer
from bnfold.gauge.rules import RULES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-it-works.md").read_text()


def _codes() -> set[str]:
    """The first argument of every `Reason(` in the source."""
    text = "\n".join(path.read_text() for path in (ROOT / "bnfold").rglob("*.py"))
    return set(re.findall(r"Reason\(\s*\"([a-z0-9-]+)\"", text))


def test_every_reason_code_is_documented() -> None:
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.M))
    assert listed == _codes()
    assert len(listed) > 15


def test_every_conflict_of_the_solvers_can_be_explained() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "bnfold/gauge").glob("*.py"))
    kinds = set(re.findall(r"Conflict\(\"([a-z]+)\"", text))
    assert kinds == {"constant", "scale", "sign", "shift", "dead", "precision", "range"}
    assert all(hasattr(Explainer, f"_{kind}") for kind in kinds)


def test_the_table_names_every_class_of_op() -> None:
    table = PAGE[PAGE.index("## The rules") : PAGE.index("## Solving")]
    words = {
        "Linear": "Conv", "Affine": "BN", "Homogeneous": "Relu", "Select": "MaxPool", "Carry": "Identity",
        "Sum": "Add", "Gate": "gate", "Reshape": "Reshape", "Transpose": "Transpose", "Concat": "Concat",
        "Take": "Slice", "Broadcast": "same index map",
    }  # fmt: skip
    assert {rule.__name__ for rule in RULES} == set(words)
    assert all(word in table for word in words.values())


def test_the_worked_example_prints_what_the_page_says() -> None:
    script = ROOT / "docs/examples/preactivation.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=ROOT)
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| [^|]+ \| (\S+) \| (\S+) \|$", PAGE, re.M)
    assert len(rows) == 4
    for name, weight, bias in rows:
        assert f"{name}: weight {weight}, bias {bias}\n" in done.stdout
    assert "x = 1: original 12, folded 12\n" in done.stdout
    assert PAGE.count("`y = 12`") == 2
    assert "3 folded, 0 reduced, 0 kept" in done.stdout
