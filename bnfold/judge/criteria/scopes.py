"""Which tensor each module of a network returns, told from the modules that the nodes of its graph stem from.

Models of two kinds have no names of tensors in common, but those of modules: PyTorch's exporters note them.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .inputs import Array, Feed
from .locate import Gauge, Probe

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules around a node, and last the node itself."""


@dataclass(frozen=True)
class Stem:
    """A node: the module that it stems from, "" for the network itself, None where that is not known; what it reads
    and gives."""

    path: str | None
    reads: Sequence[str]
    gives: Sequence[str]


def noted(scopes: str) -> str | None:
    """The module of a node, from what torch's exporter notes; None where that says nothing."""
    try:
        found = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return None
    return str(found[-2]) if isinstance(found, list) and len(found) > 1 else None


def spelt(name: str) -> str | None:
    """The module of a node, from its name: `layer1.0.conv1`, or `/layer1/layer1.0/conv1/Conv` of the older exporter."""
    if re.fullmatch(r"\w+(\.\w+)*", name):
        return name
    if not re.fullmatch(r"(/[\w.]+)+", name):
        return None
    steps: list[str] = []
    for step in name.split("/")[1:-1]:
        if steps and step.startswith(f"{steps[-1]}."):  # a part of a Sequential is called by both names
            steps.pop()
        steps.append(step)
    return ".".join(steps)


def returned(stems: Sequence[Stem], outputs: Sequence[str]) -> dict[str, str]:
    """The tensor that each module returns: the only one that is made inside and read outside.

    Modules with several, and those whose readers are not known, are left out; in the order of the tensors, and those
    inside others first.
    """
    readers: dict[str, list[str | None]] = defaultdict(list)
    for stem in stems:
        for name in stem.reads:
            readers[name].append(stem.path)
    for name in outputs:
        readers[name].append("")
    leaving: dict[str, list[str]] = defaultdict(list)
    unclear: set[str] = set()
    for stem in stems:
        around = list(_around(stem.path)) if stem.path else []
        for name in stem.gives if around else ():
            seen = readers[name]
            if None in seen:
                unclear.update(around[1:])
            for scope in around:
                if any(reader is None or not f"{reader}.".startswith(f"{scope}.") for reader in seen):
                    leaving[scope].append(name)
    return {scope: names[0] for scope, names in leaving.items() if len(names) == 1 and scope not in unclear}


def _around(path: str) -> Iterator[str]:
    """A module and those that hold it, the innermost first."""
    steps = path.split(".")
    for end in range(len(steps), 0, -1):
        yield ".".join(steps[:end])


class ByModule:
    """A probe whose tensors go by the modules that return them, and whose inputs by the names of another model."""

    def __init__(self, probe: Probe, places: Mapping[str, str] | None, renamed: Callable[[Feed], Feed]) -> None:
        """`places`: the tensor of each module; None for tensors by their own names."""
        self.probe, self.renamed = probe, renamed
        self._ops = probe.tensors()
        self.places = {name: name for name in self._ops} if places is None else places

    def tensors(self) -> dict[str, str]:
        """What computes each, in the order in which they are computed."""
        at = {tensor: i for i, tensor in enumerate(self._ops)}
        known = [(at[tensor], i, path) for i, (path, tensor) in enumerate(self.places.items()) if tensor in at]
        return {path: self._ops[self.places[path]] for *_, path in sorted(known)}

    def returned(self) -> dict[str, str]:
        """Modules, by their own names."""
        return {name: name for name in self.places}

    def values(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """Some of them."""
        return self._named(self.probe.values(self.renamed(feed), self._wanted(names)), names)

    def exact(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """In float64."""
        return self._named(self.probe.exact(self.renamed(feed), self._wanted(names)), names)

    def gauges(self) -> Iterator[Mapping[str, Gauge]]:
        """Those of the probe."""
        for known in self.probe.gauges():
            yield {path: known[tensor] for path, tensor in self.places.items() if tensor in known}

    def _wanted(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(self.places[name] for name in names))

    def _named(self, found: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        return {name: found[self.places[name]] for name in names if self.places[name] in found}


def paired(reference: Probe, candidate: Probe, renamed: Callable[[Feed], Feed]) -> tuple[Probe, Probe]:
    """Two probes whose tensors have names in common: by modules, where they look into models of two kinds.

    `renamed`: inputs under the names that the candidate has for them.
    """
    if type(reference) is type(candidate):
        return reference, ByModule(candidate, None, renamed)
    return ByModule(reference, reference.returned(), dict), ByModule(candidate, candidate.returned(), renamed)
