"""Information of words and likelihood of continuations under a language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from limbeck.data.word_spans import split_spans
from limbeck.errors import UserError
from limbeck.language.likelihood import continuation_log_likelihood, self_information, token_nll

TEXTS = ["a cat sat (low) on it", "unseen words"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def chain(model: Any, ids: list[int]) -> torch.Tensor:
    """-log p of every token but the first, one text at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found: torch.Tensor = -logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return found


def test_information_is_that_of_the_tokens_of_a_word(model: Any, tokenizer: Any) -> None:
    found = self_information(model, tokenizer, TEXTS)
    for text, row in zip(TEXTS, found):
        coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        nll = chain(model, [tokenizer.eos_token_id, *coded["input_ids"]])
        words = split_spans(text)
        assert len(row) == len(words)
        wanted = torch.zeros(len(words))
        for value, (start, end) in zip(nll, coded["offset_mapping"]):
            shared = [min(end, word.end) - max(start, word.start) for word in words]
            if max(shared) > 0:
                wanted[shared.index(max(shared))] += value
        torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)
    # Spaces that stand alone are no word's; here every token is some word's.
    assert sum(float(row.sum()) for row in found) > 0
    means = self_information(model, tokenizer, TEXTS, merge="mean")
    assert bool((means[0] <= found[0] + 1e-6).all())


def test_batches_and_lengths_change_nothing(model: Any, tokenizer: Any) -> None:
    prompts, answers = [[0], [0, 5, 9], [0, 3]], [[7, 8, 9, 10], [], [4]]
    together = token_nll(model, prompts, answers, batch_size=3)
    assert len(together[1]) == 0
    for row, prompt, answer in zip(together, prompts, answers):
        if answer:
            torch.testing.assert_close(row, chain(model, prompt + answer)[len(prompt) - 1 :], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(row, token_nll(model, [prompt], [answer])[0], atol=1e-5, rtol=1e-5)


def test_a_continuation_is_read_behind_its_context(model: Any, tokenizer: Any) -> None:
    found = continuation_log_likelihood(model, tokenizer, ["a cat", ""], [" sat", " sat"])
    for context, value in zip(("a cat", ""), found):
        before = [tokenizer.eos_token_id, *tokenizer(context, add_special_tokens=False)["input_ids"]]
        behind = tokenizer(" sat", add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(
            value, -chain(model, before + behind)[len(before) - 1 :].mean(), atol=1e-5, rtol=1e-5
        )
    assert found[0] != found[1]


def test_bad_input(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="merge"):
        self_information(model, tokenizer, TEXTS, merge="max")
    with pytest.raises(UserError, match="continuations"):
        continuation_log_likelihood(model, tokenizer, ["a"], [])
    with pytest.raises(UserError, match="continuations"):
        continuation_log_likelihood(model, tokenizer, ["a"], [""])
    assert self_information(model, tokenizer, []) == []
