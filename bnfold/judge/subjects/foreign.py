"""Operators of domains that nothing here knows: models are compared around them.

What goes into such an operator becomes an output of the model, and what it gives an input. Both models hold these
tensors as they are, since nothing may be assumed of the operator; so the two are the same where what is around it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto, helper, numpy_helper

from ...errors import VerificationError
from ...onnx.files import bare, dump, load_whole
from ...onnx.store.loops import infer_shapes
from ...onnx.store.skeleton import constant_tensor, skeleton
from ...onnx.write.apply import Applied

DOMAINS = frozenset({
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft", "com.microsoft.nchwc",
    "com.microsoft.experimental", "com.ms.internal.nhwc", "com.microsoft.dml",
})  # fmt: skip
"""The domains that runtimes know."""
Types = Mapping[str, TypeProto]


def foreign(model: ModelProto) -> list[NodeProto]:
    """The nodes of a model's graph that no runtime here knows."""
    own = {(function.domain, function.name) for function in model.functions}
    nodes = model.graph.node
    return [node for node in nodes if node.domain not in DOMAINS and (node.domain, node.op_type) not in own]


@contextmanager
def around(reference: Path, candidate: Path) -> Iterator[tuple[Path, Path, str]]:
    """Both files without operators that nothing here knows, and what is to be said; as they are where none are."""
    found = foreign(bare(reference))
    if not found:
        yield reference, candidate, ""
        return
    kinds = sorted({f"{node.op_type} ({node.domain})" for node in found})
    said = f"{', '.join(kinds)} cannot be run here: what goes in was compared, and what comes out were inputs"
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        types: dict[str, TypeProto] = {}
        paths = [Path(folder) / side / path.name for side, path in (("a", reference), ("b", candidate))]
        first, second = load_whole(reference), load_whole(candidate)
        if not _alike(first, second):
            raise VerificationError(f"{candidate.name} has other operators that nothing here can run ({kinds[0]}, ...)")
        for model, path in zip((first, second), paths, strict=True):
            path.parent.mkdir()
            dump(Applied(_without(model, types)), path)
        yield paths[0], paths[1], said


def _alike(first: ModelProto, second: ModelProto) -> bool:
    """Whether two models have the same unknown operators: types, attributes and constants, in this order."""
    sides = [[_identity(model, node) for node in foreign(model)] for model in (first, second)]
    return sides[0] == sides[1]


def _identity(model: ModelProto, node: NodeProto) -> tuple[object, ...]:
    """All that is known of what a node does."""
    held = {t.name: t for t in model.graph.initializer}
    held.update((n.output[0], t) for n in model.graph.node if (t := constant_tensor(n)) is not None)
    constants = [None if name not in held else numpy_helper.to_array(held[name]) for name in node.input]
    values = tuple(None if value is None else (value.dtype, value.shape, value.tobytes()) for value in constants)
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.domain, node.op_type, tuple(attributes), values, len(node.output)


def _without(model: ModelProto, types: dict[str, TypeProto]) -> ModelProto:
    """A model whose unknown operators are gone. `types`: of what they give, by names that both models share."""
    graph = model.graph
    stored = {t.name for t in graph.initializer}
    stored |= {node.output[0] for node in graph.node if constant_tensor(node) is not None}
    for i, node in enumerate(foreign(model)):
        label = f"{node.op_type}_{i}"
        inputs = [name for name in node.input if name and name not in stored]
        known = _types(model)
        for j, name in enumerate(inputs):
            graph.node.append(helper.make_node("Identity", [name], [f"{label}.in{j}"], f"{label}.in{j}"))
            graph.output.append(ValueInfoProto(name=f"{label}.in{j}", type=known.get(name) or TypeProto()))
        for k, name in enumerate(node.output):
            given = f"{label}.out{k}"
            kind = types.get(given) or known.get(name) or known.get(inputs[0] if inputs else "")
            if kind is None or not kind.tensor_type.HasField("shape"):
                raise VerificationError(f"what {node.name or label} gives has no known shape, so it cannot be made up")
            types[given] = kind
            graph.input.append(ValueInfoProto(name=given, type=kind))
            for reader in graph.node:
                reader.input[:] = [given if wanted == name else wanted for wanted in reader.input]
            for place in reversed([p for p, value in enumerate(graph.output) if value.name == name]):
                del graph.output[place]
        graph.node.remove(node)
    return model


def _types(model: ModelProto) -> Types:
    """The types of tensors, as far as they can be inferred."""
    graph = infer_shapes(skeleton(model).model).graph
    return {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
