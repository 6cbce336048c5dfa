"""Norms and activations in one class: every form of what is left of them, in place and not, and whose fault it is."""

from __future__ import annotations

import copy
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.core.plan import Plan, Replace, Rescale
from bnfold.doors.torch import Policy, inspect_program
from bnfold.errors import InternalError
from bnfold.torch.write import apply as applying
from bnfold.torch.write.blame import TRIALS, Budget, Search
from bnfold.torch.write.fold import Options, copied, survey
from tests.norm_act_nets import DPN, DenseNet, RegNetV
from tests.norm_acts import CODE, PLAIN, ActFirst, Kind, Make, Places, Shared, Subclass, acts, without_offset
from tests.torch_nets import alive, codes, error, fates, positive

ACTS = "hardtanh", "prelu", "silu", "scaled", "then"
X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double()


def _places(kind: Kind, act: Make, positively: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = alive(Places(lambda width: kind(width, act)), seed, zeros=not positively)
    without_offset(net)  # type: ignore[arg-type]
    return (positive(net) if positively else net).double()


def _forms(net: nn.Module, policies: Sequence[str] = ("all", "none")) -> Counter[str]:
    """What unchecked folds of a network write, which must be exact."""
    seen, found = survey(net, (X,), {}, Options()), Counter[str]()
    for policy in policies:
        made = seen.plan(Policy(leftovers=policy).plan)
        written = made.apply(copied(net))
        for x in (X, 3 * X.flip(0) + 0.5):
            with torch.no_grad():
                assert error(copy.deepcopy(net)(x.clone()), written(x.clone())) < 1e-12, (policy, made.plan)
        found += Counter(getattr(edit, "form", type(edit).__name__) for edit in made.plan.edits)
    return found


@pytest.mark.parametrize(("kind", "act"), [(Subclass, "relu"), (Subclass, "relu6")], ids=["relu", "relu6"])
def test_every_form_of_a_norm_with_its_activation_inside_is_right(kind: Kind, act: str) -> None:
    found = _forms(_places(kind, acts(inplace=True)[act]))
    assert {"Remove", "add", "mul", "bn", {"relu": "max", "relu6": "clip"}[act]} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_every_form_is_right_for_every_class(kind: Kind) -> None:
    inplace = PLAIN.index(kind) % 2 == 0
    found = _forms(_places(kind, acts(inplace)["relu"])) + _forms(_places(kind, acts(not inplace)["relu6"]))
    assert {"Remove", "bn"} <= set(found)


@pytest.mark.slow
def test_every_activation_is_right() -> None:
    rows: list[tuple[Kind, Make]] = [(Subclass, acts(inplace=True)[act]) for act in ACTS]
    rows += [(Subclass, Shared(acts(inplace=True)["relu"])), (ActFirst, acts(inplace=True)["relu"])]
    for kind, act in rows:
        assert _forms(_places(kind, act))["Remove"] > 1, (kind, act)


@pytest.mark.slow
def test_norms_in_the_middle_of_other_code_stay() -> None:
    for kind in CODE:
        assert not {"Remove", "max", "clip"} & set(_forms(_places(kind, acts(inplace=True)["relu"]))), kind


@pytest.mark.slow
def test_random_classes_activations_and_forms() -> None:
    rng, total = random.Random(0), Counter[str]()
    for seed in range(5):
        inplace, shared = rng.random() < 0.5, rng.random() < 0.3
        act = rng.choice(list(acts(inplace).values()))
        positively = rng.random() < 0.5
        total += _forms(_places(rng.choice([*PLAIN, *CODE]), Shared(act) if shared else act, positively, seed))
    assert total["Remove"] > 5


def test_what_is_written_for_an_activation_reaches_calls_of_its_own_module_only() -> None:
    """A function has the name of a module in the trace, and modules do more than the function that they call."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu, self.twice = nn.Conv2d(3, 8, 1), nn.ReLU(), Twice()
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
            self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(4))

        def forward(self, x: Tensor) -> Any:
            y, (a, b, c, d) = self.stem(x), self.norms
            p, q, r, s = self.convs
            return p(F.relu(a(y))) + q(self.twice(b(y))) + r(self.relu(c(y))) + s(self.relu(d(y).tanh()))

    net = positive(alive(Net(), zeros=False)).double()
    result = bnfold.fold(net, (X,), verify=False, leftovers="all")
    assert error(net(X), result.model(X)) < 1e-12


def test_calls_that_run_other_modules_around_the_norm_are_not_one() -> None:
    class Maybe(Subclass):
        def forward(self, x: Tensor, act: bool = True) -> Tensor:
            y = self.normed(x)
            return self.act(y) if act else y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.convs = Maybe(8, nn.ReLU), nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (3, 3, 8))

        def forward(self, x: Tensor) -> Any:
            return self.convs[2](self.norm(self.convs[0](x)) + self.norm(self.convs[1](x), False))

    net = alive(Net(), zeros=False).double()
    result = bnfold.fold(net, (X,), verify=False)
    assert error(net(X), result.model(X)) < 1e-12
    assert fates(result) == {"norm": "kept"}


# --- networks that activate first


NETS: dict[str, Callable[[bool], nn.Module]] = {
    "dense": lambda full: DenseNet(64, 32, (6, 12, 24, 16)) if full else DenseNet(16, 8, (2, 2)),
    "dual path": lambda full: DPN(16, 16, (3, 4, 12, 3)) if full else DPN(16, 8, (2, 1)),
    "regnet": lambda full: RegNetV(8, (2, 4, 10, 1)) if full else RegNetV(8, (2, 1)),
}


def _preactivated(name: str, full: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return positive(alive(NETS[name](full), zeros=False)).double()


@pytest.mark.parametrize("name", NETS)
def test_no_norm_is_left_in_networks_that_activate_first(name: str) -> None:
    net, x = _preactivated(name), torch.randn(2, 3, 16, 16).double()
    result = bnfold.fold(net, (x,), verify=False)
    assert result.plan.counts()["kept"] == 0
    assert set(fates(result).values()) <= {"folded", "max"}
    assert not any(isinstance(inner, nn.BatchNorm2d) for inner in result.model.modules())
    assert error(net(x), result.model(x)) < 1e-12


@pytest.mark.slow
def test_no_norm_is_left_at_full_depth() -> None:
    for name in ("dual path", "regnet"):
        net, x = _preactivated(name, full=True), torch.randn(1, 3, 32, 32).double()
        result = bnfold.fold(net, (x,), verify=False)
        assert result.plan.counts()["kept"] == 0, name
        assert error(net(x), result.model(x)) < 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_module_and_its_exported_program_leave_the_same(name: str) -> None:
    net, x = _preactivated(name).float(), torch.randn(2, 3, 16, 16)
    seen, program = survey(net, (x,), {}, Options()), torch.export.export(net, (x,), strict=False)
    for leftovers in ("all", "none", "fast"):
        one = seen.plan(Policy(leftovers=leftovers).plan).plan
        other = inspect_program(program, Policy(leftovers=leftovers, exports=True), Options())
        forms = leftovers != "fast"  # there each is left in the form that is cheap where it will run
        left = [sorted((bn.name, bn.verdict, forms and bn.form) for bn in plan.batch_norms) for plan in (one, other)]
        assert left[0] == left[1]


@pytest.mark.slow
def test_a_checkpoint_that_is_folded_and_one_that_is_exported_leave_the_same(tmp_path: Path) -> None:
    net, x = _preactivated("dense").float(), torch.randn(2, 3, 16, 16)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    given: Any = {"inputs": (x,), "arch": lambda: NETS["dense"](False), "leftovers": "all"}
    one = bnfold.fold(tmp_path / "net.pth", **given)
    other = bnfold.export(tmp_path / "net.pth", out=tmp_path / "net.onnx", **given)
    assert other.plan is not None
    assert one.plan.counts() == other.plan.counts()
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}


# --- whose fault it is


def _chain(norms: int = 3) -> nn.Module:
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(norms))
    return alive(nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(8, 4, 1)), zeros=False)


def _wrongly_planned(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Rescale], Rescale]) -> None:
    """Let the planner get the edits of layers wrong."""
    import bnfold.doors.torch as door

    real: Any = vars(door)["plan_that_fits"]

    def planned(*args: Any) -> Plan:
        made: Plan = real(*args)
        edits = tuple(wrong(edit) if isinstance(edit, Rescale) else edit for edit in made.edits)
        return replace(made, edits=edits)

    monkeypatch.setattr(door, "plan_that_fits", planned)


def test_a_plan_that_is_wrong_throughout_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(edit: Rescale) -> Rescale:
        return replace(edit, q_out=(0 if edit.q_out is None else edit.q_out) + np.ones(8))

    _wrongly_planned(monkeypatch, wrong)
    with pytest.raises(InternalError, match=r"did not pass.*internal.*please report it with") as caught:
        bnfold.fold(_chain(), (X.float(),))
    assert isinstance(caught.value, bnfold.VerificationError)
    assert caught.value.check is not None
    assert not caught.value.check.passed
    assert caught.value.plan is not None
    assert "uncooperative" not in str(caught.value)


def test_a_norm_whose_plan_is_wrong_stays_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(edit: Rescale) -> Rescale:
        return replace(edit, q_out=edit.q_out + 1.0) if edit.name == "2.0" and edit.q_out is not None else edit

    _wrongly_planned(monkeypatch, wrong)
    result = bnfold.fold(_chain(), (X.float(),))
    assert fates(result) == {"1.1": "folded", "2.1": "kept", "3.1": "folded"}
    assert codes(result) == {"2.1": "internal"}
    (reason,) = (bn.reason for bn in result.plan.batch_norms if bn.reason)
    assert "please report it" in reason.hint
    assert "kept, because bnfold's own fold is wrong without: 2.1 (" in str(result.plan.notes)
    assert "please report it" in str(result.plan.notes)


@pytest.mark.slow
def test_what_is_written_wrong_is_no_fault_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation inside a norm that goes keeps its old form."""
    monkeypatch.setattr(applying._Work, "activation", lambda self, edit, at: None)
    net = _places(Subclass, acts(inplace=True)["relu"]).float()
    result = bnfold.fold(net, (X.float(),), leftovers="all")
    assert set(codes(result).values()) >= {"internal"}
    assert "uncooperative-code" not in codes(result).values()
    assert any(bn.verdict == "folded" for bn in result.plan.batch_norms)


@pytest.mark.slow
def test_an_error_in_the_writer_is_no_fault_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of one layer of another size: the folded module raises."""
    real: Any = applying._Work.norm

    def norm(self: Any, edit: Replace, at: Any) -> None:
        real(self, replace(edit, offset=np.ones(5)) if at.path == "norms.3" and edit.form == "add" else edit, at)

    monkeypatch.setattr(applying._Work, "norm", norm)
    result = bnfold.fold(_places(Subclass, acts(inplace=True)["relu"]).float(), (X.float(),), leftovers="all")
    assert codes(result)["norms.3"] == "internal"


class Moody(nn.Module):
    """A block whose code gives other numbers without its norm, on large inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y if isinstance(self.norm, nn.BatchNorm2d) else y * (1 + (x.abs().amax() > 8))


def test_norms_are_looked_for_on_the_inputs_that_were_refused() -> None:
    net: Any = _chain()
    net[2] = Moody()
    result = bnfold.fold(alive(net, zeros=False), (X.float(),))
    assert codes(result) == {"2.norm": "uncooperative-code"}
    assert "on large inputs" in str(result.plan.notes)


def _clock() -> Callable[[], float]:
    """One second on whenever it is read."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


def _search(norms: int, guilty: set[str], seconds: float = float("inf")) -> tuple[Search, list[int]]:
    names, trials = [str(i) for i in range(norms)], list[int]()

    def fault(kept: Any) -> str:
        trials.append(len(kept))
        return "no" if guilty - set(kept) else ""

    clock = _clock()
    search = Search(names, fault, str, Budget(TRIALS * norms.bit_length(), seconds, clock))
    search.culprits()
    return search, trials


def test_the_search_tries_a_few_times_the_logarithm_of_the_norms() -> None:
    search, _ = _search(200, {"3", "77", "199"})
    assert search.found.keys() == {"3", "77", "199"}
    assert not search.undecided
    for norms in (1, 2, 9, 200, 1000):
        search, trials = _search(norms, {str(i) for i in range(0, norms, 2)})
        assert len(trials) <= TRIALS * norms.bit_length()
        assert {*search.found, *search.undecided} >= {str(i) for i in range(0, norms, 2)}


def test_what_the_search_cleared_before_its_end_is_not_undecided() -> None:
    search, _ = _search(200, set(map(str, range(50, 200))))
    assert not {*map(str, range(50))} & {*search.found, *search.undecided}
    assert len(search.undecided) + len(search.found) == 150


def test_the_search_ends_three_times_the_fold_after_it() -> None:
    assert Budget.after(10.0, lambda: 12.0, 5).end == 18.0
    for seconds in (1.0, 3.0, 10.0, 15.0):
        search, trials = _search(200, {"3", "77"}, seconds)
        assert 2 * len(trials) <= seconds + 1
        assert {"3", "77"} <= {*search.found, *search.undecided}


@pytest.mark.slow
def test_norms_that_the_search_did_not_reach_stay_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    import bnfold.doors.torch_modules as folding

    net: Any = _chain()
    net[2] = Moody()
    monkeypatch.setattr(folding, "clock", _clock())
    result = bnfold.fold(alive(net, zeros=False), (X.float(),))
    assert result.check is not None
    assert result.check.passed
    assert set(codes(result).values()) == {"undecided"}
    assert "the search for norms to blame has a bound" in str(result.plan.notes)
