"""DMAE: distil a masked autoencoder into a smaller one while the smaller one is being pre-trained.

Teacher and student are masked autoencoders that see the same few patches of every image, in the same order. With t and
s the tokens of teacher and student behind the block at three quarters of their depth, P a linear map to t's width:

    L = L_rec + L_feat
    L_rec  = sum mask * mean_p (predicted - pixels)^2 / sum mask          the student's own pre-training, hidden patches
    L_feat = mean_{b, l, d} | t / |t| - (P s) / |P s| |                   seen patches and class token, t constant

Only a quarter of the patches passes through either encoder, and the teacher's forward pass ends at the tapped block, so
it costs (share seen) x (share of depth) of a whole one. Afterwards decoder and P are thrown away and the encoder is
fine-tuned as after any pre-training.

"Masked Autoencoders Enable Efficient Knowledge Distillers", CVPR 2023; official code UCSC-VLAA/DMAE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from limbeck import losses
from limbeck.engine import Distiller, OptimizerSettings
from limbeck.errors import UserError
from limbeck.models.masked_autoencoder import mask_ratio_of, patch_grid, set_mask_ratio
from limbeck.nn.depth import block_path
from limbeck.objectives import FeatureObjective, MaskedReconstruction, Objective
from limbeck.objectives.base import LossFunction
from limbeck.signals import Batch, run_network
from limbeck.sources import Live

#: (student, teacher): module paths, or shares of the depth.
Pair = tuple[str | float, str | float]

#: Both at three quarters: blocks 8 of 12 and 17 of 24, counted from 0, for ViT-B and ViT-L.
THREE_QUARTERS: tuple[Pair, ...] = ((0.75, 0.75),)


def run_masked(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run a masked network on ``{"pixel_values", "noise"}``; without the noise each would draw a mask of its own."""
    given = batch["input"]
    if not isinstance(given, Mapping) or "noise" not in given:
        have = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        hint = "limbeck.data.masking.PatchNoise puts it in: teacher and student must see the same patches"
        raise UserError("batch input", have, "pixel_values and noise", hint)
    return run_network(model, batch)


def dmae_objective(
    patch: int,
    pairs: int = 1,
    *,
    distance: LossFunction = losses.normalised_l1,
    projector: str | nn.Module = "auto",
    reconstruction_weight: float = 1.0,
    feature_weight: float = 1.0,
    standardised: bool = False,
    **options: Any,
) -> Objective:
    """L = reconstruction_weight L_rec + feature_weight sum over pairs of L_feat; see :func:`dmae`."""
    parts: list[Objective] = []
    if reconstruction_weight:
        parts.append(reconstruction_weight * MaskedReconstruction(patch, standardised=standardised))
    if feature_weight:
        for place in range(pairs):
            name = f"pair{place}"
            aligned = FeatureObjective(
                distance, name="feature", student=name, teacher=name, projector=projector, **options
            )
            parts.append(feature_weight * aligned)
    if not parts:
        raise UserError("weights", "both zero", "at least one that is not")
    return sum(parts[1:], parts[0])


def dmae(
    student: nn.Module,
    teacher: nn.Module,
    *,
    taps: Sequence[Pair] = THREE_QUARTERS,
    mask_ratio: float | None = None,
    distance: LossFunction = losses.normalised_l1,
    projector: str | nn.Module = "auto",
    reconstruction_weight: float = 1.0,
    feature_weight: float = 1.0,
    standardised: bool = False,
    stop_early: bool = True,
    optimizer: OptimizerSettings | None = None,
    log_gradient_norms: bool = False,
    **options: Any,
) -> Distiller:
    """A distiller for :func:`limbeck.engine.fit`, on batches of :class:`limbeck.data.masking.PatchNoise`.

    Args:
        student, teacher: :class:`~limbeck.models.masked_autoencoder.MaskedAutoencoder` or transformers' ViTMAE models,
            of one patch and image size.
        taps: aligned blocks, one term each, summed.
        mask_ratio: set on both networks; by default they must have the same.
        distance: a loss of :mod:`limbeck.losses.features` with its ``options``. The mean over the channels shrinks with
            the width (about 0.03 for 1,024, 0.11 for 96); ``per_row="sum"`` does not.
        projector: ``auto`` is the linear map of the released configuration where the widths differ.
        reconstruction_weight, feature_weight: 1 and 1 as published.
        standardised: per-patch standardised pixels as the target; off in the published command.
        stop_early: end the teacher's pass at its last tapped block. The released loop runs it whole, decoder included.
    """
    if patch_grid(student) != patch_grid(teacher):
        raise UserError(
            "student's (patch, patches)", patch_grid(student), f"the teacher's, {patch_grid(teacher)}",
            "tokens of other grids do not stand for the same places",
        )  # fmt: skip
    if mask_ratio is not None:
        for model in (student, teacher):
            set_mask_ratio(model, mask_ratio)
    elif mask_ratio_of(student) != mask_ratio_of(teacher):
        raise UserError("mask ratio of the student", mask_ratio_of(student), f"the teacher's, {mask_ratio_of(teacher)}")
    sides = [
        {f"pair{place}": tap_path(model, pair[side]) for place, pair in enumerate(taps)}
        for side, model in enumerate((student, teacher))
    ]
    objective = dmae_objective(
        patch_grid(student)[0], len(taps), distance=distance, projector=projector,
        reconstruction_weight=reconstruction_weight, feature_weight=feature_weight, standardised=standardised,
        **options,
    )  # fmt: skip
    return Distiller(
        student,
        objective,
        Live(teacher, taps=sides[1], forward=run_masked, stop_early=stop_early),
        optimizer=optimizer or OptimizerSettings(lr=2.4e-3, weight_decay=0.05, warmup=0.2, betas=(0.9, 0.95)),
        taps=sides[0],
        forward=run_masked,
        log_gradient_norms=log_gradient_norms,
    )


def tap_path(model: nn.Module, place: str | float) -> str:
    """A module path, as it is or from a share of the depth."""
    return place if isinstance(place, str) else block_path(model, place)
