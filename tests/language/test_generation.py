from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from limbeck.data.views import view_seeds
from limbeck.errors import UserError
from limbeck.language import Decoding, Sequences, answer_logits, choose, generate, without_answers
from limbeck.systems.language.multi_granularity.identities import END, PAD, TOKENS, network, texts

DECODING = Decoding(8, END, PAD)
VIEWS = view_seeds(3, 0, torch.arange(6))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model, given = network(), without_answers(texts())
    whole = DECODING(model, given, VIEWS)
    for row in range(6):
        alone = DECODING(model, given.select(torch.tensor([row])).trimmed(), VIEWS[row : row + 1])
        length = int(alone.lengths)
        assert int(whole.lengths[row]) == length
        assert torch.equal(whole.answer[row, :length], alone.answer[0, :length])
    backwards = torch.arange(5, -1, -1)
    again = DECODING(model, given.select(backwards), VIEWS[backwards])
    assert torch.equal(again.answer, whole.answer[backwards])
    assert not torch.equal(DECODING(model, given, view_seeds(4, 0, torch.arange(6))).answer, whole.answer)


def test_going_on_from_its_own_beginning_gives_the_sample_again() -> None:
    model = network()
    whole = DECODING(model, without_answers(texts()), VIEWS)
    for cut in (1, 2, 4):
        kept = whole.answer_mask & (torch.arange(whole.answer.shape[1]) < cut)
        begun = whole.with_answers(torch.where(kept, whole.answer, 33), kept)
        again = DECODING(model, begun, VIEWS)
        assert torch.equal(again.answer, whole.answer)
        assert torch.equal(again.answer_mask, whole.answer_mask)


def test_greedy_is_what_the_logits_say_and_what_transformers_writes() -> None:
    model, given = network(), without_answers(texts())
    found = DECODING(model, given)
    logits = answer_logits(model, found.batch())["logits"]
    assert torch.equal(logits.argmax(-1)[found.answer_mask], found.answer[found.answer_mask])
    row = given.select(torch.tensor([2])).trimmed()
    theirs = model.generate(row.prompt, max_new_tokens=8, do_sample=False, eos_token_id=END, pad_token_id=PAD)  # type: ignore[operator]
    ours = found.answer[2][found.answer_mask[2]]
    assert torch.equal(theirs[0, row.prompt.shape[1] :][: len(ours)], ours)


def test_nothing_follows_the_end() -> None:
    model = network()
    found = DECODING(model, without_answers(texts(40)), view_seeds(0, 0, torch.arange(40)))
    ended = (found.answer == END) & found.answer_mask
    assert ended.any(), "some sample should end"
    behind = ended.cumsum(1) - ended.int()
    assert not (found.answer_mask & (behind > 0)).any()
    assert (found.answer[~found.answer_mask] == PAD).all()
    done = Sequences.pad([[5, 6]], [[7, END]], pad=PAD)
    assert DECODING(model, done, VIEWS[:1]).answer.tolist() == [[7, END]]
    full = Sequences.pad([[5, 6]], [[7] * 8], pad=PAD)
    assert DECODING(model, full, VIEWS[:1]).answer.tolist() == [[7] * 8]
    assert generate(model, texts(2), length=3, end=None, pad=PAD).answer.shape[1] >= 3


def test_modes_and_gradients_are_left_alone() -> None:
    model = network().train()
    DECODING(model, without_answers(texts()))
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_gpt2_writes_too() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=TOKENS, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5)
    model = GPT2LMHeadModel(config).eval()
    whole = DECODING(model, without_answers(texts()), VIEWS)
    alone = DECODING(model, without_answers(texts()).select(torch.tensor([1])).trimmed(), VIEWS[1:2])
    assert torch.equal(whole.answer[1, : alone.answer.shape[1]], alone.answer[0])


def test_choose_follows_the_probabilities() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log().expand(20_000, 4)
    numbers = (torch.arange(20_000) + 0.5) / 20_000
    share = torch.bincount(choose(logits, numbers), minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.25, 0.25, 0.0]), atol=1e-3, rtol=0)
    assert choose(logits[:1], torch.tensor([1.0 - 1e-16], dtype=torch.float64)).item() == 2
    cold = torch.bincount(choose(logits, numbers, temperature=0.5), minlength=4) / 20_000
    torch.testing.assert_close(cold, torch.tensor([4 / 6, 1 / 6, 1 / 6, 0.0]), atol=1e-3, rtol=0)
    nucleus = torch.bincount(choose(logits, numbers, top_p=0.6), minlength=4) / 20_000
    torch.testing.assert_close(nucleus, torch.tensor([2 / 3, 1 / 3, 0.0, 0.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Decoding(4, END, PAD, **wrong)(network(), without_answers(texts()))
