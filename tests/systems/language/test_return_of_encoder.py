from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.data.loaders import TensorLoader
from limbeck.engine import fit
from limbeck.errors import UserError
from limbeck.language import DataText, Decoding, OnPolicy, Step, answer_logits, without_answers
from limbeck.models.encoder_decoder import BlockSizes, decoder_only
from limbeck.systems.language.return_of_encoder import identities
from limbeck.systems.language.return_of_encoder.identities import END, PAD, START, TOKENS, copied, network
from limbeck.systems.language.return_of_encoder.method import (
    FullLength,
    mixed_objective,
    return_of_encoder,
    sampling,
    text_pairs,
)
from limbeck.testbeds.recipe import seeded

DECODING = Decoding(6, END, PAD)


def teacher(tokens: int = TOKENS) -> Any:
    names = {"vocabulary": tokens, "pad": PAD, "start": START, "end": END}
    return seeded(lambda: decoder_only(BlockSizes(16, 4, 2), 2, **names), 5).eval()


# The alignment.


def test_the_slice_begins_at_the_last_source_token() -> None:
    assert identities.misread() == 0
    assert identities.misread(late=1) > 0.8
    assert identities.misread(late=-1) > 0.8


def test_caches_and_centred_positions_change_nothing() -> None:
    assert identities.cached_differs() < 1e-4
    assert identities.centring_changes() < 1e-4


# The loss.


def signals() -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(0)
    student, taught, data = (torch.randn(2, 4, TOKENS, generator=generator) for _ in range(3))
    target = torch.randint(3, TOKENS, (2, 4), generator=generator)
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    batch = {"target": target, "mask": mask, "data": {"target": target, "mask": mask}}
    return {"logits": student, "data_logits": data}, {"logits": taught}, batch


@pytest.mark.parametrize(("reduction", "rows"), [("masked", 5), ("released", 8)])
def test_the_mixture(reduction: str, rows: int) -> None:
    student, taught, batch = signals()
    p, q, d = (x.double().softmax(-1) for x in (taught["logits"], student["logits"], student["data_logits"]))
    each = (p * (p / q).log()).sum(-1)
    counted = batch["mask"] if reduction == "masked" else torch.ones_like(batch["mask"])
    kl = float(each[counted].sum() / rows)
    nll = float(-d.log().gather(-1, batch["target"][..., None]).squeeze(-1)[batch["mask"]].mean())
    found = mixed_objective(0.7, reduction=reduction)(student, taught, batch)
    assert float(found["kl"]) == pytest.approx(0.7 * kl, rel=1e-5)
    assert float(found["data"]) == pytest.approx(0.3 * nll, rel=1e-5)


def test_padding_counts_in_the_released_reduction_alone() -> None:
    student, taught, batch = signals()
    other = {"logits": torch.where(batch["mask"][..., None], taught["logits"], 50 * taught["logits"])}
    masked, released = (mixed_objective(1.0, reduction=name) for name in ("masked", "released"))
    assert torch.equal(masked(student, taught, batch)["kl"], masked(student, other, batch)["kl"])
    assert not torch.isclose(released(student, taught, batch)["kl"], released(student, other, batch)["kl"])


def test_alpha_at_its_bounds() -> None:
    student, taught, batch = signals()
    assert set(mixed_objective(0.0)(student, taught, batch)) == {"data"}
    assert set(mixed_objective(1.0)(student, taught, batch)) == {"kl"}
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="alpha"):
            mixed_objective(alpha)
    with pytest.raises(UserError, match="reduction"):
        mixed_objective(reduction="sum")


# The text.


def test_released_texts_are_of_full_length() -> None:
    student, given = network(), without_answers(copied())
    step = Step(student, None, given, torch.arange(8), torch.arange(8))
    wide, narrow = FullLength(OnPolicy(DECODING), 9, PAD)(step), OnPolicy(DECODING)(step)
    assert wide.answer.shape[1] == 9
    assert torch.equal(wide.answer[:, : narrow.answer.shape[1]], narrow.answer)
    assert torch.equal(wide.lengths, narrow.lengths)
    assert torch.isfinite(answer_logits(teacher(), wide.batch())["logits"]).all()
    with pytest.raises(UserError, match="length"):
        FullLength(OnPolicy(DECODING), 1, PAD)(step)


def test_pairs_are_cut_and_counted() -> None:
    found, cut = text_pairs([[5, 6, 7, 8], [9]], [[4, 5], [6, 7, 8]], source=3, target=3, end=END, pad=PAD)
    assert found.prompt.tolist() == [[5, 6, 7], [PAD, PAD, 9]]
    assert found.answer.tolist() == [[4, 5, END], [6, 7, 8]]
    assert (cut.sources, cut.targets) == (1, 1)
    with pytest.raises(UserError, match="target 1"):
        text_pairs([[5], [6]], [[4], []], source=3, target=3, end=END, pad=PAD)
    with pytest.raises(UserError, match="targets"):
        text_pairs([[5], [6]], [[4]], source=3, target=3, end=END, pad=PAD)


def test_the_published_sampling() -> None:
    found = sampling(256, END, PAD)
    assert (found.length, found.temperature, found.top_k, found.top_p) == (256, 0.9, 128, 1.0)


# The training.


@pytest.mark.parametrize("reduction", ["masked", "released"])
def test_it_trains_on_its_own_samples(reduction: str) -> None:
    distiller = return_of_encoder(network(), teacher(), DECODING, reduction=reduction)
    history = fit(distiller, TensorLoader({"input": copied().columns()}, 4), steps=2, accelerator="cpu", log_every=1)
    assert {"kl", "data"} <= set(history.names())
    assert not distiller.finish().training


def test_it_comes_nearer_to_the_teacher() -> None:
    from limbeck.engine import OptimizerSettings
    from limbeck.losses import forward_kl

    student, taught, batch = network(), teacher(), copied().batch()

    def apart(model: Any) -> float:
        with torch.no_grad():
            ours, theirs = (answer_logits(one, batch)["logits"] for one in (model, taught))
        return float(forward_kl(ours, theirs, mask=batch["mask"]))

    with torch.no_grad():
        taught.lm_head.weight.mul_(20)
    before = apart(student)
    distiller = return_of_encoder(
        student, taught, DECODING, alpha=1.0, writer=DataText(), optimizer=OptimizerSettings(lr=1e-2)
    )
    fit(distiller, TensorLoader({"input": copied().columns()}, 8), steps=20, accelerator="cpu")
    assert apart(distiller.finish()) < 0.8 * before


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(UserError, match="vocabulary"):
        return_of_encoder(network(), teacher(TOKENS + 3), DECODING)
