"""Where checkpoints keep a network's tensors: layouts of scripts and wrappers, and what else lies beside them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bnfold
from bnfold.errors import ModelError, UsageError
from bnfold.torch.store.checkpoint import Checkpoint
from bnfold.torch.store.load import load
from tests.torch_nets import alive, error

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x))  # type: ignore[no-any-return]


NET = alive(Net())
STATE = NET.state_dict()
OTHER = {name: value + 1 for name, value in STATE.items()}
FOLDED = {"body.0.weight", "body.0.bias", "last.weight", "last.bias"}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


LAYOUTS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "plain": (STATE, (), ""),
    "with numbers beside": ({**STATE, "epoch": 3}, (), ""),
    "model_state": ({"model_state": STATE, "epoch": 3}, ("model_state",), ""),
    "any key": ({"optimizer": {"state": {0: {"exp_avg": X}}}, "trained": STATE}, ("trained",), ""),
    "nested": ({"model": {"state_dict": STATE}}, ("model", "state_dict"), ""),
    "averaged beside": ({"ema": OTHER, "model": STATE}, ("model",), ""),
    "a part of a larger one": ({"head.weight": X, **prefixed("backbone.")}, (), "backbone."),
    "data parallel": (prefixed("module."), (), "module."),
    "compiled": (prefixed("_orig_mod."), (), "_orig_mod."),
    "compiled, parallel": (prefixed("module._orig_mod."), (), "module._orig_mod."),
    "lightning": ({"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}}, ("state_dict",), "model."),
    "a loss beside": ({"state_dict": {**prefixed("net."), "loss.weight": X}}, ("state_dict",), "net."),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_found_and_kept(name: str) -> None:
    content, place, prefix = LAYOUTS[name]
    state = Checkpoint(content)
    state.fit(Net())
    assert (state.place, state.names) == (place, {n: prefix + n for n in STATE})
    assert all(torch.equal(state.tensors[n], STATE[n]) for n in STATE)
    written = state.renamed(dict.fromkeys(FOLDED, X))
    assert {prefix + n for n in FOLDED} <= set(written)
    beside = {n: v for n, v in state.inner.items() if not n.startswith(prefix) or not isinstance(v, torch.Tensor)}
    assert set(written) == {prefix + n for n in FOLDED} | set(beside)
    assert set(state.with_inner(written)) == (set(content) if place else set(written))


def test_words_of_wrappers_inside_names() -> None:
    inside = {name.replace("body.", "body._orig_mod."): value for name, value in STATE.items()}
    state = Checkpoint(inside)
    state.fit(Net())
    assert set(state.tensors) == set(STATE)
    written = state.renamed(dict.fromkeys(FOLDED, X))
    assert set(written) == {n.replace("body.", "body._orig_mod.") for n in FOLDED}


def test_what_is_not_taken_is_named() -> None:
    state = Checkpoint({"student": STATE, "teacher": OTHER})
    state.fit(Net())
    assert state.place == ("student",)
    assert state.notes == ["the tensors under student were taken; teacher stay as they are"]


def test_a_folded_checkpoint_beside_one_that_is_not(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=0.1, best=np.float64(0.5), history=np.arange(3))
    torch.save({"model_ema": OTHER, "model": prefixed("module."), "args": args}, tmp_path / "in.pth.tar")
    bnfold.fold(tmp_path / "in.pth.tar", (X,), arch=Net, out=tmp_path / "out.pth.tar")
    found = load(tmp_path / "out.pth.tar")
    assert isinstance(found, Checkpoint)
    assert set(found.content) == {"model_ema", "model", "args"}
    assert set(found.content["model"]) == {f"module.{name}" for name in FOLDED}
    assert error(NET(X), bnfold.restore(Net(), tmp_path / "out.pth.tar").eval()(X)) < 1e-5


def test_other_types_than_the_network_s_are_named(tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in STATE.items()}
    torch.save(half, tmp_path / "in.pth")
    plan = bnfold.inspect(tmp_path / "in.pth", (X,), arch=Net)
    assert "float16" in plan.notes[0]
    result = bnfold.fold(tmp_path / "in.pth", "2x3x8x8", arch=lambda: Net().half(), out=tmp_path / "out.safetensors")
    assert not result.plan.notes
    assert {t.dtype for t in load_file(tmp_path / "out.safetensors").values()} == {torch.float16}


def test_tensors_of_a_shorter_type_are_written_as_that_where_it_passes(tmp_path: Path) -> None:
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in STATE.items()}
    torch.save(half, tmp_path / "in.pth")
    result = bnfold.fold(tmp_path / "in.pth", (X,), arch=Net, out=tmp_path / "out.pth")
    assert result.plan.notes[-1] == "written as bfloat16"
    written = torch.load(tmp_path / "out.pth")
    assert {t.dtype for t in written.values() if t.is_floating_point()} == {torch.bfloat16}
    assert all(
        torch.equal(written[name], value.to(written[name].dtype)) for name, value in result.model.state_dict().items()
    )
    assert error(result.model(X), bnfold.restore(Net(), tmp_path / "out.pth").eval()(X)) < 0.05


def test_tensors_of_a_shorter_type_stay_longer_where_that_does_not_pass(tmp_path: Path) -> None:
    """The fold gives weights that float16 cannot hold."""
    state = {name: value.clone() for name, value in STATE.items()}
    norm = next(name for name in state if name.endswith("running_var")).rpartition(".")[0]
    state[f"{norm}.running_var"].fill_(1e-5)
    state[f"{norm}.weight"].mul_(6e4)
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "in.pth")
    result = bnfold.fold(tmp_path / "in.pth", (X,), arch=Net, out=tmp_path / "out.pth")
    assert result.plan.notes[-1].startswith("not written as float16")
    assert {t.dtype for t in torch.load(tmp_path / "out.pth").values() if t.is_floating_point()} == {torch.float32}


def test_shards_and_their_index(tmp_path: Path) -> None:
    names = list(STATE)
    shards = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, part in shards.items():
        save_file({name: STATE[name] for name in part}, tmp_path / file, metadata={"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    weights = {name: file for file, part in shards.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    for shard in shards:
        with pytest.raises(UsageError, match="holds weights of the model"):
            bnfold.fold(index, (X,), arch=Net, out=tmp_path / shard)
    result = bnfold.fold(index, (X,), arch=Net, out=tmp_path / "out.safetensors")
    assert result.plan.counts()["folded"] == 1
    assert set(load_file(tmp_path / "out.safetensors")) == FOLDED
    assert error(NET(X), bnfold.restore(Net(), tmp_path / "out.safetensors").eval()(X)) < 1e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "index of shards"), ("[]", "index of shards"), ('{"weight_map": {}}', "no shards"),
     ('{"weight_map": {"a": "../x.safetensors"}}', "no file beside it"),
     ('{"weight_map": {"a": "x.safetensors"}}', "no such file")],
)  # fmt: skip
def test_unusable_indices(tmp_path: Path, text: str, said: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ModelError, match=said):
        load(index)


@pytest.mark.parametrize(
    "said", ["{", "[1]", '{"norm": 3}', '{"nowhere.norm": "Identity"}', '{"__class__": "Identity"}']
)
def test_a_note_of_what_was_folded_that_does_not_fit(tmp_path: Path, said: str) -> None:
    save_file(dict(STATE), tmp_path / "in.safetensors", metadata={"bnfold": said})
    with pytest.raises(ModelError, match="folded is not"):
        bnfold.restore(Net(), tmp_path / "in.safetensors")
