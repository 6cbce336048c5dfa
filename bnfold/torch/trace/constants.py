"""Which values of a traced graph are constant, and what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from .capture import Capture

KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
RANDOM = ("rand", "dropout", "bernoulli", "normal", "multinomial")
TURNS = frozenset({"t", "transpose", "permute", "numpy_T"})
COPIES = ("view", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "select", "slice", "split",
          "split_with_sizes", "unbind", "narrow", "detach", "alias")  # fmt: skip
ALIASES = {
    "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "absolute": "abs", "negative": "neg",
    "clip": "clamp", "concat": "cat", "concatenate": "cat", "unsafe_chunk": "chunk", "unsafe_split": "split",
    "unsafe_split_with_sizes": "split_with_sizes", "_reshape_copy": "reshape", "_reshape_alias": "reshape",
    "native_channel_shuffle": "channel_shuffle", **{f"{name}_copy": name for name in COPIES},
}  # fmt: skip
"""Operators with the arguments and the values of another one."""
THROUGH = TURNS | {"detach", "alias", "clone", "contiguous", "_to_copy", "to"}
"""Ops behind which a weight is still the weight of its layer, turned round at most."""


class Constants:
    """The constant values of a captured graph: parameters, buffers, and what is computed from them alone."""

    def __init__(self, capture: Capture) -> None:
        self.tensors = capture.tensors
        signature = capture.program.graph_signature
        changed = {
            spec.target for spec in signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION and spec.target
        }
        self.targets: dict[str, str] = {
            spec.arg.name: spec.target
            for spec in signature.input_specs
            if spec.kind in KINDS
            and spec.target in self.tensors
            and spec.target not in changed
            and self.tensors[spec.target].layout is torch.strided
        }
        self.keys = {name: capture.memory.key(tensor) for name, tensor in self.tensors.items()}
        self.nodes: set[fx.Node] = set()
        for node in capture.program.graph.nodes:
            given = node.op == "placeholder" and node.name in self.targets
            if given or (node.op == "call_function" and self._computed(node)):
                self.nodes.add(node)
        self._values: dict[fx.Node, torch.Tensor] = {}

    def _computed(self, node: fx.Node) -> bool:
        """Whether a node makes the same tensor on every run."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        if any(part in str(node.target) for part in RANDOM) or not isinstance(node.meta.get("val"), torch.Tensor):
            return False
        if any(isinstance(dim, torch.SymInt) for dim in node.meta["val"].shape):
            return False
        return all(inner in self.nodes for inner in node.all_input_nodes)

    def __contains__(self, node: object) -> bool:
        return node in self.nodes

    def value(self, node: fx.Node) -> npt.NDArray[np.float64]:
        """The value in float64; what is computed from floating numbers is computed in float64."""
        return np.asarray(self._tensor(node).detach().cpu().to(torch.float64).numpy())

    def of(self, name: str) -> npt.NDArray[np.float64]:
        """A parameter or buffer in float64."""
        return to_numpy(self.tensors[name])

    def _tensor(self, node: fx.Node) -> torch.Tensor:
        if node not in self._values:
            if node.op == "placeholder":
                self._values[node] = _wide(self.tensors[self.targets[node.name]].detach())
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), self._tensor)
                self._values[node] = _wide(node.target(*args, **kwargs))  # type: ignore[operator]
        return self._values[node]

    def direct(self, node: object) -> str:
        """The qualified name of a parameter or buffer, "" where it is something computed."""
        return self.targets.get(node.name, "") if isinstance(node, fx.Node) else ""

    def weight(self, node: object) -> tuple[str, bool]:
        """The parameter behind ops that only turn it round, and whether it is turned; "" where there is none."""
        turned = False
        while isinstance(node, fx.Node) and node.op == "call_function":
            name = op_name(node)
            if name not in THROUGH or node not in self.nodes:
                return "", False
            if name in TURNS:
                if node.meta["val"].dim() != 2 or not _swaps(name, node.args):
                    return "", False
                turned = not turned
            node = node.args[0]
        return self.direct(node), turned


def _swaps(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a node exchanges the two axes of a matrix."""
    if name == "transpose":
        return int(args[1]) % 2 != int(args[2]) % 2
    return name != "permute" or [int(axis) % 2 for axis in args[1]] == [1, 0]


def op_name(node: fx.Node) -> str:
    """`conv2d` for `torch.ops.aten.conv2d.default`, `sub` for its alias `aten.subtract`; a function's own name."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        name = getattr(node.target, "__name__", str(node.target))
        return f"operator.{name}" if getattr(node.target, "__module__", "") == "_operator" else name
    space, _, name = schema.name.rpartition("::")
    return ALIASES.get(name, str(name)) if space == "aten" else str(schema.name)


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    """A tensor of any floating type, on any device, in float64."""
    return np.asarray(tensor.detach().to("cpu", torch.float64).numpy())


def _wide(value: Any) -> Any:
    return value.to(torch.float64) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
