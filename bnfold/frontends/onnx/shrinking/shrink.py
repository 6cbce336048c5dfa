"""Takes channels that carry nothing out of an ONNX model: reads, decides, writes. `bnfold.shrinking` is the algebra."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from ....shrinking.decide import BLOCK, decide
from ..read import read
from ..skeleton import misfit, skeleton
from .branches import branches, unread
from .read import network
from .report import Shrunk, costs, told
from .write import write


def shrink(
    model: ModelProto,
    *,
    block: int = BLOCK,
    exact: bool = False,
    folder: Path | None = None,
    freeze_inputs: bool = False,
) -> Shrunk:
    """A copy of a model without the channels that hold a constant, or that nobody reads, where it computes the same.

    Whole branches that are constant go too.

    block: of the channels of a tensor a multiple of this stays, or of what it has in common with their number; 1 drops
    all.
    exact: leave channels whose weights are so small that they are lost in what the network rounds.
    folder: where external data lie. The model itself is left alone, and is the result where no channel can go.
    """
    given, model = model, ModelProto()
    model.CopyFrom(given)
    source = read(model, skeleton(model, folder), model.graph.name or "model", folder, freeze_inputs)
    net = network(source, exact)
    decision = decide(net, block)
    constant = list(branches(source.scopes[0], net, decision))
    gone = unread(source.scopes[0], constant)
    shrunk = told(given, net, decision, costs(source, net, decision, gone), constant)
    if not shrunk.changed:
        return shrunk
    try:
        write(model, source, net, decision, constant)
        wrong = misfit(skeleton(model, folder).model)
    except MemoryError:
        raise
    except Exception as error:  # a fault of ours costs the gain, and not the model
        wrong = f"{type(error).__name__}: {error}"
    if wrong and not misfit(skeleton(given, folder).model):
        return Shrunk(given, (), (), shrunk.denormal, shrunk.multiplications[:1] * 2, shrunk.bytes[:1] * 2, wrong)
    return replace(shrunk, model=model)
