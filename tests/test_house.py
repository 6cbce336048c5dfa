"""The house: imports go one way, public names are held, starting up stays cheap, README and help say what is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import bnfold
from bnfold.cli import main
from scripts.oldest import lower_bounds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bnfold"
STAGES = [
    {"version", "limits", "layers", "quiet", "ends", "private"},
    {"errors"},
    {"options"},
    {"files", "kinds", "data", "config", "skip"},
    {"graph", "affine"},
    {"gauge"},
    {"plan"},
    {"planner", "absorb", "merging", "shrinking"},
    {"strain"},
    {"frontends"},
    {"equivalence"},
    {"lrn"},
    {"report"},
    {"onnxmodels", "pytorch"},
    {"modulefolding"},
    {"torchfiles"},
    {"verifying", "opening"},
    {"exporting", "retraining", "swapping", "onnxswapping", "onnxretraining"},
    {"api"},
    {"testing"},
    {"cli", "__init__", "__main__"},
]
"""The direction in which a model flows: a part imports from its own stage and those above it, never from below."""
ORDER = {name: i for i, stage in enumerate(STAGES) for name in stage}


def _imports(path: Path) -> set[str]:
    """The parts of bnfold that a file imports when it runs (imports for type checkers are not counted)."""
    tree = ast.parse(path.read_text())
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in checking:
            base = package[: len(package) - node.level + 1]
            full = [*base, *(node.module.split(".") if node.module else [])]
            found |= {full[1]} if len(full) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in _imports(path) & set(ORDER):
        assert ORDER[name] <= ORDER[own], f"{own} imports {name}"


def test_every_part_has_its_place_in_the_order() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__pycache__"} == set(ORDER)


def test_the_algebra_knows_numpy_and_nothing_else() -> None:
    folders = ("gauge", "merging", "shrinking")
    files = [path for folder in folders for path in PACKAGE.glob(f"{folder}/*.py")]
    files += [PACKAGE / f"{name}.py" for name in ("graph", "affine", "plan", "planner")]
    for path in [*files, PACKAGE / "absorb.py"]:
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


ROOMS = {
    "catch_warnings": {"quiet.py"}, "simplefilter": {"quiet.py"}, "filterwarnings": set(), "captureWarnings": set(),
    "disable": {"quiet.py"}, "redirect_stderr": {"quiet.py"}, "redirect_stdout": {"cli/output.py", "quiet.py"},
    "dup2": {"cli/output.py", "ends.py"}, "signal": {"ends.py"}, "umask": set(), "safe_globals": set(),
    "add_safe_globals": set(), "chdir": set(), "set_num_threads": {"equivalence/modules.py", "verifying.py"},
    "allow_tf32": {"equivalence/modulecalls.py"}, "set_default_dtype": set(), "set_default_device": set(),
    "use_deterministic_algorithms": set(), "setrecursionlimit": set(), "seterr": set(), "basicConfig": set(),
}  # fmt: skip
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
            if name in ROOMS:
                yield name, node.lineno
            if name == "setattr" and isinstance(node.args[0], ast.Name) and node.args[0].id in imported:
                yield f"setattr({node.args[0].id}, ...)", node.lineno
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Attribute):
                base = ast.unparse(target.value)
                if base.partition(".")[0] in imported or target.attr in ROOMS:
                    yield target.attr if target.attr in ROOMS else f"{base}.{target.attr} = ...", target.lineno


def test_nothing_of_the_process_is_changed() -> None:
    found = [
        (path.relative_to(PACKAGE).as_posix(), *change) for path in PACKAGE.rglob("*.py") for change in _changes(path)
    ]
    assert [(own, name, line) for own, name, line in found if own not in ROOMS.get(name, set())] == []
    assert {name: {own for own, used, _ in found if used == name} for name in ROOMS} == ROOMS, "a room that is not used"


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
