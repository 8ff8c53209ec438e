"""What mathematics decides about the method, as deviations that are zero if the implementation is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.views import view_seeds
from limbeck.errors import require
from limbeck.language import Decoding, Sequences, answer_logits, without_answers
from limbeck.losses import clipped_kl, cross_entropy, forward_kl, span_product
from limbeck.testbeds.recipe import seeded

TOKENS, PAD, END = 40, 0, 1


def network(seed: int = 0, width: int = 16, depth: int = 2) -> nn.Module:
    """A tiny Llama model with random weights, large enough that its samples differ."""
    transformers = require("transformers", "language")
    config = transformers.LlamaConfig(
        vocab_size=TOKENS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=2, eos_token_id=END,
        initializer_range=0.4,
    )  # fmt: skip
    made: nn.Module = seeded(lambda: transformers.LlamaForCausalLM(config).eval(), seed)
    return made


def texts(count: int = 6, seed: int = 0, *, longest: int = 7, answer: int = 6) -> Sequences:
    """Random prompts and answers of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(3, TOKENS, (length,), generator=generator).tolist()

    prompts = [some(2, longest) for _ in range(count)]
    return Sequences.pad(prompts, [[*some(2, answer), END] for _ in range(count)], pad=PAD)


class Copier(nn.Module):
    """Says with certainty that the next token is the one ``distance`` places before it."""

    def __init__(self, distance: int) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """Logits ``[B, L, V]``: position i points at token ``i + 1 - distance``."""
        said = functional.pad(input_ids, (self.distance - 1, 0))[:, : input_ids.shape[1]]
        return {"logits": 50.0 * functional.one_hot(said, TOKENS).float()}


def copying_costs_nothing() -> float:
    """Cross-entropy of a copier on answers that repeat their prompts; a shift by one would cost 50 nats."""
    prompts = [[5, 6, 7, 8], [9, 8, 7, 6], [20, 21, 22, 23]]
    batch = Sequences.pad(prompts, prompts, pad=PAD).batch()
    logits = answer_logits(Copier(4), batch)["logits"]
    return float(cross_entropy(logits, batch["target"], mask=batch["mask"]))


def continues_itself() -> float:
    """Tokens of samples that differ when the student goes on from a part of them with the same views."""
    student, decoding = network(), Decoding(8, END, PAD)
    views = view_seeds(0, 0, torch.arange(6))
    whole = decoding(student, without_answers(texts()), views)
    cut = torch.arange(whole.answer.shape[1]) < torch.tensor([[0], [1], [2], [3], [1], [2]])
    begun = whole.with_answers(torch.where(cut, whole.answer, PAD), cut & whole.answer_mask)
    again = decoding(student, begun, views)
    same = again.answer.shape == whole.answer.shape and bool((again.answer == whole.answer).all())
    return 0.0 if same else 1.0


def padding_changes_nothing() -> float:
    """Largest difference of a loss per token between a batch with wide padding on both sides and single rows."""
    student, given = network(), texts()
    wide = Sequences(
        functional.pad(given.prompt, (5, 0), value=PAD), functional.pad(given.prompt_mask, (5, 0)),
        functional.pad(given.answer, (0, 4), value=PAD), functional.pad(given.answer_mask, (0, 4)),
    )  # fmt: skip
    worst = 0.0
    together = _rows(student, wide)
    for row in range(len(given)):
        alone = _rows(student, given.select(torch.tensor([row])).trimmed())[0]
        worst = max(worst, float((together[row, : len(alone)] - alone).abs().max()))
    return worst


def whole_window_is_forward_kl() -> float:
    """Difference of the clipped KL with bounds 0 and 1 over all classes from forward KL."""
    student, teacher = _logits(1), _logits(2)
    clipped = clipped_kl(student, teacher, lower=0.0, upper=2.0, k=TOKENS)
    return abs(float(clipped - forward_kl(student, teacher)))


def whole_support() -> float:
    """Difference of the span loss over the top-k of all classes from the sum over the vocabulary."""
    student, teacher = _logits(1), _logits(2)
    ours, theirs = student.softmax(-1), teacher.softmax(-1)
    plain = (theirs[:, 1:] * theirs[:, :-1] - ours[:, 1:] * ours[:, :-1]).square().sum(-1).mean()
    return max(abs(float(span_product(student, teacher, k=k) - plain)) for k in (TOKENS, TOKENS - 1))


@torch.no_grad()
def _rows(student: nn.Module, given: Sequences) -> Tensor:
    batch = given.batch()
    logits = answer_logits(student, batch)["logits"]
    return cross_entropy(logits, batch["target"], mask=batch["mask"], reduction="none")


def _logits(seed: int) -> Tensor:
    return 2 * torch.randn(3, 5, TOKENS, generator=torch.Generator().manual_seed(seed))
