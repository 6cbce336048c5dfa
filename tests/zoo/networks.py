"""Every network of the zoo under its own name."""

from __future__ import annotations

from .classical import inception_v3, mobilenetv2, mobilenetv3_like, resnet50, shufflenet
from .preact import densenet121, dpn68, preact_resnet18, resnetv2_50, se_preact_resnet18
from .reparam import fastvit, repghostnet, repvgg_a0, repvit
from .varied import convmixer, inception_next, mlp, resnet3d_18, speech_tdnn, super_resolution, unet

__all__ = [
    "convmixer",
    "densenet121",
    "dpn68",
    "fastvit",
    "inception_next",
    "inception_v3",
    "mlp",
    "mobilenetv2",
    "mobilenetv3_like",
    "preact_resnet18",
    "repghostnet",
    "repvgg_a0",
    "repvit",
    "resnet3d_18",
    "resnet50",
    "resnetv2_50",
    "se_preact_resnet18",
    "shufflenet",
    "speech_tdnn",
    "super_resolution",
    "unet",
]
