"""What runs an ONNX model: onnxruntime on a device, or the reference evaluator of onnx."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from ...core.graph import Shape
from ...errors import VerificationError
from ...onnx.files import bare, load_whole
from ...onnx.read.functions import inlined
from ...onnx.store.skeleton import nested_graphs
from ...process.quiet import aside
from ..criteria.device import Device, check_placement, placements, require
from ..criteria.inputs import Array, Feed, InputSpec
from .sizes import demanded, ranks

CPU = Device()
CARRIERS = frozenset({"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"})
"""What may stand between an input and the table that it is looked up in."""


class Runner(Protocol):
    """Runs one model."""

    name: str

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by name."""


class OrtRunner:
    """onnxruntime, its graph optimisations off by default: the reference must not be folded by another tool.

    VerificationError where the device is not to be had, or where some of the model ran on another.
    """

    def __init__(self, path: Path, device: Device = CPU, threads: int = 0, timed: bool = False) -> None:
        import onnxruntime as ort

        require(device, ort.get_available_providers())
        self.device, self.name = device, engine_name(device)
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if device.optimise else levels.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if not timed:  # threads that wait for work by spinning take the time of the float64 runs between
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.profile = None if device.name == "cpu" else tempfile.TemporaryDirectory(prefix="bnfold-")
        if self.profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self.profile.name) / "run")
        providers: list[Any] = device.providers()
        with aside():  # it prints what it could not load
            if device.name != "cpu" and hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            self.session = ort.InferenceSession(_harmless(path), options, providers=providers)
        require(device, ort.get_available_providers(), self.session.get_providers())
        self.outputs = [output.name for output in self.session.get_outputs()]
        given = (*self.session.get_inputs(), *self.session.get_overridable_initializers())
        self.inputs = frozenset(value.name for value in given)

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by name. The first run on a device other than the CPU proves that the nodes ran there.

        What it has no input for is left out.
        """
        feed = {name: value for name, value in feed.items() if name in self.inputs}
        if self.device.name == "cpu":
            return _named(self.outputs, self.session.run(None, feed))
        values = self._bound(feed)
        if self.profile is not None:
            check_placement(self.device, placements(Path(self.session.end_profiling())))
            self.profile.cleanup()
            self.profile = None
        return _named(self.outputs, values)

    def prepared(self, feed: Feed) -> Callable[[], object]:
        """A call that runs the model on inputs that already are on the device, for timing; outputs stay there."""
        if self.device.name == "cpu":
            return partial(self.session.run, None, feed)
        import onnxruntime as ort

        self.run(feed)
        binding = self.session.io_binding()
        held = {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(v, order="C"), "cuda", 0) for name, v in feed.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, "cuda")

        def call() -> object:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return held

        return call

    def _bound(self, feed: Feed) -> list[Any]:
        binding = self.session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, np.asarray(value, order="C"))
        for name in self.outputs:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())


def _harmless(path: Path) -> str | bytes:
    """A file as onnxruntime can load it: norms whose last outputs have no name, which end the process, lose those.

    By the specification both say the same. ValueError where such a model is too large for a copy in memory.
    """
    model = bare(path)
    if not any(_tailed(node) for node in all_nodes(model)):
        return str(path)
    model = load_whole(path)
    for node in filter(_tailed, all_nodes(model)):
        while not node.output[-1]:
            del node.output[-1]
    return bytes(model.SerializeToString())


def _tailed(node: NodeProto) -> bool:
    """Whether it is a norm whose last output has no name."""
    return node.op_type == "BatchNormalization" and len(node.output) > 1 and any(node.output) and not node.output[-1]


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Those of the graph, of the bodies in it and of the local functions."""
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            waiting += [body.node for body in nested_graphs(node)]


def engine_name(device: Device) -> str:
    """What runs a model there, for people."""
    return f"onnxruntime ({device.label}, optimisations {'on' if device.optimise else 'off'})"


class ReferenceRunner:
    """The reference evaluator of the onnx package: slow, and knows types that onnxruntime has no kernels for."""

    name = "onnx.reference"

    def __init__(self, path: Path | ModelProto, weights: Feed | None = None) -> None:
        """`weights`: initializers that a model in memory does not hold itself."""
        from onnx.reference import ReferenceEvaluator

        from .reference import operators
        from .windows import WINDOWS

        model = path if isinstance(path, ModelProto) else load_whole(path)
        if model.functions:  # the evaluator would take its own operators in functions
            model = inlined(model)
        if not model.opset_import:  # files before IR 3 say no version
            model.opset_import.add(version=1)
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.evaluator = ReferenceEvaluator(model, new_ops=[*operators(opset), *WINDOWS])
        self.evaluator.rt_inits_.update(weights or {})
        self.outputs = list(self.evaluator.output_names)
        self.inputs = frozenset(self.evaluator.input_names)
        self.ends = _ends([node.onnx_node for node in self.evaluator.rt_nodes_], set(self.outputs))

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by name."""
        with np.errstate(all="ignore"):  # overflow shows in the outputs
            return _named(self.outputs, self._values(feed))

    def _values(self, feed: Feed) -> list[Any]:
        """Node by node; what no later node reads is let go."""
        nodes, values = self.evaluator.rt_nodes_, {"": None, **self.evaluator.rt_inits_, **feed}
        for i, node in enumerate(nodes):
            more = {"context": values} if node.need_context() else {}
            found = node.run(*[values[name] for name in node.input], **more)
            values.update(zip(node.output, found, strict=False))
            for name in self.ends[i]:
                values.pop(name, None)
        return [values[name] for name in self.outputs]


def _ends(nodes: Sequence[NodeProto], kept: Collection[str]) -> list[list[str]]:
    """For each node the tensors that no node after it reads, in bodies neither; `kept`: what must stay."""
    seen, ends = {*kept, ""}, list[list[str]]()
    for node in reversed(nodes):
        names = {*node.output, *_read(node)}
        ends.append(sorted(names - seen))
        seen |= names
    return ends[::-1]


def _read(node: NodeProto) -> Iterator[str]:
    """What a node reads, its bodies too, whose own names are among it."""
    yield from node.input
    for body in nested_graphs(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from _read(inner)


def _named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Array]:
    """Arrays by name; a sequence gives its length, under its own name, and its members as NAME[0], NAME[1], ..."""
    arrays: dict[str, Array] = {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list):
            arrays[name] = np.asarray(len(value))
            arrays.update((f"{name}[{i}]", np.asarray(member)) for i, member in enumerate(value))
        else:
            arrays[name] = np.asarray(value)
    return arrays


def input_specs(model: ModelProto) -> list[InputSpec]:
    """The inputs that a caller must give."""
    defaults = {t.name for t in model.graph.initializer}
    rows, sizes, known = _rows(model), demanded(model), ranks(model)
    given = [value for value in model.graph.input if value.name not in defaults]
    specs = [_spec(value, rows.get(value.name), known.get(value.name)) for value in given]
    return [replace(spec, shape=_filled(spec.shape, sizes.get(spec.name, {}))) for spec in specs]


def _filled(shape: Shape, sizes: Mapping[int, int]) -> Shape:
    """A shape with the sizes that the layers ask for in the place of unknown ones."""
    return tuple(dim if isinstance(dim, int) else sizes.get(axis, dim) for axis, dim in enumerate(shape))


def _rows(model: ModelProto) -> dict[str, int]:
    """How many entries the tables have that tensors are looked up in: whole numbers must lie below."""
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            sizes[node.output[0]] = list(node.attribute[0].t.dims)
        elif node.op_type in ("Identity", "Cast", "DequantizeLinear") and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    found: dict[str, int] = {}
    for node in reversed(model.graph.node):
        if node.op_type == "Gather" and sizes.get(node.input[0]):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            found[node.input[1]] = min(found.get(node.input[1], 1 << 31), sizes[node.input[0]][axis])
        elif node.op_type in CARRIERS and node.output[0] in found:
            found[node.input[0]] = min(found.get(node.input[0], 1 << 31), found[node.output[0]])
    return found


def _spec(value: onnx.ValueInfoProto, rows: int | None, rank: int | None) -> InputSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or rank is None:
        raise VerificationError(f"input {value.name!r} is no tensor of known rank, so no inputs can be made up for it")
    dims: list[Any] = [] if tensor.HasField("shape") else [None] * rank
    for dim in tensor.shape.dim:
        dims.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or None)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    high = 256 if dtype == np.uint8 else 2 if "mask" in value.name.lower() else 8
    return InputSpec(value.name, dtype, tuple(dims), max(1, high if rows is None else min(rows, 1 << 15)))
