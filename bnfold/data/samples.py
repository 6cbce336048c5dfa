"""Real data for calibration, training and verification: arrays in .npz and .npy files, and folders of images."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError

Array = npt.NDArray[Any]
LABELS = ("y", "label", "labels", "target", "targets")
"""Names under which an .npz file may hold the class of each sample."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


class Rows(Protocol):
    """Samples along axis 0, read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Array: ...


@dataclass(frozen=True)
class Pixels:
    """How images become an input: `(pixel / 255 - mean) / std` per channel, resized to `size`, in `layout`.

    `size`: (height, width), None to keep that of the files, which must then agree. `channels`: 1 (grey) or 3 (RGB).
    `layout`: "NCHW" or "NHWC". `mean`, `std`: one number, or one for each channel.
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    layout: str = "NCHW"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        if any(len(values) not in (1, self.channels) for values in (self.mean, self.std)) or 0 in self.std:
            raise UsageError(
                f"mean {self.mean}, std {self.std}: one number or one for each of {self.channels} channels expected, "
                "and no std of 0"
            )


@dataclass(frozen=True)
class Samples:
    """Samples of a network's inputs by name (the only one may be called ""), and their classes where they are known.

    `same`: inputs without an axis of samples, which are the same for all of them.
    """

    inputs: Mapping[str, Rows]
    labels: Array | None = None
    classes: tuple[str, ...] = field(default=())
    source: str = "data"
    same: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return next((len(values) for name, values in self.inputs.items() if name not in self.same), 1)

    def rows(self, rows: Any) -> dict[str, Array]:
        """The inputs of some samples: a slice, or their numbers."""
        return {name: np.asarray(values if name in self.same else values[rows]) for name, values in self.inputs.items()}

    def batches(self, size: int, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """The first `limit` samples, all by default, `size` at a time; the last batch may be smaller."""
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, size):
            yield self.rows(slice(start, min(start + size, count)))


class ImageFiles:
    """Images, each read when it is asked for."""

    def __init__(self, paths: Sequence[Path], pixels: Pixels) -> None:
        self.paths, self.pixels = paths, pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> Array:
        chosen = self.paths[rows] if isinstance(rows, slice) else [self.paths[int(i)] for i in np.atleast_1d(rows)]
        images = [self._read(path) for path in chosen]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise DataError(f"{chosen[0].parent}: images of different sizes; a size to bring them to is needed")
        return np.stack(images)

    def _read(self, path: Path) -> Array:
        from PIL import Image, UnidentifiedImageError

        want = self.pixels
        try:
            with Image.open(path) as file:
                image = _eight_bits(file, path).convert("L" if want.channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path}: no image that can be read ({error})") from error
        if want.size is not None and image.size != (want.size[1], want.size[0]):
            image = image.resize((want.size[1], want.size[0]), Image.Resampling.BILINEAR)
        values = np.asarray(image).reshape(image.size[1], image.size[0], -1)
        if np.dtype(want.dtype).kind in "iu":
            scaled: Array = values
        else:
            scaled = (values / 255.0 - np.asarray(want.mean)) / np.asarray(want.std)
        moved = scaled if want.layout == "NHWC" else np.moveaxis(scaled, -1, 0)
        return np.asarray(moved.astype(want.dtype), order="C")


def _eight_bits(image: Any, path: Path) -> Any:
    """An image of 16 bits a pixel in 8, which Pillow would cut off at 255 instead; others as they are."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path}: pixels of another kind than 8 or 16 bits; convert it, or use an .npz file")
    return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))


def open_data(
    source: Any, names: Sequence[str] = (), pixels: Pixels | None = None, labels: bool = False,
    inputs: Collection[str] = (), fixed: Mapping[str, tuple[int, ...]] | None = None,
) -> Samples:  # fmt: skip
    """Samples from what a user has.

    `source`: a path (.npz, .npy, a folder of images, a folder with one folder of images for each class), an array, a
    mapping of names to arrays, or `Samples`. `names`: those of the network's inputs; arrays in a file go by them, and
    the only array goes to the only input. `pixels`: what images become. `labels`: classes are wanted. `inputs`: names
    that are never those of classes, whatever they are called. `fixed`: shapes of inputs that have no dynamic size: an
    array of exactly that shape is the same for all samples where the other arrays say that there are more, or fewer.

    UsageError for a source of another kind; DataError where there is nothing in it, where arrays have different
    lengths or hold NaN or infinities, where an input or the wanted classes are missing.
    """
    if isinstance(source, Samples):
        samples = source
    elif isinstance(source, str | PathLike):
        samples = _from_path(Path(fspath(source)), names, pixels or Pixels(), inputs)
    elif isinstance(source, Mapping):
        samples = _from_arrays({str(k): np.asarray(v) for k, v in source.items()}, names, "data", inputs)
    elif isinstance(source, np.ndarray):
        samples = _from_arrays({"": source}, names, "data")
    else:
        raise UsageError(
            f"data: a path, an array or a mapping of names to arrays expected, {type(source).__name__} found"
        )
    shapes = dict(fixed or {})
    same = _same(samples.inputs, shapes)
    return _checked(replace(samples, same=same) if same else samples, labels, shapes)


def _same(inputs: Mapping[str, Rows], fixed: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Inputs without an axis of samples: single numbers, and arrays in the shape of their input of another length."""
    shapes = {name: values.shape for name, values in inputs.items() if isinstance(values, np.ndarray)}
    whole = {name for name, shape in shapes.items() if name in fixed and shape == fixed[name]}
    numbers = {name for name in whole if not fixed[name]}
    counts = {len(values) for name, values in inputs.items() if name not in whole and shapes.get(name, (0,))}
    rest = {name: fixed[name][0] for name in whole - numbers}
    if not counts and len(set(rest.values())) > 1:  # one call of the network
        return frozenset(whole)
    return frozenset(numbers | {name for name, length in rest.items() if counts and length not in counts})


def _from_path(path: Path, names: Sequence[str], pixels: Pixels, inputs: Collection[str]) -> Samples:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return _from_folder(path, pixels, names)
    try:
        if path.suffix == ".npy":
            return _from_arrays({"": np.load(path, mmap_mode="r", allow_pickle=False)}, names, str(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return _from_arrays({name: file[name] for name in file.files}, names, str(path), inputs)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no arrays that can be read ({error})") from error
    raise UsageError(f"{path}: .npz, .npy or a folder of images expected")


def _from_arrays(
    arrays: dict[str, Array], names: Sequence[str], source: str, inputs: Collection[str] = ()
) -> Samples:  # fmt: skip
    labels = next((arrays.pop(n) for n in LABELS if n in arrays and n not in names and n not in inputs), None)
    if names:  # settings that lie beside the samples
        arrays = {name: value for name, value in arrays.items() if value.ndim or name in names}
    if not arrays:
        raise DataError(f"{source}: no arrays in it")
    if names and not set(names) <= set(arrays):
        if len(names) > 1 or len(arrays) > 1:
            missing = next(name for name in names if name not in arrays)
            raise DataError(f"{source}: no array for input {missing!r}; found: {', '.join(sorted(arrays))}")
        arrays = {names[0]: next(iter(arrays.values()))}
    inputs = {name: arrays[name] for name in names} if names else arrays
    return Samples(inputs, labels, source=source)


def _from_folder(folder: Path, pixels: Pixels, names: Sequence[str]) -> Samples:
    if len(names) > 1:
        raise DataError(f"{folder}: images are one input, the network has {len(names)}; use an .npz file")
    name = names[0] if names else ""
    own = _images(folder)
    if own:
        return Samples({name: ImageFiles(own, pixels)}, source=str(folder))
    classes = [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and not inner.name.startswith(".")]
    idle = [inner for inner in classes if not _images(inner)]
    if idle and len(idle) < len(classes):  # left out, it would give the classes behind it other numbers
        raise DataError(f"{idle[0]}: a class without images; put some in, or take the folder away")
    paths = [path for inner in classes for path in _images(inner)]
    labels = np.array([i for i, inner in enumerate(classes) for _ in _images(inner)], np.int64)
    return Samples({name: ImageFiles(paths, pixels)}, labels, tuple(inner.name for inner in classes), str(folder))


def matched(samples: Samples, classes: Sequence[str]) -> Samples:
    """Samples of class folders under the numbers that the classes have in a network's training data.

    DataError where a class is not among those.
    """
    if not samples.classes or not classes or samples.classes == tuple(classes) or samples.labels is None:
        return samples
    present = sorted({samples.classes[int(i)] for i in samples.labels})
    unknown = [name for name in present if name not in classes]
    if unknown:
        raise DataError(f"{samples.source}: class {unknown[0]!r} is none of the training data: {', '.join(classes)}")
    number = np.array([classes.index(name) if name in classes else -1 for name in samples.classes], np.int64)
    return replace(samples, labels=number[samples.labels], classes=tuple(classes))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _checked(samples: Samples, labels: bool, fixed: Mapping[str, tuple[int, ...]]) -> Samples:
    varying = {name: values for name, values in samples.inputs.items() if name not in samples.same}
    if any(np.ndim(values) == 0 for values in varying.values() if isinstance(values, np.ndarray)):
        raise DataError(f"{samples.source}: samples along axis 0 expected, a single number found")
    lengths = {name: len(values) for name, values in varying.items()}
    if not samples.inputs or (lengths and not max(lengths.values())):
        raise DataError(f"{samples.source}: no samples in it")
    if samples.labels is not None:
        lengths["the classes"] = len(samples.labels)
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name or 'input'}: {count}" for name, count in lengths.items())
        own = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'a number'}" for name, shape in fixed.items())
        hint = f"; an input that is the same for all samples is given in its own shape: {own}" if own else ""
        raise DataError(f"{samples.source}: different numbers of samples ({said}){hint}")
    for name, values in samples.inputs.items():
        if isinstance(values, np.ndarray) and values.dtype.kind in "USOMm":
            raise DataError(f"{samples.source}: {name or 'the input'} holds {values.dtype}; numbers expected")
        _finite(samples.source, name, values)
    if labels and samples.labels is None:
        raise DataError(
            f"{samples.source}: no classes in it; an array {LABELS[0]!r} or a folder for each class expected"
        )
    return samples


def _finite(source: str, name: str, values: Rows) -> None:
    """Arrays are read through once, a part at a time; images cannot hold NaN."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return
    values = np.atleast_1d(values)
    for start in range(0, len(values), 256):
        bad = ~np.isfinite(values[start : start + 256])
        if bad.any():
            row = start + int(np.argwhere(bad)[0][0])
            raise DataError(f"{source}: sample {row} of {name or 'the input'} holds NaN or infinity")
