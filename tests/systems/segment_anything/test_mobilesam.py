from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.cache import write_cache
from limbeck.data.loaders import TensorLoader
from limbeck.data.prompts import MaskPrompts
from limbeck.data.split import Split
from limbeck.data.sprites import SpriteWorld
from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.models.image_encoders import HybridEncoder
from limbeck.models.segment_anything import SegmentAnything
from limbeck.sources import Cached, Live, Table
from limbeck.systems.segment_anything.mobilesam.experiment import EXPERIMENTS, OtherImage, on_maps
from limbeck.systems.segment_anything.mobilesam.method import (
    EmbeddingLoss,
    content_cells,
    decode,
    decoupled,
    embed,
    prompted_teacher,
    put_back,
    through_decoder,
)


def encoder(width: int = 8, seed: int = 0, out: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return HybridEncoder(stem=8, width=width, local=1, depth=1, out=out)


@pytest.fixture
def pipeline() -> SegmentAnything:
    torch.manual_seed(1)
    return SegmentAnything(encoder(16, 1), width=16, heads=2, hidden=16).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def scenes() -> Split:
    drawn = SpriteWorld(pixels=32).scenes(torch.arange(16))
    return Split(drawn.image.float() / 255, drawn.masks(), drawn.id)


def prompted_batch(scenes: Split, size: int = 8) -> dict[str, Any]:
    return TensorLoader(scenes, size, shuffle=False, transform=MaskPrompts(2)).peek()


def example(side: int = 32) -> dict[str, Tensor]:
    labels = torch.ones(1, 1, 2, dtype=torch.int64)
    return {"image": torch.zeros(1, 3, side, side), "points": torch.zeros(1, 1, 2, 2), "labels": labels}


# The loss.


def test_the_distances_are_those_of_the_sheet() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(3, 5, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    gap = (ours - theirs).square()
    for distance, expected in {
        "mse": gap.mean(),
        "root": gap.sum(1).mean().sqrt(),
        "cosine": (1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=1)).mean(),
    }.items():
        found = EmbeddingLoss(distance)({"embedding": ours}, {"embedding": theirs}, {"id": torch.arange(3)})
        torch.testing.assert_close(found[distance], expected)
    with pytest.raises(UserError, match="distance"):
        EmbeddingLoss("mae")


@pytest.mark.parametrize("distance", ["mse", "root"])
def test_at_the_teacher_it_is_zero_with_a_finite_gradient(distance: str) -> None:
    theirs = torch.randn(2, 4, 3, 3)
    ours = theirs.clone().requires_grad_(True)
    value = EmbeddingLoss(distance)({"embedding": ours}, {"embedding": theirs}, {"id": torch.arange(2)})[distance]
    value.backward()
    assert float(value) < 2e-6
    assert ours.grad is not None
    assert float(ours.grad.abs().max()) == 0


@pytest.mark.parametrize("distance", ["mse", "root", "cosine"])
def test_padding_counts_unless_it_is_masked(distance: str) -> None:
    ours, theirs = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    cells = content_cells(torch.tensor([[80, 40], [33, 80]]), (5, 5), 16)
    assert cells[0].sum(0).tolist() == [5, 5, 5, 0, 0], "a cell with any of the image in it counts"
    assert cells[1].sum(1).tolist() == [5, 5, 5, 0, 0]
    spoilt = torch.where(cells[:, None], ours, ours + 7)
    loss, teacher, batch = EmbeddingLoss(distance), {"embedding": theirs}, {"id": torch.arange(2)}
    counted = [float(loss({"embedding": made}, teacher, batch)[distance]) for made in (ours, spoilt)]
    masked = [float(loss({"embedding": made}, teacher, {**batch, "mask": cells})[distance]) for made in (ours, spoilt)]
    assert counted[0] != counted[1]
    assert masked[0] == masked[1]


# What learns, and what does not.


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old = before.state_dict()
    return {name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


@pytest.mark.parametrize(
    ("learning", "parts"),
    [
        ("encoder", {"image_encoder"}),
        ("encoder and decoder", {"image_encoder", "mask_decoder"}),
        ("decoder", {"mask_decoder"}),
        ("everything", {"image_encoder", "mask_decoder", "prompt_encoder"}),
    ],
)
def test_each_rival_trains_its_parts_alone(
    pipeline: SegmentAnything, scenes: Split, learning: str, parts: set[str]
) -> None:
    whole = copy.deepcopy(pipeline).requires_grad_(True)
    whole.image_encoder = encoder()
    before, teacher = copy.deepcopy(whole), copy.deepcopy(pipeline)
    embeddings = Table.of(Live(pipeline.image_encoder, forward=embed), scenes.batches(8), ("embedding",))
    distiller = through_decoder(whole, prompted_teacher(embeddings, pipeline), learning=learning)
    loader = TensorLoader(scenes, 8, transform=MaskPrompts(2))
    fit(distiller, loader, steps=3, accelerator="cpu")
    assert changed(before, whole) == parts
    assert changed(teacher, pipeline) == set()
    with pytest.raises(UserError, match="learning"):
        through_decoder(whole, None, learning="prompts")


def test_the_semi_coupled_target_is_the_whole_teachers_answer(pipeline: SegmentAnything, scenes: Split) -> None:
    """Stored embeddings and a live decoder say what the live pipeline says."""
    batch = prompted_batch(scenes)
    embeddings = Table.of(Live(pipeline.image_encoder, forward=embed), scenes.batches(8), ("embedding",))
    with torch.no_grad():
        live = pipeline(**batch["input"])
    stored = prompted_teacher(embeddings, pipeline)(batch, ("masks", "iou"))
    for name in ("masks", "iou"):
        torch.testing.assert_close(stored[name], live[name], rtol=1e-4, atol=1e-4)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(pipeline: SegmentAnything, scenes: Split) -> None:
    batch = {"input": scenes.input, "id": scenes.id}
    distiller = decoupled(copy.deepcopy(pipeline.image_encoder), pipeline.image_encoder)
    loss = distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch)["mse"]
    assert float(loss) == 0


def test_decoupled_asks_for_no_prompt_and_no_decoder(pipeline: SegmentAnything, scenes: Split) -> None:
    """It lowers the error of the embedding on images alone, from embeddings on disk in half precision."""
    images = Split(scenes.input, None, scenes.id)
    student = encoder()
    gap = [float((embed(student, {"input": scenes.input})["embedding"] - target).square().mean())
           for target in [embed(pipeline.image_encoder, {"input": scenes.input})["embedding"]]]  # fmt: skip
    distiller = decoupled(student, pipeline.image_encoder, optimizer=OptimizerSettings(lr=3e-3))
    history = fit(distiller, TensorLoader(images, 8), steps=40, log_every=1, accelerator="cpu")
    assert history.curve("mse")["y"][-1] < 0.6 * gap[0]
    assert distiller.finish() is student


def test_a_store_takes_the_live_encoders_place(pipeline: SegmentAnything, scenes: Split, tmp_path: Path) -> None:
    images = Split(scenes.input, None, scenes.id)
    source = Live(pipeline.image_encoder, forward=embed)
    write_cache(source, images.batches(8), tmp_path / "store", ("embedding",), codec="float32")

    def trained(teacher: Any) -> dict[str, Tensor]:
        distiller = decoupled(encoder(), teacher)
        fit(distiller, TensorLoader(images, 8), steps=4, accelerator="cpu")
        return distiller.finish().state_dict()

    live, stored = trained(source), trained(Cached(tmp_path / "store", expect={"teacher": source.fingerprint()}))
    for name, value in live.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-5)


# The exchange of the part.


def test_the_part_is_put_back_and_the_pipeline_is_left_alone(pipeline: SegmentAnything, scenes: Split) -> None:
    kept, student = copy.deepcopy(pipeline), encoder()
    whole = put_back(pipeline, student, example())
    assert changed(kept, pipeline) == set()
    batch = prompted_batch(scenes)
    with torch.no_grad():
        found = whole(**batch["input"])
        expected = decode(pipeline, embed(student.eval(), batch), batch)
    torch.testing.assert_close(found["masks"], expected["masks"])
    with torch.no_grad():
        copied = put_back(pipeline, copy.deepcopy(pipeline.image_encoder), example())(**batch["input"])
        torch.testing.assert_close(copied["masks"], pipeline(**batch["input"])["masks"])


def test_another_stride_or_width_is_refused(pipeline: SegmentAnything) -> None:
    wrong_stride = nn.Sequential(encoder(), nn.MaxPool2d(2))
    for wrong in (wrong_stride, encoder(out=8)):
        with pytest.raises(UserError, match="image_encoder"):
            put_back(pipeline, wrong, example())


# The experiment.


def test_the_control_gives_every_image_another_ones_embedding() -> None:
    ids = torch.tensor([4, 9, 2, 7])
    table = Table(ids, {"embedding": ids.float()[:, None]})
    other = OtherImage(table, ids)
    found = torch.as_tensor(other({"id": ids}, ("embedding",))["embedding"])[:, 0]
    assert sorted(found.tolist()) == sorted(ids.tolist())
    assert not bool((found == ids).any())
    assert torch.equal(torch.as_tensor(other({"id": ids[1:2]})["embedding"])[:, 0], found[1:2])
    assert other.fingerprint() != table.fingerprint()


def test_prompts_on_the_trunks_maps_mean_the_same_places(pipeline: SegmentAnything) -> None:
    """Masks of 80 pixels stand for maps of 20: a decoder told either size must read the same places."""
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 5:20, 8:30] = True
    maps = torch.zeros(2, 16, 8, 8)
    loader = TensorLoader(Split(maps, masks, torch.arange(2)), 2, transform=on_maps)
    plain = TensorLoader(Split(maps, masks, torch.arange(2)), 2, transform=MaskPrompts(1))
    scaled, straight = loader.peek()["input"], plain.peek()["input"]
    tokens = [
        pipeline.prompt_encoder(given["points"], given["labels"], size)
        for given, size in ((scaled, (8, 8)), (straight, (32, 32)))
    ]
    torch.testing.assert_close(tokens[0], tokens[1], rtol=1e-4, atol=1e-4)


def test_rivals_and_method_begin_alike_and_see_the_same_images() -> None:
    found = EXPERIMENTS["main"]("smoke")
    found.prepare()
    arms = {name: arm.setting for name, arm in found.arms.items()}
    ids = [found.loader(arms[name], 3, prompts=name == "semi").peek()["id"] for name in ("semi", "decoupled")]  # type: ignore[attr-defined]
    assert torch.equal(ids[0], ids[1])
    first, second = (found.learner(3).state_dict() for _ in range(2))  # type: ignore[attr-defined]
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert isinstance(found.through(found.bed.teacher(), "truth", "encoder"), Distiller)  # type: ignore[attr-defined]
    assert found.steps(1) == 6  # type: ignore[attr-defined]
    assert EXPERIMENTS["main"]("full").steps(3) == 1500  # type: ignore[attr-defined]


def test_the_losses_of_the_rivals_are_sams() -> None:
    assert losses.mask_focal.__kwdefaults__ is not None
    assert losses.mask_focal.__kwdefaults__["alpha"] == 0.25
    assert losses.mask_dice.__kwdefaults__ is not None
    assert losses.mask_dice.__kwdefaults__["smooth"] == 1.0
