"""What a causal language model makes of given text: the information of each word, the likelihood of a continuation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.word_spans import Word, split_spans
from limbeck.errors import UserError
from limbeck.language.sequences import Sequences, answer_logits
from limbeck.losses import cross_entropy
from limbeck.nn.mode import evaluating


def self_information(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    words: Sequence[Sequence[Word]] | None = None,
    merge: str = "sum",
    batch_size: int = 16,
) -> list[Tensor]:
    """``-log p(word | the words before it)`` in nats for every word of every text.

    The score by which Selective Context (Li et al., EMNLP 2023) and LLMLingua choose: a word that the model would have
    guessed can be left out.

    Args:
        tokenizer: a fast one (it must know where in the text its tokens stand).
        words: of each text; by default :func:`~limbeck.data.word_spans.split_spans`. A token counts for the word with
            most of its characters.
        merge: ``sum`` over a word's tokens (its own information), or ``mean``.
    """
    if merge not in ("sum", "mean"):
        raise UserError("merge", merge, ("sum", "mean"))
    places = [split_spans(text) for text in texts] if words is None else words
    if not texts:
        return []
    coded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    ids: list[list[int]] = [list(row) for row in coded["input_ids"]]
    nll = token_nll(model, [[_begin(tokenizer)]] * len(texts), ids, batch_size=batch_size)
    return [_by_word(values, offsets, row, merge) for values, offsets, row in zip(nll, coded["offset_mapping"], places)]


def continuation_log_likelihood(
    model: nn.Module,
    tokenizer: Any,
    contexts: Sequence[str],
    continuations: Sequence[str],
    *,
    batch_size: int = 16,
) -> Tensor:
    """Mean log-probability per token of each continuation behind its context, float32 ``[N]``.

    The border must be plain in the texts themselves (``"...\\n"``, ``" word"``): they are tokenised apart.
    """
    if len(contexts) != len(continuations):
        raise UserError("continuations", len(continuations), f"one per context, {len(contexts)}")
    prompts = [[_begin(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in contexts]
    answers = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in continuations]
    if not all(answers):
        raise UserError("continuations", "an empty one", "texts of at least one token")
    return -torch.stack([row.mean() for row in token_nll(model, prompts, answers, batch_size=batch_size)])


def token_nll(
    model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, batch_size: int = 16
) -> list[Tensor]:
    """``-log p`` of every token of ``answers`` behind its prompt, float32; rows of like length share a batch."""
    found: dict[int, Tensor] = {row: torch.zeros(0) for row in range(len(answers))}
    order = sorted((row for row in found if len(answers[row])), key=lambda row: -len(prompts[row]) - len(answers[row]))
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            given = Sequences.pad([prompts[row] for row in rows], [answers[row] for row in rows], pad=0).batch()
            inputs = {name: value.to(device) for name, value in given["input"].items()}
            target, mask = given["target"].to(device), given["mask"].to(device)
            logits = answer_logits(model, {"input": inputs, "target": target})["logits"]
            values = cross_entropy(logits, target, mask=mask, reduction="none").float().cpu()
            for row, one in zip(rows, values):
                found[row] = one[: len(answers[row])]
    return [found[row] for row in range(len(answers))]


def _by_word(nll: Tensor, offsets: Sequence[tuple[int, int]], words: Sequence[Word], merge: str) -> Tensor:
    totals, counts = torch.zeros(len(words)), torch.zeros(len(words))
    first = 0
    for value, (start, end) in zip(nll, offsets):
        while first < len(words) and words[first].end <= start:
            first += 1
        shared = [min(end, word.end) - max(start, word.start) for word in words[first:]]
        if max(shared, default=0) <= 0:
            continue
        place = first + shared.index(max(shared))
        totals[place] += value
        counts[place] += 1
    return totals if merge == "sum" else totals / counts.clamp_min(1)


def _begin(tokenizer: Any) -> int:
    for number in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    raise UserError("tokenizer", type(tokenizer).__name__, "one with a token for the begin or end of a text")
