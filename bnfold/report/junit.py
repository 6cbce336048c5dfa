"""JUnit XML: what CI systems show beside a build."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from ..judge.criteria.check import Check, OutputError


def to_junit(checks: Sequence[tuple[str, Check | str]]) -> str:
    """One suite for each pair of models, by name; one case for each output on each kind of inputs.

    Where there is no verdict the text that says why stands in its place, and counts as an error.
    """
    root = ElementTree.Element("testsuites", name="bnfold verify")
    for given, check in checks:
        name = _clean(given)
        suite = ElementTree.SubElement(root, "testsuite", name=name)
        if isinstance(check, str):
            case = ElementTree.SubElement(suite, "testcase", classname=name, name="verify")
            ElementTree.SubElement(case, "error", message=_clean(check))
        else:
            _properties(suite, check)
            for output in check.outputs:
                _case(suite, name, output)
            if not check.passed:
                _verdict(suite, name, check)
        _count(suite)
    _count(root)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _properties(suite: ElementTree.Element, check: Check) -> None:
    properties = ElementTree.SubElement(suite, "properties")
    said = {
        "reference": check.names[0], "candidate": check.names[1], "runner": check.runner, "criterion": check.criterion,
        "seed": str(check.seed), **{f"warning {i + 1}": text for i, text in enumerate(check.warnings)},
    }  # fmt: skip
    for name, value in said.items():
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))


def _case(suite: ElementTree.Element, name: str, output: OutputError) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=name, name=_clean(f"{output.output} on {output.kind} inputs")
    )
    if output.note == "skipped":
        ElementTree.SubElement(case, "skipped", message="the reference is nowhere finite")
    elif not output.passed:
        said = "; ".join(f"{m.name} {m.value:.3g}, at most {m.bound:.3g} passes" for m in output.measures)
        ElementTree.SubElement(case, "failure", message=_clean(output.note or said), type="differs")


def _verdict(suite: ElementTree.Element, name: str, check: Check) -> None:
    """The verdict as a case of its own: a model that cannot be run has no other."""
    case = ElementTree.SubElement(suite, "testcase", classname=name, name="verdict")
    failure = ElementTree.SubElement(case, "failure", message=_clean(check.message), type="verdict")
    failure.text = _clean(str(check.where)) if check.where else None


def _count(element: ElementTree.Element) -> None:
    """How many there are of each; the schema of Jenkins counts what was skipped in suites only."""
    counted = [("tests", "testcase"), ("failures", "failure"), ("errors", "error")]
    for what, tag in counted if element.tag == "testsuites" else [*counted, ("skipped", "skipped")]:
        element.set(what, str(len(list(element.iter(tag)))))


def _clean(text: str) -> str:
    """Without what XML cannot hold; names in models may hold anything."""
    return "".join(
        c if c in "\t\n\r" or 32 <= ord(c) <= 0xD7FF or 0xE000 <= ord(c) <= 0xFFFD or ord(c) > 0xFFFF else "?"
        for c in text
    )
