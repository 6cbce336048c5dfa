"""Carry out a plan's edits on an exported program: nodes of its graph, and tensors of its state."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from ...core.absorb import moves_bias, new_bias, scale_weight, tapped
from ...core.plan import Merge, Plan, Remove, Replace, Rescale
from ...errors import PlanError
from ..read.bindings import ActivationBinding, AffineBinding, LinearBinding
from ..read.read import Source
from ..read.sharing import argument
from ..trace.constants import KINDS

Array = npt.NDArray[np.float64]
aten = torch.ops.aten


def apply(source: Source, plan: Plan) -> ExportedProgram:
    """A new program with the edits of a plan; that which `source` was read from is left alone."""
    work = _Work(source)
    for edit in plan.edits:
        binding = source.bindings.get(edit.op)
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding):
            work.rescale(edit, binding)
        elif isinstance(edit, Remove) and isinstance(binding, AffineBinding):
            work.remove(binding)
        elif isinstance(edit, Replace) and isinstance(binding, AffineBinding):
            work.norm(edit, binding)
        elif isinstance(edit, Replace) and isinstance(binding, ActivationBinding):
            work.activation(edit, binding)
        elif isinstance(edit, Merge):
            work.merge(edit)
        else:
            raise PlanError(f"{edit.name}: op {edit.op} is not what the plan expects; was it made for this program?")
    return work.finish()


@dataclass
class _Work:
    """A copy of the graph of a program that is edited. Values are read from the source, which stays as it is."""

    source: Source
    state: dict[str, torch.Tensor] = field(init=False)
    specs: list[InputSpec] = field(init=False)

    def __post_init__(self) -> None:
        self.program = self.source.capture.program
        self.module = copy.deepcopy(self.program.graph_module)
        self.graph = self.module.graph
        for old, new in zip(self.program.graph_module.graph.nodes, self.graph.nodes, strict=True):
            new.name = old.name  # a copy calls `input` input_1, since Python has a function of that name
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.old = {node.name: node for node in self.program.graph.nodes}
        self.used = {node.name for node in self.graph.nodes if node.op == "placeholder" and node.users}
        self.state = dict(self.program.state_dict)
        self.specs = list(self.program.graph_signature.input_specs)
        self.results: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes if node.op != "output"}
        """The node that stands for each old value now."""

    def rescale(self, edit: Rescale, at: LinearBinding) -> None:
        """New weight and bias for a layer."""
        node, before = self.nodes[at.node], self.old[at.node]
        constants = self.source.constants
        weight_arg, bias_arg = argument(before, at.weight), argument(before, at.bias) if at.bias else None
        weight = tapped(constants.value(weight_arg), at.layout, edit)
        old = None if bias_arg is None else constants.value(bias_arg)
        dtype = weight_arg.meta["val"].dtype
        if moves_bias(edit) or (old is not None and (edit.p_out is not None or edit.mix is not None)):
            if not at.bias:
                raise PlanError(f"{edit.name}: has no bias to put an offset into")
            new = new_bias(old, weight, at.layout, edit, at.out_channels)
            self._put(node, at.bias, new, dtype if bias_arg is None else bias_arg.meta["val"].dtype, edit.name)
        if edit.p_out is not None or edit.u_in is not None or edit.mix is not None:
            self._put(node, at.weight, scale_weight(weight, at.layout, edit), dtype, edit.name)

    def remove(self, at: AffineBinding) -> None:
        """Let the readers of a norm read its input."""
        self._become(at.nodes[-1], self._now(at.data))

    def norm(self, edit: Replace, at: AffineBinding) -> None:
        """A norm with other numbers, or a cheaper op in its place."""
        first = self.nodes[at.nodes[0]]
        if edit.form == "bn":
            self._statistics(edit, first)
            return
        source = self._now(at.data)
        if edit.form == "conv":
            self._become(at.nodes[-1], self._depthwise(edit, source, first))
            return
        value = edit.scale if edit.form == "mul" else edit.offset
        with self.graph.inserting_before(first):
            constant = self._along(value, edit, source)
            if edit.form == "mul":
                made = self._call(aten.mul.Tensor, (source, constant), first)
            elif (edit.scale < 0).all():
                made = self._call(aten.sub.Tensor, (constant, source), first)
            else:
                made = self._call(aten.add.Tensor, (source, constant), first)
        self._become(at.nodes[-1], made)

    def _depthwise(self, edit: Replace, source: fx.Node, like: fx.Node) -> fx.Node:
        """A depthwise convolution with a kernel of 1: weight (C, 1, *ones), bias (C,)."""
        value = source.meta["val"]
        ones = [1] * (value.dim() - 2)
        weight = self._constant(edit.scale.reshape(-1, 1, *ones), value.dtype, value, f"{edit.name}.weight")
        bias = self._constant(edit.offset, value.dtype, value, f"{edit.name}.bias")
        rest = (ones, [0] * len(ones), ones, False, [0] * len(ones), edit.scale.size)
        with self.graph.inserting_before(like):
            return self._call(aten.convolution.default, (source, weight, bias, *rest), like)

    def _statistics(self, edit: Replace, node: fx.Node) -> None:
        """`(x - centre) / sqrt(1 + 0) * scale + bias`."""
        centre = np.zeros_like(edit.scale) if edit.centre is None else edit.centre
        kind = self.old[node.name]
        given = argument(kind, "running_mean").meta["val"].dtype
        mean = torch.from_numpy(centre).to(given).to(torch.float64).numpy()
        vectors = {"weight": edit.scale, "bias": edit.offset + mean * edit.scale, "running_mean": mean,
                   "running_var": np.ones_like(mean)}  # fmt: skip
        for role, value in vectors.items():
            self._put(node, role, value, given, edit.name)
        self._set(node, "eps", 0.0)

    def activation(self, edit: Replace, at: ActivationBinding) -> None:
        """A maximum, and a minimum, with a constant for each channel."""
        node = self.nodes[at.node]
        source = self._now(self.old[at.node].args[0].name)
        low = edit.offset if edit.form == "max" else edit.scale * at.low + edit.offset
        high = None if edit.form == "max" or np.isinf(at.high) else edit.scale * at.high + edit.offset
        with self.graph.inserting_before(node):
            if np.isfinite(low).all():
                source = self._call(aten.maximum.default, (source, self._along(low, edit, source)), node)
            if high is not None:
                source = self._call(aten.minimum.default, (source, self._along(high, edit, source)), node)
        self._become(at.node, source)

    def merge(self, edit: Merge) -> None:
        """Layers alone compute what a whole expression did."""
        ends = [self._now(self.source.graph.ops[op].outputs[0]) for op in edit.layers]
        root = self.source.graph.ops[edit.op].outputs[0]
        total = ends[0]
        with self.graph.inserting_before(self.nodes[root]):
            for end in ends[1:]:
                total = self._call(aten.add.Tensor, (total, end), self.nodes[root])
        self._become(root, total)

    # --- nodes and tensors

    def _now(self, name: str) -> fx.Node:
        """The node that gives a value of the original graph now."""
        return self.results[name]

    def _become(self, name: str, new: fx.Node) -> None:
        """Let another node give the value of a node."""
        old = self.nodes[name]
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        for key, node in self.results.items():
            if node is old:
                self.results[key] = new

    def _call(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        node: fx.Node = self.graph.call_function(target, args)
        node.meta = {key: value for key, value in like.meta.items() if key != "val"}
        node.meta["val"] = args[1 if target is aten.sub.Tensor else 0].meta["val"]
        return node

    def _along(self, vector: Array, edit: Replace, source: fx.Node) -> fx.Node:
        """A constant that broadcasts along the axis of an edit, of the type of a value."""
        value = source.meta["val"]
        shape = (-1, *[1] * (value.dim() - 1 - edit.axis))
        return self._constant(vector.reshape(shape), value.dtype, value, edit.name)

    def _put(self, node: fx.Node, role: str, value: Array, dtype: torch.dtype, who: str) -> None:
        """A new tensor for an argument: under the old name where nobody else reads it."""
        old = argument(node, role)
        target = self._target(old)
        if target and len(old.users) == 1 and self.state.get(target) is not None:
            held = self.state[target]
            if tuple(held.shape) == value.shape and held.dtype == dtype:
                self.state[target] = self._tensor(value, dtype, held, who)
                return
        like: Any = old if isinstance(old, fx.Node) else argument(node, "weight") or node.args[0]
        self._set(node, role, self._constant(value, dtype, like.meta["val"], f"{who}.{role}"))

    def _target(self, node: object) -> str:
        if not isinstance(node, fx.Node) or node.op != "placeholder":
            return ""
        spec = next((s for s in self.specs if s.arg.name == node.name), None)
        return spec.target or "" if spec is not None and spec.kind in KINDS else ""

    def _constant(self, value: Array, dtype: torch.dtype, like: torch.Tensor, wish: str) -> fx.Node:
        """A new parameter of the program."""
        target, count = wish, 1
        while self._taken(target):
            count += 1
            target = f"{wish}_{count}"
        tensor = torch.nn.Parameter(self._tensor(value, dtype, like, wish), False)
        self.state[target] = tensor
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            node: fx.Node = self.graph.placeholder("p_" + "".join(c if c.isalnum() else "_" for c in target))
        node.target = node.name  # `a_0` and `a.0` make the same word, and the name alone is made unique
        mode = next(v.fake_mode for n in self.graph.nodes if hasattr(v := n.meta.get("val"), "fake_mode"))
        node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
        self.specs.insert(0, InputSpec(InputKind.PARAMETER, TensorArgument(node.name), target))
        return node

    def _taken(self, target: str) -> bool:
        """Whether a tensor has this name, or one that makes a module of it, or a tensor of a module above it."""
        known = {*self.state, *self.program.state_dict, *self.program.constants}
        above = {target[:i] for i, c in enumerate(target) if c == "."}
        return target in known or bool(above & known) or any(name.startswith(f"{target}.") for name in known)

    def _tensor(self, value: Array, dtype: torch.dtype, like: torch.Tensor, who: str) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(value)).to(dtype).to(like.device)
        if np.isfinite(value).all() and not torch.isfinite(tensor).all():
            raise PlanError(f"{who}: the folded values exceed the range of {dtype}; leave the norm alone (--skip NAME)")
        parameter = isinstance(like, torch.nn.Parameter)
        return torch.nn.Parameter(tensor, like.requires_grad) if parameter else tensor

    def _set(self, node: fx.Node, role: str, value: Any) -> None:
        """Another value for an argument, by its name in the schema, or for an entry of a list (`params.2`)."""
        role, _, entry = role.partition(".")
        if entry:
            value = [value if i == int(entry) else old for i, old in enumerate(argument(node, role))]
        names = [known.name for known in node.target._schema.arguments]  # type: ignore[union-attr]
        place = names.index(role)
        if place < len(node.args):
            node.update_arg(place, value)
        elif place == len(node.args):
            node.args = (*node.args, value)
        else:
            node.update_kwarg(role, value)

    def finish(self) -> ExportedProgram:
        """The program, without nodes and tensors that nobody reads any more."""
        self._sweep()
        self.graph.lint()
        self.module.recompile()
        outputs = []
        last = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        for spec, node in zip(self.program.graph_signature.output_specs, last.args[0], strict=True):
            argument_ = TensorArgument(node.name) if isinstance(node, fx.Node) and _tensor(node) else spec.arg
            outputs.append(type(spec)(spec.kind, argument_, spec.target))
        program = self.program
        return ExportedProgram(
            root=self.module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(self.specs, outputs),
            state_dict=self.state,
            range_constraints=copy.deepcopy(program.range_constraints),
            module_call_graph=copy.deepcopy(program.module_call_graph),
            example_inputs=program.example_inputs,
            constants=program.constants,
            verifiers=program.verifiers,
        )

    def _sweep(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node.op == "call_function" and not node.users and not node.is_impure():
                self.graph.erase_node(node)
        gone = [n for n in self.graph.nodes if n.op == "placeholder" and not n.users and n.name in self.used]
        targets = {self._target(node) for node in gone}
        counters = {t.rpartition(".")[0] + ".num_batches_tracked" for t in targets if t.endswith("running_mean")}
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and not node.users and self._target(node) in (targets | counters) - {""}:
                self.state.pop(self._target(node), None)
                self.specs = [spec for spec in self.specs if spec.arg.name != node.name]
                self.graph.erase_node(node)


def _tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
