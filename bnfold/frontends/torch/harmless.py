"""Exported programs, read without running what a file brings along.

Reading one may unpickle objects, evaluate sizes as Python, load compiled libraries and import modules by name; running
one calls whatever its nodes name. Inside `harmless` only what computes on tensors is let through. The checks stand
where torch uses the values, since another reader of the archive could see other ones.
"""

from __future__ import annotations

import importlib
import operator
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .capture import one_line

NAME = re.compile(r"[A-Za-z_]\w*")
SYMBOL = re.compile(r"(s|u|z|zf|q|i)\d+\Z")
PLAIN = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
ALGEBRA = {"Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne", "Abs", "oo", "int_oo"}
ALGEBRA |= {"true", "false", "True", "False"}
FILES = ("filename", "path")
"""Arguments of operators that name files."""


class Refused(Exception):
    """What a file asked for and was not done."""


@dataclass
class Watch:
    """What went wrong inside `harmless`: torch catches errors and tells of others."""

    refusal: Refused | None = None
    cause: Exception | None = None

    def refuse(self, text: str) -> Refused:
        """A refusal; the first is kept."""
        self.refusal = self.refusal or Refused(text)
        return Refused(text)


@contextmanager
def harmless(trusted: bool) -> Iterator[Watch]:
    """torch.export.load inside the block runs nothing of the file's own, unless it is trusted."""
    watch = Watch()
    with ExitStack() as stack:
        for holder, name, made in (*_watching(watch), *([] if trusted else _guards(watch))):
            stack.enter_context(_replaced(holder, name, made))
        yield watch


@contextmanager
def _replaced(holder: Any, name: str, made: Callable[..., Any]) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, made)
    try:
        yield
    finally:
        setattr(holder, name, before)


Patches = list[tuple[Any, str, Callable[..., Any]]]


def _watching(watch: Watch) -> Patches:
    """The loader, with its error kept: what torch.export.load raises then says only that there was one."""
    from torch.export.pt2_archive import _package

    plain = _package.load_pt2

    def load(*args: Any, **kwargs: Any) -> Any:
        try:
            return plain(*args, **kwargs)
        except Exception as error:
            watch.cause = error
            raise

    return [(_package, "load_pt2", load)]


def _guards(watch: Watch) -> Patches:
    from sympy import Basic
    from torch._export.serde.serialize import GraphModuleDeserializer as Deserializer
    from torch.export.pt2_archive import _package

    torch_load, expression, node = torch.load, Deserializer._parse_sym_expr, Deserializer.deserialize_node
    importing = importlib.import_module

    def safe_load(*args: Any, **kwargs: Any) -> Any:
        try:
            return torch_load(*args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:
            raise watch.refuse(f"it holds a pickle that would run code ({one_line(error)[:120]})") from error

    def no_pickle(*args: Any, **kwargs: Any) -> Any:
        raise watch.refuse("it holds an object that only running code can restore")

    def no_library(*args: Any, **kwargs: Any) -> Any:
        raise watch.refuse("it holds compiled code (AOTInductor), which loading it runs")

    def import_known(name: str, package: str | None = None) -> Any:
        if name not in sys.modules and name.partition(".")[0] not in ("torch", ""):
            raise watch.refuse(f"it would import {name[:60]}")
        return importing(name, package)

    def checked_expression(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(text, Basic) and not is_size(text):  # the parts of one that was read are expressions
            raise watch.refuse(f"a size in it reads {text[:60]!r}, which is no size")
        return expression(self, text, *args, **kwargs)

    def checked_node(self: Any, serialized: Any, target: Any) -> Any:
        if not _computes(target):
            raise watch.refuse(f"it calls {str(serialized.target)[:60]}, which does more than compute")
        return node(self, serialized, target)

    return [
        (torch, "load", safe_load), (pickle, "loads", no_pickle), (torch._C, "_pickle_load_obj", no_pickle),
        (_package, "_load_aoti", no_library), (importlib, "import_module", import_known),
        (Deserializer, "_parse_sym_expr", checked_expression), (Deserializer, "deserialize_node", checked_node),
    ]  # fmt: skip


def is_size(text: str) -> bool:
    """Whether an expression, which sympy evaluates as Python, is made of nothing but symbols, numbers and algebra."""
    from torch.utils._sympy import functions

    known = {name for name in vars(functions) if name[:1].isupper()} | ALGEBRA
    plain = PLAIN.sub("s0", text)
    words = all(word in known or SYMBOL.match(word) for word in NAME.findall(plain))
    return words and not re.search(r"""['"\[\]{}\\@:;]|__|\.\D""", plain)


def _computes(target: Any) -> bool:
    """Whether what a node calls is an operator of torch that reads and writes no files, or arithmetic of sizes.

    A name that torch does not know stays text, and torch says so itself.
    """
    from torch._export.serde.serialize import _SYM_OPS, _registered_extension_types

    if isinstance(target, torch._ops.OpOverload):
        return not any(argument.name in FILES for argument in target._schema.arguments)
    plain: tuple[type, ...] = (str, torch._ops.HigherOrderOperator, *_registered_extension_types())  # type: ignore[no-untyped-call]
    return isinstance(target, plain) or target is operator.getitem or (callable(target) and target in _SYM_OPS)
