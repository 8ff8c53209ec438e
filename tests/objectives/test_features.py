from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.errors import UserError
from limbeck.objectives import (
    Cosine,
    CrossEntropy,
    FeatureMSE,
    FeatureObjective,
    LevelCosine,
    SimilarityDistribution,
    TargetMSE,
    total,
)
from limbeck.schedules import Linear

G = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(4, 5, 6, generator=G), torch.randn(4, 5, 8, generator=G)


def test_build_inserts_a_projector_only_where_shapes_differ() -> None:
    objective = FeatureMSE(student="mid", teacher="mid")
    with pytest.raises(UserError, match=r"feature_mse shapes: .*call distiller.build\(batch\) before training"):
        objective({"mid": STUDENT}, {"mid": TEACHER}, {})
    objective.build({"mid": STUDENT.double()}, {"mid": TEACHER})
    assert objective.projector is not None
    assert next(objective.parameters()).dtype == torch.float64
    assert dict(objective.named_parameters())
    first = objective.projector
    objective.build({"mid": STUDENT}, {"mid": TEACHER})
    assert objective.projector is first
    value = objective({"mid": STUDENT.double()}, {"mid": TEACHER.double()}, {})["feature_mse"]
    torch.testing.assert_close(value, losses.mse(first(STUDENT.double()), TEACHER.double()))
    same = FeatureMSE(student="mid", teacher="mid")
    same.build({"mid": STUDENT}, {"mid": STUDENT})
    assert same.projector is None


def test_a_sum_builds_all_its_parts() -> None:
    objective = 0.5 * (FeatureMSE() + CrossEntropy()) + Cosine()
    objective.build({"embedding": STUDENT}, {"embedding": TEACHER})
    assert len(list(objective.parameters())) == 4


def test_an_own_projector_is_used_and_a_wrong_word_refused() -> None:
    own = nn.Linear(6, 8)
    objective = FeatureMSE(projector=own)
    objective.build({"embedding": STUDENT}, {"embedding": TEACHER})
    assert objective.projector is own
    value = objective({"embedding": STUDENT}, {"embedding": TEACHER}, {})["feature_mse"]
    torch.testing.assert_close(value, losses.mse(own(STUDENT), TEACHER))
    with pytest.raises(UserError, match="projector: given automatic; allowed: auto, none"):
        FeatureMSE(projector="automatic")
    with pytest.raises(UserError, match="teacher: given shape"):
        FeatureMSE(projector="none")({"embedding": STUDENT}, {"embedding": TEACHER}, {})


def test_a_mask_of_samples_counts_for_all_their_vectors() -> None:
    mask, weight = torch.tensor([True, False, True, True]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    teacher = torch.randn(4, 5, 6, generator=G)
    found = FeatureMSE()({"embedding": STUDENT}, {"embedding": teacher}, {"mask": mask, "weight": weight})
    rows = (STUDENT - teacher).square().mean(-1) * weight[:, None]
    torch.testing.assert_close(found["feature_mse"], rows[mask].mean())
    spoilt = teacher.clone()
    spoilt[1] = torch.nan
    again = FeatureMSE()({"embedding": STUDENT}, {"embedding": spoilt}, {"mask": mask, "weight": weight})
    assert torch.equal(again["feature_mse"], found["feature_mse"])


def test_a_mask_of_tokens_counts_for_tokens_and_not_for_whole_samples() -> None:
    mask = torch.rand(4, 5, generator=G) > 0.5
    teacher = torch.randn(4, 5, 6, generator=G)
    found = FeatureMSE()({"embedding": STUDENT}, {"embedding": teacher}, {"mask": mask})["feature_mse"]
    torch.testing.assert_close(found, (STUDENT - teacher).square().mean(-1)[mask].mean())
    pooled, other = STUDENT.mean(1), teacher.mean(1)
    found = Cosine()({"embedding": pooled}, {"embedding": other}, {"mask": mask})["cosine"]
    torch.testing.assert_close(found, losses.cosine_distance(pooled, other))
    with pytest.raises(UserError, match=r"mask: given shape \[4, 3\]; allowed: the first axes of the feature's rows"):
        FeatureMSE()({"embedding": STUDENT}, {"embedding": teacher}, {"mask": torch.ones(4, 3, dtype=torch.bool)})


def test_channels_may_be_at_another_axis_and_options_scheduled() -> None:
    student, teacher = torch.randn(4, 3, 2, 2, generator=G), torch.randn(4, 3, 2, 2, generator=G)
    mask = torch.tensor([True, False, True, True])
    objective = FeatureObjective(losses.mse, name="map", axis=1)
    found = objective({"embedding": student}, {"embedding": teacher}, {"mask": mask})["map"]
    torch.testing.assert_close(found, (student - teacher).square().mean(1)[mask].mean())
    huber = FeatureObjective(losses.huber, name="huber", delta=Linear(1.0, 2.0))
    huber.set_progress(1.0)
    found = huber({"embedding": student}, {"embedding": teacher}, {})["huber"]
    torch.testing.assert_close(found, losses.huber(student, teacher, delta=2.0))


def test_losses_with_one_value_per_sample_take_its_mask() -> None:
    mask = torch.tensor([True, False, True, True])
    assert FeatureObjective(losses.rkd_distance, name="rkd").batchwise
    assert not FeatureMSE().batchwise
    assert SimilarityDistribution().batchwise
    rkd = FeatureObjective(losses.rkd_distance, name="rkd", projector="none")
    found = rkd({"embedding": STUDENT}, {"embedding": TEACHER}, {"mask": mask})["rkd"]
    torch.testing.assert_close(found, losses.rkd_distance(STUDENT[mask], TEACHER[mask]))
    attention = FeatureObjective(losses.attention_transfer, name="at", projector="none", per_sample=True, axis=-1)
    found = attention({"embedding": STUDENT}, {"embedding": TEACHER}, {"mask": mask})["at"]
    torch.testing.assert_close(found, losses.attention_transfer(STUDENT[mask], TEACHER[mask], axis=-1))


def test_regression_takes_one_number_per_sample_in_any_shape() -> None:
    prediction, target = torch.randn(6, 1, generator=G), torch.randn(6, generator=G)
    mask = torch.arange(6) < 4
    expected = (prediction[:4, 0] - target[:4]).square().mean()
    for shape in ((6, 1), (6,)):
        found = TargetMSE()({"logits": prediction.view(shape)}, {}, {"target": target, "mask": mask})["target_mse"]
        torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match=r"target: given shape \[5\]; allowed: the prediction's, \[6, 1\]"):
        TargetMSE()({"logits": prediction}, {}, {"target": target[:5]})


def level_maps(batch: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    shapes = {"fine": (batch, 5, 4, 6), "deep": (batch, 7, 2, 3)}
    generator = torch.Generator().manual_seed(0)
    made = [{n: torch.randn(*s, generator=generator, dtype=torch.float64) for n, s in shapes.items()} for _ in range(2)]
    return made[0], made[1]


def test_level_cosine_sums_over_the_batch_the_mean_over_positions() -> None:
    ours, theirs = level_maps()
    found = LevelCosine(["fine", "deep"])(ours, theirs, {"id": torch.arange(3)})
    for name, value in found.items():
        level = name.removeprefix("cosine_")
        cosine = torch.cosine_similarity(ours[level], theirs[level], dim=1)
        torch.testing.assert_close(value, (1 - cosine).mean((1, 2)).sum() / 2)
    scaled = LevelCosine(["fine", "deep"])(ours, {n: 3 * m for n, m in theirs.items()}, {"id": torch.arange(3)})
    torch.testing.assert_close(dict(scaled), dict(found))


def test_level_cosine_weighs_levels_and_means_over_the_batch() -> None:
    ours, theirs = level_maps()
    batch = {"id": torch.arange(3)}
    summed = LevelCosine(["fine", "deep"], weights={"fine": 1.0, "deep": 16.0})(ours, theirs, batch)
    mean = LevelCosine(["fine", "deep"], weights={"fine": 1.0, "deep": 16.0}, batch="mean")(ours, theirs, batch)
    plain = LevelCosine(["fine", "deep"])(ours, theirs, batch)
    torch.testing.assert_close(summed["cosine_deep"], 32 * plain["cosine_deep"])
    torch.testing.assert_close(3 * mean["cosine_fine"], summed["cosine_fine"])


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_level_cosine_adds_up_over_pieces_and_masks(how: str) -> None:
    ours, theirs = level_maps(4)
    mask = torch.tensor([True, False, True, True])
    objective = LevelCosine(["fine", "deep"], batch=how)

    def part(rows: slice) -> Tensor:
        cut = [{name: maps[rows] for name, maps in side.items()} for side in (ours, theirs)]
        ids = torch.arange(4)[rows]
        return total(objective(*cut, {"id": ids, "mask": mask[rows], "denominator": torch.tensor(3.0)}))

    torch.testing.assert_close(part(slice(0, 1)) + part(slice(1, 4)), part(slice(0, 4)))
    torch.testing.assert_close(
        part(slice(0, 4)),
        total(objective({n: m[mask] for n, m in ours.items()}, {n: m[mask] for n, m in theirs.items()},
                        {"id": torch.arange(3)})),
    )  # fmt: skip


def test_level_cosine_wants_a_weight_per_level() -> None:
    with pytest.raises(UserError, match="deep"):
        LevelCosine(["fine", "deep"], weights={"fine": 1.0})
    with pytest.raises(UserError, match="batch"):
        LevelCosine(["fine"], batch="median")
