"""What mathematics decides about the alignment: measured on networks of no training at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.language import Sequences, answer_logits
from limbeck.language.encoder_decoder import Decoder
from limbeck.models.encoder_decoder import BlockSizes, encoder_decoder
from limbeck.testbeds.recipe import seeded

PAD, END, START, SEPARATOR, TOKENS = 0, 1, 2, 3, 40


class Copier(nn.Module):
    """A causal model that repeats: behind ``x_1 .. x_n separator`` it says x_1 to x_n, whatever the padding."""

    def __init__(self, length: int, late: int = 0) -> None:
        super().__init__()
        self.back, self.late = length, late

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """The token ``length`` places back, or ``late`` places later."""
        wanted = input_ids.roll(self.back + self.late, 1)
        return {"logits": 10.0 * nn.functional.one_hot(wanted, TOKENS).float()}


def copied(seed: int = 0, length: int = 4, padding: int = 0) -> Sequences:
    """Prompts with themselves as answers, behind ``padding`` columns more."""
    rows = torch.randint(4, TOKENS, (8, length), generator=torch.Generator().manual_seed(seed)).tolist()
    found = Sequences.pad([[*row, SEPARATOR] for row in rows], rows, pad=PAD)
    more = found.prompt.new_full((8, padding), PAD)
    return Sequences(
        torch.cat([more, found.prompt], 1), torch.cat([more.bool(), found.prompt_mask], 1),
        found.answer, found.answer_mask,
    )  # fmt: skip


def network(seed: int = 0) -> Any:
    """A tiny encoder-decoder, random."""
    names = {"vocabulary": TOKENS, "pad": PAD, "start": START, "end": END}
    return seeded(lambda: encoder_decoder(BlockSizes(16, 4, 2), 2, 1, **names), seed).eval()


def misread(late: int = 0) -> float:
    """Share of tokens that a copying teacher's aligned logits get wrong; a slice one place off gets nearly all."""
    wrong = [answer_logits(Copier(4, late), copied(padding=p).batch())["logits"].argmax(-1) for p in (0, 3)]
    return max(float((found != copied().answer).double().mean()) for found in wrong)


@torch.no_grad()
def cached_differs() -> float:
    """Largest difference of logits with caches, token by token, and of one pass over the text."""
    model, given = network(), copied(padding=2)
    whole = answer_logits(model, given.batch())["logits"]
    decoder = Decoder(model, given.prompt, given.prompt_mask)
    steps = [decoder(None if k == 0 else given.answer[:, k - 1, None]) for k in range(given.answer.shape[1])]
    return float((torch.stack(steps, 1) - whole).abs().max())


@torch.no_grad()
def centring_changes() -> float:
    """Largest difference of logits with encoder positions around 0 and from 0 on."""
    model, given = network(), copied()
    decoder_input = torch.cat([given.answer.new_full((8, 1), START), given.answer[:, :-1]], 1)
    plain = model(input_ids=given.prompt, decoder_input_ids=decoder_input).logits
    return float((answer_logits(model, given.batch())["logits"] - plain).abs().max())
