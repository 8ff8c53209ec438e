"""ALBEF: the order of a step, its three losses against independent ones, and the pitfalls of the sheet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.loaders import TensorLoader
from limbeck.data.words import IGNORED, MaskWords
from limbeck.engine import OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.models.text import FusionEncoder, TextEncoder
from limbeck.models.vision_language import VisionLanguage
from limbeck.models.vit import ViT
from limbeck.systems.vision_language.albef.method import ALBEF
from limbeck.systems.vision_language.albef.rivals import Shuffled, Smoothed

WORDS, WIDTH, SPACE = 20, 8, 6


def network(*, fusion: bool = True, seed: int = 0) -> VisionLanguage:
    torch.manual_seed(seed)
    heads: dict[str, Any] = {}
    if fusion:
        heads = {"fusion": FusionEncoder(WIDTH, 1, 2, image_width=WIDTH), "words": nn.Linear(WIDTH, WORDS)}
    return VisionLanguage(
        ViT(8, 4, WIDTH, 1, 2), TextEncoder(WORDS, WIDTH, 1, 2, length=8), nn.Linear(WIDTH, SPACE),
        nn.Linear(WIDTH, SPACE), **heads,
    ).double()  # fmt: skip


def batch(count: int = 6, *, targets: list[int] | None = None, share: float = 0.4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, WORDS, (count, 7), generator=generator)
    ids[:, 0] = 1
    mask = torch.ones_like(ids)
    ids[0, 5:], mask[0, 5:] = 0, 0
    given = {
        "pixel_values": torch.randn(count, 1, 8, 8, generator=generator).double(),
        "input_ids": ids,
        "attention_mask": mask,
    }
    made = {"input": given, "id": torch.arange(count), "view": torch.arange(100, 100 + count)}
    made["target"] = torch.arange(count) if targets is None else torch.tensor(targets)
    return MaskWords(WORDS, share)(made)


def method(kind: type[ALBEF] = ALBEF, **options: Any) -> ALBEF:
    given = {"width": SPACE, "ramp": 0, "queue": 10, "momentum": 0.9, **options}
    made = kind(given.pop("model", None) or network(), **given)
    made.double()
    made.momentum_model.double()
    return made


def step(albef: ALBEF, given: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    turns = list(albef.turns(given))
    assert len(turns) == 1
    return dict(turns[0].terms)


def moved(albef: ALBEF) -> ALBEF:
    """With a momentum model that is not the network."""
    with torch.no_grad():
        for weight in albef.momentum_model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return albef


# The order of a step.


def test_the_average_moves_before_it_gives_the_keys() -> None:
    albef, given = moved(method()), batch()
    before = {name: weight.clone() for name, weight in albef.momentum_model.named_parameters()}
    step(albef, given)
    for name, weight in albef.momentum_model.named_parameters():
        torch.testing.assert_close(weight, 0.9 * before[name] + 0.1 * albef.model.get_parameter(name))
    with torch.no_grad():
        keys = albef.encode(albef.momentum_model, given["input"])
    # What stands in the queue is what the moved average said.
    assert torch.equal(albef.queue["image"][:6], keys.image)
    assert torch.equal(albef.queue["text"][:6], keys.text)
    assert albef.queue.id.tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1]


def test_only_weights_are_averaged_and_none_is_trained() -> None:
    model = network()
    model.register_buffer("seen", torch.zeros(1).double())
    albef = method(model=model)
    model.seen.fill_(5.0)  # type: ignore[operator, union-attr]
    step(albef, batch())
    assert float(albef.momentum_model.seen) == 0  # type: ignore[arg-type]
    trained = {id(weight) for _, weight in albef.weights_of("student")}
    assert not trained & {id(weight) for weight in albef.momentum_model.parameters()}
    assert not any(weight.requires_grad for weight in albef.momentum_model.parameters())
    assert {id(weight) for weight in albef.parameters()} == trained


def test_a_queue_that_the_batch_does_not_divide_goes_round() -> None:
    albef = method(queue=10)
    for _ in range(3):
        step(albef, batch())
    assert albef.queue.filled.all()
    assert int(albef.queue.pointer) == 8
    step(albef, batch(1))
    assert int(albef.queue.pointer) == 9


def test_the_temperature_is_kept_inside() -> None:
    albef = method()
    for value, kept in ((7.0, 0.5), (-1.0, 0.001)):
        with torch.no_grad():
            albef.model.temperature.fill_(value)
        step(albef, batch())
        assert float(albef.model.temperature) == pytest.approx(kept)


def test_the_shares_rise_over_the_ramp() -> None:
    albef = method(ramp=100)
    for done, share in ((0, 0.0), (25, 0.1), (100, 0.4), (900, 0.4)):
        albef.steps_done = done
        assert albef.ramped(0.4) == pytest.approx(share)


# The alignment loss.


def reference_contrast(albef: ALBEF, given: dict[str, Any], targets: Tensor, alpha: float, soft: str = "own") -> Tensor:
    """From the formula, one pair at a time."""
    with torch.no_grad():
        keys = albef.encode(albef.momentum_model, given["input"])
        own = albef.encode(albef.model, given["input"])
    tau, total = albef.model.temperature.detach(), torch.zeros(()).double()
    sides = ((own.image, keys.image, keys.text, "text"), (own.text, keys.text, keys.image, "image"))
    for queries, teacher, mates, other in sides:
        columns = torch.cat([mates, albef.queue[other]])
        numbers = torch.cat([targets, albef.queue.id])
        for row in range(len(queries)):
            logs = (columns @ queries[row] / tau).log_softmax(0)
            said = (columns @ teacher[row] / tau).softmax(0)
            if soft == "uniform":
                said = torch.full_like(said, 1 / len(said))
            truth = (numbers == targets[row]).double()
            aim = alpha * said + (1 - alpha) * truth / truth.sum()
            total = total - (aim * logs).sum()
    return total / (2 * len(queries))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("targets", [None, [0, 1, 0, 2, 2, 3]])
def test_alignment_is_the_formula(alpha: float, targets: list[int] | None) -> None:
    albef, given = moved(method(contrastive_alpha=alpha, momentum=1.0)), batch(targets=targets)
    albef.queue.push(torch.tensor([2, 50, 51]), image=torch.eye(3, SPACE), text=torch.eye(3, SPACE))
    expected = reference_contrast(albef, given, given["target"], alpha)
    torch.testing.assert_close(step(albef, given)["contrast"].detach(), expected)


def test_as_released_duplicates_are_negatives() -> None:
    albef, given = moved(method(momentum=1.0, released_truth=True)), batch(targets=[0, 1, 0, 2, 2, 3])
    expected = reference_contrast(albef, given, torch.arange(100, 106), 0.4)
    torch.testing.assert_close(step(albef, given)["contrast"].detach(), expected)


def test_smoothing_is_uniform_over_all_keys() -> None:
    albef, given = moved(method(Smoothed, momentum=1.0)), batch()
    expected = reference_contrast(albef, given, given["target"], 0.4, "uniform")
    torch.testing.assert_close(step(albef, given)["contrast"].detach(), expected)


def test_no_gradient_reaches_tau_through_the_soft_target() -> None:
    albef, given = moved(method(momentum=1.0)), batch()
    step(albef, given)["contrast"].backward()
    found = float(albef.model.temperature.grad)  # type: ignore[arg-type]

    def frozen_target(value: float) -> float:
        """The loss at another tau, the soft target as it is."""
        keys, own = (albef.encode(model, given["input"]) for model in (albef.momentum_model, albef.model))
        queues, total = fresh.queue, 0.0
        for queries, teacher, mates, other in (
            (own.image, keys.image, keys.text, "text"),
            (own.text, keys.text, keys.image, "image"),
        ):
            columns = torch.cat([mates, queues[other]])
            said = (teacher @ columns.mT / 0.07).softmax(1)
            aim = 0.4 * said + 0.6 * torch.eye(6, len(columns)).double()
            total -= float((aim * (queries @ columns.mT / value).log_softmax(1)).sum().detach()) / 12
        return total

    fresh = method(momentum=1.0)
    small = 1e-6
    slope = (frozen_target(0.07 + small) - frozen_target(0.07 - small)) / (2 * small)
    assert found == pytest.approx(slope, rel=1e-4)


# Matching.


def test_matching_judges_pairs_and_two_negatives_each(monkeypatch: pytest.MonkeyPatch) -> None:
    albef, given = method(), batch(targets=[0, 0, 1, 2, 3, 4])
    seen: list[tuple[Tensor, Tensor]] = []
    fuse = albef.model.fuse

    def watched(texts: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        seen.append((texts.detach(), images.detach()))
        return fuse(texts, mask, images)

    monkeypatch.setattr(albef.model, "fuse", watched)
    terms = step(albef, given)
    own = albef.encode(albef.model, given["input"])
    (texts, images), same = seen[0], given["target"]
    assert len(texts) == 18

    def number(tokens: Tensor, table: Tensor) -> Tensor:
        return torch.stack([(table == row).flatten(1).all(1).nonzero()[0, 0] for row in tokens])

    text, image = number(texts, own.text_tokens), number(images, own.image_tokens)
    assert torch.equal(text[:12] % 6, torch.arange(12) % 6)
    assert torch.equal(image[:6], torch.arange(6))
    assert torch.equal(image[12:], torch.arange(6))
    # Pairs 0 and 1 have the same caption: neither is the other's negative.
    assert (same[text[6:]] != same[image[6:]]).all()
    logits = albef.model.match(fuse(texts, torch.cat([given["input"]["attention_mask"][text]]), images))
    labels = torch.tensor([1] * 6 + [0] * 12)
    torch.testing.assert_close(terms["matching"], functional.cross_entropy(logits, labels))


def test_a_batch_of_one_caption_has_no_negatives_and_no_nan() -> None:
    albef, given = method(), batch(targets=[7] * 6)
    terms = step(albef, given)
    own = albef.encode(albef.model, given["input"])
    fused = albef.model.fuse(own.text_tokens, given["input"]["attention_mask"], own.image_tokens)
    expected = functional.cross_entropy(albef.model.match(fused), torch.ones(6, dtype=torch.int64))
    torch.testing.assert_close(terms["matching"], expected)


# Masked words.


def test_language_counts_masked_words_alone_and_mixes_the_answers() -> None:
    albef, given = moved(method(language_alpha=0.25, momentum=1.0)), batch()
    found = step(albef, given)["language"]
    said = []
    for model in (albef.model, albef.momentum_model):
        tokens = model.text_tokens(given["corrupted_ids"], given["input"]["attention_mask"])
        image = model.image_tokens(given["input"]["pixel_values"])
        said.append(model.predict_words(model.fuse(tokens, given["input"]["attention_mask"], image)))
    total, count = torch.zeros(()).double(), 0
    for row, place in (given["word_labels"] != IGNORED).nonzero().tolist():
        logs, soft = said[0][row, place].log_softmax(0), said[1][row, place].softmax(0)
        total = total - 0.75 * logs[given["word_labels"][row, place]] - 0.25 * (soft * logs).sum()
        count += 1
    assert count > 5
    torch.testing.assert_close(found, total / count)


@pytest.mark.parametrize("kind", [ALBEF, Smoothed, Shuffled])
def test_a_batch_without_masked_words_gives_zero(kind: type[ALBEF]) -> None:
    terms = step(method(kind), batch(share=0.0))
    assert float(terms["language"]) == 0
    sum(terms.values()).backward()  # type: ignore[union-attr]


def test_shuffled_answers_are_anothers() -> None:
    albef = method(Shuffled)
    answers = torch.arange(6.0).view(3, 2)
    assert albef.softener(answers).tolist() == [[4.0, 5.0], [0.0, 1.0], [2.0, 3.0]]


# Parts that may be missing, and training.


def test_two_encoders_alone_are_aligned() -> None:
    albef = method(model=network(fusion=False))
    assert set(step(albef, batch())) == {"contrast"}
    with pytest.raises(UserError, match="align"):
        method(model=network(fusion=False), align=False)
    with pytest.raises(UserError, match="language_alpha"):
        method(language_alpha=1.5)


def test_without_alignment_the_fusion_learns_alone() -> None:
    assert set(step(method(align=False, hard=False), batch())) == {"matching", "language"}


def test_it_learns_pairs_through_fit() -> None:
    given = batch(12)
    data = {**{name: given[name] for name in ("id", "target")}, "input": dict(given["input"])}
    data["input"]["pixel_values"] = data["input"]["pixel_values"].float()
    albef = ALBEF(
        network().float(), width=SPACE, ramp=3, queue=10, momentum=0.9,
        optimizer=OptimizerSettings(lr=3e-3), contrastive_alpha=0.2,
    )  # fmt: skip
    loader = TensorLoader(data, 5, transform=MaskWords(WORDS, 0.3))
    # A last batch of two, and a queue that no batch divides.
    fit(albef, loader, epochs=100, accelerator="cpu")
    with torch.no_grad():
        out = albef.model(**data["input"])
    assert ((out["image"] @ out["text"].mT).argmax(1) == torch.arange(12)).double().mean() > 0.6
