"""The exceptions of bnfold.

    BnfoldError
    |-- UsageError          the call or the command line is wrong                    (exit code 2)
    |-- ModelError          the model cannot be read, or is not a valid model         (exit code 1)
    |-- DataError           the data cannot be read, or do not fit the model        (exit code 1)
    |-- TrainingError       a training run gives no usable network                  (exit code 1)
    |-- OutputError         the result cannot be written where it was asked for       (exit code 1)
    |-- VerificationError   the folded model is not equivalent, or could not be run   (exit code 1)
    |   `-- InternalError   ... and bnfold is to blame, not the model              (exit code 1)
    `-- PlanError           a plan does not fit the model that it is applied to       (exit code 1)

A batch norm that cannot be folded is no exception: it is a verdict in the plan, with a reason.
"""

from __future__ import annotations

from typing import Any


class BnfoldError(Exception):
    """Anything that bnfold reports to its caller; the message says where, what was found and what to try."""

    exit_code = 1


class UsageError(BnfoldError):
    """Arguments that do not fit together."""

    exit_code = 2


class ModelError(BnfoldError):
    """A model that cannot be read or is not valid. `local`: only what one node gives is in doubt."""

    local = False


class DataError(BnfoldError):
    """Data that cannot be read, hold no numbers, or do not fit the model."""


class TrainingError(BnfoldError):
    """A training run that gives NaN or infinities."""


class OutputError(BnfoldError):
    """A result that cannot be written."""


class VerificationError(BnfoldError):
    """A result that differs from its original, or that nothing here can run.

    `check` and `plan` say how far the result got, for reports: a `bnfold.Check` and a `bnfold.Plan`, or None.
    """

    check: Any = None
    plan: Any = None


class InternalError(VerificationError):
    """A result that differs by a fault of bnfold's own; the message says what to send in."""


class PlanError(BnfoldError):
    """A plan that does not fit the model. `plan`: that plan, where it is known."""

    plan: Any = None
