"""Who reads which parameter: what of a layer may get other values, and which layers get the same ones.

In a module a parameter is edited where it lies. So a weight can take a gauge only when every reader of its memory is a
layer that reads it in the same way; these layers then share one gauge. In a program any layer can get a tensor of its
own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..trace.constants import THROUGH, Constants, op_name
from ..trace.memory import Key

LAYERS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "linear",
     "addmm", "mm", "matmul"}
)  # fmt: skip
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
ROLES = {"addmm": ("mat2", "self"), "mm": ("mat2", ""), "matmul": ("other", "")}
COMPUTED = (
    "computes its weight from other values (bake=True makes that of parametrizations, weight norm and pruning constant)"
)


def weight_arguments(kind: str) -> tuple[str, str]:
    """The names of the arguments that hold weight and bias."""
    return ROLES.get(kind, ("weight", "bias"))


@dataclass(frozen=True)
class Sides:
    """What of a layer may be edited. `shared`: a name for all layers with the same weight, "" where it is one."""

    weight: bool
    bias: bool
    weight_name: str = ""
    bias_name: str = ""
    turned: bool = False
    shared: str = ""
    why: str = ""


class Weights:
    """The parameters of the layers of a graph. `frozen`: memory that code outside the graph reads too."""

    def __init__(self, graph: fx.Graph, constants: Constants, frozen: Collection[Key] = ()) -> None:
        self.constants, self.frozen = constants, frozen
        self.layers: dict[Key, list[fx.Node]] = {}
        self.biased: dict[Key, list[fx.Node]] = {}
        self.readers: Counter[Key] = Counter()
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in constants.targets:
                self.readers[constants.keys[constants.targets[node.name]]] += self._count(node)
            elif node.op == "call_function" and op_name(node) in LAYERS and node not in constants:
                self._note(node)

    def _count(self, node: fx.Node) -> int:
        """How many ops read a value, those not counted that only turn it round."""
        return sum(
            self._count(user) if user in self.constants and op_name(user) in THROUGH else 1 for user in node.users
        )

    def _note(self, node: fx.Node) -> None:
        name, _ = self.constants.weight(argument(node, weight_arguments(op_name(node))[0]))
        if name:
            self.layers.setdefault(self.constants.keys[name], []).append(node)
        bias = self._bias(node)
        if bias:
            self.biased.setdefault(self.constants.keys[bias], []).append(node)

    def _bias(self, node: fx.Node) -> str:
        role = weight_arguments(op_name(node))[1]
        return self.constants.direct(argument(node, role)) if role else ""

    def sides(self, node: fx.Node, program: bool) -> Sides:
        """What of a layer may be edited; in a program everything, but for ops that have no place for a bias."""
        weight_role, bias_role = weight_arguments(op_name(node))
        if program:
            return Sides(True, bool(bias_role), weight_role, bias_role)
        name, turned = self.constants.weight(argument(node, weight_role))
        bias = self._bias(node)
        group = self.layers.get(self.constants.keys[name], []) if name else []
        scaled = bool(name) and self._alike(name, group)
        shared = name if scaled and len(group) > 1 else ""
        if shared:
            shared = min(n for n, key in self.constants.keys.items() if key == self.constants.keys[name])
        owned = self._owned(bias, node, group if shared else [node])  # calls of one gauge may share a bias, no others
        why = "" if scaled else COMPUTED if not name else f"shares its weight {name} with other code"
        return Sides(scaled, owned, name if scaled else "", bias if owned else "", turned, shared, why)

    def alone(self, node: object) -> str:
        """The name of a parameter that one op alone reads, "" where it is another value."""
        name = self.constants.direct(node)
        key = self.constants.keys[name] if name else None
        return name if key is not None and key not in self.frozen and self.readers[key] == 1 else ""

    def _alike(self, name: str, group: list[fx.Node]) -> bool:
        key = self.constants.keys[name]
        return key not in self.frozen and self.readers[key] == len(group) and len({self._way(n) for n in group}) == 1

    def _way(self, node: fx.Node) -> tuple[Any, ...]:
        """How a layer reads its weight."""
        name, turned = self.constants.weight(argument(node, weight_arguments(op_name(node))[0]))
        tensor: torch.Tensor = self.constants.tensors[name]
        groups = argument(node, "groups")
        place = tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())
        return op_name(node), turned, 1 if groups is None else groups, place

    def _owned(self, bias: str, node: fx.Node, group: list[fx.Node]) -> bool:
        """Whether a bias is read by this layer alone, or by layers that share their weight too."""
        if not bias or self.constants.keys[bias] in self.frozen:
            return False
        readers = self.biased[self.constants.keys[bias]]
        alike = all(reader is node or reader in group for reader in readers)
        return alike and self.readers[self.constants.keys[bias]] == len(readers)


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an op by the name that its schema gives it; None where it has none of that name.

    `params.2`: an entry of a list.
    """
    name, _, place = name.partition(".")
    if place:
        return argument(node, name)[int(place)]
    schema = getattr(node.target, "_schema", None)
    for i, entry in enumerate(schema.arguments if schema is not None else ()):
        if entry.name == name:
            default = entry.default_value if entry.has_default_value() else None
            return node.args[i] if i < len(node.args) else node.kwargs.get(name, default)
    return None
