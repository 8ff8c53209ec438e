from __future__ import annotations

import pytest
import torch

from limbeck.data.views import view_seeds
from limbeck.errors import UserError
from limbeck.language import (
    Decoding,
    Reviser,
    Sequences,
    answer_logits,
    corrected_prefix,
    locate,
    token_divergence,
    without_answers,
)
from limbeck.sources import Live
from limbeck.systems.language.multi_granularity.identities import END, PAD, TOKENS, network, texts

DECODING = Decoding(8, END, PAD)
VIEWS = view_seeds(0, 0, torch.arange(6))


def sample() -> tuple[torch.nn.Module, Live, Sequences]:
    student, teacher = network(0), Live(network(1), forward=answer_logits)
    return student, teacher, DECODING(student, without_answers(texts()), VIEWS)


def test_the_worst_place_by_hand() -> None:
    student, teacher, written = sample()
    batch = written.batch()
    ours, theirs = answer_logits(student, batch)["logits"].detach(), teacher(batch)["logits"]
    found = locate(ours, theirs, written)
    p, q = theirs.double().softmax(-1), ours.double().softmax(-1)
    for row in range(6):
        worst, place = -1.0, -1
        for i in range(int(written.lengths[row])):
            divergence = float((p[row, i] * (p[row, i] / q[row, i]).log()).sum())
            if int(p[row, i].argmax()) != int(written.answer[row, i]) and divergence > worst:
                worst, place = divergence, i
        assert int(found.place[row]) == place
        assert float(found.divergence[row]) == pytest.approx(worst, rel=1e-4)
        assert int(found.old[row]) == int(written.answer[row, place])
        assert int(found.new[row]) == int(p[row, place].argmax())


def test_what_stands_before_the_place_stays_and_what_follows_is_the_students() -> None:
    student, teacher, written = sample()
    reviser = Reviser(DECODING)
    revised = reviser(student, teacher, written, VIEWS)
    found = reviser.corrections[0]
    assert found.changed.all()
    for row in range(6):
        place = int(found.place[row])
        assert torch.equal(revised.answer[row, :place], written.answer[row, :place])
        assert int(revised.answer[row, place]) == int(found.new[row])
    again = DECODING(student, corrected_prefix(written, found, PAD), VIEWS)
    assert torch.equal(again.answer, revised.answer)
    # Logits behind the place are other ones than those of the raw text.
    raw, new = (answer_logits(student, one.batch())["logits"] for one in (written, revised))
    row = int((found.place + 2 < revised.lengths.minimum(written.lengths)).int().argmax())
    behind = int(found.place[row]) + 1
    assert not torch.allclose(raw[row, behind], new[row, behind], atol=1e-3)


def test_agreement_everywhere_leaves_the_sample() -> None:
    student = network(0)
    greedy = DECODING(student, without_answers(texts()))
    reviser = Reviser(DECODING)
    revised = reviser(student, Live(network(0), forward=answer_logits), greedy, VIEWS)
    assert torch.equal(revised.answer, greedy.answer)
    assert not reviser.corrections[0].changed.any()
    assert reviser.corrections[0].summary()["changed"] == 0


def test_prompts_and_padding_are_never_corrected() -> None:
    generator = torch.Generator().manual_seed(0)
    given = texts(20)
    ours, theirs = (torch.randn(*given.answer.shape, TOKENS, generator=generator) for _ in range(2))
    theirs[~given.answer_mask] *= 1000
    found = locate(ours, theirs, given)
    assert given.answer_mask.gather(1, found.place[:, None]).all()
    assert (token_divergence(ours, theirs, given.answer_mask)[~given.answer_mask] == 0).all()


def test_only_the_first_candidates() -> None:
    generator = torch.Generator().manual_seed(1)
    given = texts(20)
    ours, theirs = (torch.randn(*given.answer.shape, TOKENS, generator=generator) for _ in range(2))
    differ = given.answer_mask & (theirs.argmax(-1) != given.answer)
    found = locate(ours, theirs, given, first=1)
    assert torch.equal(found.place, differ.int().argmax(1))


def test_a_random_place_is_a_candidate_and_replayable() -> None:
    generator = torch.Generator().manual_seed(2)
    given, views = texts(50), view_seeds(0, 1, torch.arange(50))
    ours, theirs = (torch.randn(*given.answer.shape, TOKENS, generator=generator) for _ in range(2))
    found = locate(ours, theirs, given, rule="random", views=views)
    differ = given.answer_mask & (theirs.argmax(-1) != given.answer)
    assert differ.gather(1, found.place[:, None]).all()
    assert torch.equal(found.place, locate(ours, theirs, given, rule="random", views=views).place)
    assert not torch.equal(found.place, locate(ours, theirs, given).place)
    with pytest.raises(UserError, match="views"):
        locate(ours, theirs, given, rule="random")
    with pytest.raises(UserError, match="rule"):
        locate(ours, theirs, given, rule="best")


def test_rounds_follow_one_another() -> None:
    student, teacher, written = sample()
    twice = Reviser(DECODING, rounds=2)
    revised = twice(student, teacher, written, VIEWS)
    once = Reviser(DECODING)(student, teacher, Reviser(DECODING)(student, teacher, written, VIEWS), VIEWS)
    assert len(twice.corrections) == 2
    assert torch.equal(revised.answer, once.answer)
