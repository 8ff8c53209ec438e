"""What mathematics decides about the method, as deviations that are zero if the implementation is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from limbeck.measure import token_layers
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.vit import ViT
from limbeck.objectives import MaskedReconstruction

from .method import dmae

KEY = "feature"


def pair() -> tuple[MaskedAutoencoder, MaskedAutoencoder]:
    """A small untrained student and teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = MaskedAutoencoder(ViT(16, 4, width=16, depth=4, heads=2), width=8, heads=2)
        return student, MaskedAutoencoder(ViT(16, 4, width=24, depth=8, heads=2), width=8, heads=2)


def masked_batch(count: int = 6, size: int = 16, patches: int = 16, seed: int = 0) -> dict[str, Any]:
    """Random images and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, size, size, generator=generator)
    noise = torch.rand(count, patches, generator=generator)
    return {"input": {"pixel_values": images, "noise": noise}, "id": torch.arange(count)}


def feature_loss(teacher: nn.Module, *, stop_early: bool = True) -> float:
    """L_feat of the small student, with a projector that is the same for every call."""
    batch = masked_batch()
    distiller = dmae(pair()[0], teacher, stop_early=stop_early)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        distiller.build(batch)
    with torch.no_grad():
        terms = distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch)
    return float(terms[KEY])


def partial_against_whole() -> float:
    """Difference of the loss when the teacher stops at its tap and when it runs whole."""
    return abs(feature_loss(pair()[1]) - feature_loss(pair()[1], stop_early=False))


def teacher_cost() -> float:
    """Difference of the teacher's tokens x blocks from (tokens seen) x (blocks up to the tap)."""
    student, teacher = pair()
    distiller, batch = dmae(student, teacher), masked_batch()
    spent = token_layers(lambda: distiller.teacher_signals(batch), teacher, layers="encoder.blocks.*")
    return abs(spent - 6 * (1 + 4) * 6.0)


def seen_patches_do_not_count() -> float:
    """Change of L_rec when the predictions for seen patches change."""
    batch, objective = masked_batch(), MaskedReconstruction(4)
    with torch.no_grad():
        answer = pair()[0](**batch["input"])
        changed = {**answer, "logits": answer["logits"] + 100 * (1 - answer["mask"])[..., None]}
        return abs(
            float(objective(answer, {}, batch)["reconstruction"] - objective(changed, {}, batch)["reconstruction"])
        )


def length_does_not_count() -> float:
    """Change of L_feat when the teacher's tapped features are ten times as long."""
    teacher = pair()[1]
    before = feature_loss(teacher)
    handle = teacher.encoder.blocks[5].register_forward_hook(lambda module, given, output: 10 * output)
    after = feature_loss(teacher)
    handle.remove()
    return abs(before - after)
