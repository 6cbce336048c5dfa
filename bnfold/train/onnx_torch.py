"""ONNX networks as torch modules that can be trained, and their numbers back in the file.

For the operators that networks with LRN or BN are made of; others are refused. The module is compared with onnxruntime
before anything is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from torch import nn

from ..errors import ModelError
from ..judge.criteria.inputs import Feed
from ..judge.subjects.runners import OrtRunner
from .onnx_functions import FUNCTIONS
from .onnx_layers import Conv, Gemm, MatMul, Norm

LAYERS: dict[str, Any] = {"Conv": Conv, "Gemm": Gemm, "MatMul": MatMul}
SHAPERS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
CLOSE = 1e-3
"""How far the module may be from onnxruntime, over the largest output."""


class OnnxNetwork(nn.Module):
    """The main graph of an ONNX model. Weights are parameters, shared where the file shares them.

    ModelError where an operator is not known, or has a form that is not.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        graph = model.graph
        values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                values[node.output[0]] = _constant(node)
        self.inputs = [value.name for value in graph.input if value.name not in values]
        self.outputs = [value.name for value in graph.output]
        self.argument_names = list(self.inputs)
        self.shaped = _shaped(graph, values)
        values |= {name: value for name, (_, value) in self.shaped.items()}
        self.layers = nn.ModuleDict()
        self.weights: dict[str, nn.Parameter] = {}
        self.norms: dict[str, list[str]] = {}
        opset = {"opset": next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)}
        self.steps = [(node, opset | _attributes(node)) for node in graph.node if node.output[0] not in values]
        for i, (node, attributes) in enumerate(self.steps):
            self._add(i, node, attributes, values)
        used = {name for node, _ in self.steps for name in node.input}
        self.constants = [name for name in values if name in used and self.shaped[name][0] not in self.weights]
        for i, name in enumerate(self.constants):
            self.register_buffer(f"constant_{i}", values[name], persistent=False)

    def _add(self, i: int, node: NodeProto, attributes: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
        """A layer for a node with weights; a look whether the others are known."""
        label = f"{node.op_type} {node.name or node.output[0]}"
        try:
            if node.op_type == "BatchNormalization" and set(node.input[1:]) <= set(values):
                self.layers[str(i)] = Norm(attributes, [values[name] for name in node.input[1:]])
                self.norms[str(i)] = list(node.input[1:])
            elif node.op_type in LAYERS and node.input[1] in self.shaped and node.input[0] not in values:
                names = [name for name in node.input[1:3] if name]
                given = [self._weight(name) for name in names] + [None]
                self.layers[str(i)] = LAYERS[node.op_type](node, attributes, given[0], given[1])
            elif node.op_type in LAYERS or node.op_type == "BatchNormalization":
                raise NotImplementedError("its weights are computed from others")
            elif node.op_type not in FUNCTIONS or node.domain not in ("", "ai.onnx"):
                known = ", ".join(sorted({*FUNCTIONS, *LAYERS, "BatchNormalization"}))
                raise NotImplementedError(f"an operator that is not known here; these are: {known}")
        except (NotImplementedError, KeyError) as error:
            raise ModelError(f"{label}: cannot be trained in torch: {error}") from error

    def _weight(self, name: str) -> nn.Parameter:
        """A weight under the name of the constant that holds it, perhaps in another shape."""
        root, value = self.shaped[name]
        made = self.weights.setdefault(root, nn.Parameter(value))
        if made.shape != value.shape:
            raise NotImplementedError(f"{root} has two shapes")
        return made

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """The outputs of the graph: a tensor, or a tuple of several. Inputs by position or by name."""
        known: dict[str, Any] = dict(zip(self.inputs, args, strict=False)) | dict(kwargs)
        known |= {name: getattr(self, f"constant_{i}") for i, name in enumerate(self.constants)}
        for i, (node, attributes) in enumerate(self.steps):
            inputs = [known.get(name) for name in node.input]
            if str(i) in self.layers:
                found = self.layers[str(i)](inputs[0])
            else:
                found = FUNCTIONS[node.op_type](attributes, inputs, self.training)
            known[node.output[0]] = found
        results = tuple(known[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results

    def end_with_logits(self) -> None:
        """Give what goes into a Softmax at the end, which is what losses are made of."""
        makers = {node.output[0]: node for node, _ in self.steps}
        last = [makers.get(name) for name in self.outputs]
        self.outputs = [
            node.input[0] if node is not None and node.op_type == "Softmax" else name
            for node, name in zip(last, self.outputs, strict=True)
        ]

    def numbers(self) -> dict[str, torch.Tensor]:
        """What training changes, by the names of the file."""
        found = {name: parameter.detach() for name, parameter in self.weights.items()}
        layers = dict(self.layers.named_children())
        for key, names in self.norms.items():
            norm = layers[key].norm
            assert isinstance(norm, nn.BatchNorm2d)
            vectors: list[Any] = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
            found |= {name: vector.detach() for name, vector in zip(names, vectors, strict=True)}
        return found


def _shaped(graph: GraphProto, values: dict[str, torch.Tensor]) -> dict[str, tuple[str, torch.Tensor]]:
    """Constants, and what reshapes one of them, each with the name of the constant."""
    found = {name: (name, value) for name, value in values.items()}
    for node in graph.node:
        if node.op_type in SHAPERS and set(node.input) <= set(found):
            root, value = found[node.input[0]]
            others = [found[name][1] for name in node.input[1:]]
            found[node.output[0]] = root, FUNCTIONS[node.op_type](_attributes(node), [value, *others], False)
    return found


def _constant(node: NodeProto) -> torch.Tensor:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    array = numpy_helper.to_array(value) if attribute.name == "value" else np.asarray(value)
    if attribute.name in ("value_float", "value_floats"):
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))


def _attributes(node: NodeProto) -> dict[str, Any]:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def network(model: ModelProto, path: Path, feed: Feed) -> OnnxNetwork:
    """The module of a model, compared with onnxruntime on some inputs. ModelError where they differ."""
    made = OnnxNetwork(model).eval()
    wanted = OrtRunner(path).run(feed)
    try:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
            found = made(**tensors)
    except Exception as error:
        raise ModelError(
            f"{path.name}: its form in torch does not run: {' '.join(str(error).split())[:200]}"
        ) from error
    results = found if isinstance(found, tuple) else (found,)
    for name, tensor in zip(made.outputs, results, strict=True):
        a, b = wanted[name].astype(np.float64), tensor.numpy().astype(np.float64)
        if a.shape != b.shape or not np.abs(a - b).max(initial=0.0) <= CLOSE * np.abs(a).max(initial=1e-30):
            raise ModelError(
                f"{path.name}: its form in torch gives another {name} than onnxruntime, so it is not trained"
            )
    _check_batch(made, path.name, tensors, results)
    made.end_with_logits()
    return made


def _check_batch(made: OnnxNetwork, name: str, feed: dict[str, torch.Tensor], results: tuple[Any, ...]) -> None:
    """ModelError where a sample alone has another answer than in its batch, which may be fixed in the file."""
    try:
        with torch.no_grad():
            found = made(**{key: value[:1] for key, value in feed.items()})
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: its form in torch takes no other batch than the file does: {said}") from error
    alone = found if isinstance(found, tuple) else (found,)
    for whole, one in zip(results, alone, strict=True):
        if not torch.allclose(whole[:1], one, rtol=CLOSE, atol=CLOSE * float(whole.abs().max())):
            raise ModelError(f"{name}: what it gives for a sample depends on the other samples, so it is not trained")


def written_back(model: ModelProto, trained: OnnxNetwork) -> ModelProto:
    """The model with the numbers of a trained module, each of the type that it had; everything else as it was."""
    new = ModelProto()
    new.CopyFrom(model)
    numbers = trained.numbers()
    held = [(tensor.name, tensor) for tensor in new.graph.initializer]
    held += [(node.output[0], a.t) for node in new.graph.node if node.op_type == "Constant"
             for a in node.attribute if a.name == "value"]  # fmt: skip
    for name, tensor in held:
        if name in numbers:
            old = numpy_helper.to_array(tensor)
            value = numbers.pop(name).cpu().numpy().astype(old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(value.reshape(old.shape), tensor.name))
    if numbers:
        raise ModelError(f"{min(numbers)}: is held in a form that cannot be written back")
    return new
