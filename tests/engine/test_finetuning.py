from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.engine import OptimizerSettings
from limbeck.engine.finetuning import FineTuning, layer_rates
from limbeck.errors import UserError
from limbeck.models.vit import ViT, ViTClassifier
from limbeck.objectives import KL, CrossEntropy

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(60) % 3
IMAGES = torch.randn(60, 1, 8, 8, generator=GENERATOR) + 2.0 * (LABELS - 1).view(-1, 1, 1, 1)


class Samples:
    input, target, id = IMAGES, LABELS, torch.arange(60)


def classifier(seed: int = 0) -> ViTClassifier:
    torch.manual_seed(seed)
    return ViTClassifier(ViT(8, 4, width=8, depth=3, heads=2), classes=3)


def test_rates_fall_with_the_distance_from_the_head() -> None:
    model = classifier()
    rates = dict(layer_rates(model, 0.5, prefix="student."))
    assert rates["student.encoder.blocks.2.*"] == 0.5
    assert rates["student.encoder.blocks.0.*"] == 0.125
    for name in ("class_token", "embedding.weight", "embedding.bias"):
        assert rates[f"student.encoder.{name}"] == 0.0625
    assert not any("norm.weight" in name or "head" in name for name in rates)
    optimizer, _ = OptimizerSettings(lr=8.0, rates=layer_rates(model, 0.5)).build(model.named_parameters(), 10)
    found = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert found[id(model.encoder.class_token)] == 0.5
    assert found[id(model.encoder.blocks[1].up.weight)] == 2.0
    assert found[id(model.encoder.norm.weight)] == found[id(model.head.bias)] == 8.0
    assert len(found) == len(list(model.parameters()))
    with pytest.raises(UserError, match="layer_decay"):
        layer_rates(model, 0.0)


def test_rates_of_a_transformers_network() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes))
    rates = dict(layer_rates(model, 0.5))
    assert rates["vit.embeddings.cls_token"] == 0.125
    assert sorted(set(rates.values())) == [0.125, 0.25, 0.5]
    assert not any("classifier" in name or "vit.layernorm" in name for name in rates)


def test_it_learns_and_comes_back_in_eval_mode() -> None:
    model = classifier()
    recipe = FineTuning(12, 20, OptimizerSettings(lr=3e-3), layer_decay=0.75)
    history = recipe(model, Samples(), seed=0, accelerator="cpu")
    assert history.steps == 36
    assert not model.training
    with torch.no_grad():
        assert float((model(IMAGES).argmax(1) == LABELS).float().mean()) > 0.9


def test_lower_layers_move_less() -> None:
    moved = {}
    for decay in (1.0, 0.1):
        model, before = classifier(), classifier()
        FineTuning(1, 20, OptimizerSettings(lr=1e-2, weight_decay=0.0), layer_decay=decay)(
            model, Samples(), accelerator="cpu"
        )
        moved[decay] = [
            float((a.up.weight - b.up.weight).detach().abs().mean())
            for a, b in zip(model.encoder.blocks, before.encoder.blocks)
        ]
    assert moved[0.1][0] < 0.05 * moved[1.0][0]
    assert moved[0.1][0] < moved[0.1][1] < moved[0.1][2]


def test_a_teacher_can_take_part_and_a_seed_is_a_run() -> None:
    ends = []
    for seed in (0, 0, 1):
        model = classifier()
        objective = 0.5 * CrossEntropy() + 0.5 * KL(2.0)
        FineTuning(1, 20)(model, Samples(), objective=objective, teacher=classifier(9), seed=seed, accelerator="cpu")
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
