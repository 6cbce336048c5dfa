"""Data of users: arrays, files of arrays, folders of images; and what is said of those that will not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bnfold.data.samples import Pixels, Samples, matched, open_data
from bnfold.errors import BnfoldError, DataError, UsageError

X = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)
Y = np.array([0, 1, 2, 0, 1, 2])


def picture(path: Path, value: int = 100, size: tuple[int, int] = (4, 6), mode: str = "RGB") -> None:
    """An image of one colour; `size`: (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, 0, 255) if mode == "RGB" else value).save(path)


def said(source: object, kind: type[BnfoldError] = DataError, **given: object) -> str:
    with pytest.raises(kind) as caught:
        open_data(source, **given)  # type: ignore[arg-type]
    return str(caught.value)


def test_an_array_and_a_mapping() -> None:
    assert np.array_equal(open_data(X).rows(slice(0, 2))[""], X[:2])
    samples = open_data({"x": X, "y": Y})
    assert list(samples.inputs) == ["x"]
    assert samples.labels is not None
    assert np.array_equal(samples.labels, Y)
    assert len(samples) == 6
    assert open_data(samples) is samples


def test_batches_cover_all_samples_once() -> None:
    samples = open_data(X)
    assert [len(batch[""]) for batch in samples.batches(4)] == [4, 2]
    assert np.array_equal(np.concatenate([batch[""] for batch in samples.batches(4)]), X)
    assert [len(batch[""]) for batch in samples.batches(4, limit=5)] == [4, 1]
    assert np.array_equal(samples.rows(np.array([5, 0]))[""], X[[5, 0]])


@pytest.mark.parametrize("name", ["y", "label", "labels", "target", "targets"])
def test_an_npz_file_with_classes(tmp_path: Path, name: str) -> None:
    arrays: dict[str, Any] = {"images": X, name: Y}
    np.savez(tmp_path / "d.npz", **arrays)
    samples = open_data(tmp_path / "d.npz", labels=True)
    assert samples.labels is not None
    assert np.array_equal(samples.labels, Y)
    assert list(samples.inputs) == ["images"]
    assert samples.source.endswith("d.npz")


def test_an_npy_file_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    samples = open_data(str(tmp_path / "d.npy"))
    assert isinstance(samples.inputs[""], np.memmap)
    assert np.array_equal(samples.rows(slice(None))[""], X)


def test_arrays_go_by_the_names_of_the_inputs() -> None:
    assert list(open_data({"whatever": X}, ["image"]).inputs) == ["image"]
    samples = open_data({"b": X, "a": X + 1, "more": X}, ["a", "b"])
    assert list(samples.inputs) == ["a", "b"]
    assert np.array_equal(samples.rows(slice(None))["a"], X + 1)


def test_an_input_may_be_called_y() -> None:
    samples = open_data({"y": X}, ["y"])
    assert list(samples.inputs) == ["y"]
    assert samples.labels is None


def test_a_folder_of_images(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", 200)
    picture(tmp_path / "a.jpg", 0)
    (tmp_path / "readme.txt").write_text("no image")
    samples = open_data(tmp_path, ["image"])
    values = samples.rows(slice(None))["image"]
    assert values.shape == (2, 3, 6, 4)
    assert values.dtype == np.float32
    assert values[1, 0, 0, 0] == np.float32(200 / 255)  # sorted by name, the red of the second
    assert samples.labels is None


def test_a_class_without_images_is_an_error(tmp_path: Path) -> None:
    """Left out, it would give the classes behind it other numbers."""
    for name in ("a", "c"):
        picture(tmp_path / name / "1.png", 10)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"b: a class without images"):
        open_data(tmp_path, labels=True)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    for name in ("b", "c"):
        picture(tmp_path / name / "1.png", 10)
    samples = open_data(tmp_path, labels=True)
    found = matched(samples, ("a", "b", "c"))
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2]
    assert matched(samples, ("b", "c")) is samples
    with pytest.raises(DataError, match="class 'c' is none of the training data: a, b"):
        matched(samples, ("a", "b"))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name, value in (("dog", 10), ("cat", 20), ("cat", 30)):
        picture(tmp_path / name / f"{value}.png", value)
    (tmp_path / ".cache").mkdir()
    samples = open_data(tmp_path, labels=True)
    assert samples.classes == ("cat", "dog")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 0, 1]
    assert np.allclose(samples.rows(np.array([2]))[""][0, 0], 10 / 255)


def test_what_pixels_become(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 51)
    whole = Pixels((3, 2), mean=(0.1, 0.0, 1.0), std=(0.1, 1.0, 2.0))
    values = open_data(tmp_path, pixels=whole).rows(slice(None))[""]
    assert values.shape == (1, 3, 3, 2)
    assert np.allclose(values[0, :, 0, 0], [1.0, 0.0, 0.0], atol=1e-6)
    last = open_data(tmp_path, pixels=Pixels(layout="NHWC")).rows(slice(None))[""]
    assert last.shape == (1, 6, 4, 3)
    grey = open_data(tmp_path, pixels=Pixels(channels=1)).rows(slice(None))[""]
    assert grey.shape == (1, 1, 6, 4)
    bytes_ = open_data(tmp_path, pixels=Pixels(dtype=np.uint8)).rows(slice(None))[""]
    assert bytes_.dtype == np.uint8
    assert bytes_[0, :, 0, 0].tolist() == [51, 0, 255]


def test_sixteen_bits_become_eight_and_other_numbers_are_refused(tmp_path: Path) -> None:
    values = np.array([[0, 257, 25700], [65535, 128, 129]])
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    grey = open_data(tmp_path, pixels=Pixels(channels=1, dtype=np.uint8)).rows(slice(None))[""]
    assert grey[0, 0].tolist() == [[0, 1, 100], [255, 0, 1]]
    assert open_data(tmp_path).rows(slice(None))[""].shape == (1, 3, 2, 3)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="of another kind than 8 or 16 bits"):
        open_data(tmp_path).rows(slice(None))


def test_no_such_file_and_no_such_kind(tmp_path: Path) -> None:
    assert "no such file or folder" in said(tmp_path / "none.npz")
    (tmp_path / "d.csv").write_text("1,2")
    assert ".npz, .npy or a folder of images expected" in said(tmp_path / "d.csv", UsageError)
    assert "int found" in said(3, UsageError)
    assert "no samples" in said(tmp_path / ".." / tmp_path.name)


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    for content in (b"", b"not arrays", b"PK\x03\x04 cut off"):
        (tmp_path / name).write_bytes(content)
        assert "no arrays that can be read" in said(tmp_path / name)


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_pickled_arrays_are_not_read(tmp_path: Path, name: str) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    (np.savez if name == "d.npz" else np.save)(tmp_path / name, objects)
    assert "no arrays that can be read" in said(tmp_path / name)


def test_an_image_that_is_none(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    samples = open_data(tmp_path)
    with pytest.raises(DataError, match=r"b\.png: no image that can be read"):
        samples.rows(slice(None))


def test_images_of_different_sizes_need_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(5, 5))
    with pytest.raises(DataError, match="different sizes"):
        open_data(tmp_path).rows(slice(None))
    assert open_data(tmp_path, pixels=Pixels((5, 5))).rows(slice(None))[""].shape == (2, 3, 5, 5)


def test_arrays_that_do_not_fit_together() -> None:
    assert "no arrays in it" in said({"y": Y})
    assert "different numbers of samples (x: 6, the classes: 5)" in said({"x": X, "y": Y[:5]})
    assert "different numbers of samples (a: 6, b: 5)" in said({"a": X, "b": X[:5]})
    assert "no array for input 'image'; found: a, b" in said({"a": X, "b": X}, names=["image"])
    assert "no array for input 'mask'" in said({"image": X}, names=["image", "mask"])
    assert "no samples" in said(X[:0])
    assert "a single number found" in said(np.array(3.0))
    assert "no classes in it" in said({"x": X}, labels=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(bad: float) -> None:
    spoiled = np.tile(X, (60, 1, 1, 1))
    spoiled[301, 0, 1, 1] = bad
    assert "sample 301 of image holds NaN or infinity" in said({"image": spoiled})


def test_images_cannot_feed_two_inputs(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert "images are one input, the network has 2" in said(tmp_path, names=["a", "b"])


def test_samples_are_checked_too() -> None:
    assert "different numbers" in said(Samples({"a": X, "b": X[:2]}))
