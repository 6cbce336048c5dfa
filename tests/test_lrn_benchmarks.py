"""The scripts behind docs/lrn.md run, and the numbers in it are those that they wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.lrn import accuracy, claims, data, figures, latency
from benchmarks.lrn.data import Images

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/lrn"


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Two bright and dark classes, as a folder."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("test", 20)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(level, 30, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return data.load(tmp_path / "pictures")


def test_images_are_normalised_and_shuffled(images: Images) -> None:
    assert images.shape == (3, 8)
    assert images.train.mean((0, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-5)
    assert images.train.std((0, 2, 3)) == pytest.approx([1, 1, 1], abs=1e-4)
    assert 0 < images.train_classes[:20].sum() < 20
    assert (images.train[images.train_classes == 1].mean() > 0.5).all()


@pytest.mark.slow
def test_every_stage_is_measured(images: Images) -> None:
    found = accuracy.stages(images, 0, 40, retrain=(1,))
    assert found["LRN network"] > 0.9
    assert found["folded"] == found["swapped, foldable, fit, distilled, 1"]
    assert {name.replace(", 5", ", 1") for name in figures.STAGES} <= set(found)
    assert f"| LRN network | {found['LRN network']:.1%} |" in accuracy.table([found])


def test_claims_are_measured(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    assert claims.run(images, "bn", 20, 0)[0] > 0.8
    assert claims.run(images, "none", 5, 0, lr=1e9) == (0.1, 0.1)  # what goes to infinity counts as chance


def test_the_document_shows_what_was_measured() -> None:
    text = (ROOT / "docs/lrn.md").read_text()
    runs = json.loads((DOCS / "accuracy-cifar10.json").read_text())
    assert accuracy.table(runs["runs"]) in text
    rows = json.loads((DOCS / "latency.json").read_text())
    assert all(latency.line(row) in text for row in rows)
    found = json.loads((DOCS / "claims.json").read_text())
    assert claims.grid("learning rate", claims.RATES, found["rates"]) in text
    assert claims.grid("initial scale", claims.SCALES, found["scales"]) in text


def test_the_pictures_are_drawn_from_the_numbers(tmp_path: Path) -> None:
    figures.heat_maps(json.loads((DOCS / "claims.json").read_text()), tmp_path / "a.png")
    figures.stages(json.loads((DOCS / "accuracy-cifar10.json").read_text()), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 500
