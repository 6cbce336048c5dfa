"""Which forms are left, by choice of the caller: fast (measured no slower than the norm), all, none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import bnfold
from bnfold.core.gauge.leftovers import allowed
from tests.test_rules import Net
from tests.zoo import ZOO


def _forms(name: str, leftovers: str) -> Counter[str]:
    plan = bnfold.inspect(ZOO[name](dtype=np.float32), leftovers=leftovers)
    return Counter(bn.form or bn.verdict for bn in plan.batch_norms)


@pytest.mark.parametrize("name", ["densenet121", "dpn68"])
def test_each_choice_folds_the_same_norms_and_leaves_others(name: str) -> None:
    none, everything = _forms(name, "none"), _forms(name, "all")
    assert none["folded"] == everything["folded"] == _forms(name, "fast")["folded"]
    assert set(none) == {"folded", "kept"}
    assert everything["kept"] == 0
    assert everything["max"] == none["kept"]


def test_densenet121_ends_with_no_batch_norm_at_all() -> None:
    model = bnfold.fold(ZOO["densenet121"](dtype=np.float32), verify=False, leftovers="all").model
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("form", "channels", "size", "fast"),
    [
        ("max", 60, 56, True),
        ("max", 64, 56, False),  # onnxruntime's blocked layout
        ("max", 60, 7, False),  # a small map
        ("add", 60, 56, False),
        ("mul", 64, 56, True),
        ("mul", 64, 7, False),
        ("mul", 60, 56, False),
        ("clip", 60, 56, False),
        ("clip", 1, 56, True),
        ("bn", 64, 7, True),
    ],
)
def test_fast_allows_what_measured_no_slower(form: str, channels: int, size: int, fast: bool) -> None:
    shape = ("N", channels, size, size)
    assert allowed("fast", form, channels, shape) == fast
    assert allowed("all", form, channels, shape)
    assert allowed("none", form, channels, shape) == (form == "bn")


def test_on_matrices_an_add_is_as_fast() -> None:
    assert allowed("fast", "add", 64, (196, 64))
    assert not allowed("fast", "mul", 64, (196, 64))
    assert not allowed("fast", "max", 60, (196, 60))
    assert not allowed("fast", "add", 64, (1, 64, 196))
    assert not allowed("fast", "max", 60, None)


def test_a_dynamic_map_counts_as_a_large_one() -> None:
    assert allowed("fast", "max", 60, ("N", 60, "h", None))


def test_an_unknown_choice_is_refused() -> None:
    n = Net(2, 3, 5, 5)
    with pytest.raises(bnfold.UsageError, match="one of fast, all, none expected"):
        bnfold.inspect(n.model(n.bn(n.conv("x", 3, 3), 3)), leftovers="some")
