"""Files of PyTorch: programs, checkpoints, TorchScript, whole modules; and what a hostile file may not do."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import fx, nn

import bnfold
from bnfold.cli import main
from bnfold.errors import BnfoldError, ModelError, UsageError
from tests.torch_nets import alive, error, fates

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.conv(x))))
"""
ARCH = ["--arch", "net.py:Net", "--input", "2x3x8x8"]


class Evil:
    """A pickle that writes a file when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCE)
    return tmp_path


def network() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(SOURCE, scope)
    torch.manual_seed(0)
    return alive(scope["Net"]())


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, [*arguments, "-q"])


def done(*arguments: str) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(code: int, *arguments: str) -> str:
    before = sorted(Path().rglob("*"))
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert "internal error" not in result.stderr
    assert sorted(p for p in Path().rglob("*") if "__pycache__" not in p.parts) == before
    return str(result.stderr)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize("layout", ["plain", "nested", "parallel"])
def test_a_checkpoint_keeps_its_layout(here: Path, suffix: str, layout: str) -> None:
    m = network()
    state = dict(m.state_dict())
    if suffix == "safetensors":
        save_file(state, f"in.{suffix}", metadata={"epoch": "7"})
    elif layout == "plain":
        torch.save(state, f"in.{suffix}")
    else:
        prefix = "module." if layout == "parallel" else ""
        torch.save({"epoch": 7, "state_dict": {prefix + k: v for k, v in state.items()}}, f"in.{suffix}")
    done("fold", f"in.{suffix}", "-o", f"out.{suffix}", *ARCH)
    if suffix == "safetensors":
        found = load_file(f"out.{suffix}")
    else:
        content = torch.load(f"out.{suffix}", weights_only=True)
        found = content if layout == "plain" else content["state_dict"]
        assert layout == "plain" or content["epoch"] == 7
    names = {name.removeprefix("module.") for name in found}
    assert names == {"conv.weight", "conv.bias", "last.weight", "last.bias"}
    assert len({name.startswith("module.") for name in found}) == 1
    restored = bnfold.restore(network(), f"out.{suffix}")
    assert isinstance(restored.norm, nn.Identity)
    assert error(m(X), restored.eval()(X)) < 1e-5


def test_restore_brings_back_every_form(here: Path) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.BatchNorm2d(9), nn.Conv2d(9, 9, 3, padding=1), nn.Tanh(),
                         nn.BatchNorm2d(9), nn.Sigmoid())  # fmt: skip
    m = alive(body)
    x = torch.randn(2, 3, 16, 16)
    result = bnfold.fold(m, (x,), out="out.pt", leftovers="all")
    assert set(fates(result).values()) != {"folded"}
    fresh = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.BatchNorm2d(9), nn.Conv2d(9, 9, 3, padding=1), nn.Tanh(),
                          nn.BatchNorm2d(9), nn.Sigmoid())  # fmt: skip
    assert error(result.model(x), bnfold.restore(fresh, "out.pt").eval()(x)) == 0


def test_restore_refuses_other_checkpoints(here: Path) -> None:
    torch.save(network().state_dict(), "in.pth")
    with pytest.raises(ModelError, match="not a checkpoint that bnfold folded"):
        bnfold.restore(network(), "in.pth")


def test_an_exported_program(here: Path) -> None:
    m = network()
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(m, (X,), dynamic_shapes=shapes), "in.pt2")
    result = done("fold", "in.pt2", "-o", "out.pt2", "--json")
    assert json.loads(result.stdout)["summary"] == {"batch_norms": 1, "folded": 1, "reduced": 0, "kept": 0}
    out = torch.export.load("out.pt2")
    assert not any("batch_norm" in str(node.target) for node in out.graph.nodes)
    assert set(out.state_dict) == {
        "conv.weight",
        "norm.bias",
        "last.weight",
        "last.bias",
    } or "norm.running_mean" not in (out.state_dict)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 8, 8)
        assert error(m(x), out.module()(x)) < 1e-5


def traced(module: nn.Module) -> Any:
    return torch.jit.trace(module, X)  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.parametrize("make", [torch.jit.script, traced])
def test_a_torchscript_archive(here: Path, make: Any) -> None:
    Path("scripted.py").write_text(SOURCE)
    import importlib.util

    spec = importlib.util.spec_from_file_location("scripted", "scripted.py")
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    torch.manual_seed(0)
    m = alive(source.Net())
    make(m).save("in.ts")
    done("fold", "in.ts", "-o", "out.ts", "--input", "2x3x8x8")
    assert error(m(X), torch.jit.load("out.ts")(X)) < 1e-5  # type: ignore[no-untyped-call]
    assert "norm" not in str(torch.jit.load("out.ts").graph)  # type: ignore[no-untyped-call]


def scripted(module: nn.Module) -> Any:
    return torch.jit.script(alive(module))


class Sized(nn.Module):
    """Flattens by the size of the batch; with `decides` it takes another path for large images."""

    def __init__(self, decides: bool) -> None:
        super().__init__()
        self.decides = decides
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        y = self.norm(self.conv(x))
        if self.decides and x.size(2) > 8:
            y = y * 2
        return self.last(y.reshape(y.size(0), 8, -1).mean(2)), [y]

    @torch.jit.export
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_torchscript_takes_the_sizes_that_it_took(here: Path) -> None:
    scripted(Sized(False)).save("in.ts")
    said = done("fold", "in.ts", "-o", "out.ts", "--input", "1x3x8x8").stdout
    assert "the archive's methods features are not in the result" in " ".join(said.split())
    before, after = (torch.jit.load(name) for name in ("in.ts", "out.ts"))  # type: ignore[no-untyped-call]
    assert "batch_norm" not in str(after.inlined_graph)
    for shape in ((1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 8, 11)):
        x = torch.randn(shape)
        assert isinstance(after(x), tuple)
        assert error(before(x), after(x)) < 1e-5


@pytest.mark.slow
def test_torchscript_that_decides_by_sizes_is_refused(here: Path) -> None:
    net = Sized(True)
    scripted(net).save("in.ts")
    assert "16 along axis 2" in refused(1, "fold", "in.ts", "-o", "out.ts", "--input", "2x3x8x8")
    done("fold", "in.ts", "-o", "out.pt2", "--input", "2x3x8x8")
    program = torch.export.load("out.pt2").module()
    assert error(net(X), program(X)) < 1e-5
    with pytest.raises(AssertionError):  # an exported program checks what it is given
        program(torch.randn(2, 3, 16, 16))
    with pytest.raises(ModelError, match="16 along axis 2"):
        bnfold.fold(net, (X,), out="out.ts")
    assert not Path("out.ts").exists()


def test_inputs_of_torchscript_go_by_place(here: Path) -> None:
    traced(network()).save("in.ts")
    assert "by place" in refused(2, "fold", "in.ts", "-o", "out.ts", "--input", "x=2x3x8x8")
    done("fold", "in.ts", "-o", "out.ts", "--input", "2x3x8x8")
    assert "exported program is written" in refused(2, "fold", "in.ts", "-o", "out.safetensors", "--input", "2x3x8x8")


def test_a_whole_module_only_where_the_file_is_trusted(here: Path) -> None:
    m = alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    torch.save(m, "in.pt")
    said = refused(1, "fold", "in.pt", "-o", "out.pt", "--input", "2x3x8x8")
    assert "--trust-pickle" in said
    assert "torch.nn.modules" in said
    done("fold", "in.pt", "-o", "out.pt", "--input", "2x3x8x8", "--trust-pickle")
    assert set(torch.load("out.pt", weights_only=True)) == {"0.weight", "0.bias"}


def test_a_class_that_is_not_there_is_named(here: Path) -> None:
    source = "from torch import nn\nclass Net(nn.Sequential):\n    pass\n"
    Path("gone_away.py").write_text(source)
    sys.path.insert(0, str(here))
    try:
        net = importlib.import_module("gone_away").Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        torch.save(net, "in.pt")
        Path("gone_away.py").write_text("")
        sys.modules.pop("gone_away")
        importlib.invalidate_caches()
        arguments = ("fold", "in.pt", "-o", "out.pt", "--input", "2x3x8x8", "--trust-pickle")
        said = [refused(1, *arguments)]
        Path("gone_away.py").unlink()
        sys.modules.pop("gone_away", None)
        importlib.invalidate_caches()
        said.append(refused(1, *arguments))
    finally:
        sys.path.remove(str(here))
    assert all("gone_away" in text and "PYTHONPATH" in text and "damaged" not in text for text in said)


class Scaled(nn.Module):
    """A forward with arguments that have defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.body = alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))

    def forward(self, x: torch.Tensor, scale: float = 2.0, shifted: bool = False) -> torch.Tensor:
        y: torch.Tensor = self.body(x) * scale
        if shifted:
            y = y + 1
        return y


def test_torchscript_with_defaults(here: Path) -> None:
    net = Scaled().eval()
    torch.jit.script(net).save("in.ts")  # type: ignore[no-untyped-call]
    done("fold", "in.ts", "-o", "out.pt2", "--input", "2x3x8x8")
    program = torch.export.load("out.pt2").module()
    assert error(net(X), program(X, 2.0, False)) < 1e-5
    result = bnfold.fold("in.ts", (X,), out="out.ts")
    assert result.plan.counts()["folded"] == 1
    assert any("scale, shifted" in note for note in result.plan.notes)
    assert error(net(X), torch.jit.load("out.ts")(X)) < 1e-5  # type: ignore[no-untyped-call]


def test_torchscript_without_an_input_that_it_needs(here: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    torch.jit.script(Two()).save("in.ts")  # type: ignore[no-untyped-call]
    assert "also needs y" in refused(1, "fold", "in.ts", "-o", "out.ts", "--input", "2x3x8x8")


class Outer(nn.Module):
    """A graph of torch.fx inside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = fx.symbolic_trace(network()), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.inner(x))
        return found


@pytest.mark.parametrize("make", [lambda: fx.symbolic_trace(network()), Outer])
def test_restore_of_graphs_of_torch_fx(here: Path, make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    result = bnfold.fold(net, (X,), out="out.pt")
    assert result.plan.counts()["folded"] == 1
    found = bnfold.restore(make().eval(), "out.pt")
    assert error(net(X), found(X)) < 1e-5


# --- hostile files


def _evil_checkpoint() -> str:
    torch.save({"state_dict": Evil()}, "evil.pth")
    return "evil.pth"


def _evil_pickle() -> str:
    Path("evil.pt").write_bytes(pickle.dumps(Evil()))
    return "evil.pt"


def _evil_program(entry: str) -> str:
    """A program in which one entry is replaced by a pickle that runs code."""
    torch.export.save(torch.export.export(network(), (X,)), "fine.pt2")
    torch.save(Evil(), "evil.bin")
    with zipfile.ZipFile("fine.pt2") as source, zipfile.ZipFile("evil.pt2", "w") as target:
        for name in source.namelist():
            evil = name.endswith(entry)
            data = Path("evil.bin").read_bytes() if evil else source.read(name)
            if entry == "weights" and name.endswith("model_weights_config.json"):
                config = json.loads(data)
                first = next(iter(config["config"].values()))
                first["use_pickle"] = True
                data = json.dumps(config).encode()
            if entry == "weights" and name.endswith("weight_0"):
                data = Path("evil.bin").read_bytes()
            target.writestr(name, data)
    Path("evil.bin").unlink()
    Path("fine.pt2").unlink()
    return "evil.pt2"


def _evil_size() -> str:
    """A program whose sizes are Python that sympy would evaluate."""
    torch.export.save(torch.export.export(network(), (X,), dynamic_shapes=({0: torch.export.Dim("b")},)), "fine.pt2")
    with zipfile.ZipFile("fine.pt2") as source, zipfile.ZipFile("evil.pt2", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("models/model.json"):
                text = data.decode()
                assert '"expr_str"' in text
                at = text.index('"expr_str"') + len('"expr_str"')
                start = text.index('"', at) + 1
                end = text.index('"', start)
                data = (text[:start] + "__import__('pathlib').Path('ran').touch()" + text[end:]).encode()
            target.writestr(name, data)
    Path("fine.pt2").unlink()
    return "evil.pt2"


def _rewritten(change: Callable[[dict[str, Any]], object], more: Mapping[str, bytes]) -> str:
    """A program with its description changed and entries added."""
    torch.export.save(torch.export.export(network(), (X,)), "fine.pt2")
    with zipfile.ZipFile("fine.pt2") as source, zipfile.ZipFile("evil.pt2", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("models/model.json"):
                model = json.loads(data)
                change(model["graph_module"])
                data = json.dumps(model).encode()
            target.writestr(name, data)
        for name, data in more.items():
            target.writestr(f"fine/{name}", data)
    Path("fine.pt2").unlink()
    return "evil.pt2"


def _evil_call(target: str, schema_name: str = "") -> str:
    """A program that calls more than operators of torch, with a text as its argument."""

    def change(module: dict[str, Any]) -> None:
        node = json.loads(json.dumps(module["graph"]["nodes"][0]))
        given = {"name": schema_name, "arg": {"as_string": "ran"}, "kind": 1}
        module["graph"]["nodes"].insert(0, {**node, "target": target, "inputs": [given], "outputs": [], "name": "more"})

    return _rewritten(change, {})


FACTORY = {"default_factory_module": "ran_when_imported", "default_factory_name": "make", "dict_context": []}
KEY = {"__enum__": True, "fqn": "ran_when_imported:Key", "name": "a"}


def _evil_structure(kind: str, context: Any) -> str:
    """A program whose inputs are described by a type from a module that reading it would import."""

    def change(module: dict[str, Any]) -> None:
        signature = module["module_call_graph"][0]["signature"]
        spec = json.loads(signature["in_spec"])
        evil = {"type": kind, "context": context, "children_spec": []}
        signature["in_spec"] = json.dumps([spec[0], evil])

    Path("ran_when_imported.py").write_text("import pathlib; pathlib.Path('ran').touch()\ndef make(): pass")
    return _rewritten(change, {})


def _evil_library() -> str:
    """A program with a compiled library beside it."""
    folder = "data/aotinductor/model"
    return _rewritten(lambda module: None, {f"{folder}/x.so": b"\x7fELF", f"{folder}/x_metadata.json": b"{}"})


HOSTILE: dict[str, Callable[[], str]] = {
    "checkpoint": _evil_checkpoint,
    "bare pickle": _evil_pickle,
    "sample inputs": lambda: _evil_program("sample_inputs/model.pt"),
    "weights": lambda: _evil_program("weights"),
    "sizes": _evil_size,
    "function": lambda: _evil_call("torch.os.system"),
    "library": lambda: _evil_call("torch.ops.load_library"),
    "mapped file": lambda: _evil_call("torch.ops.aten.from_file.default", "filename"),
    "compiled": _evil_library,
    "structure": lambda: _evil_structure("collections.defaultdict", FACTORY),
    "structure in text": lambda: _evil_structure("collections.defaultdict", json.dumps(FACTORY)),
    "keys": lambda: _evil_structure("builtins.dict", [KEY]),
    "keys in text": lambda: _evil_structure("builtins.dict", json.dumps([KEY])),
}
SAID = {"checkpoint": "holds more than tensors", "bare pickle": "holds more than tensors", "sizes": "no size",
        "function": "torch.os.system", "library": "load_library", "mapped file": "from_file",
        "compiled": "compiled code", "structure": "ran_when_imported", "structure in text": "ran_when_imported",
        "keys": "ran_when_imported", "keys in text": "ran_when_imported"}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_runs_nothing(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here)
    file = HOSTILE[name]()
    said = refused(1, "fold", file, "-o", "out.pt2", *ARCH)
    assert SAID.get(name, "a pickle that would run code") in said
    assert "--trust-pickle" in said
    assert not Path("ran").exists()


def test_an_archive_of_the_first_torch_is_not_unpacked(here: Path) -> None:
    """A link in it would be followed to any file; torch reads none of them but where they are trusted."""
    plain = pickle.dumps(None, protocol=2)
    with tarfile.open("in.pt", "w") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        for name in ("tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(plain)
            archive.addfile(entry, io.BytesIO(plain))
    assert "legacy .tar format" in refused(1, "fold", "in.pt", "-o", "out.pt2", *ARCH)


def test_the_hostile_files_are_hostile(here: Path) -> None:
    torch.load(_evil_checkpoint(), weights_only=False)
    assert Path("ran").exists()


# --- wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in.pth", "-o", "out.pth"], "--arch"),
        (["in.pth", "-o", "out.pth", "--arch", "net.py:Net"], "example inputs"),
        (["in.pth", "-o", "out.pth", "--arch", "net.py", "--input", "1x3x8x8"], "package.module:factory"),
        (["in.pth", "-o", "out.pth", "--arch", "net.py:Other", "--input", "1x3x8x8"], "has no Other"),
        (["in.pth", "-o", "out.pth", "--arch", "nowhere.py:Net", "--input", "1x3x8x8"], "cannot be imported"),
        (["in.pth", "-o", "out.pth", *ARCH, "--arch-args", "{"], "not JSON"),
        (["in.pth", "-o", "out.pth", *ARCH, "--arch-args", '{"depth": 3}'], "cannot be made"),
        (["in.pth", "-o", "out.pth", "--arch", "net.py:Net", "--input", "1x3xA"], "1x3x224x224"),
        (["in.pth", "-o", "out.pth", "--arch", "net.py:Net", "--input", "1x3:float99"], "int64"),
        (["in.pth", "-o", "out.xyz", *ARCH], "suffix"),
        (["in.pth", "-o", "in.pth", *ARCH], "the model itself"),
    ],
)
def test_wrong_usage(here: Path, arguments: list[str], said: str) -> None:
    torch.save(network().state_dict(), "in.pth")
    assert said in refused(2, "fold", *arguments)


@pytest.mark.parametrize(
    ("file", "said"),
    [("cut.pth", "damaged"), ("cut.pt2", "damaged"), ("cut.safetensors", "damaged"), ("empty.pt", "damaged"),
     ("other.pth", "no state_dict"), ("width.pth", "does not fit Net"), ("none.pth", "no such file")],
)  # fmt: skip
def test_unusable_files(here: Path, file: str, said: str) -> None:
    m = network()
    torch.save(m.state_dict(), "in.pth")
    Path("cut.pth").write_bytes(Path("in.pth").read_bytes()[:400])
    torch.export.save(torch.export.export(m, (X,)), "in.pt2")
    Path("cut.pt2").write_bytes(Path("in.pt2").read_bytes()[:-2000])
    save_file(dict(m.state_dict()), "in.safetensors")
    Path("cut.safetensors").write_bytes(Path("in.safetensors").read_bytes()[:-100])
    Path("empty.pt").write_bytes(b"")
    torch.save({"epoch": 3}, "other.pth")
    torch.save({k: v.repeat(2, *[1] * (v.dim() - 1)) if v.dim() else v for k, v in m.state_dict().items()}, "width.pth")
    assert said in refused(1, "fold", file, "-o", "out.pth", *ARCH)


def test_a_factory_may_print_and_be_part_of_a_package(here: Path) -> None:
    """Its words stay off stdout, relative imports work, and an input without a type gets the network's."""
    Path("pack").mkdir()
    Path("pack/__init__.py").touch()
    Path("pack/parts.py").write_text(SOURCE)
    made = "from .parts import Net\ndef make():\n    print('made')\n    return Net().double()\nready = make()\n"
    Path("pack/nets.py").write_text(made)
    torch.save(network().state_dict(), "in.pth")
    for name in ("make", "ready"):
        result = done("inspect", "in.pth", "--arch", f"pack/nets.py:{name}", "--input", "2x3x8x8", "--json")
        assert json.loads(result.stdout)["summary"]["folded"] == 1
        assert "made" in result.stderr


def test_inputs_by_name(here: Path) -> None:
    torch.save(network().state_dict(), "in.pth")
    done("inspect", "in.pth", "--arch", "net.py:Net", "--input", "x=2x3x8x8")
    assert "unexpected keyword" in refused(1, "fold", "in.pth", "-o", "o.pth", *ARCH[:2], "--input", "y=2x3x8x8")


@pytest.mark.parametrize("kind", ["qint8", "float16x"])
def test_inputs_that_cannot_be_made(here: Path, kind: str) -> None:
    torch.save(network().state_dict(), "in.pth")
    refused(2, "fold", "in.pth", "-o", "o.pth", *ARCH[:2], "--input", f"2x3x8x8:{kind}")


def test_inspect_of_a_checkpoint(here: Path) -> None:
    torch.save(network().state_dict(), "in.pth")
    data = json.loads(done("inspect", "in.pth", *ARCH, "--json").stdout)
    assert [(bn["name"], bn["verdict"], bn["into"]) for bn in data["batch_norms"]] == [
        ("norm", "folded", ["conv"])
    ] or (data["summary"]["folded"] == 1)


# --- export


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_export(here: Path, keep: bool) -> None:
    m = network()
    torch.save(m.state_dict(), "in.pth")
    done("export", "in.pth", "-o", "out.onnx", *ARCH, "--dynamic", "batch", "--opset", "20",
         *(["--keep-bn"] if keep else []))  # fmt: skip
    model = onnx.load("out.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == int(keep)
    assert model.opset_import[0].version == 20
    assert {"conv", "last"} <= {node.name for node in model.graph.node}
    props = {p.key: p.value for p in model.metadata_props}
    assert props["bnfold.version"] == bnfold.__version__
    assert props["bnfold.source"].startswith("sha256:")
    assert keep or json.loads(props["bnfold.folded"]) == ["norm"]
    session = ort.InferenceSession("out.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(7, 3, 8, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert error(m(x), torch.from_numpy(np.asarray(found))) < 1e-5


@pytest.mark.slow
def test_export_with_the_weights_beside_it(here: Path) -> None:
    bnfold.export(network(), (X,), out="out.onnx", external_data=True)
    assert {path.name for path in Path().iterdir() if path.name.startswith("out")} == {"out.onnx", "out.onnx.data"}
    assert bnfold.inspect("out.onnx").batch_norms == ()


class Alike(nn.Module):
    """Modules whose names make the same word."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList([nn.Conv2d(3, 8, 3, bias=False)])
        self.a_0, self.a_0_bias = nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip((self.a[0], self.a_0, self.a_0_bias), self.norms, strict=True):
            x = norm(layer(x)).relu()
        return x


@pytest.mark.parametrize("autocast", [False, True])
def test_export_of_modules_whose_names_make_the_same_word(here: Path, autocast: bool) -> None:
    """Also where autocast is on: what is written is the network itself."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = bnfold.export(alive(Alike()), (X,), out="out.onnx")
    assert result.plan.counts()["folded"] == 3
    assert {t.data_type for t in onnx.load("out.onnx").graph.initializer} == {onnx.TensorProto.FLOAT}


@pytest.mark.slow
def test_export_of_a_program(here: Path) -> None:
    program = torch.export.export(network(), (X,))
    result = bnfold.export(program, out="out.onnx")
    assert fates(result) == {"norm": "folded"}
    assert result.check is not None
    assert result.check.passed


@pytest.mark.slow
def test_export_names_the_sizes_and_parts_outputs(here: Path) -> None:
    """Labels are those asked for; a window of one pixel needs no path of its own; one tensor comes out twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            y = self.norm(self.conv(x))
            return {"y": y, "more": [y.mean((2, 3)), (y,)]}

    bnfold.export(alive(Net()), (X[:1],), out="out.onnx", dynamic=["batch", "x:2=high", "x:3=wide"])
    graph = onnx.load("out.onnx").graph
    sizes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input]
    assert sizes == [["batch", 3, "high", "wide"]]
    assert len({value.name for value in graph.output}) == 3


def test_a_wrong_export_is_not_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.torch.write import program as programs

    real: Any = vars(programs)["scale_weight"]
    monkeypatch.setattr(programs, "scale_weight", lambda *a: real(*a) * 1.01)
    with pytest.raises(bnfold.VerificationError, match="did not pass"):
        bnfold.export(network(), (X,), out="out.onnx")
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"out": "out.bin"}, "ends in .onnx"), ({"out": "out.onnx", "dynamic": ["y:0=b"]}, "one of the inputs x"),
     ({"out": "out.onnx", "dynamic": ["x:0=a b"]}, "a word"), ({"out": "out.onnx", "opset": 99}, "instead"),
     ({"out": "missing/out.onnx"}, "does not exist")],
)  # fmt: skip
def test_wrong_usage_of_export(here: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bnfold.export(network(), (X,), **options)


@pytest.mark.slow
def test_onnx_files_are_not_exported(here: Path) -> None:
    bnfold.export(network(), (X,), out="out.onnx")
    with pytest.raises(BnfoldError, match="a model of PyTorch expected"):
        bnfold.export("out.onnx", out="again.onnx")


@pytest.mark.slow
def test_verify_takes_modules_and_files(here: Path) -> None:
    m = network()
    folded = bnfold.fold(m, (X,)).model
    bnfold.export(m, (X,), out="out.onnx")
    assert bnfold.verify(m, folded, (X,)).passed
    assert bnfold.verify(m, "out.onnx", (X,)).passed
    with torch.no_grad():
        folded.last.weight[0, 0] += 0.05
    assert not bnfold.verify(m, folded, (X,)).passed
    assert not bnfold.verify(folded, "out.onnx", (X,)).passed


# --- verify


@pytest.mark.slow
def test_files_of_every_kind_are_compared_with_each_other(here: Path) -> None:
    net = network()
    x = torch.randn(2, 3, 8, 8)
    torch.save(net.state_dict(), "net.pt")
    torch.export.save(torch.export.export(net, (x,)), "net.pt2")
    torch.jit.trace(net, x).save("net.torchscript.pt")  # type: ignore[no-untyped-call]
    done("fold", "net.pt", "-o", "folded.pt", *ARCH)
    done("fold", "net.pt", "-o", "folded.safetensors", *ARCH)
    done("export", "net.pt", "-o", "net.onnx", "--keep-bn", *ARCH)
    files = ["net.pt", "net.pt2", "net.torchscript.pt", "folded.pt", "folded.safetensors", "net.onnx"]
    for reference, candidate in [("net.pt", name) for name in files] + [(name, "folded.pt") for name in files]:
        check = json.loads(done("verify", reference, candidate, "--json", *ARCH).stdout)
        assert check["passed"], (reference, candidate)
        assert (check["reference"], check["candidate"]) == (reference, candidate)
    wrong = network()
    with torch.no_grad():
        wrong.get_parameter("last.weight")[1] *= 1.02
    torch.save(wrong.state_dict(), "wrong.pt")
    for reference in files:
        result = run("verify", reference, "wrong.pt", "--json", *ARCH)
        assert result.exit_code == 1, reference
        assert "differs" in json.loads(result.stdout)["message"]


def test_a_candidate_may_come_from_another_factory(here: Path) -> None:
    torch.save(network().state_dict(), "net.pt")
    Path("renamed.py").write_text(SOURCE.replace("class Net", "class Other"))
    arguments = ["verify", "net.pt", "net.pt", *ARCH, "--candidate-arch", "renamed.py:Other"]
    assert done(*arguments, "--json").exit_code == 0
    assert "wide" in refused(2, *arguments, "--candidate-arch-args", '{"wide": 3}')


def test_a_checkpoint_needs_to_know_its_network_for_verify_too(here: Path) -> None:
    torch.save(network().state_dict(), "net.pt")
    assert "--arch" in refused(2, "verify", "net.pt", "net.pt")
    assert "--input" in refused(2, "verify", "net.pt", "net.pt", *ARCH[:2])


@pytest.mark.slow
def test_inputs_may_have_the_names_of_python_functions(tmp_path: Path) -> None:
    """nn.Sequential calls its own `input`, which a copied graph cannot; nor `filter`, `max` and the like."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, filter: torch.Tensor, max: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.norm(self.conv(filter)) + max
            return found

    x, y = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 6, 6)
    for net, args in ((alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), (x,)), (alive(Net()), (x, y))):
        folded = bnfold.fold(torch.export.export(net, args)).model
        torch.export.save(folded, tmp_path / "net.pt2")
        again = torch.export.load(tmp_path / "net.pt2").module()
        assert error(net(*args), again(*args)) < 1e-5
        assert bnfold.export(net, args, out=tmp_path / "net.onnx").plan.counts()["folded"] == 1


def test_a_program_that_computes_sizes(tmp_path: Path) -> None:
    """Arithmetic of sizes in a program is no operator with a schema; assertions in it stay."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._check(x.sum().item() != 0.5)  # type: ignore[no-untyped-call]
            y = self.norm(self.conv(x))
            n, c, h, w = y.shape
            found: torch.Tensor = y.reshape(n, c, h * w).repeat_interleave(2, 2)[:, :, : h * w + 1]
            return found

    net, x = alive(Net()), torch.randn(2, 3, 8, 8)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},))
    folded = bnfold.fold(program).model
    torch.export.save(folded, tmp_path / "net.pt2")
    x = torch.randn(3, 3, 12, 8)
    assert error(net(x), torch.export.load(tmp_path / "net.pt2").module()(x)) < 1e-5
    targets = [str(node.target) for node in program.run_decompositions({}).graph.nodes]
    assert [str(n.target) for n in folded.graph.nodes if "assert" in str(n.target)] == [
        target for target in targets if "assert" in target
    ]


def test_a_program_with_sizes_that_follow_from_others(here: Path) -> None:
    net, x = network(), torch.randn(2, 3, 16, 16)
    half = torch.export.Dim("half", min=4, max=16)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({2: 2 * half, 3: 2 * half},)), "in.pt2")
    result = bnfold.fold("in.pt2", out="out.pt2")
    assert result.plan.counts()["folded"] == 1
    found, other = torch.export.load("out.pt2").module(), torch.randn(2, 3, 20, 20)
    assert error(net(other), found(other)) < 1e-5
    with pytest.raises(AssertionError, match="<= 32"):
        found(torch.randn(2, 3, 34, 34))


def test_a_constant_in_place_of_a_norm_gets_a_name_of_its_own(tmp_path: Path) -> None:
    """One call of the norm stays, and so does its module, whose name the constant of the other call cannot have."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(self.norm(torch.tanh(self.norm(torch.tanh(self.stem(x))))))
            return found

    net, x = alive(Net(), zeros=False), torch.randn(2, 3, 8, 8)
    result = bnfold.fold(torch.export.export(net, (x,)), leftovers="all")
    assert sorted(bn.verdict for bn in result.plan.batch_norms) == ["kept", "reduced"]
    torch.export.save(result.model, tmp_path / "net.pt2")
    assert error(net(x), torch.export.load(tmp_path / "net.pt2").module()(x)) < 1e-5
