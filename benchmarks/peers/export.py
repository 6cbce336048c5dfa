"""Architectures of the transformers package as ONNX files that keep their batch norms: python export.py FOLDER NAME...

Started in the peers' own environment. No weights are loaded: a network is built from a config, small where the
published one is large. Its norms get the statistics that random inputs have there, off by random factors, and random
gammas of both signs, some of them zero, so that the signal stays alive and no norm is trivial.

The exporter folds norms behind convolutions by itself where it may optimise. It may not here; only its constants are
folded, as its optimiser does first. `resnet_raw` is the exception: it is the graph that comes out with optimize=False.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IMAGE = {"pixel_values": (3, 64, 64)}
SERIES = {"past_values": (64, 4)}
CALIBRATION = 64  # inputs that the statistics are taken from
LABELS = 16
NEGATIVE, ZERO = 0.2, 0.03  # shares of the gammas
STAGES = {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512]}


@dataclass(frozen=True)
class Network:
    """A class of transformers, the shapes of its inputs without the batch, and what its config changes."""

    model: str
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: IMAGE)
    config: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False


_RESNET = Network("ResNetForImageClassification", config=STAGES)
NETWORKS = {
    "resnet": _RESNET,
    "resnet_raw": Network(_RESNET.model, config=STAGES, raw=True),
    "regnet": Network(
        "RegNetForImageClassification",
        config={"embedding_size": 32, "hidden_sizes": [32, 64, 160, 384], "depths": [2, 3, 5, 2], "groups_width": 16},
    ),
    "mobilenet_v2": Network("MobileNetV2ForImageClassification"),
    "efficientnet": Network(
        "EfficientNetForImageClassification",
        config={"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 64},
    ),
    "levit": Network(
        "LevitForImageClassificationWithTeacher", {"pixel_values": (3, 128, 128)}, config={"image_size": 128}
    ),
    "cvt": Network("CvtForImageClassification", config={"embed_dim": [32, 96, 192], "depth": [1, 2, 4]}),
    "mobilevit": Network("MobileViTForImageClassification", config={"image_size": 64}),
    "swiftformer": Network("SwiftFormerForImageClassification", config={"image_size": 64}),
    "hgnet_v2": Network(
        "HGNetV2ForImageClassification",
        config={
            "stage_in_channels": [48, 64, 128, 256],
            "stage_mid_channels": [24, 48, 96, 192],
            "stage_out_channels": [64, 128, 256, 512],
            "hidden_sizes": [64, 128, 256, 512],
        },
    ),
    "textnet": Network(
        "TextNetForImageClassification", config={"stem_out_channels": 32, "hidden_sizes": [32, 32, 64, 128, 256]}
    ),
    "segformer": Network("SegformerForSemanticSegmentation"),
    "upernet_convnext": Network(
        "UperNetForSemanticSegmentation",
        config={
            "hidden_size": 64,
            "backbone_config": {
                "model_type": "convnext",
                "hidden_sizes": [48, 96, 192, 384],
                "depths": [2, 2, 4, 2],
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "use_auxiliary_head": False,
        },
    ),
    "dpt": Network(
        "DPTForDepthEstimation",
        config={
            "image_size": 64,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "use_batch_norm_in_fusion_residual": True,
            "neck_hidden_sizes": [24, 48, 96, 192],
            "fusion_hidden_size": 64,
        },
    ),
    "align": Network(
        "AlignModel",
        {"input_ids": (16,), "pixel_values": (3, 64, 64)},
        config={
            "text_config": {
                "vocab_size": 64,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 128,
            },
            "vision_config": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 160, "image_size": 64},
            "projection_dim": 160,
        },
    ),
    "wav2vec2_conformer": Network(
        "Wav2Vec2ConformerModel",
        {"input_values": (4000,)},
        config={"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128},
    ),
    "patchtst": Network("PatchTSTForPrediction", SERIES, {"num_input_channels": 4, "context_length": 64}),
    "patchtsmixer": Network(
        "PatchTSMixerForPrediction",
        SERIES,
        {"num_input_channels": 4, "context_length": 64, "norm_mlp": "BatchNorm"},
    ),
}


def build(network: Network) -> torch.nn.Module:
    """The network with random weights; scales of layers that start at almost zero are raised, as training does."""
    import torch
    import transformers  # type: ignore[import-not-found, unused-ignore]

    torch.manual_seed(0)
    model_class = getattr(transformers, network.model)
    model: torch.nn.Module = model_class(model_class.config_class(num_labels=LABELS, **network.config)).eval()
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            torch.nn.init.uniform_(parameter, 0.1, 1.0)
    return model


def inputs(network: Network, batch: int) -> dict[str, torch.Tensor]:
    """Random integers for ids, else noise around random means: the mean of mere noise is the same in every input."""
    return {name: _values(name, (batch, *shape)) for name, shape in network.inputs.items()}


def _values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    if name.endswith("_ids"):
        return torch.randint(64, shape)
    return torch.randn(shape) + torch.randn(*shape[:2], *[1] * (len(shape) - 2))


def draw(norm: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    """Statistics from the tensor that comes in, off by random factors; random gamma and beta."""
    import torch

    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    dims = [d for d in range(args[0].dim()) if d != 1]
    seen = args[0].var(dims, unbiased=False) + 1e-3
    mean.copy_(args[0].mean(dims) + 0.3 * seen.sqrt() * torch.randn_like(mean))
    var.copy_(seen * torch.exp(2 * torch.rand_like(var) - 1))
    if norm.affine:
        gamma, chance = 0.5 + torch.rand_like(mean), torch.rand_like(mean)
        gamma[chance < NEGATIVE] *= -1
        gamma[chance > 1 - ZERO] = 0
        norm.get_parameter("weight").copy_(gamma)
        norm.get_parameter("bias").copy_(0.3 * torch.randn_like(mean))


@contextmanager
def on_norms(model: torch.nn.Module, hook: Any) -> Iterator[None]:
    """Call the hook before every batch norm that runs."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    handles = [m.register_forward_pre_hook(hook) for m in norms]
    yield
    for handle in handles:
        handle.remove()


def wrapped(model: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """The same network with inputs by position and a flat tuple of tensors as output."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.network(**dict(zip(names, values, strict=True))).to_tuple()
            return tuple(v for v in found if isinstance(v, torch.Tensor))

    return Flat().eval()


def export(network: Network, path: Path) -> None:
    """Write the file, unless it would hold another number of norms than run."""
    import torch
    from onnxscript import optimizer

    model, ran = build(network), list[torch.nn.Module]()
    example = inputs(network, 1)
    with torch.no_grad():
        with on_norms(model, draw):
            model(**inputs(network, CALIBRATION))
        with on_norms(model, lambda norm, _: ran.append(norm)):
            model(**example)
        flat, names = wrapped(model, list(example)), list(example)
        values = tuple(example.values())
        program = torch.onnx.export(flat, values, input_names=names, dynamo=True, optimize=False, verbose=False)
    assert program is not None
    if not network.raw:
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    kept = sum(node.op_type == "BatchNormalization" for node in program.model.graph)
    if kept != len(ran):
        raise ValueError(f"{len(ran)} batch norms ran and {kept} were exported")
    program.save(path)


def main(folder: Path, names: list[str]) -> None:
    """Export the named networks; one that fails leaves no file, and the others are exported all the same."""
    import transformers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call, unused-ignore]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            export(NETWORKS[name], folder / f"transformers_{name}.onnx")
        except Exception as problem:
            print(f"{name} is not exported: {type(problem).__name__}: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
