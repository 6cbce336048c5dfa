"""Checkpoints: where in a file the tensors of a network are, and by which names.

Training scripts keep them under some key, beside optimisers and counters; wrappers (DataParallel, torch.compile,
Lightning, FSDP) put words into the names. Neither is guessed: what fits the network best is taken, and the rest of the
file stays as it is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

FIRST = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "ema")
"""Keys that come first where several hold tensors that fit."""
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Words that wrappers put into names, at any place."""
DEPTH = 3
EXTRA = "_extra_state"
KEY = "bnfold"
"""Where the metadata of a state_dict, or of a file, say what was folded."""


@dataclass
class Checkpoint:
    """What a file holds, and, once `fit` knows the network, which of it is the network's.

    `content`: all that was in the file. `place`: the keys under which the tensors are. `names`: the name in the file of
    each tensor of the network. `metadata`: that of a safetensors file. `notes`: what a user should know of it.
    """

    content: Any
    metadata: dict[str, str] = field(default_factory=dict)
    place: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def inner(self) -> Mapping[str, Any]:
        """The mapping that holds the tensors."""
        found = self.content
        for key in self.place:
            found = found[key]
        return found.state_dict() if isinstance(found, nn.Module) else found

    @property
    def tensors(self) -> dict[str, Any]:
        """The tensors by the network's names."""
        inner = self.inner
        return {name: inner[there] for name, there in self.names.items()}

    def fit(self, module: nn.Module) -> None:
        """Look for the tensors of a network: the place and the names that fit it best."""
        wanted, self.notes = set(module.state_dict()), []
        found = [(place, *_matched(inner, wanted), _folded(inner)) for place, inner in _places(self.content)]
        found.sort(key=lambda entry: (not entry[3], -entry[2], _rank(entry[0])))  # stable: then by order in the file
        if not found:
            return
        self.place, self.names, count, folded = found[0]
        others = [".".join(place) for place, _, other, _ in found[1:] if folded or other == count]
        if others and count:
            here = ".".join(self.place) or "the top level"
            self.notes.append(f"the tensors under {here} were taken; {', '.join(others)} stay as they are")
        self._compare_types(module)

    def _compare_types(self, module: nn.Module) -> None:
        own = {name: t.dtype for name, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
        pairs = Counter(
            (t.dtype, own[name])
            for name, t in self.tensors.items()
            if name in own and t.is_floating_point() and t.dtype != own[name]
        )
        for (there, here), _ in pairs.most_common(1):
            self.notes.append(
                f"tensors of {_short(there)} are read into a network of {_short(here)}; they are written as "
                f"{_short(there)} where the folded network passes its check in that too, else as {_short(here)}"
            )

    def shorter(self, module: nn.Module) -> torch.dtype | None:
        """The type of all floating tensors in the file, where a network holds them in one of more digits."""
        stored = {t.dtype for t in self.tensors.values() if isinstance(t, torch.Tensor) and t.is_floating_point()}
        held = {t.dtype for t in module.state_dict().values() if isinstance(t, torch.Tensor) and t.is_floating_point()}
        if len(stored) != 1 or not held:
            return None
        dtype = stored.pop()
        return dtype if all(torch.finfo(dtype).eps > torch.finfo(other).eps for other in held) else None

    def renamed(self, state: Mapping[str, Any]) -> OrderedDict[str, Any]:
        """A network's tensors under the names of the file, and what else lay beside them there."""
        owners = {"": ""}
        for name, there in self.names.items():
            here, file = name.split("."), there.split(".")
            while here and file and here[-1] == file[-1]:
                here, file = here[:-1], file[:-1]
                owners.setdefault(".".join(here), ".".join(file))
        owners[""] = owners[""] if not self.names else _common(self.names)
        own = OrderedDict((_put(name, owners), value) for name, value in state.items())
        taken = set(self.names.values())
        own.update((name, value) for name, value in self.inner.items() if name not in taken and name not in own)
        return own

    def with_inner(self, inner: Mapping[str, Any]) -> Any:
        """The content with another mapping in the place of the tensors."""
        return _with(self.content, self.place, inner)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _places(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """All mappings of names to tensors."""
    inner = content.state_dict() if isinstance(content, nn.Module) else content
    if not isinstance(inner, Mapping):
        return
    if any(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in inner.items()):
        yield place, inner
    if len(place) < DEPTH and inner is content:
        for key, value in inner.items():
            if isinstance(key, str):
                yield from _places(value, (*place, key))


def holds_tensors(content: Any) -> bool:
    """Whether there are tensors by names anywhere."""
    return next(_places(content), None) is not None


def _folded(inner: Mapping[str, Any]) -> bool:
    return KEY in (getattr(inner, "_metadata", None) or {})


def _rank(place: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(FIRST.index(key) if key in FIRST else len(FIRST) for key in place)


def _matched(inner: Mapping[str, Any], wanted: set[str]) -> tuple[dict[str, str], int]:
    """The network's names and those in the file, with all that is named alike; and how many are the network's."""
    given = [n for n, v in inner.items() if isinstance(n, str) and (isinstance(v, torch.Tensor) or n.endswith(EXTRA))]
    plain, clean = {name: name for name in given}, {_clean(name): name for name in given}
    found = [_below(names, wanted) for names in (plain, clean)]
    return max(found, key=lambda entry: entry[1])


def _clean(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def _below(names: Mapping[str, str], wanted: set[str]) -> tuple[dict[str, str], int]:
    """Without the words that come before every name of the network, where that finds half of them or more."""
    counts = Counter[str]({"": sum(name in wanted for name in names)})
    for name in names:
        words = name.split(".")
        for i in range(1, len(words)):
            if ".".join(words[i:]) in wanted:
                counts[".".join(words[:i]) + "."] += 1
    prefix, count = min(counts.items(), key=lambda entry: (-entry[1], len(entry[0])))
    if 2 * count < min(len(wanted), len(names)):
        prefix, count = "", counts[""]
    below = {name[len(prefix) :]: there for name, there in names.items() if name.startswith(prefix)}
    return below, count


def _common(names: Mapping[str, str]) -> str:
    """What comes before a name of the network in the file."""
    name, there = min(names.items(), key=lambda entry: len(entry[0]))
    return there[: len(there) - len(name)].rstrip(".") if there.endswith(name) else ""


def _put(name: str, owners: Mapping[str, str]) -> str:
    """A name of the network as the file would have it: by the nearest module around it that is named there."""
    words = name.split(".")
    for i in range(len(words) - 1, -1, -1):
        around = ".".join(words[:i])
        if around in owners:
            return ".".join([*([owners[around]] if owners[around] else []), *words[i:]])
    return name


def _with(content: Any, place: tuple[str, ...], inner: Any) -> Any:
    if not place:
        return inner
    return {**content, place[0]: _with(content[place[0]], place[1:], inner)}
