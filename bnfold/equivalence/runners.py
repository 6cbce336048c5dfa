"""What runs an ONNX model: onnxruntime with its optimisations off, or the reference evaluator of onnx."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto, helper

from ..errors import VerificationError
from .inputs import Array, Feed, InputSpec


class Runner(Protocol):
    """Runs one model."""

    name: str

    def __init__(self, path: Path) -> None: ...

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by name."""


class OrtRunner:
    """onnxruntime on the CPU, graph optimisations off: the reference must not be folded by another tool."""

    name = "onnxruntime (CPU, optimisations off)"

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by name."""
        return _named(self.outputs, self.session.run(None, feed))


class ReferenceRunner:
    """The reference evaluator of the onnx package: slow, and knows types that onnxruntime has no kernels for."""

    name = "onnx.reference"

    def __init__(self, path: Path | ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        from .reference import OPERATORS
        from .windows import WINDOWS

        model = path if isinstance(path, ModelProto) else onnx.load(path)
        if model.functions:  # the evaluator would take its own operators in functions
            model = onnx.inliner.inline_local_functions(model)
        self.evaluator = ReferenceEvaluator(model, new_ops=[*OPERATORS, *WINDOWS])
        self.outputs = list(self.evaluator.output_names)

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by name."""
        with np.errstate(all="ignore"):  # overflow shows in the outputs
            return _named(self.outputs, list(self.evaluator.run(None, feed)))


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
    return [_spec(value) for value in model.graph.input if value.name not in defaults]


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise VerificationError(f"input {value.name!r} is no tensor of known rank, so no inputs can be made up for it")
    dims: list[Any] = []
    for dim in tensor.shape.dim:
        dims.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or None)
    if tensor.elem_type == TensorProto.STRING:
        raise VerificationError(f"input {value.name!r} holds strings, so no inputs can be made up for it")
    return InputSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), tuple(dims))
