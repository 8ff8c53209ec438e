"""Fabric-RD: the sheet's exact checks and pitfalls, and the arms of its experiments."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.split import Split
from limbeck.engine import OneClassRecipe
from limbeck.errors import UserError
from limbeck.nn.channel_attention import SSPCAB
from limbeck.nn.multi_tap import MultiTap
from limbeck.nn.reverse_decoder import ReverseStudent
from limbeck.objectives import LevelCosine
from limbeck.systems import registry
from limbeck.systems.vision.fabric_rd import experiment, rivals
from limbeck.systems.vision.fabric_rd.method import FabricRD

SHAPES = {"t0": (6, 16, 16), "t1": (4, 16, 16), "t2": (8, 8, 8), "t3": (12, 4, 4)}
QUICK = OneClassRecipe(epochs=2, batch_size=4)


def maps(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(count, *shape, generator=generator) for name, shape in SHAPES.items()}
    return Split(made, None, torch.arange(count))


def given(split: Split) -> dict[str, Tensor]:
    assert isinstance(split.input, dict)
    return split.input


@pytest.fixture(scope="module")
def fitted() -> FabricRD:
    return FabricRD(size=(32, 32), recipe=QUICK).fit_features(maps(12), maps(4, 1))


def test_loss_is_the_batchs_sum_of_mean_cosine_distances() -> None:
    teacher, student = given(maps(3)), given(maps(3, 1))
    found = LevelCosine(SHAPES)(student, teacher, {"id": torch.arange(3)})
    expected = [(1 - torch.cosine_similarity(student[n], teacher[n], dim=1)).mean((1, 2)).sum() / 4 for n in SHAPES]
    torch.testing.assert_close(torch.stack(list(found.values())), torch.stack(expected))


def test_normalising_over_positions_instead_of_channels_is_another_loss() -> None:
    # The commonest error trains as well: the check above must see it.
    teacher, student = given(maps(3))["t2"], given(maps(3, 1))["t2"]
    by_channel = (1 - torch.cosine_similarity(student, teacher, dim=1)).mean()
    by_row = (1 - torch.cosine_similarity(student, teacher, dim=2)).mean()
    assert abs(float(by_channel - by_row)) > 1e-3


def test_a_perfect_student_has_an_empty_map(fitted: FabricRD) -> None:
    class Echo(nn.Module):
        def forward(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
            return taps

    perfect = FabricRD(size=(32, 32))
    perfect.student_ = Echo()  # type: ignore[assignment]
    assert float(perfect.predict_features(maps(3)).abs().max()) == 0.0


def test_an_image_alone_has_the_map_that_it_has_in_a_batch(fitted: FabricRD) -> None:
    several = fitted.predict_features(maps(5, 2))
    for index in range(5):
        torch.testing.assert_close(fitted.predict_features(maps(5, 2).subset([index]))[0], several[index])


def test_constant_features_have_finite_scores(fitted: FabricRD) -> None:
    flat = Split({name: torch.zeros(2, *shape) for name, shape in SHAPES.items()}, None, torch.arange(2))
    assert torch.isfinite(fitted.predict_features(flat)).all()


def test_the_bottleneck_and_links_are_as_asked() -> None:
    kinds = {type(module) for module in ReverseStudent(SHAPES).modules()}
    assert SSPCAB in kinds
    assert SSPCAB not in {type(module) for module in ReverseStudent(SHAPES, attention=False).modules()}
    assert ReverseStudent(SHAPES, links=False).links is None


def test_the_threshold_comes_from_good_images_without_blur() -> None:
    sharp, blurred = maps(20, 3), maps(20, 4)
    found = FabricRD(size=(32, 32), recipe=QUICK, quantile=0.5).fit_features(maps(12), blurred, sharp)
    scores = found.predict_features(sharp).flatten(1).amax(1)
    assert found.threshold_ == pytest.approx(float(scores.double().median()), rel=0.1)
    assert int((scores > found.threshold_).sum()) == 10


def test_negative_features_are_met_by_linear_levels(fitted: FabricRD) -> None:
    assert min(float(one.detach().min()) for one in fitted.student_(given(maps(2))).values()) < 0  # type: ignore[operator]
    positive = Split({name: one.abs() for name, one in given(maps(12)).items()}, None, torch.arange(12))
    plain = FabricRD(size=(32, 32), recipe=QUICK, links=False).fit_features(positive, positive)
    assert min(float(one.detach().min()) for one in plain.student_(given(maps(2))).values()) >= 0  # type: ignore[operator]


def test_the_same_seed_gives_the_same_detector(fitted: FabricRD) -> None:
    torch.manual_seed(99)
    again = FabricRD(size=(32, 32), recipe=QUICK).fit_features(maps(12), maps(4, 1))
    assert torch.equal(again.predict_features(maps(3, 5)), fitted.predict_features(maps(3, 5)))


def test_images_are_asked_for_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Conv2d(4, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 2, 2))
    asked: list[int] = []
    network.register_forward_hook(lambda module, images, out: asked.append(len(images[0])))
    detector = FabricRD(MultiTap(network, {"a": "1", "b": "3", "c": "4"}), recipe=OneClassRecipe(4, 4))
    images = torch.randn(10, 3, 64, 64)
    detector.fit(images)
    assert sum(asked) == 7 + 3 + 3, "training, validation blurred, validation sharp"
    anomaly_maps, scores = detector.predict(images[:2])
    assert anomaly_maps.shape == (2, 64, 64)
    assert scores.shape == (2,)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="after fit"):
        FabricRD(size=(8, 8)).predict_features(maps(1))
    with pytest.raises(UserError, match="MultiTap"):
        FabricRD().fit(torch.zeros(4, 3, 64, 64))
    with pytest.raises(UserError, match="size"):
        FabricRD(recipe=QUICK).fit_features(maps(8), maps(4))


def test_uniform_weights_train_the_same_student() -> None:
    stress, uniform = (
        FabricRD(size=(32, 32), recipe=QUICK, weights=weights).fit_features(maps(12), maps(4, 1))
        for weights in ("stress", "uniform")
    )
    for a, b in zip(stress.student_.parameters(), uniform.student_.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(stress.predict_features(maps(2)), uniform.predict_features(maps(2)))


def test_arms_of_the_sheet_are_there() -> None:
    named = set(experiment.Textures.arms)
    assert named == {
        "autoencoder", "nearest", "forward", "plain-reverse", "fabric-rd", "no-links", "no-attention", "uniform",
        "blurred", "random-teacher",
    }  # fmt: skip


@pytest.mark.parametrize("arm", ["forward", "autoencoder", "nearest", "blurred", "random-teacher"])
def test_rivals_give_maps_of_every_part(arm: str) -> None:
    subject = experiment.Textures("smoke")
    chosen = subject.arms[arm]
    teacher = subject.bed.random_teacher(0) if chosen.options else None
    material = rivals.Material(subject.bed.splits(0), subject.bed.features(0, teacher), subject.bed)
    detector: Any = chosen.setting()
    detector.fit(material, QUICK, 0)
    for part in rivals.PARTS[1:]:
        found = detector.maps(material, part)
        assert len(found) == len(getattr(material.tiles, part))
        assert torch.isfinite(found).all()


def test_pictures_fit_into_the_ledger() -> None:
    subject = experiment.Textures("smoke")
    shown = subject.run("fabric-rd", 0).pictures
    assert set(shown) == {"Test tiles", "Where the defect is", "Anomaly maps"}
    splits = subject.bed.splits(0)
    noise = torch.randint(0, 256, splits.surfaces.test.shape, dtype=torch.uint8)
    worst = replace(splits, surfaces=replace(splits.surfaces, test=noise))
    sizes = [len(uri) for uri in subject.draw("fabric-rd", 0, torch.rand(30, 64, 64), worst).values()]
    maps_alone = len(subject.draw("nearest", 0, torch.rand(30, 64, 64), worst)["Anomaly maps"])
    assert sum(sizes) + (len(subject.arms) - 1) * maps_alone < 60_000, "the ledger refuses more per entry"
    assert not subject.draw("fabric-rd", 1, torch.zeros(30, 64, 64), subject.bed.splits(1))


def test_the_pages_snippet_runs() -> None:
    page = (registry.card("fabric-rd").folder / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
