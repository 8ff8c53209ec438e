from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.language import Decoding, Sequences, answer_logits, choose, without_answers
from limbeck.language.encoder_decoder import encoder_input, start_token
from limbeck.models.encoder_decoder import BlockSizes, encoder_decoder
from limbeck.testbeds.recipe import seeded

PAD, END, START, TOKENS = 0, 1, 2, 30
DECODING = Decoding(6, END, PAD)


def network(seed: int = 0, dropout: float = 0.0) -> Any:
    names = {"vocabulary": TOKENS, "pad": PAD, "start": START, "end": END}
    made = seeded(lambda: encoder_decoder(BlockSizes(16, 4, 2, dropout=dropout), 2, 1, **names), seed)
    with torch.no_grad():
        made.lm_head.out_proj.weight.mul_(20)
    return made.eval()


def texts() -> Sequences:
    prompts = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14]]
    return Sequences.pad(prompts, [[7, 6, END], [9, 8, 7, END], [4], [3, 3]], pad=PAD)


def test_logits_are_of_the_models_own_run() -> None:
    model, given = network(), texts()
    found = answer_logits(model, given.batch())["logits"]
    for row in range(len(given)):
        prompt, answer = given.prompt[row][given.prompt_mask[row]], given.answer[row][given.answer_mask[row]]
        decoder = torch.cat([torch.tensor([START]), answer[:-1]])
        alone = model(input_ids=prompt[None], decoder_input_ids=decoder[None]).logits[0]
        torch.testing.assert_close(found[row, : len(answer)], alone, atol=1e-4, rtol=1e-4)


def test_padding_and_what_stands_there_change_nothing() -> None:
    model, given = network(), texts()
    wide = Sequences(
        torch.cat([given.prompt.new_full((4, 3), 17), given.prompt], 1),
        torch.cat([torch.zeros(4, 3, dtype=torch.bool), given.prompt_mask], 1),
        torch.cat([torch.where(given.answer_mask, given.answer, 21), given.answer.new_full((4, 2), 19)], 1),
        torch.cat([given.answer_mask, torch.zeros(4, 2, dtype=torch.bool)], 1),
    )
    one, other = (answer_logits(model, x.batch())["logits"][:, :4][given.answer_mask] for x in (given, wide))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_no_token_sees_itself_or_what_follows() -> None:
    model, given = network(), texts()
    changed = given.with_answers(given.answer.clone(), given.answer_mask)
    changed.answer[1, 2:] = 15
    one, other = (answer_logits(model, x.batch())["logits"][1] for x in (given, changed))
    assert torch.equal(one[:3], other[:3])
    assert not torch.allclose(one[3], other[3])


def test_writing_with_caches_is_writing_without() -> None:
    model, given = network(), without_answers(texts())
    views = torch.arange(4) + 7
    for seeds in (None, views):
        written = DECODING(model, given, seeds)
        logits = answer_logits(model, written.batch())["logits"]
        if seeds is None:
            assert torch.equal(logits.argmax(-1)[written.answer_mask], written.answer[written.answer_mask])
        for row in range(4):
            alone = DECODING(model, given.select(torch.tensor([row])), None if seeds is None else seeds[[row]])
            assert (
                alone.answer[0][alone.answer_mask[0]].tolist() == written.answer[row][written.answer_mask[row]].tolist()
            )


def test_going_on_from_a_prefix_gives_the_sample_again() -> None:
    model, given, views = network(), without_answers(texts()), torch.arange(4) + 3
    whole = DECODING(model, given, views)
    kept = torch.arange(whole.answer.shape[1]) < torch.tensor([1, 3, 0, 2])[:, None]
    part = whole.with_answers(whole.answer, whole.answer_mask & kept)
    again = DECODING(model, part, views)
    assert torch.equal(again.answer, whole.answer)
    assert torch.equal(again.answer_mask, whole.answer_mask)


def test_it_stops_behind_the_first_end_and_writes_in_evaluation_mode() -> None:
    model, given, views = network(dropout=0.5).train(), without_answers(texts()), torch.arange(4)
    written = [DECODING(model, given, views) for _ in range(2)]
    assert torch.equal(written[0].answer, written[1].answer)
    assert model.training
    ends = (written[0].answer == END) & written[0].answer_mask
    assert int(ends.sum(1).max()) <= 1
    for row in ends.any(1).nonzero().flatten().tolist():
        assert int(written[0].lengths[row]) == int(ends[row].int().argmax()) + 1


def test_positions_are_centred() -> None:
    given = texts()
    found = encoder_input(network(), given.prompt, given.prompt_mask)
    assert found["position_ids"].tolist()[0] == [-2, -1, 0, 1]
    assert found["position_ids"].tolist()[2] == [0, 0, -1, 0]


def test_other_models_of_transformers() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=TOKENS, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=PAD
    )
    model, given = seeded(lambda: T5ForConditionalGeneration(config), 0).eval(), texts()
    assert start_token(model) == PAD
    written = DECODING(model, without_answers(given))
    logits = answer_logits(model, written.batch())["logits"]
    assert torch.equal(logits.argmax(-1)[written.answer_mask], written.answer[written.answer_mask])


def test_a_model_without_a_first_token_is_refused() -> None:
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(is_encoder_decoder=True)  # type: ignore[assignment]
    with pytest.raises(UserError, match="decoder_start_token_id"):
        start_token(model)


def test_top_k() -> None:
    logits: Tensor = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(200, 4)
    numbers = torch.arange(200) / 200
    assert set(choose(logits, numbers, top_k=2).tolist()) == {1, 2}
    assert set(choose(logits, numbers, top_k=2, top_p=0.7).tolist()) == {1}
    with pytest.raises(UserError, match="top_k"):
        Decoding(6, END, PAD, top_k=0)(network(), texts())
