"""What an answer costs by the split of the layers, of untrained networks of equal weights; nothing is trained.

Operations and cached numbers are exact, so all seeds agree and claims are about them. Times of this machine, with
caches in all networks, stand beside them as costs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.experiment import Arm, Experiment, Outcome
from limbeck.language.encoder_decoder import Decoder, is_encoder_decoder
from limbeck.measure.cost import count_flops, latency
from limbeck.models.encoder_decoder import BlockSizes, core_parameters, encoder_decoder, twin
from limbeck.testbeds.recipe import seeded

from .claims import COST

NAMES = {"vocabulary": 4096, "pad": 0, "start": 2, "end": 1}
ARMS = {
    "decoder-only": Arm(None, "six layers that read and write", "none"),
    "3+3": Arm((3, 3), "three encoder and three decoder layers", "rival"),
    "4+2": Arm((4, 2), "four encoder and two decoder layers, as published"),
    "1+5": Arm((1, 5), "one encoder and five decoder layers", "ablation"),
    "5+1": Arm((5, 1), "five encoder layers and one decoder layer", "ablation"),
}


class Answer:
    """A network at work on one input: :meth:`first` reads it and says a token, :meth:`next` one more."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model: Any = model
        self.ids, self.mask = ids, torch.ones_like(ids)
        self.token = ids[:, :1]
        self.cache: Any = None
        self.decoder: Decoder | None = None

    @torch.inference_mode()
    def first(self) -> None:
        """Read, and the first token's logits."""
        if is_encoder_decoder(self.model):
            self.decoder = Decoder(self.model, self.ids, self.mask)
            self.decoder()
            return
        self.cache = self.model(input_ids=self.ids, use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def next(self) -> None:
        """One token more."""
        if self.decoder is not None:
            self.decoder(self.token)
            return
        self.cache = self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True).past_key_values

    def cached(self) -> int:
        """Numbers in the caches of keys and values."""
        whole = self.cache if self.decoder is None else self.decoder.cache
        parts = [whole] if self.decoder is None else [whole.self_attention_cache, whole.cross_attention_cache]
        return sum(layer.keys.numel() + layer.values.numel() for part in parts for layer in part.layers)


class Cost(Experiment):
    """See the module."""

    name = "cost"
    title = "What an answer costs, by the split of the layers"
    metric = "first_1024"
    arms = ARMS
    claims = COST
    seeds = {"smoke": (0,), "full": (0, 1, 2)}
    lengths = (64, 256, 1024)
    output = 24
    rounds = {"smoke": 1, "full": 20}
    width = {"smoke": 32, "full": 128}

    def network(self, arm: str, seed: int) -> nn.Module:
        """Untrained; the decoder-only one is the twin of the published split."""
        split, blocks = self.arms[arm].setting, BlockSizes(self.width[self.size], 4, 2)
        make = partial(twin, blocks, 4, 2) if split is None else partial(encoder_decoder, blocks, *split)
        return seeded(lambda: make(**NAMES), seed).eval()

    def run(self, arm: str, seed: int) -> Outcome:
        """Count, then take the time."""
        model = self.network(arm, seed)
        metrics, cost = {"core_parameters": float(core_parameters(model))}, {}
        for length in self.lengths:
            ids = torch.randint(3, NAMES["vocabulary"], (1, length), generator=torch.Generator().manual_seed(seed))
            answer = Answer(model, ids)
            first = count_flops(answer.first, model)
            token = count_flops(answer.next, model)
            metrics[f"first_{length}"], metrics[f"token_work_{length}"] = math.log2(first), math.log2(token)
            metrics[f"answer_work_{length}"] = math.log2(first + (self.output - 1) * token)
            metrics[f"cache_{length}"] = math.log2(answer.cached())
            rounds = self.rounds[self.size]
            cost[f"first_ms_{length}"] = latency(answer.first, rounds=rounds, warmup=2).p50_ms
            whole = latency(partial(self.write, answer), rounds=max(rounds // 4, 1), warmup=1).p50_ms
            cost[f"tokens_per_second_{length}"] = 1000 * self.output / whole
        return Outcome(metrics, {}, cost)

    def write(self, answer: Answer) -> None:
        """A whole answer."""
        answer.first()
        for _ in range(self.output - 1):
            answer.next()
