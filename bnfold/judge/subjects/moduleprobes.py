"""Inner tensors of torch modules: what their submodules return, by qualified name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ...core.gauge.planner import gauges, plan
from ...core.plan import Plan
from ...errors import BnfoldError
from ...limits import LEFTOVERS
from ...torch.read.house import Modules
from ...torch.read.module import plan_module
from ...torch.read.read import Source
from ...torch.trace.capture import capture
from ..criteria.inputs import Array, Feed
from ..criteria.locate import Gauge
from .modulecalls import ModuleCall, ModuleRunner, to_array


class ModuleProbe:
    """The first tensor that each submodule returns when it is called first."""

    def __init__(self, subject: ModuleCall) -> None:
        self.subject = subject
        self.runner, self.wide = ModuleRunner(subject, False), ModuleRunner(subject, True)

    def tensors(self) -> dict[str, str]:
        """Submodules in the order in which they return; those inside others come first."""
        given = self.subject.given()
        found = self._seen(self.runner, given or {}, None)
        modules = dict(self.subject.module.named_modules())
        return {name: type(modules[name]).__name__ for name in found}

    def values(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """Some of them."""
        return self._seen(self.runner, feed, set(names))

    def exact(self, feed: Feed, names: Sequence[str]) -> Mapping[str, Array]:
        """In float64."""
        return self._seen(self.wide, feed, set(names))

    def returned(self) -> dict[str, str]:
        """Modules are what is looked at."""
        return {name: name for name in self.tensors()}

    def gauges(self) -> Iterator[Mapping[str, Gauge]]:
        """Those of each set of forms that a fold may leave; none where the module cannot be traced."""
        try:
            made = capture(self.subject.module, *self._call())
            house = Modules(self.subject.module, made)
            for leftovers in LEFTOVERS:

                def planner(source: Source, form: str = leftovers) -> Plan:
                    return plan(source.graph, leftovers=form)

                planned = plan_module(house, "", planner, lambda path: False)
                found = gauges(planned.source.graph, leftovers=leftovers)
                yield {path: found[node] for path, node in _results(made.program.graph).items() if node in found}
        except BnfoldError:
            return

    def _call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = torch.utils._pytree.tree_unflatten(self.subject.leaves, self.subject.layout)
        return tuple(args), dict(kwargs)

    def _seen(self, runner: ModuleRunner, feed: Feed, names: set[str] | None) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def keep(name: str) -> Any:
            def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
                tensors = [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
                if tensors and name not in found:
                    found[name] = to_array(tensors[0].clone())

            return hook

        modules = [(name, m) for name, m in runner.module.named_modules() if name and (names is None or name in names)]
        handles = [module.register_forward_hook(keep(name)) for name, module in modules]
        try:
            runner.run(feed)
        finally:
            for handle in handles:
                handle.remove()
        return found


def _results(graph: torch.fx.Graph) -> dict[str, str]:
    """The node that computes what each submodule returns: the last that stems from inside it."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        for entry in (node.meta.get("nn_module_stack") or {}).values():
            found[str(entry[0])] = node.name
    return {path: node for path, node in found.items() if path}
