"""Inner tensors of exported programs: what the nodes of their graphs give, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from ...core.gauge.planner import gauges
from ...errors import BnfoldError
from ...limits import LEFTOVERS
from ...torch.read.read import read
from ...torch.trace.capture import capture_program
from ...torch.trace.decided import decide
from ..criteria.inputs import Array, Feed
from ..criteria.locate import Gauge
from ..criteria.scopes import Stem, returned
from .modulecalls import ModuleCall, ModuleRunner, to_array


class ProgramProbe:
    """The tensors that functions compute in a graph; those of its submodules, such as branches, are not looked into."""

    def __init__(self, subject: ModuleCall, program: ExportedProgram) -> None:
        self.subject, self.program = subject, program
        self.runner, self.wide = ModuleRunner(subject, False), ModuleRunner(subject, True)

    def tensors(self) -> dict[str, str]:
        """Nodes in their order, each with the function that it calls."""
        graph: torch.fx.Graph = self.runner.module.graph  # type: ignore[assignment]
        return {node.name: _called(node.target) for node in graph.nodes if node.op == "call_function"}

    def values(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """Some of them."""
        return _seen(self.runner, feed, set(names))

    def exact(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """In float64."""
        return _seen(self.wide, feed, set(names))

    def returned(self) -> dict[str, str]:
        """As the nodes say which modules they stem from."""
        graph: torch.fx.Graph = self.runner.module.graph  # type: ignore[assignment]
        return returned([_stem(node) for node in graph.nodes], [node.name for node in _outputs(graph)])

    def gauges(self) -> Iterator[Mapping[str, Gauge]]:
        """Those of each set of forms that a fold may leave; none where the program cannot be read."""
        try:
            graph = read(decide(capture_program(self.program)), "program", None).graph
            for leftovers in LEFTOVERS:
                yield gauges(graph, leftovers=leftovers)
        except BnfoldError:
            return


def _stem(node: torch.fx.Node) -> Stem:
    if node.op != "call_function":
        return Stem("", [], [])
    paths = [str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return Stem(paths[-1] if paths else None, [n.name for n in node.all_input_nodes], [node.name])


def _outputs(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [n for node in graph.nodes if node.op == "output" for n in node.all_input_nodes]


def _called(target: Any) -> str:
    return str(getattr(target, "__name__", target)).removesuffix(".default")


def _seen(runner: ModuleRunner, feed: Feed, names: set[str]) -> dict[str, Array]:
    found: dict[str, Array] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in names and isinstance(value, torch.Tensor):
                found[n.name] = to_array(value.clone())
            return value

    runner.recorded(feed, Recorder)
    return found
