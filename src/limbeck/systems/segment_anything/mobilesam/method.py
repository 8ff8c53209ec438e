"""MobileSAM: exchange the heavy part of a frozen pipeline for a small one that was taught its output alone.

SAM is a heavy image encoder E_T and a light decoder D for prompts p. Training a small E_S by the masks that come out
of D(E_S(x), p) is slow: every step passes through the decoder, and if D learns too, both chase each other. But what D
reads is known, so

    decoupled      L = mean (E_S(x) - E_T(x))^2                     no prompt, no mask, no decoder; E_T(x) is stored once
    semi-coupled   L = L_mask(D(E_S(x), p), D(E_T(x), p))           D frozen
    coupled        the same, and D learns too
    supervised     L = L_mask(D(E_S(x), p), truth)                  D frozen, and true masks are needed
    with L_mask = 20 focal + Dice + (guessed IoU - IoU)^2

and afterwards E_S stands where E_T stood; D and its prompts work as before. Decoupled is the method, the others are
what it is compared with. "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications", 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.engine import Distiller, OptimizerSettings
from limbeck.errors import UserError
from limbeck.models.segment_anything import SegmentAnything
from limbeck.objectives import Cosine, FeatureMSE, Needs, Objective, PromptedMasks
from limbeck.objectives.base import row_options
from limbeck.objectives.features import images_of
from limbeck.signals import Batch, Signals, dense
from limbeck.sources import Continued, Live, Source
from limbeck.taps import swap

DISTANCES = ("mse", "root", "cosine")
#: Names of the pipeline's parts; all but the encoder stay as they are.
ENCODER, DECODER = "image_encoder", "mask_decoder"


def embed(encoder: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run an encoder on a batch's images, whatever else the batch holds (prompts)."""
    return {"embedding": encoder(images_of(batch))}
