"""Folding a module: on a copy first, then, if asked for, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from .errors import BnfoldError, ModelError, VerificationError
from .frontends.torch.capture import one_line
from .frontends.torch.fold import ModulePlan, Options, copied, prepared, ready, survey
from .frontends.torch.undo import Undo
from .plan import Plan
from .pytorch import Call, Judging, Policy, judged, quiet

if TYPE_CHECKING:
    from .equivalence.check import Check


def fold_module(
    module: nn.Module, call: Call, policy: Policy, options: Options, judging: Judging, inplace: bool = False
) -> tuple[nn.Module, Plan, Check | None]:
    """A folded copy of a module, or the module itself with `inplace`, its plan, and the judge's verdict.

    With `inplace` the module changes only after a copy passed, and is put back when it then differs from that.
    """
    judging.progress("tracing")
    reference = prepared(module, options)
    seen = survey(reference, call.args, call.kwargs, options, module if inplace else None)
    judging.progress("folding")
    made = seen.plan(policy.plan)
    folded = made.apply(copied(reference))
    check = judged(reference, folded, call, judging, made.plan) if judging.verify else None
    if inplace:
        return _in_place(module, made, folded, call, options, judging), made.plan, check
    return folded, made.plan, check


def _in_place(
    module: nn.Module, made: ModulePlan, folded: nn.Module, call: Call, options: Options, judging: Judging
) -> nn.Module:
    """The module itself, edited, and compared with the copy that passed; as it was, where anything goes wrong."""
    from .equivalence.alike import difference, outputs

    name, undo = type(module).__name__, Undo(module)
    with quiet():  # before the edits, for memory that the module shares with nobody knows what may be the copy's too
        expected = outputs(folded, call.args, call.kwargs) if judging.verify else []
    try:
        made.apply(ready(module, options))
        with quiet():
            fault = difference(expected, module, call.args, call.kwargs) if judging.verify else ""
        if fault:
            raise VerificationError(
                f"{name}, edited in place, does not give what its folded copy gives ({fault}): its tensors may share "
                "memory with others that it does not hold; it was put back; fold a copy of it (inplace=False)"
            )
    except BaseException as error:
        undo.back()
        if isinstance(error, BnfoldError) or not isinstance(error, Exception):
            raise
        raise ModelError(f"{name} cannot be edited in place, and was put back: {one_line(error)}") from error
    return module
