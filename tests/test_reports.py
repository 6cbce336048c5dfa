"""Reports of comparisons: JUnit, JSON, the page; pairs from a file; the helper for tests; the CI kit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import bnfold
from bnfold.cli import main
from bnfold.cli.config import SETTINGS, read_config
from bnfold.errors import UsageError
from bnfold.judge.criteria.check import HISTOGRAM, Check, Measure, OutputError
from bnfold.judge.criteria.inputs import KINDS
from bnfold.report.junit import to_junit
from bnfold.report.page import to_html
from bnfold.testing import assert_equivalent
from tests.nets import conv_bn

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """good.onnx is what model.onnx is; bad.onnx differs."""
    monkeypatch.chdir(tmp_path)
    conv_bn().save(Path("model.onnx"))
    bnfold.fold("model.onnx", out="good.onnx")
    conv_bn(seed=1).save(Path("bad.onnx"))
    return tmp_path


def run(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(main, ["verify", *arguments, "-q"])
    assert done.exit_code == code, done.output
    return done


# --- JUnit


def test_junit_counts_what_failed(here: Path) -> None:
    run("model.onnx", "bad.onnx", "--junit", "r.xml", code=1)
    root = ElementTree.parse("r.xml").getroot()
    (suite,) = root
    kinds = len(suite.findall("testcase"))
    failed = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    assert (root.get("tests"), root.get("failures")) == (str(kinds), str(len(failed)))
    assert len(failed) >= 2
    assert failed[-1].get("name") == "verdict"
    said = failed[-1].find("failure")
    assert said is not None
    assert "bn2_out differs" in said.get("message", "")
    assert "they part first at" in (said.text or "")
    run("model.onnx", "good.onnx", "--junit", "r.xml")
    root = ElementTree.parse("r.xml").getroot()
    assert (root.get("failures"), root.get("errors")) == ("0", "0")
    assert int(root.get("tests", "0")) == len(KINDS) + 1  # the batch is dynamic


def test_junit_holds_names_that_xml_cannot() -> None:
    output = OutputError('a<b>&"\x00\x1f', "normal", 1.0, 1.0, False, "", (Measure("relative error", 1.0, 0.1),))
    check = Check(False, "runner", 0, {}, (output,), "a<b> differs\x00", names=("a\x01", "b"))
    root = ElementTree.fromstring(to_junit([("<&>", check), ("other", "cannot be read \x02")]))
    assert [suite.get("name") for suite in root] == ["<&>", "other"]
    assert root.get("errors") == "1"


SCHEMA = {
    "testsuites": {"name", "time", "tests", "failures", "disabled", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "assertions", "time", "status"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message"},
}
"""Elements of the schema that Jenkins publishes for JUnit, and their attributes."""


def test_junit_keeps_to_the_schema(here: Path) -> None:
    Path("all.toml").write_text(
        '[[pairs]]\nreference = "model.onnx"\ncandidate = "bad.onnx"\n[[pairs]]\nname = "\\U0001F600"\n'
        'reference = "model.onnx"\ncandidate = "none.onnx"\n'
    )
    run("--config", "all.toml", "--junit", "r.xml", code=1)
    root = ElementTree.parse("r.xml").getroot()
    for element in root.iter():
        assert set(element.attrib) <= SCHEMA[element.tag]
    assert [suite.get("name") for suite in root] == ["model.onnx : bad.onnx", "\U0001f600"]


# --- the page


class Reader(HTMLParser):
    """Fails on tags that are not closed; collects text and what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in ("rect", "line", "polyline", "circle")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(text: str) -> str:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.loads == []
    assert "<script" not in text
    assert "url(" not in text
    return " ".join(reader.text)


def test_the_page_shows_everything_and_loads_nothing(here: Path) -> None:
    run("model.onnx", "bad.onnx", "--html", "r.html", code=1)
    text = page(Path("r.html").read_text())
    for word in ("failed", "bn2_out differs", "they part first at", "error ratio", "Batch norms", "bn1", "folded",
                 "What a fold of the reference would make of them",
                 "Operators", "BatchNormalization", "Conv"):  # fmt: skip
        assert word in text, word
    assert Path("r.html").read_text().count("<polyline") == 2
    run("model.onnx", "good.onnx", "--html", "r.html")
    text = page(Path("r.html").read_text())
    assert "passed" in text
    assert "they part" not in text


def test_the_page_escapes_names() -> None:
    output = OutputError("<b>&x", "normal", 1.0, 1.0, False, "", (), histogram=((), (1,) * HISTOGRAM[2]))
    check = Check(
        False, "runner", 0, {"<i>": (1,)}, (output,), "<b>&x differs", names=("<script>alert(1)</script>", "")
    )
    text = page(to_html([("<u>", check, None), ("second", "<em>no verdict</em>", None)]))
    assert "<b>&x differs" in text
    assert "2 pairs, 2 failed" in text


def test_histograms_count_every_element(here: Path) -> None:
    check = bnfold.verify("model.onnx", "bad.onnx")
    for output in check.outputs:
        own, found = output.histogram
        assert sum(own) == sum(found) > 0
        worst = [i for i, n in enumerate(found) if n][-1]
        low, high, count = HISTOGRAM
        edge = 10 ** (low + (worst + 1) * (high - low) / count)
        assert output.found is not None
        assert edge * 1.01 >= output.found / output.scale or worst == count - 1


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_in_a_browser(here: Path) -> None:
    """Laid out with nothing beyond the window's edge, and without a request that leaves the machine."""
    run("model.onnx", "bad.onnx", "--html", "r.html", code=1)
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir=profile",
         "--enable-logging=stderr",
         "--window-size=1200,2400", "--virtual-time-budget=2000", "--screenshot=shot.png", "--dump-dom",
         (here / "r.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "they part first at" in done.stdout
    assert ":CONSOLE" not in done.stderr
    from PIL import Image

    with Image.open("shot.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[:2] == (2400, 1200)
    blue = (pixels[..., 2] - pixels[..., 0] > 80) & (pixels[..., 1] < 160)
    red = (pixels[..., 0] - pixels[..., 2] > 80) & (pixels[..., 1] < 110)
    assert blue.sum() > 300  # bars and the candidate's line
    assert red.sum() > 300  # the badge, the mark


def test_fold_writes_the_page_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(main, ["fold", "model.onnx", "-o", "out.onnx", "--html", "r.html", "-q"])
    assert done.exit_code == 0, done.output
    text = page(Path("r.html").read_text())
    assert "2 batch norms: 2 folded" in text
    assert "model.onnx : out.onnx" in text
    done = CliRunner().invoke(main, ["fold", "model.onnx", "-o", "out.onnx", "--html", "out.onnx", "-q"])
    assert done.exit_code == 2
    from bnfold.onnx.write import weights

    right = weights._scaled
    monkeypatch.setattr(weights, "_scaled", lambda *given: right(*given) * 1.01)
    done = CliRunner().invoke(main, ["fold", "model.onnx", "-o", "new.onnx", "--html", "bad.html", "-q"])
    assert done.exit_code == 1
    assert "they part first at" in page(Path("bad.html").read_text())
    assert not Path("new.onnx").exists()


# --- pairs from a file


CONFIG = """
[verify]
seed = 3

[[pairs]]
name = "same"
reference = "models/model.onnx"
candidate = "models/good.onnx"
kinds = ["normal", "image"]

[[pairs]]
reference = "models/model.onnx"
candidate = "models/bad.onnx"
top-k = 1
shapes = { x = "3x3x8x8" }
"""


@pytest.fixture
def listed(here: Path) -> Path:
    (here / "models").mkdir()
    for name in ("model", "good", "bad"):
        (here / f"{name}.onnx").rename(here / "models" / f"{name}.onnx")
    (here / "elsewhere").mkdir()
    path = here / "bnfold.toml"
    path.write_text(CONFIG)
    return path


def test_pairs_are_read_with_their_settings(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(listed.parent / "elsewhere")  # paths are from the folder of the file
    same, other = read_config(Path("../bnfold.toml"))
    assert (same.name, other.name) == ("same", "model.onnx : bad.onnx")
    assert same.arguments["seed"] == 3
    assert other.arguments["shapes"] == {"x": (3, 3, 8, 8)}
    done = run("--config", "../bnfold.toml", "--json", code=1)
    data = json.loads(done.stdout)
    assert data["passed"] is False
    assert [pair["passed"] for pair in data["pairs"]] == [True, False]
    assert {output["kind"] for output in data["pairs"][0]["outputs"]} == {"normal", "image"}
    assert data["pairs"][1]["shapes"] == {"x": [3, 3, 8, 8]}
    assert {pair["seed"] for pair in data["pairs"]} == {3}


def test_options_beside_the_file_hold_for_every_pair(listed: Path) -> None:
    data = json.loads(run("--config", "bnfold.toml", "--seed", "9", "--json", code=1).stdout)
    assert {pair["seed"] for pair in data["pairs"]} == {9}


def test_pyproject_lists_pairs_too(listed: Path) -> None:
    text = CONFIG.replace("[verify]", "[tool.bnfold.verify]").replace("[[pairs]]", "[[tool.bnfold.pairs]]")
    Path("pyproject.toml").write_text(text)
    assert read_config(Path("pyproject.toml")) == read_config(Path("bnfold.toml"))


def test_a_pair_that_cannot_be_compared_does_not_stop_the_others(listed: Path) -> None:
    listed.write_text(CONFIG.replace("models/bad.onnx", "models/missing.onnx"))
    done = run("--config", "bnfold.toml", "--junit", "r.xml", "--html", "r.html", "--report", "r.json", code=1)
    assert "2 pairs, 1 failed" in done.stdout
    assert "missing.onnx" in done.stdout
    assert ElementTree.parse("r.xml").getroot().get("errors") == "1"
    assert "missing.onnx" in page(Path("r.html").read_text())
    assert "error" in json.loads(Path("r.json").read_text())["pairs"][1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pairs = 3", "no pairs in it"),
        ("", "no pairs in it"),
        ("[[pairs]]\nreference = 'a'", "pair 1: candidate is missing"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\nsede = 1", "pair 1: 'sede' is not known; one of device"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\nseed = 'one'", "seed = 'one': a whole number expected"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\nseed = true", "seed = True: a whole number expected"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\nshapes = { x = 'wide' }", "shapes.x: sizes such as"),
        ("[verify]\natol = 'x'\n[[pairs]]\nreference = 'a'\ncandidate = 'b'", "verify: atol = 'x': a number expected"),
        ("[verfy]\nseed = 1", "'verfy' is not known"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\ninputs = [1]", "inputs = [1]: a list of texts expected"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\nname = 5", "name = 5: a text expected"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\nshapes = { x = [1.5, 3] }", "shapes.x: sizes such as"),
        ("[[pairs]", "not TOML"),
        ("[[pairs]]\nreference = 'a'\ncandidate = 'b'\n" * 2, "two pairs are called 'a : b'"),
    ],
)
def test_a_file_with_a_mistake_says_which(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bnfold.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)):
        read_config(path)
    done = CliRunner().invoke(main, ["verify", "--config", str(path), "-q"])
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("mean = ['a']", "mean ['a']: a number or one for each"),
        ("std = [0.5, 0]", "none of them 0"),
        ("multiple = 0.5", "multiple 0.5: a number from 1 up"),
        ("seed = -1", "seed -1: a number from 0 up"),
        ("kinds = ['odd']", "inputs of kind 'odd'"),
        ("device = 'gpu'", "device 'gpu': one of cpu"),
    ],
)
def test_settings_that_fit_no_pair_are_wrong_usage(listed: Path, setting: str, said: str) -> None:
    listed.write_text(f"{CONFIG}\n{setting}\n")
    done = run("--config", "bnfold.toml", code=2)
    assert said in done.stderr
    assert "model.onnx : bad.onnx" in done.stderr


def test_files_that_are_called_alike_are_named_by_their_folders(tmp_path: Path) -> None:
    pair = '[[pairs]]\nreference = "{0}/model.onnx"\ncandidate = "build/{0}/model.onnx"\n'
    (tmp_path / "bnfold.toml").write_text("\ufeff" + pair.format("one") + pair.format("two"), encoding="utf-8")
    names = [pair.name for pair in read_config(tmp_path / "bnfold.toml")]
    assert names == [f"{name}/model.onnx : build/{name}/model.onnx" for name in ("one", "two")]


def test_models_are_named_once(here: Path) -> None:
    assert "REFERENCE and CANDIDATE are needed" in run("model.onnx", code=2).stderr
    assert "cannot be given beside it" in run("model.onnx", "good.onnx", "--config", "x.toml", code=2).stderr
    assert "cannot be read" in run("--config", "x.toml", code=2).stderr


def test_every_setting_is_an_argument_of_verify() -> None:
    import inspect

    assert set(SETTINGS) < set(inspect.signature(bnfold.verify).parameters)


# --- reports and models do not meet


def test_reports_are_written_to_files_of_their_own(here: Path) -> None:
    before = Path("model.onnx").read_bytes()
    assert "two reports" in run("model.onnx", "good.onnx", "--html", "r", "--junit", "r", code=2).stderr
    assert "is the model itself" in run("model.onnx", "good.onnx", "--html", "model.onnx", code=2).stderr
    assert "does not exist" in run("model.onnx", "good.onnx", "--html", "no/r.html", code=2).stderr
    assert Path("model.onnx").read_bytes() == before


# --- the helper for tests


def test_assert_equivalent(here: Path) -> None:
    assert assert_equivalent("model.onnx", "good.onnx").passed
    with pytest.raises(AssertionError, match=r"bad\.onnx is not model\.onnx") as caught:
        assert_equivalent("model.onnx", "bad.onnx")
    assert "they part first at" in str(caught.value)
    assert "differs" in str(caught.value)
    with pytest.raises(AssertionError):
        assert_equivalent("model.onnx", "good.onnx", atol=1e-30, rtol=0.0)
    with pytest.raises(UsageError, match="does not fit"):
        assert_equivalent("model.onnx", "good.onnx", shapes={"x": (1, 3, 1, 1)})


# --- the CI kit


def options_in(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z0-9-]+", text))


def test_the_action_calls_what_there_is() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    known = {name for option in main.commands["verify"].params for name in option.opts}
    (step,) = [step for step in action["runs"]["steps"] if "bnfold verify" in step.get("run", "")]
    assert options_in(step["run"]) <= known
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(action["inputs"])
    for step in action["runs"]["steps"]:  # what a user gives never becomes part of a script
        assert "${{" not in step.get("run", "")


def test_the_step_of_the_action_runs(listed: Path) -> None:
    """The very lines of action.yml, in a shell."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (step,) = [step for step in action["runs"]["steps"] if "bnfold verify" in step.get("run", "")]
    import os
    import sys

    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CONFIG": "bnfold.toml", "ARGUMENTS": "",
                   "REPORTS": "out", "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(["bash", "-e", "-c", step["run"]], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "2 pairs, 1 failed" in done.stdout
    assert sorted(path.name for path in Path("out").iterdir()) == ["verify.html", "verify.json", "verify.xml"]


def test_the_hook_calls_what_there_is() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    known = {name for option in main.commands["verify"].params for name in option.opts}
    assert hook["entry"].split()[:2] == ["bnfold", "verify"]
    assert options_in(hook["entry"]) <= known
    assert re.search(hook["files"], "models/net.onnx")


# --- docs/judging.md


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/judging.md").read_text(), re.S)


def test_the_examples_of_the_document_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks("toml")
    (tmp_path / "bnfold.toml").write_text(text)
    first, second = read_config(tmp_path / "bnfold.toml")
    assert (first.name, first.arguments["seed"], second.arguments["top_k"]) == ("detector", 1, 5)
    assert second.arguments["arch"] == f"{tmp_path / 'nets/classifier.py'}:Net"
    action, hook = (yaml.safe_load(text)[0] for text in blocks("yaml"))
    assert set(action["with"]) <= set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
    assert hook["hooks"][0]["id"] == yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]["id"]
    monkeypatch.chdir(ROOT)
    for code in blocks("python"):
        exec(code, {})


def test_the_document_names_every_option_of_the_command() -> None:
    text = (ROOT / "docs/judging.md").read_text()
    options = {name for option in main.commands["verify"].params for name in option.opts if name.startswith("--")}
    known = {"--candidate-arch", "--candidate-arch-args", "--arch", "--arch-args", "--input", "--trust-pickle",
             "--quiet", "--debug", "--help"}  # fmt: skip
    assert {name for name in options - known if name not in text} == set()
    assert options_in(text) - options <= {"--no-optimise"}


def test_the_numbers_of_the_document_are_those_of_the_code() -> None:
    from bnfold.judge.criteria.criterion import CLEAR, LIMITS, PARTS, PEAK
    from bnfold.judge.judge import NOISE_MULTIPLE
    from bnfold.limits import MULTIPLE

    text = (ROOT / "docs/judging.md").read_text()
    assert f"at most **{MULTIPLE:g} times**" in text
    assert f"at most {MULTIPLE * PEAK:g} times the reference's own largest" in text
    assert f"more than {MULTIPLE * PARTS:g} times the reference's own in that channel" in text
    assert (CLEAR, NOISE_MULTIPLE) == (0.1, 4)
    assert "a difference of up to 4 times what one unit does" in " ".join(text.split())
    assert (LIMITS["float32"], LIMITS["float16"], LIMITS["bfloat16"], LIMITS["float64"]) == (1e-4, 2e-2, 0.1, 1e-10)
    assert all(f"`{kind}`" in text for kind in KINDS)
