"""What an answer costs by the split of the layers, of untrained networks of equal weights; nothing is trained.

Operations and bytes are counted, so all seeds agree and claims are about them. Times and the memory of a process are
this machine's and stand beside them as costs: every network is timed in turn with the decoder-only one, in the same
run, with caches in both.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.experiment import Arm, Experiment, Outcome
from limbeck.experiment.line_plots import lines
from limbeck.language.encoder_decoder import Decoder, is_encoder_decoder
from limbeck.measure.cost import compare_latency, count_flops, state_bytes
from limbeck.measure.memory import peak_memory
from limbeck.models.encoder_decoder import BlockSizes, core_parameters, encoder_decoder, twin
from limbeck.testbeds.recipe import seeded

from .claims import COST

NAMES = {"vocabulary": 4096, "pad": 0, "start": 2, "end": 1}
LENGTHS = (64, 256, 1024)
TWIN = "decoder-only"
ARMS = {
    TWIN: Arm(None, "six layers that read and write", "none"),
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
        """Bytes kept between two tokens: keys and values, and the encoder's states."""
        if self.decoder is None:
            parts, states = [self.cache], 0
        else:
            whole = self.decoder.cache
            parts, states = [whole.self_attention_cache, whole.cross_attention_cache], self.decoder.states[0].nbytes
        pairs: int = sum(layer.keys.nbytes + layer.values.nbytes for part in parts for layer in part.layers)
        return states + pairs

    def write(self, tokens: int) -> None:
        """A whole answer."""
        self.first()
        for _ in range(tokens - 1):
            self.next()


def network(arm: str, width: int, seed: int) -> nn.Module:
    """Untrained; the decoder-only one is the twin of the published split."""
    split, blocks = ARMS[arm].setting, BlockSizes(width, 4, 2)

    def build() -> nn.Module:
        return twin(blocks, 4, 2, **NAMES) if split is None else encoder_decoder(blocks, *split, **NAMES)

    return seeded(build, seed).eval()


def question(length: int, seed: int) -> Tensor:
    """Random tokens."""
    return torch.randint(3, NAMES["vocabulary"], (1, length), generator=torch.Generator().manual_seed(seed))


def answered(arm: str, width: int, tokens: int) -> None:
    """A network made and asked once, with the longest input: what a process needs for it."""
    Answer(network(arm, width, 0), question(max(LENGTHS), 0)).write(tokens)


class Cost(Experiment):
    """See the module."""

    name = "cost"
    title = "What an answer costs, by the split of the layers"
    metric = "first_1024"
    arms = ARMS
    claims = COST
    seeds = {"smoke": (0,), "full": (0, 1, 2)}
    output = {"smoke": 2, "full": 24}
    rounds = {"smoke": 1, "full": 20}
    width = {"smoke": 32, "full": 128}

    def run(self, arm: str, seed: int) -> Outcome:
        """Count, then take the time."""
        model = network(arm, self.width[self.size], seed)
        metrics = {"core_parameters": float(core_parameters(model))}
        for length in LENGTHS:
            answer, output = Answer(model, question(length, seed)), self.output[self.size]
            first, token = (count_flops(call, model) for call in (answer.first, answer.next))
            kept = answer.cached()
            metrics[f"first_{length}"], metrics[f"token_work_{length}"] = math.log2(first), math.log2(token)
            metrics[f"answer_work_{length}"] = math.log2(first + (output - 1) * token)
            metrics[f"cache_{length}"], metrics[f"memory_{length}"] = (
                math.log2(number) for number in (kept, kept + state_bytes(model))
            )
        return Outcome(metrics, {}, self.spent(arm, seed), pictures=self.drawn(arm, seed))

    def spent(self, arm: str, seed: int) -> dict[str, float]:
        """Medians, and how many times as fast it is as the decoder-only network in the same rounds."""
        found, rounds, output = {}, self.rounds[self.size], self.output[self.size]
        models = {name: network(name, self.width[self.size], seed) for name in (TWIN, arm)}
        for length in LENGTHS:
            asked = {name: Answer(model, question(length, seed)) for name, model in models.items()}
            first = compare_latency({name: one.first for name, one in asked.items()}, rounds=rounds, warmup=2)[arm]
            write = {name: partial(one.write, output) for name, one in asked.items()}
            # Over the seeds that is 21 rounds.
            whole = compare_latency(write, rounds=max(rounds // 3 + 1, 1), warmup=1)[arm]
            found[f"first_ms_{length}"], found[f"first_speedup_{length}"] = first.p50_ms, first.speedup
            found[f"tokens_per_second_{length}"] = 1000 * output / whole.p50_ms
            found[f"throughput_gain_{length}"] = whole.speedup
        if seed == 0 and self.size == "full":
            small = partial(answered, arm, self.width[self.size])
            found["peak_megabytes"] = peak_memory(small, output, warmup=_imported).growth / 2**20
        return found

    def drawn(self, arm: str, seed: int) -> dict[str, str]:
        """Work over the length of the input, of all splits; by the published one."""
        if seed or arm != "4+2":
            return {}
        work: dict[str, dict[str, list[float]]] = {"Work to the first token": {}, "Work of a whole answer": {}}
        for name in self.arms:
            model = network(name, self.width[self.size], seed)
            for length in LENGTHS:
                answer = Answer(model, question(length, seed))
                first, token = (count_flops(call, model) / 1e6 for call in (answer.first, answer.next))
                for caption, value in zip(work, (first, first + (self.output[self.size] - 1) * token)):
                    work[caption].setdefault(name, []).append(value)
        return {
            caption: lines(
                {name: (LENGTHS, values) for name, values in of.items() if name != TWIN},
                dashed={TWIN: (LENGTHS, of[TWIN])}, x_label="tokens of the input", y_label="million operations",
            )
            for caption, of in work.items()
        }  # fmt: skip


def _imported(tokens: int) -> None:
    """What is loaded once whatever the network is."""
    for arm in (TWIN, "4+2"):
        Answer(network(arm, 32, 0), question(4, 0)).write(tokens)
