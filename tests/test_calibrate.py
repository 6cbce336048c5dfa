"""Statistics from data: exact, in any order of batches, over ranks, and after an interruption."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bnfold
from bnfold import DataError, ModelError, UsageError
from bnfold.calibration import state as states
from bnfold.calibration.moments import Moments

from .lrn_nets import images
from .torch_nets import alive

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]


def _net(seed: int = 0) -> Any:
    """Two norms, with a dropout between and statistics that fit no data."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(144, 3),
    )  # fmt: skip
    alive(net, seed, zeros=False)
    return net


def _statistics(net: nn.Module) -> list[torch.Tensor]:
    return [value for name, value in net.state_dict().items() if "running" in name]


def _same(a: nn.Module, b: nn.Module, tolerance: float = 1e-6) -> bool:
    pairs = zip(_statistics(a), _statistics(b), strict=True)
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in pairs)


def _of(z: torch.Tensor) -> tuple[Any, Any]:
    """The mean and the unbiased variance of (N, C, H, W), by numpy."""
    rows = z.detach().double().transpose(0, 1).flatten(1).numpy()
    return rows.mean(1), rows.var(1, ddof=1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(-1e6, 1e6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_merged_moments_are_those_of_all(sizes: list[int], offset: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 3, 2, generator=g, dtype=torch.float64) + offset for n in sizes]
    merged = Moments.empty(3)
    for part in parts:
        merged.add(Moments.of(part))
    mean, var = _of(torch.cat(parts))
    assert merged.count == 2 * sum(sizes)
    assert np.allclose(merged.mean, mean, rtol=1e-13)
    assert np.allclose(merged.variance(), var, rtol=1e-12 + 1e-20 * offset**2, atol=1e-9)


@torch.no_grad()
def test_joint_statistics_are_those_of_training() -> None:
    net, x = _net(), images(30)
    result = bnfold.calibrate(net, x, batch_size=10)
    mean, var = _of(net[0](x))
    assert np.allclose(result.model[1].running_mean, mean, atol=1e-6)
    assert np.allclose(result.model[1].running_var, var, rtol=1e-6)
    train = copy.deepcopy(net)
    train[1].train()
    second = torch.cat([train[:5](part) for part in torch.split(x, 10)])  # dropout off, the first norm with each batch
    mean, var = _of(second)
    assert np.allclose(result.model[5].running_mean, mean, atol=1e-6)
    assert np.allclose(result.model[5].running_var, var, rtol=1e-5)
    assert [(n.name, n.values) for n in result.report.norms] == [("1", 30 * 64), ("5", 30 * 36)]


@torch.no_grad()
def test_layerwise_statistics_are_those_of_inference() -> None:
    net, x = _net(), images(30)
    result = bnfold.calibrate(net, x, batch_size=7, order="layerwise")
    other = bnfold.calibrate(net, x, batch_size=30, order="layerwise")
    assert _same(result.model, other.model)
    mean, var = _of(result.model[:5](x))
    assert np.allclose(result.model[5].running_mean, mean, atol=1e-6)
    assert np.allclose(result.model[5].running_var, var, rtol=1e-5)
    out = result.model[:6](x).transpose(0, 1).flatten(1)
    gamma, beta = result.model[5].weight, result.model[5].bias
    assert torch.allclose(out.mean(1), beta, atol=1e-5)
    assert torch.allclose(out.std(1), gamma.abs(), rtol=1e-3)
    joint = bnfold.calibrate(net, x, batch_size=7)
    assert not _same(result.model, joint.model, 1e-4)


def test_batches_may_come_in_any_order() -> None:
    net, x = _net(), images(40)
    parts = torch.split(x, 10)
    mixed = torch.cat([parts[i] for i in (2, 0, 3, 1)])
    assert _same(bnfold.calibrate(net, x, batch_size=10).model, bnfold.calibrate(net, mixed, batch_size=10).model, 1e-6)


@pytest.mark.parametrize("decay", [0.9, 0.5, 0.0])
def test_the_moving_average_is_that_of_torch(decay: float) -> None:
    net, x = _net(), images(40)
    result = bnfold.calibrate(net, x, method="moving", decay=decay, batch_size=8)
    train = copy.deepcopy(net)
    for norm in (train[1], train[5]):
        norm.train()
        norm.momentum = 1 - decay
    with torch.no_grad():
        for part in torch.split(x, 8):
            train(part)
    assert _same(result.model, train, 1e-5)
    assert not _same(result.model, net, 1e-3)


def test_everything_else_stays() -> None:
    net = _net().train()
    net[1].eval()
    net[1].momentum = None
    before = copy.deepcopy(net)
    result = bnfold.calibrate(net, images(20), batch_size=6)
    for found in (net, result.model):
        assert [m.training for m in found.modules()] == [m.training for m in before.modules()]
        assert found[1].momentum is None
        for name, value in before.state_dict().items():
            assert torch.equal(value, found.state_dict()[name]) or (found is result.model and "running" in name)
        assert not found[1]._forward_pre_hooks
    assert not _same(net, result.model, 1e-2)
    changed = bnfold.calibrate(net, images(20), batch_size=6, inplace=True)
    assert changed.model is net
    assert _same(net, result.model, 0)


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(9, 5)
    result = bnfold.calibrate(net, x, batch_size=4)
    mean, var = _of(net[0](x)[:, :, None])
    assert np.allclose(result.model[1].running_var, var, rtol=1e-5)
    assert np.allclose(result.model[1].running_mean, mean, atol=1e-6)


def test_norms_used_twice_or_not_at_all() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.spare = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.norm(x) + self.norm(2 * x + 1)
            return out

    x = torch.randn(50, 3)
    for order in ("joint", "layerwise"):
        result = bnfold.calibrate(Odd(), x, order=order, batch_size=20)
        mean, var = _of(torch.cat([x, 2 * x + 1])[:, :, None])
        assert np.allclose(result.model.norm.running_mean, mean, atol=1e-6)
        assert np.allclose(result.model.norm.running_var, var, rtol=1e-5)
        assert result.report.unused == ("spare",)
        assert "spare: not run" in str(result.report)


def test_several_inputs_go_by_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
            out: torch.Tensor = self.norm(a - scale * b)
            return out

    a, b = torch.randn(20, 3), torch.randn(20, 3)
    np.savez(tmp_path / "d.npz", b=b.numpy(), a=a.numpy(), y=np.zeros(20))
    mean, _ = _of((a - 2 * b)[:, :, None])
    for data in (tmp_path / "d.npz", {"b": b, "a": a.numpy()}):
        assert np.allclose(bnfold.calibrate(Two(), data).model.norm.running_mean, mean, atol=1e-6)
    mean, _ = _of((a - 3 * b)[:, :, None])
    found = bnfold.calibrate(Two(), {"b": b, "a": a}, inputs=(a[:2], b[:2], 3.0))
    assert np.allclose(found.model.norm.running_mean, mean, atol=1e-6)


class _Interrupted(Exception):
    pass


def _failing_at(stage: str) -> Any:
    def progress(said: str) -> None:
        if said == stage:
            raise _Interrupted

    return progress


@pytest.mark.parametrize(
    ("options", "stage", "left"),
    [({}, "batch 4 of 6", 3), ({"method": "moving", "decay": 0.7}, "batch 5 of 6", 2),
     ({"order": "layerwise"}, "5: batch 2 of 6", 5), ({"order": "layerwise"}, "1: batch 6 of 6", 7)],
    ids=["joint", "moving", "second layer", "first layer"],
)  # fmt: skip
def test_a_rerun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], stage: str, left: int
) -> None:
    monkeypatch.setattr(states, "EVERY", 1)
    net, x, state = _net(), images(48), tmp_path / "state.pt"
    given = {**options, "batch_size": 8}
    whole = bnfold.calibrate(net, x, **given)
    with pytest.raises(_Interrupted):
        bnfold.calibrate(net, x, resume=state, progress=_failing_at(stage), **given)
    assert state.exists()
    said: list[str] = []
    result = bnfold.calibrate(net, x, resume=state, progress=said.append, **given)
    assert len(said) == left
    assert _same(result.model, whole.model, 0)
    assert [n.values for n in result.report.norms] == [n.values for n in whole.report.norms]
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_another_calibration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "EVERY", 1)
    net, x, state = _net(), images(24), tmp_path / "state.pt"
    with pytest.raises(_Interrupted):
        bnfold.calibrate(net, x, batch_size=8, resume=state, progress=_failing_at("batch 3 of 3"))
    with pytest.raises(UsageError, match="batch size"):
        bnfold.calibrate(net, x, batch_size=6, resume=state)
    with pytest.raises(UsageError, match="weights"):
        bnfold.calibrate(_net(1), x, batch_size=8, resume=state)
    with pytest.raises(UsageError, match="data"):
        bnfold.calibrate(net, x + 1, batch_size=8, resume=state)
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(DataError, match="damaged"):
        bnfold.calibrate(net, x, batch_size=8, resume=state)


RANKS = """
    import sys
    from pathlib import Path
    import torch
    from torch import distributed, multiprocessing

    def work(rank, folder):
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
        import bnfold
        from tests.lrn_nets import images
        from tests.test_calibrate import _net
        own = [images(40)[:16], images(40)[16:]][rank]
        for name, options in (("joint", {}), ("layerwise", {"order": "layerwise"})):
            result = bnfold.calibrate(_net(), own, batch_size=8, **options)
            torch.save((result.model.state_dict(), result.report.norms[0].values), f"{folder}/{name}{rank}.pt")
        try:
            bnfold.calibrate(_net(), own, batch_size=8, method="moving")
        except bnfold.DataError as error:
            Path(f"{folder}/said{rank}").write_text(str(error))
        result = bnfold.calibrate(_net(), images(40)[rank::2], batch_size=8, method="moving", decay=0.5)
        torch.save((result.model.state_dict(), 0), f"{folder}/moving{rank}.pt")
        distributed.destroy_process_group()

    if __name__ == "__main__":
        multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_ranks_get_the_statistics_of_all(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, options in (("joint", {}), ("layerwise", {"order": "layerwise"})):
        alone = bnfold.calibrate(_net(), images(40), batch_size=8, **options)  # type: ignore[arg-type]
        for rank in (0, 1):
            state, values = torch.load(tmp_path / f"{name}{rank}.pt")
            found = _net()
            found.load_state_dict(state)
            assert _same(found, alone.model)
            assert values == alone.report.norms[0].values == 40 * 64
    first, second = (torch.load(tmp_path / f"moving{rank}.pt")[0] for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert "ranks have 2 to 3 batches" in (tmp_path / "said0").read_text()


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_bad_calls_are_refused() -> None:
    net, x = _net(), images(8)
    with pytest.raises(ModelError, match="no batch norm"):
        bnfold.calibrate(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), x)
    for wrong in ({"method": "average"}, {"order": "random"}, {"decay": 1.0}, {"samples": 0},
                  {"method": "moving", "order": "layerwise"}):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(wrong))):
            bnfold.calibrate(net, x, **wrong)
    with pytest.raises(UsageError, match="a path"):
        bnfold.calibrate(net, None)


@pytest.mark.parametrize("order", ["joint", "layerwise"])
def test_bad_data_are_refused_and_nothing_is_changed(order: str) -> None:
    net = _net()
    before = copy.deepcopy(net.state_dict())
    large = _net()
    with torch.no_grad():
        large[0].weight.mul_(1e3)
    spoilt = images(8)
    spoilt[1, 1, 1, 1] = float("nan")
    with pytest.raises(DataError, match="sample 1"):
        bnfold.calibrate(net, spoilt, order=order, inplace=True)
    with pytest.raises(DataError, match=r"1: of what goes into it on these data, channel \d holds NaN or infinity"):
        bnfold.calibrate(large, images(8) * 1e37, order=order, inplace=True)
    assert all(torch.isfinite(value).all() for value in large.state_dict().values())
    with pytest.raises(DataError, match="does not take a batch of shape 8x4x10x10"):
        bnfold.calibrate(net, images(8, channels=4), order=order, inplace=True)
    with pytest.raises(DataError, match=r"1 value for each channel|more than 1 value"):
        bnfold.calibrate(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.zeros(1, 3), order=order)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert not net.training
