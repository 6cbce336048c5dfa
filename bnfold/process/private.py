"""Private copies of modules and functions of torch and others, in which names mean something else.

What a package has is changed for the whole process, and other threads may be using it; a copy is changed for one call.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from importlib.util import find_spec, module_from_spec
from types import FunctionType, ModuleType
from typing import Any


class Stand(ModuleType):
    """Stands for a module: the same, but for the names given."""

    def __init__(self, real: Any, **own: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(own, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def importing(stands: Mapping[str, ModuleType]) -> dict[str, Any]:
    """Builtins whose `import` gives the `stands` of modules, by their names."""

    def found(name: str, *args: Any, **kwargs: Any) -> Any:
        module = builtins.__import__(name, *args, **kwargs)
        return stands.get(module.__name__, module)

    return {**vars(builtins), "__import__": found}


def copied_module(name: str, stands: Mapping[str, ModuleType]) -> ModuleType:
    """Run a module once more, under no name that others could import; it imports `stands` where they have one."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    module.__dict__["__builtins__"] = importing(stands)
    spec.loader.exec_module(module)
    return module


def copied_function(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The function, to which some global names mean something else."""
    plain: Any = function
    made = FunctionType(
        plain.__code__, {**plain.__globals__, **names}, plain.__name__, plain.__defaults__, plain.__closure__
    )
    made.__kwdefaults__ = plain.__kwdefaults__
    return made
