"""The house: imports go one way, public names are held, starting up stays cheap, README and help say what is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import bnfold
from bnfold.cli import main
from scripts.oldest import lower_bounds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bnfold"
ROOMS = (
    "version", "limits", "layers", "errors", "options", "files", "kinds", "process",
    "core", "core.gauge", "core.merging", "core.shrinking",
    "onnx.store", "onnx.read", "onnx.write", "onnx.merging", "onnx.shrinking", "onnx",
    "torch.trace", "torch.read", "torch.write", "torch.store", "torch",
    "data", "judge.criteria", "judge.subjects", "judge", "calibration", "lrn", "train", "report",
    "doors", "api", "", "testing", "cli", "__main__",
)  # fmt: skip
"""The direction in which a model flows: a room imports from itself and from those before it, also for types."""


def _modules(package: Path) -> dict[str, Path]:
    """The modules of bnfold by their dotted names below it; a package goes by its own name, bnfold itself by ""."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in sorted(package.rglob("*.py"))
    }


def _room(name: str, path: Path) -> str:
    """The folder of a module, or the module itself where it stands in none."""
    return name if path.name == "__init__.py" or "." not in name else name.rpartition(".")[0]


def _imports(path: Path, modules: Mapping[str, Path], package: Path) -> set[str]:
    """The modules of bnfold that a file imports, wherever in it, also for type checkers alone."""
    found, own = set(), path.relative_to(package).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*own[: len(own) - node.level + 1], *(node.module.split(".") if node.module else [])]
            names = {".".join([*base, alias.name]) for alias in node.names}
            found |= {name if name in modules else ".".join(base) for name in names}
    return found


MODULES = _modules(PACKAGE)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name: str) -> None:
    place = {room: i for i, room in enumerate(ROOMS)}
    own = _room(name, MODULES[name])
    for other in _imports(MODULES[name], MODULES, PACKAGE):
        assert place[_room(other, MODULES[other])] <= place[own], f"{own} imports {other}"


def test_no_room_hides_a_public_name() -> None:
    """A package that is imported is an attribute of bnfold: `bnfold.calibrate` has to stay the function."""
    assert not {room.partition(".")[0] for room in ROOMS} & set(bnfold.__all__)


def test_every_room_has_its_place_in_the_order() -> None:
    assert {_room(name, path) for name, path in MODULES.items()} == set(ROOMS)
    assert len([path for path in PACKAGE.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]) <= 10


def test_the_map_shows_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    shown = page[: page.index("## A fold")]
    for room in ROOMS:
        if room and (PACKAGE / room.replace(".", "/")).is_dir():
            assert f"{room.rpartition('.')[2]}/" in shown, room


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_can_be_read(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    runs = [step.get("run", "") for job in data.get("jobs", {}).values() for step in job["steps"]]
    assert data["name"]
    assert path.name != "ci.yml" or any("bash .ci/run" in run for run in runs)


def _circle(package: Path) -> list[str]:
    """Modules that import one another in a circle; none where there is none."""
    modules = _modules(package)
    left = {name: _imports(path, modules, package) - {name} for name, path in modules.items()}
    while ready := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in ready}
    return sorted(left)


def test_no_modules_import_one_another_in_a_circle(tmp_path: Path) -> None:
    assert _circle(PACKAGE) == []
    (tmp_path / "one.py").write_text("from .two import x")
    (tmp_path / "two.py").write_text("if TYPE_CHECKING:\n    from . import one")
    assert _circle(tmp_path) == ["one", "two"]


def test_the_algebra_knows_numpy_and_nothing_else() -> None:
    for path in (PACKAGE / "core").rglob("*.py"):
        for name in re.findall(r"^(?:import|from) ([a-z_]+)", path.read_text(), re.M):
            assert name == "numpy" or name in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_public_names() -> None:
    assert sorted(bnfold.__all__) == [
        "BatchNorm", "Bench", "BnfoldError", "CalibrationResult", "Check", "DataError", "FoldResult", "LrnSite",
        "ModelError", "MovingAverageBatchNorm", "OutputError", "Plan", "PlanError", "RetrainResult", "SwapResult",
        "TrainingError", "UsageError", "VerificationError", "__version__", "bench", "calibrate", "export", "find_lrn",
        "fold", "inspect", "plot_history", "restore", "retrain", "swap_lrn", "verify",
    ]  # fmt: skip
    for name in bnfold.__all__:
        assert getattr(bnfold, name) is not None


def _modules_after(code: str) -> set[str]:
    script = f"import sys; {code}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\n")[-2].split())


def test_help_starts_without_the_heavy_parts() -> None:
    code = "from bnfold.cli import main; main(['--help'], standalone_mode=False)"
    assert not {"numpy", "onnx", "torch", "onnxruntime", "rich"} & _modules_after(code)


def test_folding_onnx_never_imports_torch() -> None:
    code = "import bnfold; bnfold.fold('models/densenet_digits.onnx')"
    assert "torch" not in _modules_after(code)


def test_commands_of_the_readme_exist() -> None:
    for command in re.findall(r"^\$ bnfold ([\w-]+)", (ROOT / "README.md").read_text(), re.M):
        assert command in main.commands


@pytest.mark.slow
def test_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        for line in re.findall(r"# (\{.*\}|True|False)$", block, re.M):
            assert line in done.stdout


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "models/README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


SWITCHES = {
    "catch_warnings": {"process/quiet.py"},
    "simplefilter": {"process/quiet.py"},
    "filterwarnings": set(),
    "captureWarnings": set(),
    "disable": {"process/quiet.py"},
    "redirect_stderr": {"process/quiet.py"},
    "redirect_stdout": {"cli/output.py", "process/quiet.py"},
    "dup2": {"cli/output.py", "process/ends.py"},
    "signal": {"process/ends.py"},
    "umask": set(),
    "safe_globals": set(),
    "add_safe_globals": set(),
    "chdir": set(),
    "set_num_threads": {"judge/subjects/modules.py", "doors/verify.py"},
    "allow_tf32": {"judge/subjects/modulecalls.py"},
    "set_default_dtype": set(),
    "set_default_device": set(),
    "use_deterministic_algorithms": set(),
    "setrecursionlimit": set(),
    "seterr": set(),
    "basicConfig": set(),
}
"""What changes the process for all of its threads, and the files that may use it, each for a reason that it gives."""


def _changes(path: Path) -> Iterator[tuple[str, int]]:
    """What a file uses that changes the process: calls and switches by name, and attributes of modules that it sets."""
    tree = ast.parse(path.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in SWITCHES:
                yield name, node.lineno
            if name == "setattr" and isinstance(node.args[0], ast.Name) and node.args[0].id in imported:
                yield f"setattr({node.args[0].id}, ...)", node.lineno
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Attribute):
                base = ast.unparse(target.value)
                if base.partition(".")[0] in imported or target.attr in SWITCHES:
                    yield target.attr if target.attr in SWITCHES else f"{base}.{target.attr} = ...", target.lineno


def test_nothing_of_the_process_is_changed() -> None:
    found = [
        (path.relative_to(PACKAGE).as_posix(), *change) for path in PACKAGE.rglob("*.py") for change in _changes(path)
    ]
    assert [(own, name, line) for own, name, line in found if own not in SWITCHES.get(name, set())] == []
    assert {name: {own for own, used, _ in found if used == name} for name in SWITCHES} == SWITCHES, (
        "a switch that is not used"
    )


def test_the_rule_sees_what_it_forbids(tmp_path: Path) -> None:
    code = ("import sys, torch, warnings as w", "sys.stderr = None", "torch.load = print", "setattr(torch, 'load', 1)",
            "w.catch_warnings()", "torch.backends.cudnn.allow_tf32 = True", "sys.stdout: object = 1")  # fmt: skip
    (tmp_path / "bad.py").write_text("\n".join(code))
    assert {line for _, line in _changes(tmp_path / "bad.py")} == set(range(2, len(code) + 1))


def test_the_lower_bounds_are_those_that_were_tested() -> None:
    """docs/versions.md records with which versions all tests passed: the oldest are those that may be installed."""
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", (ROOT / "docs" / "versions.md").read_text(), re.M)
    recorded = {name: re.sub(r"(\.0)+$", "", version) for name, version in rows}
    stand_in = {"onnxruntime": "onnxruntime-gpu"}
    for name, bound in lower_bounds().items():
        assert re.sub(r"(\.0)+$", "", bound) == recorded[stand_in.get(name, name)], name
    assert set(recorded) == set(lower_bounds()) - set(stand_in) | {"Python"}
    assert f'requires-python = ">={recorded["Python"].rpartition(".")[0]}"' in (ROOT / "pyproject.toml").read_text()
