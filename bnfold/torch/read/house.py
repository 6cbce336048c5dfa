"""What the modules of a traced network allow: which of them another can take the place of, which a hook watches."""

from __future__ import annotations

import dis
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from ...core.graph import Statistics
from ..trace.capture import Capture
from ..trace.constants import Constants, to_numpy
from ..trace.memory import Key, named_tensors
from .bindings import AffineBinding
from .read import House, calls_of, module_call

EXCHANGED = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
"""Activations that a maximum or a clamp with bounds for each channel can take the place of."""


LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL"})


class Modules:
    """The modules of a network and the calls of them in its graph."""

    def __init__(
        self, module: nn.Module, capture: Capture, foreign: Collection[int] = (), memory: Collection[Key] = ()
    ) -> None:
        """`foreign`, `memory`: modules and memory that code outside the traced module uses too."""
        self.module, self.capture, self.foreign, self.memory = module, capture, foreign, memory
        self.constants = Constants(capture)
        self.nodes = [n for n in capture.program.graph.nodes if n.op == "call_function" and n not in self.constants]
        self.paths = dict(module.named_modules(remove_duplicate=False))
        self.calls: dict[int, set[str]] = defaultdict(set)
        """The keys of the calls of each module, by its identity."""
        for node in capture.program.graph.nodes:
            for key, path in calls_of(node).items():
                self.calls[id(self.paths.get(path))].add(key)
        self.within: dict[str, list[fx.Node]] = defaultdict(list)
        """The nodes of each call by its key, those of inner calls among them."""
        for node in self.nodes:
            for key in calls_of(node):
                self.within[key].append(node)
        self.owners: dict[Key, set[int]] = defaultdict(set)
        for inner in module.modules():
            for tensor in (*inner.parameters(False), *inner.buffers(False)):
                self.owners[self._key(tensor)].add(id(inner))
        self._exchangeable: dict[str, bool] = {}

    def house(self, skipped: Callable[[str], bool]) -> House:
        """What the reader of the graph asks for."""
        return House(self.exchangeable, self.hooked, self.statistics, self._frozen(), skipped, self.rivals)

    @cached_property
    def rivals(self) -> dict[str, str]:
        """Modules that run, by path, and a twin of each that does not: code may choose the other, by an attribute.

        Twins hold norms, are of one class, have tensors of the same shapes and lie in the same module, whose code can
        reach them.
        """
        found: dict[str, str] = {}
        used = {path for node in self.capture.raw.nodes for path in calls_of(node).values()} if self.capture.raw else ()
        self._used = {id(self.paths.get(path)) for path in used} | {inner for inner, keys in self.calls.items() if keys}
        for path, inner in self.paths.items():
            around, _, name = path.rpartition(".")
            parent = self.paths.get(around)
            if not path or parent is None or self._runs(inner) or not self._runs(parent):
                continue
            if not _shapes(inner) or not _reaches(parent, name):
                continue
            for other, sibling in parent.named_children():
                if other != name and self._runs(sibling) and _shapes(sibling) == _shapes(inner):
                    found.update(self._called(f"{around}.{other}".lstrip("."), path))
        return found

    def _runs(self, module: nn.Module) -> bool:
        """Whether a module or one inside it is called, also where nothing depends on what comes out."""
        return any(id(inner) in self._used for inner in module.modules())

    def _called(self, path: str, twin: str) -> Iterator[tuple[str, str]]:
        """The outermost modules at a path that are called, each with its twin."""
        inner = self.paths[path]
        if self.calls.get(id(inner)):
            yield path, twin
            return
        for name, child in inner.named_children():
            if self._runs(child):
                yield from self._called(f"{path}.{name}", f"{twin}.{name}")

    def hooked(self, path: str) -> str:
        """The kind of a hook of the module at a path, "" where it has none."""
        return self.capture.hooked.get(path, "")

    def statistics(self, path: str) -> Statistics | None:
        """The running statistics of a module that is no batch norm of torch, FrozenBatchNorm2d say."""
        inner = self.paths.get(path)
        mean, var = getattr(inner, "running_mean", None), getattr(inner, "running_var", None)
        if not isinstance(mean, torch.Tensor) or not isinstance(var, torch.Tensor):
            return None
        eps = getattr(inner, "eps", 1e-5)
        return Statistics(to_numpy(mean).ravel(), to_numpy(var).ravel(), eps if isinstance(eps, float) else 1e-5)

    def exchangeable(self, path: str) -> bool:
        """Whether another module may take the place of the one at a path."""
        if path not in self._exchangeable:
            self._exchangeable[path] = self._may_go(path)
        return self._exchangeable[path]

    def _may_go(self, path: str) -> bool:
        inner = self.paths.get(path)
        if not path or inner is None or id(inner) in self.foreign:
            return False
        if any(self.capture.hooked.get(name) for name in self._names(inner)):
            return False
        if isinstance(inner, EXCHANGED):
            return len(self.calls[id(inner)]) == 1 and type(inner) in EXCHANGED
        ways = {self._way(key) for key in self.calls[id(inner)]}
        return self._private(inner) and len(ways) == 1 and None not in ways

    def _way(self, key: str) -> tuple[tuple[int, ...], ...] | None:
        """What runs around the own ops of a call: which modules, whatever they are called there."""
        found = self.around(key)
        return None if found is None else tuple(tuple(id(self.paths[path]) for path in side) for side in found)

    def _names(self, inner: nn.Module) -> Iterator[str]:
        return (name for name, other in self.paths.items() if other is inner)

    def _private(self, inner: nn.Module) -> bool:
        """Whether no code but that of its owners reads a module's own tensors."""
        keys = {self._key(tensor) for tensor in (*inner.parameters(False), *inner.buffers(False))}
        for node in self.capture.program.graph.nodes:
            if node.op == "placeholder" and self.constants.keys.get(self.constants.targets.get(node.name, "")) in keys:
                for user in node.users:
                    if id(self.paths.get(module_call(user)[1])) not in self.owners[_key_of(self.constants, node)]:
                        return False
        return True

    def alone(self, inner: nn.Module) -> bool:
        """Whether a module shares none of its tensors."""
        tensors = (*inner.parameters(False), *inner.buffers(False))
        keys = {self._key(tensor) for tensor in tensors}
        return all(len(self.owners[key]) == 1 for key in keys) and not keys & self.capture.memory.frozen

    def plain(self, at: AffineBinding) -> bool:
        """Whether a norm is one batch norm op, with the four vectors that its module holds as they are."""
        inner = self.paths[at.path]
        held = [getattr(inner, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
        read = [self.constants.tensors.get(name) for name in at.parameters]
        pairs = list(zip(held, read, strict=False))
        return len(read) == len(held) and all(
            a is not None and b is not None and self._key(a) == self._key(b) for a, b in pairs
        )

    def _key(self, tensor: torch.Tensor) -> Key:
        return self.capture.memory.key(tensor)

    def around(self, key: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The modules that run inside a call in front of its own ops, and behind them.

        None where these and the own ops are no chain, in which each takes one value and hands one to the next.
        """
        stages: dict[str, tuple[str, list[fx.Node]]] = {}
        for node in self.within.get(key, []):
            calls = list(calls_of(node).items())
            place = [name for name, _ in calls].index(key) + 1
            inner, path = calls[place] if place < len(calls) else ("", "")
            stages.setdefault(inner, (path, []))[1].append(node)
        runs = [nodes for _, nodes in stages.values()]
        if "" not in stages or len(self._taken(runs[0])) != 1:
            return None
        for before, after in zip(runs, [*runs[1:], None], strict=True):
            if not _flows(before, after) or (after and not self._taken(after) <= set(before)):
                return None
        paths, own = [path for path, _ in stages.values()], list(stages).index("")
        return tuple(paths[:own]), tuple(paths[own + 1 :])

    def _taken(self, run: list[fx.Node]) -> set[fx.Node]:
        """The values that a run of ops reads, constants left out."""
        return {source for node in run for source in node.all_input_nodes if source not in self.constants} - set(run)

    def _frozen(self) -> set[Key]:
        """Memory that modules share of which some are not in the graph: nobody knows what reads it."""
        called = {inner for inner, keys in self.calls.items() if keys} | {id(self.module)}
        unseen = {key for key, owners in self.owners.items() if len(owners) > 1 and owners - called}
        return unseen | self.capture.memory.frozen | set(self.memory)


def _shapes(module: nn.Module) -> tuple[Any, ...]:
    """The class of a module that holds norms, and the shapes of all its tensors; () where it holds none."""
    if not any(isinstance(getattr(inner, "running_var", None), torch.Tensor) for inner in module.modules()):
        return ()
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in named_tensors(module).items())
    return type(module), shapes


def _reaches(parent: nn.Module, name: str) -> bool:
    """Whether the code of a module may read the module that it has under a name: by its attribute, or by any index."""
    if isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return True
    held = [value for kind in type(parent).__mro__ if kind is not nn.Module for value in vars(kind).items()]
    codes = [getattr(value, "__code__", None) for key, value in held if key != "__init__"]
    while codes:
        code = codes.pop()
        if isinstance(code, CodeType):
            codes += code.co_consts
            loads = ((step.opname, step.argval) for step in dis.get_instructions(code))
            if any(value == ("getattr" if op == "LOAD_GLOBAL" else name) for op, value in loads if op in LOADS):
                return True
    return False


def _flows(before: list[fx.Node], after: list[fx.Node] | None) -> bool:
    """Whether one value at most leaves a run of ops, and goes to the next run only."""
    leaving = {node: set(node.users) - set(before) for node in before}
    leaving = {node: users for node, users in leaving.items() if users}
    return len(leaving) == 1 and (after is None or all(users <= set(after) for users in leaving.values()))


def _key_of(constants: Constants, node: fx.Node) -> Key:
    return constants.keys[constants.targets[node.name]]
