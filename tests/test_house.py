"""The house: imports go one way, public names are held, starting up stays cheap, README and help say what is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import bnfold
from bnfold.cli import main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bnfold"
STAGES = [
    {"version", "limits", "layers", "quiet"},
    {"errors"},
    {"files", "kinds", "data", "config", "skip"},
    {"graph", "affine"},
    {"gauge"},
    {"plan"},
    {"planner", "absorb"},
    {"strain"},
    {"frontends"},
    {"equivalence"},
    {"lrn"},
    {"report"},
    {"onnxmodels", "pytorch"},
    {"modulefolding"},
    {"torchfiles"},
    {"verifying"},
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
    files = [*PACKAGE.glob("gauge/*.py"), *(PACKAGE / f"{name}.py" for name in ("graph", "affine", "plan", "planner"))]
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


SHARED = re.compile(
    r"catch_warnings|simplefilter|filterwarnings|redirect_std|logging\.disable|set_default_dtype|safe_globals\(|"
    r"sys\.(stdout|stderr|path_hooks) =|os\.(chdir|environ\[.*\] =)|setattr\((torch|pickle|importlib)"
)
"""Ways to change what all threads of a process share."""


@pytest.mark.parametrize("path", [path for path in sorted(PACKAGE.rglob("*.py")) if "cli" not in path.parts], ids=str)
def test_the_library_touches_nothing_that_threads_share(path: Path) -> None:
    """One module does, while no other thread runs; the command has its process to itself."""
    if path.name != "quiet.py":
        found = [line for line in path.read_text().splitlines() if SHARED.search(line)]
        assert not [line for line in found if "get_safe_globals" not in line and "_add_safe_globals" not in line]
