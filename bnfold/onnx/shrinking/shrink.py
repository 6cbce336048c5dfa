"""Takes channels that carry nothing out of an ONNX model: reads, decides, writes; `core.shrinking` is the algebra."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from ...core.shrinking.decide import BLOCK, decide
from ..read.read import Source, read
from ..store.external import external_tensors
from ..store.skeleton import misfit, skeleton
from ..write.apply import Applied
from .branches import branches, unread
from .read import network
from .report import Shrunk, costs, told
from .write import write


def shrink(
    applied: Applied | ModelProto,
    *,
    block: int = BLOCK,
    exact: bool = False,
    folder: Path | None = None,
    freeze_inputs: bool = False,
    kept: Container[str] = (),
) -> Shrunk:
    """A model without the channels that hold a constant, or that nobody reads, where it computes the same.

    Whole branches that are constant go too.

    block: of the channels of a tensor a multiple of this stays, or of what it has in common with their number; 1 drops
    all.
    exact: leave channels whose weights are so small that they are lost in what the network rounds.
    folder: where external data lie. kept: names of nodes, or of the tensors that they give, whose channels stay.
    A ModelProto is left alone, and is the result where no channel can go; of what was applied, which may have values
    still to be computed, the model becomes complete where channels go.
    """
    state = applied if isinstance(applied, Applied) else Applied(applied, {}, bool(external_tensors(applied)))
    source = _read(state.model, folder, freeze_inputs, state)
    net = network(source, exact, kept)
    decision = decide(net, block)
    constant = [branch for branch in branches(source.scopes[0], net, decision) if branch.name not in kept]
    gone = unread(source.scopes[0], constant)
    shrunk = told(state, net, decision, costs(source, net, decision, gone), constant)
    if not shrunk.changed:
        return shrunk
    model = ModelProto()
    model.CopyFrom(state.complete())
    try:
        write(model, _read(model, folder, freeze_inputs), net, decision, constant)
        wrong = misfit(skeleton(model, folder).model)
    except MemoryError:
        raise
    except Exception as error:  # a fault of ours costs the gain, and not the model
        wrong = f"{type(error).__name__}: {error}"
    if wrong and not misfit(skeleton(state.model, folder).model):
        before = shrunk.multiplications[:1] * 2, shrunk.bytes[:1] * 2
        return Shrunk(state, (), (), shrunk.denormal, *before, wrong)
    return replace(shrunk, applied=Applied(model, {}, state.aside))


def _read(model: ModelProto, folder: Path | None, freeze_inputs: bool, state: Applied | None = None) -> Source:
    fresh = None if state is None else state.fresh
    return read(model, skeleton(model, folder), model.graph.name or "model", folder, freeze_inputs, fresh=fresh)
