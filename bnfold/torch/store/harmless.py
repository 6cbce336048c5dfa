"""Exported programs, read without running what a file brings along.

Reading one may unpickle objects, evaluate sizes as Python, load compiled libraries and import modules by name; running
one calls whatever its nodes name. Only what computes on tensors is let through. The checks stand where torch uses the
values, since another reader of the archive could see other ones: in private copies of torch's readers, so that nothing
is changed for other threads. (A child process would not know what this one has registered: operators, kinds of trees.)
"""

from __future__ import annotations

import json
import operator
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from ...process.private import Stand, copied_function, copied_module, importing
from ..trace.capture import one_line

SERIALIZE, PACKAGE = "torch._export.serde.serialize", "torch.export.pt2_archive._package"
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
    """What went wrong while torch read: it catches errors and tells of others."""

    refusal: Refused | None = None
    cause: Exception | None = None

    def refuse(self, text: str) -> Refused:
        """A refusal; the first is kept."""
        self.refusal = self.refusal or Refused(text)
        return Refused(text)


def loader(watch: Watch, trusted: bool) -> Callable[..., Any]:
    """torch.export.load, which runs nothing of a file's own, unless it is trusted."""
    stands: dict[str, ModuleType] = {} if trusted else _safe_modules(watch)
    for name in (SERIALIZE, PACKAGE):
        stands[name] = copied_module(name, stands)
    serialize, package = stands[SERIALIZE], stands[PACKAGE]
    for name, value in vars(import_module(SERIALIZE)).items():
        if name.endswith("_registry"):  # what the process has registered
            setattr(serialize, name, value)
    if not trusted:
        _guard(watch, serialize, package)
    plain = package.load_pt2

    def load(*args: Any, **kwargs: Any) -> Any:
        try:  # torch.export.load says only that there was an error
            return plain(*args, **kwargs)
        except Exception as error:
            watch.cause = error
            raise

    package.load_pt2 = load  # type: ignore[attr-defined]
    return copied_function(torch.export.load, __builtins__=importing(stands))


def _safe_modules(watch: Watch) -> dict[str, ModuleType]:
    """torch and pickle as they are, but for what restores objects by running code."""

    def safe_load(*args: Any, **kwargs: Any) -> Any:
        try:
            return torch.load(*args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:
            raise watch.refuse(f"it holds a pickle that would run code ({one_line(error)[:120]})") from error

    def no_pickle(*args: Any, **kwargs: Any) -> Any:
        raise watch.refuse("it holds an object that only running code can restore")

    unsafe = dict.fromkeys(("loads", "load", "Unpickler"), no_pickle)
    return {
        "torch": Stand(torch, load=safe_load, _C=Stand(torch._C, _pickle_load_obj=no_pickle)),
        "pickle": Stand(pickle, **unsafe),
    }


def _guard(watch: Watch, serialize: Any, package: Any) -> None:
    """Let private copies of torch's reader refuse what does more than compute on tensors."""
    from sympy import Basic

    deserializer = serialize.GraphModuleDeserializer
    expression, node, tree = deserializer._parse_sym_expr, deserializer.deserialize_node, serialize.treespec_loads

    def no_library(*args: Any, **kwargs: Any) -> Any:
        raise watch.refuse("it holds compiled code (AOTInductor), which loading it runs")

    def checked_tree(text: str) -> Any:
        for name in modules_named(text):
            if name not in sys.modules and name.partition(".")[0] != "torch":
                raise watch.refuse(f"it would import {name[:60]}")
        return tree(text)

    def checked_expression(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(text, Basic) and not is_size(text):  # the parts of one that was read are expressions
            raise watch.refuse(f"a size in it reads {text[:60]!r}, which is no size")
        return expression(self, text, *args, **kwargs)

    def checked_node(self: Any, serialized: Any, target: Any) -> Any:
        if not _computes(target):
            raise watch.refuse(f"it calls {str(serialized.target)[:60]}, which does more than compute")
        return node(self, serialized, target)

    deserializer._parse_sym_expr, deserializer.deserialize_node = checked_expression, checked_node
    serialize.treespec_loads, package._load_aoti = checked_tree, no_library


def modules_named(text: object) -> Iterator[str]:
    """The modules that torch imports to read the structure of arguments: JSON, with JSON in some of its strings."""
    if isinstance(text, str):
        with suppress(ValueError):
            inner = json.loads(text)
            if not isinstance(inner, str) or inner != text:
                yield from modules_named(inner)
    elif isinstance(text, list):
        for part in text:
            yield from modules_named(part)
    elif isinstance(text, dict):
        yield from (str(text[key]) for key in ("default_factory_module",) if key in text)
        yield from (str(text.get("fqn")).partition(":")[0] for key in ("__enum__",) if key in text)
        for part in text.values():
            yield from modules_named(part)


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
