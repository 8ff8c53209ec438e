from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.data.loaders import TensorLoader
from limbeck.data.masking import PatchNoise
from limbeck.engine import Distiller, fit
from limbeck.errors import UserError
from limbeck.measure import count_flops, token_layers
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.vit import ViT, ViTClassifier
from limbeck.nn.patches import masking, patchify
from limbeck.systems.vision.dmae import identities
from limbeck.systems.vision.dmae.experiment import EXPERIMENTS
from limbeck.systems.vision.dmae.method import dmae, dmae_objective


def terms(distiller: Distiller, batch: dict[str, Any]) -> dict[str, Tensor]:
    return distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch)


def built(batch: dict[str, Any], **options: Any) -> Distiller:
    student, teacher = identities.pair()
    distiller = dmae(student, teacher, **options)
    torch.manual_seed(1)
    return distiller.build(batch)


# The loss.


def test_the_loss_is_that_of_the_paper() -> None:
    batch = identities.masked_batch()
    distiller, (student, teacher) = built(batch), identities.pair()
    images, noise = batch["input"]["pixel_values"], batch["input"]["noise"]
    chosen = masking(noise, 0.75)

    def tokens(model: MaskedAutoencoder, blocks: int) -> Tensor:
        """Class token and seen patches behind the first ``blocks`` blocks, before the last norm."""
        encoder = model.encoder
        rows = torch.arange(len(images))[:, None]
        seen = (encoder.embedding(patchify(images, 4)) + encoder.positions)[rows, chosen.keep]
        tokens = torch.cat([encoder.class_token.expand(len(images), 1, -1), seen], 1)
        for block in encoder.blocks[:blocks]:
            tokens = block(tokens)
        return tokens

    projector: Any = next(part.projector for part in distiller.objective.modules() if hasattr(part, "projector"))
    with torch.no_grad():
        ours, theirs = projector(tokens(student, 3)), tokens(teacher, 6)
        feature = (ours / ours.norm(dim=-1, keepdim=True) - theirs / theirs.norm(dim=-1, keepdim=True)).abs().mean()
        answer = student(images, noise)
        error = (answer["logits"] - patchify(images, 4)).square().mean(-1)
        found = terms(distiller, batch)
    torch.testing.assert_close(found["feature"], feature)
    torch.testing.assert_close(found["reconstruction"], (error * answer["mask"]).sum() / answer["mask"].sum())
    assert set(found) == {"feature", "reconstruction"}
    assert isinstance(projector.linear, nn.Linear)
    assert (projector.linear.in_features, projector.linear.out_features) == (16, 24)


def test_swapping_two_seen_patches_of_the_student_changes_the_feature_loss() -> None:
    batch = identities.masked_batch()
    distiller = built(batch)
    swapped = copy.deepcopy(batch)
    noise = swapped["input"]["noise"]
    first, second = masking(noise, 0.75).keep[0, :2].tolist()
    noise[0, [first, second]] = noise[0, [second, first]]
    with torch.no_grad():
        teacher = distiller.teacher_signals(batch)
        straight = distiller.objective(distiller.student_signals(batch), teacher, batch)
        crossed = distiller.objective(distiller.student_signals(swapped), teacher, batch)
    assert float((straight["feature"] - crossed["feature"]).abs()) > 1e-4
    # The same patches are seen, so what is painted hardly changes: the order alone would go unnoticed there.
    torch.testing.assert_close(straight["reconstruction"], crossed["reconstruction"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "check",
    [
        identities.partial_against_whole,
        identities.teacher_cost,
        identities.seen_patches_do_not_count,
        identities.length_does_not_count,
    ],
)
def test_identities(check: Any) -> None:
    assert check() <= 1e-7


def test_no_gradient_reaches_the_teacher_and_all_of_the_student_learns() -> None:
    batch = identities.masked_batch()
    distiller = built(batch)
    sum(terms(distiller, batch).values(), torch.zeros(())).backward()
    assert distiller.teacher is not None
    assert all(weight.grad is None for model in distiller.teacher.modules() for weight in model.parameters())
    assert all(weight.grad is not None for weight in distiller.parameters())
    assert not any(name.startswith("teacher") for name in distiller.state_dict())


def test_options_are_those_of_the_ablations() -> None:
    batch = identities.masked_batch()
    with torch.no_grad():
        assert set(terms(built(batch, reconstruction_weight=0.0), batch)) == {"feature"}
        assert set(terms(built(batch, feature_weight=0.0), batch)) == {"reconstruction"}
        two = terms(built(batch, taps=((0.75, 0.75), ("encoder.blocks.0", 0.25))), batch)
        assert set(two) == {"reconstruction", "feature", "feature_2"}
        raw = terms(built(batch, distance=losses.mse), batch)["feature"]
        scaled = terms(built(batch, distance=losses.mse, feature_weight=3.0), batch)["feature"]
        torch.testing.assert_close(scaled, 3 * raw)
        mean, summed = (terms(built(batch, per_row=how), batch)["feature"] for how in ("mean", "sum"))
        torch.testing.assert_close(summed, 24 * mean)
    with pytest.raises(UserError, match="weights: given both zero"):
        dmae_objective(4, reconstruction_weight=0, feature_weight=0)


def test_networks_that_would_not_see_the_same_are_refused() -> None:
    student, teacher = identities.pair()
    with pytest.raises(UserError, match=r"student's \(patch, patches\): given \(2, 64\)"):
        dmae(MaskedAutoencoder(ViT(16, 2, width=16, heads=2), width=8, heads=2), teacher)
    teacher.mask_ratio = 0.5
    with pytest.raises(UserError, match=r"mask ratio of the student: given 0.75; allowed: the teacher's, 0.5"):
        dmae(student, teacher)
    distiller = dmae(student, teacher, mask_ratio=0.9)
    assert (student.mask_ratio, teacher.mask_ratio) == (0.9, 0.9)
    with pytest.raises(UserError, match="mask ratio"):
        dmae(student, teacher, mask_ratio=0.95)
    images = identities.masked_batch()["input"]["pixel_values"]
    with pytest.raises(UserError, match="batch input: given Tensor; allowed: pixel_values and noise"):
        distiller.build({"input": images, "id": torch.arange(6)})


# Cost.


def test_the_teachers_cost_scales_with_what_is_seen_and_with_the_tapped_depth() -> None:
    batch, costs = identities.masked_batch(), {}
    for ratio in (0.5, 0.75):
        for share in (0.25, 0.5, 1.0):
            student, teacher = identities.pair()
            distiller = dmae(student, teacher, taps=((0.75, share),), mask_ratio=ratio)
            costs[ratio, share] = token_layers(
                lambda distiller=distiller: distiller.teacher_signals(batch), teacher, layers="encoder.blocks.*"
            )
    assert {key: cost / (6 * 8) for key, cost in costs.items()} == {
        (ratio, share): seen * share for ratio, seen in ((0.5, 9), (0.75, 5)) for share in (0.25, 0.5, 1.0)
    }
    whole = dmae(*identities.pair(), stop_early=False)
    early = dmae(*identities.pair())
    flops = [count_flops(lambda d=d: d.teacher_signals(batch), *d.teacher.modules()) for d in (early, whole)]  # type: ignore[union-attr]
    # Six of eight blocks, and no decoder.
    assert flops[0] < 0.75 * flops[1]


# Training.


def loader(count: int = 40) -> TensorLoader:
    images = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(3)
    return TensorLoader({"input": images}, 10, transform=PatchNoise(16))


def test_features_are_learned_and_the_classifier_holds_the_encoder_alone() -> None:
    distiller = dmae(*identities.pair(), log_gradient_norms=True)
    history = fit(distiller, loader(), epochs=12, accelerator="cpu", log_every=4)
    feature = history.by_epoch("feature")
    assert feature[-1] < 0.8 * feature[0]
    assert {"gradient_norm/feature", "gradient_norm/reconstruction"} <= set(history.names())
    student: Any = distiller.finish()
    names = ViTClassifier(student.encoder).state_dict()
    assert not any(word in name for name in names for word in ("decoder", "projector", "mask_token"))
    assert not student.encoder.blocks[2]._forward_hooks


def test_the_arms_differ_in_what_they_say_alone() -> None:
    experiment = EXPERIMENTS["main"]("smoke")
    experiment.check()
    ways = {name: arm.setting for name, arm in experiment.arms.items()}
    assert ways["dmae"].taps == ways["mse"].taps == ((0.75, 0.75),)
    assert ways["random"].taps == ways["dmae"].taps
    assert (ways["mae-95"].pretraining, ways["dmae-95"].pretraining) == ("mae", "dmae")
    assert ways["mae-95"].mask_ratio == ways["dmae-95"].mask_ratio == 0.95
    compared = {side for claim in experiment.claims if hasattr(claim, "over") for side in (claim.arm, claim.over)}
    assert compared == set(ways)
