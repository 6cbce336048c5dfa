"""Operators that work on each element alone, by their formula: what they make of a constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import erf, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]
Attributes = Mapping[str, Any]

FIFTH, SIXTH = float(np.float32(0.2)), float(np.float32(1 / 6))
"""Attributes are float32, whatever the data are."""
_erf = np.vectorize(erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _elu(x: Array, alpha: float, gamma: float = 1.0, width: float = 1.0) -> Array:
    """`gamma * x`, and `gamma * alpha * (exp(x / width) - 1)` below 0."""
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / width)))


def _gelu(x: Array, approximate: str) -> Array:
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / sqrt(2))))


def function(op_type: str, attrs: Attributes) -> tuple[Function, float | None] | None:
    """The formula of an operator with one input, and how steep it is at most; None where the operator is not known."""
    get = attrs.get
    made = FUNCTIONS.get(op_type)
    return None if made is None else made(get)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


Get = Callable[..., Any]
FUNCTIONS: dict[str, Callable[[Get], tuple[Function, float | None]]] = {
    "Sigmoid": lambda get: (_sigmoid, 0.25),
    "Tanh": lambda get: (np.tanh, 1.0),
    "Erf": lambda get: (_erf, 1.13),
    "Softplus": lambda get: (lambda x: np.logaddexp(0.0, x), 1.0),
    "Softsign": lambda get: (lambda x: x / (1 + np.abs(x)), 1.0),
    "Exp": lambda get: (np.exp, None),
    "Sqrt": lambda get: (np.sqrt, None),
    "Reciprocal": lambda get: (np.reciprocal, None),
    "Elu": lambda get: (lambda x: _elu(x, get("alpha", 1.0)), max(1.0, abs(get("alpha", 1.0)))),
    "Celu": lambda get: (lambda x: _elu(x, get("alpha", 1.0), 1.0, get("alpha", 1.0)), 1.0),
    "Selu": lambda get: (
        lambda x: _elu(x, get("alpha", 1.67326319217681884765625), get("gamma", 1.05070102214813232421875)),
        None,
    ),
    "HardSigmoid": lambda get: (
        lambda x: np.clip(get("alpha", FIFTH) * x + get("beta", 0.5), 0, 1),
        abs(get("alpha", FIFTH)),
    ),
    "HardSwish": lambda get: (lambda x: x * np.clip(SIXTH * x + 0.5, 0, 1), 1.5),
    "Gelu": lambda get: (lambda x: _gelu(x, _text(get("approximate", "none"))), 1.2),
    "Mish": lambda get: (lambda x: x * np.tanh(np.logaddexp(0.0, x)), 1.1),
}
BOUNDS = dict.fromkeys(("Sigmoid", "Tanh", "Erf", "Softsign", "HardSigmoid"), 1.0)
"""How large a result is at most."""
