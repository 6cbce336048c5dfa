"""For tests of models: `from bnfold.testing import assert_equivalent`.

>>> def test_the_folded_detector():                                             # doctest: +SKIP
...     assert_equivalent("detector.onnx", "folded.onnx", data="samples.npz")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .api import verify

if TYPE_CHECKING:
    from .judge.criteria.check import Check


def assert_equivalent(reference: Any, candidate: Any, inputs: Any = None, **options: Any) -> Check:
    """Assert that two models are the same function. AssertionError with the whole table where they are not.

    Arguments and other errors: those of `bnfold.verify`. The verdict is returned, for further looks.
    """
    __tracebackhide__ = True
    check = verify(reference, candidate, inputs, **options)
    if not check.passed:
        raise AssertionError(described(check))
    return check


def described(check: Check) -> str:
    """The verdict as the command prints it, without colours."""
    from io import StringIO

    from rich.console import Console

    from .report.table import check_table

    console = Console(file=StringIO(), width=160, highlight=False)
    console.print(check_table(check))
    text = console.file
    assert isinstance(text, StringIO)
    return f"{check.names[1]} is not {check.names[0]}\n{text.getvalue().rstrip()}"
