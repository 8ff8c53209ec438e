"""A real model: the first 40 tokens of sentences of the manual as eight vectors in front of the next ten.

SmolLM2 with 135 million weights is frozen; its first two layers, which learn, read the context. Stage 1 alone, over a
cache of the model's 64 likeliest tokens with the exact rest, in two passes over 200 sentences: nothing but the KL on
held-out sentences is compared.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import run_program
from limbeck.experiment import Arm, Claim, Experiment, Outcome
from limbeck.language import BehindPrefix, InContext, Prefix, Sequences, SharedPrompt, in_context_batch
from limbeck.objectives import SelectedKL
from limbeck.signals import Batch, Signals
from limbeck.sources import Source

from .method import compressor, mend


@dataclass(frozen=True)
class Way:
    """``kind``: ``vectors``, ``prompt``, or the last ``tokens`` of the context themselves; ``swapped``: the vectors are
    trained on another sentence's answers."""

    kind: str = "vectors"
    tokens: int = 0
    swapped: bool = False


ARMS = {
    "no-context": Arm(Way("tokens"), "the ten tokens alone", "none"),
    "last-8": Arm(Way("tokens", 8), "the context's last eight tokens", "rival"),
    "prompt": Arm(Way("prompt"), "eight vectors for all sentences: prompt tuning", "rival"),
    "mend": Arm(Way(), "eight vectors of this context"),
    "swapped": Arm(Way(swapped=True), "the teacher has read another sentence", "control"),
}
CLAIMS = [
    Claim("Vectors bring the model closer to what it says with its context", "mend", "no-context", "kl", 0.0, "lower"),
    Claim("Closer than a prompt that never reads the context", "mend", "prompt", "kl", 0.0, "lower"),
    Claim("Closer than as many of the context's last tokens", "mend", "last-8", "kl", 0.0, "lower"),
    Claim("The teacher must have read these contexts", "mend", "swapped", "kl", 0.0, "lower", "control"),
]


class SmolLM2(Experiment):
    """See the module."""

    name = "smollm2"
    title = "A sentence's beginning as eight vectors before SmolLM2"
    testbed = "smollm2:context"
    metric = "kl"
    arms = ARMS
    claims = CLAIMS
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    steps = {"smoke": 4, "full": 100}
    length = 8

    def prepare(self) -> dict[str, Any]:
        """The unpacked model, the cache of its answers, the two layers, the gate."""
        self.bed.signals()
        self.bed.student()
        return {"gate": self.bed.gate().as_dict(), "data": self.bed.data_hashes(), "reference": {}}

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def run(self, arm: str, seed: int) -> Outcome:
        """Train the prefix on the cache, then compare on held-out sentences."""
        way: Way = self.arms[arm].setting
        model, splits = self.bed.teacher(), self.bed.splits()
        student: nn.Module = LastTokens(model, way.tokens)
        curves: dict[str, list[float]] = {}
        if way.kind != "tokens":
            student = self.student(way, model, seed)
            source = Predicted(self.bed.signals(), swapped=way.swapped)
            loader = TensorLoader(as_contexts(splits.train), 4, seed=seed, drop_last=True, transform=in_context_batch)
            phases = mend(
                model, loader, None, steps=(self.steps[self.size], 0), rates=(5e-4, 0.0), teachers=(source, None)
            )
            history = run_program(student, phases, seed=seed, accelerator="cpu", log_every=2, gradient_clip=1.0)
            curves = {"kl": history["pretraining"].curve("kl")["y"]}
        return Outcome(self.judge(model, student.eval(), splits.test), curves)

    def student(self, way: Way, model: nn.Module, seed: int) -> nn.Module:
        """What makes the prefix, with queries drawn by the seed."""
        if way.kind == "prompt":
            return SharedPrompt(model.get_input_embeddings().weight, self.length, seed=seed)  # type: ignore[operator]
        return compressor(model, self.bed.student(), self.length, seed=seed)

    @torch.inference_mode()
    def judge(self, model: nn.Module, student: nn.Module, test: Split) -> dict[str, float]:
        """``kl`` to the model with its context per token; ``norm``: of the vectors, in the embeddings' mean norm."""
        read, source, objective = BehindPrefix(model), Predicted(self.bed.signals()), SelectedKL()
        total = norm = count = 0.0
        for batch in as_contexts(test).batches(10):
            given = in_context_batch(batch)
            prefix = student(given["input"]["context"], given["input"]["context_mask"])
            said = read(student, given)
            total += float(objective(said, source(given), given)["kl"]) * len(batch["id"])
            norm += float(prefix.vectors.norm(dim=-1).sum())
            count += prefix.mask.numel()
        usual = float(model.get_input_embeddings().weight.norm(dim=-1).mean())  # type: ignore[operator]
        return {"kl": total / len(test), "norm": norm / max(count, 1.0) / usual}


class LastTokens(nn.Module):
    """The last tokens of a context as a prefix: their own embeddings."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        super().__init__()
        self.embed, self.tokens = model.get_input_embeddings(), tokens  # type: ignore[operator]

    def forward(self, context: Tensor, context_mask: Tensor) -> Prefix:
        """The tokens stand at the right end of their rows."""
        kept = slice(context.shape[1] - self.tokens, None)
        return Prefix(self.embed(context[:, kept]), context_mask[:, kept])


class Predicted(Source):
    """A cache of what the model says of every answer token, as signals at the places where it says so.

    The first answer token is predicted from the context's last one, which has no counterpart behind vectors: the mask
    leaves it out, and the student has a column less.
    """

    def __init__(self, cache: Source, *, swapped: bool = False) -> None:
        self.cache, self.swapped = cache, swapped

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        logits: Any = self.cache(batch, ("logits",))["logits"]
        if self.swapped:
            logits = logits.map(lambda part: part.roll(1, 0))
        counted = torch.ones(logits.rest.shape, dtype=torch.bool)
        counted[:, 0] = False
        return {"logits": logits, "counted": counted}

    def fingerprint(self) -> str:
        return f"predicted {self.swapped} {self.cache.fingerprint()}"


def as_contexts(split: Split) -> Split:
    """Prompts as contexts; of the answers all tokens but the last, which nothing is predicted from."""
    given = Sequences.of(split.input)  # type: ignore[arg-type]
    text, mask = given.answer[:, :-1], given.answer_mask[:, :-1]
    found = InContext(given.prompt, given.prompt_mask, text, mask, torch.zeros_like(mask))
    return Split(found.columns(), None, split.id)
