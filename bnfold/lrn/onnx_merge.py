"""LRNs that exporters wrote out, as one node each: what a network is read as, not what is written."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from .onnx_find import WRITTEN, OnnxSite, Wires


def merged(model: ModelProto, sites: list[OnnxSite]) -> ModelProto:
    """A copy in which a node of type LRN takes the place of the nodes of each site that is written out.

    Its attribute `before` says how many channels below its own the window holds.
    """
    new = ModelProto()
    new.CopyFrom(model)
    places = {name: i for i, node in enumerate(new.graph.node) for name in node.output}
    written = [site for site in sites if site.kind == WRITTEN]
    for site in written:
        r = site.response
        new.graph.node[places[site.result]].CopyFrom(helper.make_node(
            "LRN", [site.source], [site.result], name=site.name, size=r.size, alpha=r.alpha, beta=r.beta, bias=r.k,
            before=r.before,
        ))  # fmt: skip
    sweep(new, {name for site in written for node in site.nodes for name in node.output})
    return new


def sweep(model: ModelProto, candidates: set[str]) -> None:
    """Take out the nodes that make one of these tensors and that nothing reads, then those that only they read."""
    graph, candidates = model.graph, set(candidates)
    while True:
        wires = Wires(graph)

        def idle(node: NodeProto, wires: Wires = wires) -> bool:
            return not any(wires.readers.get(name) or name in wires.outputs for name in node.output)

        gone = [n for n in graph.node if idle(n) and (candidates & set(n.output) or n.op_type == "Constant")]
        if not gone:
            return
        for node in gone:
            candidates.update(node.input)
            graph.node.remove(node)
