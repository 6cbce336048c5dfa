"""What runtimes know by its nodes stays as it is: a fold must not make a model slower."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.api import fold
from tests.nets import Net, initializer


@pytest.mark.parametrize("first", [True, False])
def test_the_numbers_of_a_gelu_stay_so_that_runtimes_know_it(first: bool) -> None:
    """onnxruntime runs the five nodes of a GELU as one, which it no longer finds when a norm takes up the half."""
    net = Net(seed=2)
    x = net.conv(net.input(), (3, 4), "conv")
    half, root, one = (net.weight(name, [value]) for name, value in (("half", 0.5), ("root", 2**0.5), ("one", 1.0)))
    inner = net.node("Erf", [net.node("Div", [x, root], "scaled")], "erf")
    inner = net.node("Add", [inner, one], "sum")
    if first:
        x = net.node("Mul", [net.node("Mul", [x, half], "halved"), inner], "product")
    else:
        x = net.node("Mul", [net.node("Mul", [x, inner], "product"), half], "halved")
    net.output(net.conv(net.bn(x, 4, "bn"), (4, 2), "last"), ("N", 2, 4, 4))
    result = fold(net.model())
    assert result.plan.counts()["folded"] == 1
    assert [n.op_type for n in result.model.graph.node].count("Mul") == 2
    assert np.array_equal(initializer(result.model, "half"), [0.5])


def test_a_number_between_layers_still_goes() -> None:
    net = Net()
    x = net.node("Mul", [net.conv(net.input(), (3, 4), "conv"), net.weight("third", [1 / 3])], "scaled")
    net.output(net.conv(net.bn(x, 4, "bn"), (4, 2), "last"), ("N", 2, 4, 4))
    assert [node.op_type for node in fold(net.model(), merge=False).model.graph.node] == ["Conv", "Conv"]
