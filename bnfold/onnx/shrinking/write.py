"""Takes what a decision lets go out of an ONNX model."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto

from ...core.shrinking.channels import Network
from ...core.shrinking.decide import Decision
from ..read.bindings import LinearBinding
from ..read.read import Source
from ..read.scope import Scope
from ..write.apply import Applied
from ..write.editor import Editor, all_names
from . import narrow
from .branches import Branch, replaced
from .read import neutral


def write(model: ModelProto, source: Source, net: Network, decision: Decision, constant: list[Branch]) -> None:
    """Take out of `model` what a decision lets go, and the branches that are `constant`."""
    scope = source.scopes[0]
    editor = Editor(model, scope, all_names(model.graph), None)
    cuts = dict(_cuts(scope, net, decision))
    done, stale = set[int](), set(cuts)
    for port in net.ports:
        at = source.bindings[port.place]
        assert isinstance(at, LinearBinding)
        done |= {at.node, at.bias_node}
        keep_in = None if port.x is None else decision.keeps(port.x)
        keep_out = decision.keeps(port.y)
        if keep_in is not None or keep_out is not None:
            narrow.layer(editor, port, at, keep_in, keep_out)
            stale.update(scope.graph.node[at.node].output)
    for index in range(len(scope.graph.node)):
        node = scope.graph.node[index]
        if index in done or node.domain not in ("", "ai.onnx"):
            continue
        touched = [name for name in (*node.output, *node.input) if name in cuts]
        if touched and node.op_type in narrow.CONSTANTS:
            narrow.constants(editor, index, cuts[touched[0]])
        elif touched and node.op_type in narrow.WRITERS:
            narrow.WRITERS[node.op_type](editor, index, cuts)
    for branch in constant:
        replaced(editor, branch)
    editor.finish({neutral(scope, name) for name in cuts})
    Applied(model, editor.pending).complete()
    for i in reversed([i for i, v in enumerate(model.graph.value_info) if v.name in stale]):
        del model.graph.value_info[i]


def _cuts(scope: Scope, net: Network, decision: Decision) -> Iterator[tuple[str, narrow.Cut]]:
    """What the tensors of the file lose."""
    raw = {alias: name for name, alias in scope.alias.items()}
    for alias, track in net.tracks.items():
        kept, name = None if track is None else decision.keeps(track), raw.get(alias)
        if kept is not None and track is not None and name is not None:
            yield name, narrow.Cut(track.axis, scope.rank(name) or 0, track.ids.size, kept)
