"""Networks of PyTorch for tests: those of transformers, built from configs without weights, and hand-written ones.

Their norms get the statistics that random inputs have there, off by random factors, and gammas of both signs, some of
them zero. Each is listed with how many norms it has and what becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE: dict[str, tuple[int, ...]] = {"pixel_values": (2, 3, 64, 64)}
SERIES: dict[str, tuple[int, ...]] = {"past_values": (2, 64, 4)}
FRAMES: dict[str, tuple[int, ...]] = {"input_features": (2, 64, 80)}
STAGES: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}


@dataclass(frozen=True)
class Entry:
    """What makes a network, the shapes of its inputs, and how many of its norms do not go."""

    make: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    left: int = 0
    only_positive: bool = False


class Flat(nn.Module):
    """A network of transformers with inputs by position and a tuple of tensors as output."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self.network(**dict(zip(self.names, values, strict=True))).to_tuple()
        return tuple(v for v in found if isinstance(v, Tensor))


def of_transformers(name: str, inputs: Mapping[str, tuple[int, ...]] = IMAGE, **config: Any) -> Callable[[], nn.Module]:
    """A factory for a class of transformers."""

    def make() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call, unused-ignore]
        made = getattr(transformers, name)
        network = made(made.config_class(**{"num_labels": 10, **config}))
        for key, parameter in network.named_parameters():
            if "layer_scale" in key:
                nn.init.uniform_(parameter, 0.1, 1.0)
        return Flat(network, list(inputs))

    return make


def cell(inputs: int, out: int, **more: Any) -> nn.Sequential:
    """Conv, norm, Relu."""
    return nn.Sequential(nn.Conv2d(inputs, out, 3, padding=1, bias=False, **more), nn.BatchNorm2d(out), nn.ReLU(True))


class PreActivation(nn.Module):
    """Norm, Relu, Conv, twice, on a stream that every block adds to."""

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * depth))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * depth))
        self.last, self.head, self.act = nn.BatchNorm2d(width), nn.Linear(width, 10), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(0, len(self.norms), 2):
            y = self.convs[i](self.act(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](y)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Every layer reads all before it, concatenated."""

    def __init__(self, growth: int = 8, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        sizes = [16 + growth * i for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.convs = nn.ModuleList(nn.Conv2d(size, growth, 1) for size in sizes)
        self.last = nn.BatchNorm2d(16 + growth * layers)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            parts.append(conv(F.relu(norm(torch.cat(parts, 1)))))
        return F.relu(self.last(torch.cat(parts, 1)))


class RepBlock(nn.Module):
    """RepVGG's block in its training form: 3x3, 1x1 and identity branches, each with a norm."""

    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(inputs, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))
        self.point = nn.Sequential(nn.Conv2d(inputs, out, 1, bias=False), nn.BatchNorm2d(out))
        self.identity = nn.BatchNorm2d(out) if inputs == out else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return self.act(y if self.identity is None else y + self.identity(x))  # type: ignore[no-any-return]


class Inception(nn.Module):
    """Branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three, self.five = cell(3, 8), nn.Sequential(cell(3, 6), cell(6, 8)), cell(3, 8, dilation=1)
        self.pool, self.norm, self.last = cell(3, 8), nn.BatchNorm2d(32), nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.one(x), self.three(x), self.five(x), self.pool(F.max_pool2d(x, 3, 1, 1))]
        return self.last(self.norm(torch.cat(parts, 1)))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Down, up by transposed convs, and across."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cell(3, 8), cell(8, 16), cell(16, 16)
        self.up, self.norm = nn.ConvTranspose2d(16, 16, 2, 2, groups=2, bias=False), nn.BatchNorm2d(16)
        self.up2, self.d, self.out = nn.ConvTranspose2d(32, 8, 2, 2), cell(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.norm(self.up(self.c(F.avg_pool2d(b, 2))))
        y = self.up2(torch.cat([F.relu(c), b], 1))
        return self.out(self.d(torch.cat([y, a], 1)))  # type: ignore[no-any-return]


class Speech(nn.Module):
    """1-D convs over frames, statistics pooling, a norm behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv1d(10, 16, 5), nn.ReLU(), nn.BatchNorm1d(16),
                                   nn.Conv1d(16, 16, 3, dilation=2), nn.ReLU(), nn.BatchNorm1d(16))  # fmt: skip
        self.linear, self.norm, self.head = nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.linear(self.convs(x).mean(2)))))  # type: ignore[no-any-return]


class Volume(nn.Module):
    """3-D."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.PReLU(6), nn.AvgPool3d(2),
                                  nn.Conv3d(6, 4, 1, bias=False), nn.BatchNorm3d(4), nn.LeakyReLU(0.1))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Shuffle(nn.Module):
    """Grouped convs, a channel shuffle by view and transpose, split, pixel shuffle, squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group = cell(3, 16), nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.norm, self.gate, self.up = nn.BatchNorm2d(16), nn.Conv2d(8, 8, 1), nn.PixelShuffle(2)
        self.last = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.group(self.stem(x)))
        n, c, h, w = y.shape
        y = y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = y.chunk(2, 1)
        a = a * torch.sigmoid(self.gate(a.mean((2, 3), keepdim=True)))
        return self.last(self.up(F.relu(a) + F.hardswish(b)))  # type: ignore[no-any-return]


def crepe() -> nn.Module:
    """The pitch tracker CREPE, tiny: norms behind Relu, before padded convs."""
    channels = [1, 128, 16, 16, 16, 32, 64]

    class Crepe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, (a, b) in enumerate(pairwise(channels), 1):
                kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
                setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, stride))
                setattr(self, f"conv{i}_BN", nn.BatchNorm2d(b, eps=0.0010000000474974513))
            self.classifier = nn.Linear(256, 360)

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None, :, None]
            for i in range(1, 7):
                x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
                x = F.relu(getattr(self, f"conv{i}")(x))
                x = F.max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1), (2, 1))
            return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))

    return Crepe()


ZOO: dict[str, Entry] = {
    "resnet": Entry(of_transformers("ResNetForImageClassification", **STAGES), IMAGE),
    "regnet": Entry(of_transformers("RegNetForImageClassification", embedding_size=16, hidden_sizes=[16, 32, 48, 64],
                                    depths=[1, 2, 1, 1], groups_width=8), IMAGE),
    "mobilenet_v1": Entry(of_transformers("MobileNetV1ForImageClassification", depth_multiplier=0.25), IMAGE),
    "mobilenet_v2": Entry(of_transformers("MobileNetV2ForImageClassification", depth_multiplier=0.35), IMAGE),
    "efficientnet": Entry(of_transformers("EfficientNetForImageClassification", width_coefficient=0.35,
                                          depth_coefficient=0.35, hidden_dim=448, image_size=64), IMAGE),
    "levit": Entry(of_transformers("LevitForImageClassification", {"pixel_values": (2, 3, 64, 64)}, image_size=64,
                                   hidden_sizes=[32, 48, 64], depths=[1, 1, 1], key_dim=[8, 8, 8],
                                   num_attention_heads=[2, 3, 4]), IMAGE),
    "cvt": Entry(of_transformers("CvtForImageClassification", embed_dim=[16, 48, 96], depth=[1, 2, 3]), IMAGE),
    "mobilevit": Entry(of_transformers("MobileViTForImageClassification", image_size=64), IMAGE),
    "swiftformer": Entry(of_transformers("SwiftFormerForImageClassification", image_size=64), IMAGE),
    "convnext_upernet": Entry(of_transformers(
        "UperNetForSemanticSegmentation", hidden_size=16, use_auxiliary_head=False,
        backbone_config={"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
                         "out_features": ["stage1", "stage2", "stage3", "stage4"]}), IMAGE),
    "segformer": Entry(of_transformers("SegformerForSemanticSegmentation"), IMAGE),
    "detr": Entry(of_transformers(
        "DetrForObjectDetection", use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config={"model_type": "resnet", "out_features": ["stage4"], **STAGES}, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        num_queries=5), IMAGE),
    "patchtst": Entry(of_transformers("PatchTSTForPrediction", SERIES, num_input_channels=4, context_length=64,
                                      num_hidden_layers=2, d_model=32, ffn_dim=32), SERIES),
    "patchtsmixer": Entry(of_transformers(
        "PatchTSMixerForPrediction", SERIES, num_input_channels=4, context_length=64, patch_length=8, patch_stride=8,
        d_model=8, num_layers=2, norm_mlp="BatchNorm", prediction_length=8), SERIES, left=2),
    "parakeet": Entry(of_transformers(
        "ParakeetEncoder", FRAMES, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        subsampling_conv_channels=8), FRAMES),
    "preactivation": Entry(PreActivation, {"x": (2, 3, 16, 16)}, only_positive=True),
    "dense": Entry(Dense, {"x": (2, 3, 16, 16)}, left=4),
    "repvgg": Entry(lambda: nn.Sequential(RepBlock(3, 8), RepBlock(8, 8), RepBlock(8, 16), RepBlock(16, 16)),
                    {"x": (2, 3, 16, 16)}),
    "inception": Entry(Inception, {"x": (2, 3, 16, 16)}),
    "unet": Entry(UNet, {"x": (2, 3, 16, 16)}),
    "speech": Entry(Speech, {"x": (2, 10, 40)}),
    "volume": Entry(Volume, {"x": (2, 2, 8, 8, 8)}),
    "shuffle": Entry(Shuffle, {"x": (2, 3, 8, 8)}, left=1),
    "crepe": Entry(crepe, {"x": (2, 1024)}, left=6),
}  # fmt: skip


def draw(norm: Any, args: tuple[Tensor, ...], positive: bool) -> None:
    """Statistics from the tensor that comes in, off by random factors; random gamma and beta."""
    dims = [d for d in range(args[0].dim()) if d != 1]
    seen = args[0].var(dims, unbiased=False) + 1e-3
    norm.running_mean.copy_(args[0].mean(dims) + 0.3 * seen.sqrt() * torch.randn_like(norm.running_mean))
    norm.running_var.copy_(seen * torch.exp(2 * torch.rand_like(norm.running_var) - 1))
    gamma, chance = 0.5 + torch.rand_like(norm.running_mean), torch.rand_like(norm.running_mean)
    if not positive:
        gamma[chance < 0.2] *= -1
        gamma[chance > 0.95] = 0
    norm.weight.copy_(gamma)
    norm.bias.copy_(0.3 * torch.randn_like(norm.running_mean))


def made(entry: Entry) -> tuple[nn.Module, tuple[Tensor, ...], int]:
    """A network with norms that are not trivial, inputs, and how many norms run."""
    torch.manual_seed(0)
    module = entry.make().eval()
    inputs = tuple(torch.randn(shape) for shape in entry.inputs.values())
    norms = [m for m in module.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    ran: list[nn.Module] = []

    def on_call(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        ran.append(norm)
        draw(norm, args, entry.only_positive)

    handles = [m.register_forward_pre_hook(on_call) for m in norms]
    with torch.no_grad():
        module(*(torch.cat([x, torch.randn_like(x), 2 * torch.randn_like(x) + 1]) for x in inputs))
    for handle in handles:
        handle.remove()
    return module, inputs, len(ran)
