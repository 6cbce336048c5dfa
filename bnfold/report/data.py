"""The report as plain data, for `--json` and `--report`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..core.plan import Plan
from ..version import __version__

if TYPE_CHECKING:
    from ..judge.criteria.check import Check


def report(
    plan: Plan, check: Check | None = None, output: str | None = None, verified: bool | None = None
) -> dict[str, Any]:
    """What became of every norm, and what the judge said.

    `verification` is null when nothing was folded (inspect); `{"verified": false}` when the check was not made.
    """
    data = plan.to_dict()
    del data["edits"], data["moved"]
    data = {"schema": data.pop("schema"), "bnfold": __version__, **data, "output": output, "verification": None}
    if check is not None:
        data["verification"] = {"verified": True, **check.to_dict()}
    elif verified is not None:
        data["verification"] = {"verified": verified}
    return data


def to_json(data: dict[str, Any]) -> str:
    """JSON text with a newline at the end."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
