"""Retraining: it learns, with classes and from a teacher; it goes on exactly; it says what is wrong."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

import bnfold
from bnfold.cli import main
from bnfold.errors import BnfoldError, DataError, TrainingError, UsageError
from bnfold.train.history import Epoch, History
from bnfold.train.ranks import Ranks
from bnfold.train.recipe import Recipe
from bnfold.train.retrain import retrain as loop_of
from bnfold.train.schedule import groups, order, rate

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes=10):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True), nn.LocalResponseNorm(3, 0.5), nn.Dropout(0.1),
            nn.Flatten(), nn.Linear(256, classes),
        )
"""
SCOPE: dict[str, Any] = {"__name__": "nets"}
exec(SOURCE, SCOPE)
DIGITS = load_digits()
MIXED = np.random.default_rng(0).permutation(len(DIGITS.target))
X = (DIGITS.images[MIXED, None] / 16).astype(np.float32)
Y = DIGITS.target[MIXED].astype(np.int64)
TRAIN, TEST = {"x": X[:1200], "y": Y[:1200]}, {"x": X[1200:], "y": Y[1200:]}
SMALL = {"x": X[:330], "y": Y[:330]}
State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = SCOPE["Net"]()
    return made.eval()


def states_equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def copy_of(module: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def said(kind: type[BnfoldError], module: Any = None, data: Any = SMALL, **given: Any) -> str:
    with pytest.raises(kind) as caught:
        bnfold.retrain(network() if module is None else module, data, **{"epochs": 1, **given})
    return str(caught.value)


class Stop(Exception):
    """Stands for a power cut."""


def stopping(step: str) -> Callable[[str], None]:
    """A progress callback that stops the run when it hears of this step."""

    def progress(stage: str) -> None:
        if stage.startswith(step):
            raise Stop

    return progress


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A network that was trained for a little while."""
    model: nn.Module = bnfold.retrain(network(), TRAIN, epochs=3).model
    return model


# Learning


def test_the_loss_falls_and_the_accuracy_rises() -> None:
    net = network()
    before = copy_of(net)
    result = bnfold.retrain(net, TRAIN, validation=TEST, epochs=4)
    start, *epochs = result.history.epochs
    losses = [epoch.loss or 0.0 for epoch in epochs]
    assert losses == sorted(losses, reverse=True)
    assert start.validation_accuracy is not None
    assert start.validation_accuracy < 0.3
    assert epochs[-1].validation_accuracy is not None
    assert epochs[-1].validation_accuracy > 0.9
    assert result.history.accuracy_of == "labels"
    with torch.no_grad():
        right = (result.model(torch.from_numpy(TEST["x"])).argmax(1).numpy() == TEST["y"]).mean()
    assert right == pytest.approx(epochs[-1].validation_accuracy)
    assert not result.model.training
    assert states_equal(copy_of(net), before)


def test_a_teacher_needs_no_labels(teacher: nn.Module) -> None:
    result = bnfold.retrain(network(1), TRAIN["x"], validation=TEST["x"], teacher=teacher, epochs=3)
    start, end = result.history.epochs[0], result.history.epochs[-1]
    assert result.history.accuracy_of == "teacher"
    assert start.validation_loss is not None
    assert end.validation_loss is not None
    assert end.validation_loss < 0.2 * start.validation_loss
    assert (end.validation_accuracy or 0) > 0.85
    with torch.no_grad():
        x = torch.from_numpy(TEST["x"])
        distance = float((result.model(x) - teacher(x)).square().mean() / teacher(x).square().mean())
    assert distance == pytest.approx(end.validation_loss, rel=0.05)  # which is the mean over batches


@pytest.mark.parametrize("given", [{"temperature": 4.0}, {"distil": "features", "feature_names": ("4", "5")},
                                   {"labels": True}])  # fmt: skip
def test_other_ways_to_learn_from_a_teacher(teacher: nn.Module, given: dict[str, Any]) -> None:
    hooks = [len(m._forward_hooks) for m in teacher.modules()]
    result = bnfold.retrain(network(1), TRAIN, validation=TEST, teacher=teacher, epochs=3, **given)
    found = [loss for _, loss in result.history.column("validation_loss")]
    assert found[-1] < 0.6 * found[0]
    assert [len(m._forward_hooks) for m in teacher.modules()] == hooks
    assert not any(m._forward_hooks for m in result.model.modules())


def test_the_divergence_of_a_network_from_itself_is_nothing() -> None:
    net = network()
    for given in ({}, {"temperature": 2.0}, {"distil": "features", "feature_names": ["0", "4"]}):
        result = bnfold.retrain(net, SMALL["x"], validation=SMALL["x"], teacher=net, epochs=1, **given)
        assert result.history.epochs[0].validation_loss == pytest.approx(0, abs=1e-7)
        assert result.history.epochs[0].validation_accuracy == 1.0


def test_in_place_changes_the_module_at_the_end_only() -> None:
    net, other = network(), network()
    before = copy_of(net)
    with pytest.raises(Stop):
        bnfold.retrain(net, SMALL, epochs=1, inplace=True, progress=stopping("epoch 1/1, step 3"))
    assert states_equal(copy_of(net), before)
    result = bnfold.retrain(net, SMALL, epochs=1, inplace=True)
    assert result.model is net
    assert states_equal(copy_of(net), copy_of(bnfold.retrain(other, SMALL, epochs=1).model))
    assert not states_equal(copy_of(net), before)


def test_the_seed_decides_and_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (bnfold.retrain(network_kept(), SMALL, epochs=1, seed=s).model for s in (3, 3, 4))
    assert torch.equal(torch.rand(3), wanted)
    assert states_equal(copy_of(first), copy_of(again))
    assert not states_equal(copy_of(first), copy_of(other))


def network_kept() -> nn.Module:
    with torch.random.fork_rng():
        return network()


def test_frozen_parameters_stay() -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[index]
    result = bnfold.retrain(net, SMALL, epochs=1)
    assert torch.equal(result.model[0].weight, net[0].weight)  # type: ignore[index]
    assert not torch.equal(result.model[4].weight, net[4].weight)  # type: ignore[index]
    assert "no parameter to train" in said(UsageError, network().requires_grad_(False))


def test_a_network_with_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            both = self.a(left) + self.b(right)
            return {"features": both.exp(), "logits": both}

    flat = X[:300].reshape(-1, 64).astype(np.float64)  # brought to the type of the weights
    result = bnfold.retrain(Two(), {"right": flat, "left": flat, "id": np.arange(300), "y": Y[:300]}, epochs=6)
    assert (result.history.epochs[-1].accuracy or 0) > 0.7
    assert "left, right" in said(DataError, Two(), {"left": flat, "other": flat, "y": Y[:300]})


# The recipe


def test_all_doors_have_the_same_defaults() -> None:
    inner, outer = (inspect.signature(f).parameters for f in (loop_of, bnfold.retrain))
    assert {n: p.default for n, p in inner.items() if n not in ("module", "progress")}.items() <= {
        n: p.default for n, p in outer.items()
    }.items()
    options = {option.name: option.default for option in main.commands["retrain"].params}
    for name in ("epochs", "lr", "batch_size", "momentum", "weight_decay", "warmup", "clip", "seed", "device"):
        assert options[name] == outer[name].default


def test_the_rate_rises_and_falls_as_a_cosine() -> None:
    recipe = Recipe(lr=0.1, warmup=0.1)
    rates = [rate(step, 100, recipe) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) / 11 for i in range(10)])
    assert rates[10] == 0.1
    assert rates[55] == pytest.approx(0.05)
    assert 0 < rates[99] < 1e-4
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rate(0, 1, Recipe(lr=0.1)) == 0.1


def test_norms_and_biases_have_no_weight_decay() -> None:
    net = network()
    decayed, plain = groups(net, 0.01)
    assert {id(p) for p in decayed["params"]} == {id(net[i].weight) for i in (0, 4, 9)}  # type: ignore[index]
    assert len(plain["params"]) == 5
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)


def test_every_epoch_has_another_order_of_all_samples() -> None:
    first, second = order(50, 0, 0), order(50, 0, 1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert not torch.equal(first, second)
    assert torch.equal(first, order(50, 0, 0))
    parts = [Ranks(rank, 3, torch.device("cpu")).part(first).tolist() for rank in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(50))


def test_a_last_batch_that_is_not_full_is_left_out_and_said() -> None:
    result = bnfold.retrain(network(), SMALL, epochs=1)
    assert result.history.notes == ("10 of 330 samples, others each time, are left out of an epoch: no full batch",)
    few = {"x": X[:10], "y": Y[:10]}
    assert bnfold.retrain(network(), few, epochs=1).history.notes == ()


def test_long_gradients_are_shortened() -> None:
    net = network()
    for clip in (0.5, None):
        result = bnfold.retrain(
            net,
            {"x": 100 * X[:64], "y": Y[:64]},
            epochs=1,
            lr=0.1,
            momentum=0.0,
            weight_decay=0.0,
            warmup=0.0,
            clip=clip,
        )
        moved = [new - old for new, old in zip(result.model.parameters(), net.parameters(), strict=True)]
        length = float(torch.cat([change.flatten() for change in moved]).detach().norm()) / 0.1
        assert length == pytest.approx(0.5, rel=1e-3) if clip else length > 0.6


# Stopping and going on


@pytest.mark.parametrize(
    ("place", "resumed"),
    [("epoch 1/3, step 1/5", 0), ("epoch 2/3, step 4", 7), ("epoch 3/3, step 5/5", 14), ("validating", 0)],
)
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, place: str, resumed: int) -> None:
    given: dict[str, Any] = {"epochs": 3, "validation": TEST, "patience": 2}
    saved: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_steps": 2}
    whole = bnfold.retrain(network(), SMALL, **given)
    with pytest.raises(Stop):
        bnfold.retrain(network(), SMALL, progress=stopping(place), **saved, **given)
    rest = bnfold.retrain(network(), SMALL, **saved, **given)
    assert states_equal(copy_of(rest.model), copy_of(whole.model))
    timeless = [[Epoch(**{**vars(e), "seconds": 0}) for e in r.history.epochs] for r in (whole, rest)]
    assert timeless[0] == timeless[1]
    assert rest.history.resumed == resumed


def test_a_run_that_was_stopped_twice(tmp_path: Path) -> None:
    whole = bnfold.retrain(network(), SMALL, epochs=2)
    for place in ("epoch 1/2, step 5", "epoch 2/2, step 4"):
        with pytest.raises(Stop):
            bnfold.retrain(
                network(), SMALL, epochs=2, checkpoint=tmp_path, checkpoint_steps=3, progress=stopping(place)
            )
    assert states_equal(
        copy_of(whole.model), copy_of(bnfold.retrain(network(), SMALL, epochs=2, checkpoint=tmp_path).model)
    )
    done: list[str] = []
    again = bnfold.retrain(network(), SMALL, epochs=2, checkpoint=tmp_path, progress=done.append)
    assert states_equal(copy_of(whole.model), copy_of(again.model))
    assert done == []  # a finished run is not run again


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    bnfold.retrain(network(), SMALL, epochs=1, checkpoint=tmp_path)
    assert "lr 0.05, now 0.1" in said(UsageError, lr=0.1, checkpoint=tmp_path)
    assert "another network" in said(UsageError, network(1), checkpoint=tmp_path)
    assert "another data" in said(UsageError, data=TRAIN, checkpoint=tmp_path)
    anew = bnfold.retrain(network(), SMALL, epochs=1, lr=0.1, checkpoint=tmp_path, resume=False)
    assert states_equal(copy_of(anew.model), copy_of(bnfold.retrain(network(), SMALL, epochs=1, lr=0.1).model))
    (tmp_path / "retrain.pt").write_bytes(b"damaged")
    assert "no checkpoint of a run that can be read" in said(UsageError, checkpoint=tmp_path)


def test_patience_takes_the_best_weights() -> None:
    wrong = {"x": TEST["x"][:200], "y": np.roll(TEST["y"][:200], 7)}  # learning makes this worse
    net = network()
    result = bnfold.retrain(net, SMALL, validation=wrong, epochs=9, patience=2)
    assert result.history.stopped
    losses = result.history.column("validation_loss")
    best = min(losses, key=lambda pair: pair[1])[0]
    assert result.history.best == best
    assert len(losses) == best + 3
    assert states_equal(copy_of(result.model), copy_of(net)) == (best == 0)
    with torch.no_grad():
        logits = result.model(torch.from_numpy(wrong["x"]))
    loss = float(nn.functional.cross_entropy(logits, torch.from_numpy(wrong["y"])))
    assert loss == pytest.approx(dict(losses)[best], rel=1e-5)


def test_nan_is_told_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    net = network()
    text = said(
        TrainingError, net, lr=1e30, momentum=0.0, epochs=3, warmup=0.0, checkpoint=tmp_path, checkpoint_steps=1
    )
    assert "the learning rate 1e+30 is too high: try 1e+29 (--lr)" in text
    assert str(tmp_path) in text
    kept = torch.load(tmp_path / "retrain.pt", weights_only=True)
    assert kept["position"]["step"] >= 1


def test_nan_before_the_first_step_is_not_blamed_on_the_rate() -> None:
    net = network()
    net[9].bias.data[3] = float("nan")  # type: ignore[index]
    text = said(TrainingError, net)
    assert "before anything was trained" in text
    assert "too high" not in text
    assert "before anything was trained" in said(TrainingError, net, validation=SMALL)


# What will not do


def test_without_labels_and_teacher() -> None:
    assert "no classes in it, and no teacher" in said(DataError, data=X[:100])
    assert "no classes in it" in said(DataError, data=X[:100], teacher=network(), labels=True)
    assert "no classes in it" in said(DataError, validation=X[:100])
    assert "no teacher" in said(DataError, labels=False)


def test_data_that_do_not_fit_the_network() -> None:
    text = said(DataError, data={"x": X[:100, :, :7, :7], "y": Y[:100]})
    assert "a batch of (2, 1, 7, 7) float32 does not fit Net" in text
    assert "(2, 1, 8, 8) uint8 does not fit" in said(DataError, data={"x": X[:9].astype(np.uint8), "y": Y[:9]})
    assert "numbers expected" in said(DataError, data={"x": np.full((4, 1, 8, 8), "a"), "y": Y[:4]})
    assert "all 20 samples are of class 4" in said(DataError, data={"x": X[:20], "y": np.full(20, 4)})
    assert "classes from 0 to 10, but the network tells 10" in said(
        DataError, data={"x": X[:20], "y": np.arange(20) % 11}
    )
    assert "whole numbers from 0 expected" in said(DataError, data={"x": X[:20], "y": np.ones(20)})
    assert "one class for each sample" in said(DataError, data={"x": X[:20], "y": Y[:20, None]})
    assert "at least 2" in said(DataError, data={"x": X[:1], "y": Y[:1]})


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", 0), ("lr", 0.0), ("lr", float("nan")), ("batch_size", 1), ("momentum", 1.0), ("weight_decay", -1.0),
    ("warmup", 1.0), ("seed", -1), ("patience", 0), ("distil", "all"), ("device", "toaster"), ("temperature", 2.0),
    ("checkpoint_steps", 3), ("feature_names", ["0"]), ("teacher", "x.pt"), ("patience", 2), ("clip", 0.0),
])  # fmt: skip
def test_arguments_out_of_range(name: str, value: Any) -> None:
    if name == "teacher":
        assert "no such file" in said(bnfold.ModelError, teacher=value)
    else:
        assert name in said(UsageError, **{name: value}) or "teacher" in said(UsageError, **{name: value})


def test_teachers_that_do_not_fit() -> None:
    small = SCOPE["Net"](5)
    assert "the teacher gives (64, 5), the network (64, 10)" in said(UsageError, teacher=small)
    text = said(UsageError, teacher=network(), distil="features", feature_names=["conv9"])
    assert "the network has no module 'conv9'" in text
    net = network()
    net.spare = nn.Linear(2, 2)
    net.forward = lambda x: nn.Sequential(*list(net)[:-1])(x)  # type: ignore[call-overload]
    assert "spare is a module of" in said(UsageError, net, teacher=net, distil="features", feature_names=["spare"])


def test_buffers_may_hold_infinities() -> None:
    net = network()
    net.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    assert bnfold.retrain(net, SMALL, epochs=1).history.epochs[-1].loss is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(Stop):
        bnfold.retrain(net, TRAIN, device="cuda", epochs=3, checkpoint=tmp_path, progress=stopping("epoch 3/3"))
    result = bnfold.retrain(net, TRAIN, device="cuda", epochs=3, checkpoint=tmp_path, validation=None)
    assert next(result.model.parameters()).device.type == "cpu"
    assert result.history.epochs[-1].accuracy is not None
    assert result.history.epochs[-1].accuracy > 0.8


def test_modules_of_other_kinds() -> None:
    assert "TorchScript" in said(UsageError, torch.jit.script(nn.Linear(64, 10)))
    assert "str or path" in said(UsageError, 3) or "int found" in said(UsageError, 3)


# The picture and the command


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    history = History([Epoch(0, None, None, 0.0, 2.3, 0.1), Epoch(1, 1.0, 0.5, 0.05, 0.8, 0.7)], "labels", best=1)
    bnfold.plot_history(history, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    bnfold.plot_history(History([Epoch(1, 1.0, None, 0.05)]), tmp_path / "r.svg")
    with pytest.raises(UsageError, match=r"\.png, \.pdf, \.svg expected"):
        bnfold.plot_history(history, tmp_path / "r.jpeg")
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCE)
    torch.save({"epoch": 3, "state_dict": network().state_dict()}, "in.pt")
    np.savez("train.npz", **SMALL)
    np.savez("test.npz", **TEST)
    np.save("x.npy", SMALL["x"])
    return tmp_path


ARCH = ["--arch", "net.py:Net"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["retrain", *arguments])


def test_the_command(here: Path) -> None:
    done = run("in.pt", "-o", "out.pt", *ARCH, "--data", "train.npz", "--validation", "test.npz", "--curves", "r.png",
               "--report", "r.json", "--checkpoint", "run", "--seed", "3")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "wrote out.pt" in done.stdout
    assert "10 of 330 samples" in done.stdout
    wanted = bnfold.retrain(network(), SMALL, seed=3).model.state_dict()
    content = torch.load("out.pt", weights_only=True)
    assert content["epoch"] == 3
    assert states_equal(content["state_dict"], wanted)
    report = json.loads(Path("r.json").read_text())
    assert report["schema"] == 1
    assert report["settings"]["lr"] == 0.05
    assert len(report["history"]["epochs"]) == 3
    assert Path("r.png").stat().st_size > 1000
    assert sorted(path.name for path in Path("run").iterdir()) == ["retrain.pt"]


def test_the_command_with_a_teacher_and_json(here: Path) -> None:
    torch.save(network(1).state_dict(), "teacher.pt")
    done = run("in.pt", "-o", "out.safetensors", *ARCH, "--data", "x.npy", "--teacher", "teacher.pt", "--json",
               "--epochs", "1", "--feature", "4")  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["history"]["accuracy_of"] == "teacher"
    assert set(load_file("out.safetensors")) == set(network().state_dict())


def test_what_the_command_refuses(here: Path) -> None:
    base = ("in.pt", *ARCH, "--data", "train.npz")
    for arguments, code, text in (
        (("in.pt", "-o", "out.pt", "--data", "train.npz"), 2, "--arch"),
        ((*base, "-o", "in.pt"), 2, "the output is the model itself"),
        ((*base, "-o", "out.onnx"), 2, ".pt, .pth or .safetensors"),
        ((*base, "-o", "out.pt", "--curves", "r.txt"), 2, ".png"),
        ((*base, "-o", "out.pt", "--lr", "1e30", "--warmup", "0"), 1, "too high"),
        ((*base, "-o", "out.pt", "--mean", "1,2"), 2, "--mean"),
        (("in.pt", *ARCH, "--data", "x.npy", "-o", "out.pt"), 1, "no teacher"),
        (("in.pt", *ARCH, "--data", "none.npz", "-o", "out.pt"), 1, "no such file"),
    ):
        done = run(*arguments)
        assert done.exit_code == code, done.output
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
        assert not Path("out.pt").exists()


def test_the_command_takes_folders_of_images(here: Path) -> None:
    from PIL import Image

    for i in range(60):
        folder = Path("images") / str(Y[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((X[i, 0] * 255).astype(np.uint8)).resize((16, 16)).save(folder / f"{i}.png")
    done = run("in.pt", "-o", "out.pt", *ARCH, "--data", "images", "--input", "1x1x8x8", "--mean", "0.5",
               "--std", "0.5", "--batch-size", "16")  # fmt: skip
    assert done.exit_code == 0, done.output


def test_a_folded_checkpoint_is_retrained_in_its_folded_form(here: Path) -> None:
    folded = CliRunner().invoke(main, ["fold", "in.pt", "-o", "folded.pt", *ARCH, "--input", "2x1x8x8"])
    assert folded.exit_code == 0, folded.output
    done = run("folded.pt", "-o", "out.pt", *ARCH, "--data", "train.npz", "--epochs", "1")
    assert done.exit_code == 0, done.output
    back = bnfold.restore(SCOPE["Net"](), "out.pt")
    assert isinstance(back[1], nn.Identity)


def test_the_command_says_when_it_stopped_and_went_on(here: Path) -> None:
    wrong = {"x": SMALL["x"], "y": (SMALL["y"] + 1) % 10}
    np.savez("wrong.npz", **wrong)
    given = ("in.pt", *ARCH, "--data", "train.npz", "--validation", "wrong.npz", "--epochs", "9", "--patience", "1",
             "--lr", "0.3", "--checkpoint", "run")  # fmt: skip
    first, second = run(*given, "-o", "a.pt"), run(*given, "-o", "b.pt")
    assert "stopped early" in first.stdout
    assert "went on" not in first.stdout
    assert "went on after" in second.stdout
    a, b = (torch.load(name, weights_only=True)["state_dict"] for name in ("a.pt", "b.pt"))
    assert states_equal(a, b)


# Slow: processes that are killed, and several at once

KILLED = """
import sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from tests.test_retrain import SMALL, network
import bnfold
def slowly(stage):
    print(stage, flush=True)
    time.sleep(0.02)
bnfold.retrain(network(), SMALL, epochs=8, checkpoint={folder!r}, checkpoint_steps=2, progress=slowly)
"""
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.05, 0.21, 0.4])
def test_a_killed_process_loses_nothing(tmp_path: Path, wait: float) -> None:
    code = KILLED.format(root=str(ROOT), folder=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/8, step 3"):
            break
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    rest = bnfold.retrain(network(), SMALL, epochs=8, checkpoint=tmp_path / "run", checkpoint_steps=2)
    assert 0 < rest.history.resumed < 40
    assert states_equal(copy_of(rest.model), copy_of(bnfold.retrain(network(), SMALL, epochs=8).model))


RANK = """
import sys
import time
import torch
import torch.distributed as dist
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from tests.test_retrain import SMALL, TEST, network, stopping
import bnfold
rank, name = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://{folder}/meet_" + name, rank=rank, world_size=2)
result = bnfold.retrain(
    network(), SMALL, validation=TEST, epochs=3, batch_size=32, patience=3, checkpoint_steps=2,
    checkpoint="{folder}/whole" if name == "whole" else "{folder}/run",
    progress=stopping("epoch 2/3, step 4") if name == "first" else lambda stage: None,
)
history = result.history
torch.save({{"state": result.model.state_dict(), "notes": list(history.notes), "resumed": history.resumed,
            "losses": [loss for _, loss in history.column("validation_loss")]}}, f"{folder}/{{name}}{{rank}}.pt")
dist.barrier()
time.sleep(rank == 0)  # gloo of the other process must not find its partner gone
dist.destroy_process_group()
"""


def two_ranks(folder: Path, name: str) -> list[dict[str, Any]]:
    """What two processes gave; nothing where the first was stopped, as the second is then too."""
    code = RANK.format(root=str(ROOT), folder=folder)
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), name], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(2)
    ]
    try:
        errors = both[0].communicate(timeout=120)[1]
        if name == "first":
            assert "Stop" in errors
            return []
        assert both[0].returncode == 0, errors
        assert both[1].wait(timeout=60) == 0
    finally:
        for process in both:
            process.kill()
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_also_after_a_stop(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "whole")
    assert states_equal(first["state"], second["state"])
    assert not states_equal(first["state"], network().state_dict())
    assert first["losses"] == second["losses"]
    assert first["losses"][-1] < first["losses"][0]
    assert any("each process normalises" in note for note in first["notes"])
    two_ranks(tmp_path, "first")
    for rest in two_ranks(tmp_path, "second"):
        assert rest["resumed"] == 7
        assert states_equal(rest["state"], first["state"])
