"""Return of the Encoder: a small encoder-decoder learns from a causal teacher on what it writes itself.

An encoder-decoder reads a long input once and writes with a small decoder; good teachers are decoder-only. For a pair
(x, y*) and a sample y of the student

    teacher reads   [left padding, x, y]           its logits in columns S-1 .. S-1+T-1 are of y_1 .. y_T
    student reads   encoder x, decoder [start, y_1 .. y_{T-1}]       its logits in columns 0 .. T-1 are of them

    y   ~ student(x)           temperature 0.9, the 128 most probable tokens, up to T, until the first end
    L_KD = mean over y's tokens of KL(softmax z_T || softmax z_S)                                temperature 1
    L    = alpha L_KD + (1 - alpha) CE(y* | x)                                                   alpha = 0.9

"Return of the Encoder: Maximizing Parameter Efficiency for SLMs", 2025; released in microsoft/encoder-decoder-slm. Both
networks have one tokenizer. The release averages the KL over padding too (``reduction="released"``) and does not put
the student into evaluation mode to write; here it always is, and positions behind the first end do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.language import Decoding, OnPolicy, SequenceDistiller, Sequences, Step, Writer
from limbeck.objectives import KL, DataCrossEntropy, Objective
from limbeck.signals import Batch, Signals
from limbeck.sources import Source

REDUCTIONS = ("masked", "released")
#: Published: how the student writes.
TEMPERATURE, TOP_K = 0.9, 128


def sampling(length: int, end: int | None, pad: int) -> Decoding:
    """The student's published way to write, up to ``length`` tokens."""
    return Decoding(length, end, pad, temperature=TEMPERATURE, top_k=TOP_K)


def mixed_objective(alpha: float = 0.9, *, reduction: str = "masked", token: Objective | None = None) -> Objective:
    """``alpha L_KD + (1 - alpha) L_CE``.

    Args:
        alpha: 0 to 1. At 1 a student that samples badly is taught on bad text alone: train it on the data first.
        reduction: ``masked``: mean over the sample's tokens, its end included. ``released``: mean over all B * T
            positions, padding too, where the teacher's word is arbitrary; it makes L_KD smaller the shorter answers
            are. Texts must then be T wide (:class:`FullLength`).
        token: in the place of the forward KL.
    """
    if not 0 <= alpha <= 1:
        raise UserError("alpha", alpha, "0 to 1")
    if reduction not in REDUCTIONS:
        raise UserError("reduction", reduction, REDUCTIONS)
    distilled = token or KL()
    if reduction == "released":
        distilled = EveryPosition(distilled)
    parts = [weight * part for weight, part in ((alpha, distilled), (1 - alpha, DataCrossEntropy())) if weight]
    return sum(parts[1:], parts[0])


class EveryPosition(Objective):
    """An objective that counts padding like tokens."""

    def __init__(self, part: Objective) -> None:
        super().__init__()
        self.part, self.needs = part, part.needs

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.part(student, teacher, {k: value for k, value in batch.items() if k != "mask"})
        return terms


class FullLength(Writer):
    """Another writer's text, padded to ``length`` columns as the release's batches are."""

    def __init__(self, writer: Writer, length: int, pad: int) -> None:
        self.writer, self.length, self.pad = writer, length, pad

    def __call__(self, step: Step) -> Sequences:
        text = self.writer(step)
        gap = self.length - text.answer.shape[1]
        if gap < 0:
            raise UserError("length", self.length, f"the texts' width or more, {text.answer.shape[1]}")
        answer = functional.pad(text.answer, (0, gap), value=self.pad)
        return replace(text, answer=answer, answer_mask=functional.pad(text.answer_mask, (0, gap)), learnt=None)

    def observed(self) -> dict[str, Tensor]:
        return self.writer.observed()

    def state_dict(self) -> dict[str, Any]:
        return self.writer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.writer.load_state_dict(state)


def return_of_encoder(
    student: nn.Module,
    teacher: Source | nn.Module,
    decoding: Decoding,
    *,
    alpha: float = 0.9,
    reduction: str = "masked",
    token: Objective | None = None,
    writer: Writer | None = None,
    tokenizers: tuple[Any, Any] | None = None,
    optimizer: OptimizerSettings | None = None,
    seed: int = 0,
) -> SequenceDistiller:
    """A distiller for :func:`limbeck.engine.fit`, on batches of :class:`~limbeck.language.Sequences` columns.

    Args:
        student: an encoder-decoder of transformers (:mod:`limbeck.models.encoder_decoder`, T5, BART); a causal model
            works too, which is the published comparison.
        teacher: a causal model, fine-tuned on the task, run live: samples are new.
        decoding: how the student writes, :func:`sampling` as published.
        alpha, reduction, token: of :func:`mixed_objective`.
        writer: in the place of the student's samples, such as ``DataText()`` for distillation on the true answers.
        tokenizers: the student's and the teacher's. Logits are cut to their common size, since tables are padded
            differently; other content is refused. Without them tables of two sizes are refused.
        seed: of the samples.
    """
    text = writer or OnPolicy(decoding)
    if reduction == "released":
        text = FullLength(text, decoding.length, decoding.pad)
    return SequenceDistiller(
        student, mixed_objective(alpha, reduction=reduction, token=token), teacher, writer=text, tokenizers=tokenizers,
        seed=seed, optimizer=optimizer or OptimizerSettings(lr=1e-4, weight_decay=0.01, warmup=0.05),
    )  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """How many sources and targets were longer than allowed."""

    sources: int
    targets: int


def text_pairs(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, source: int, target: int, end: int, pad: int
) -> tuple[Sequences, Cut]:
    """Token ids of (source, target) pairs as prompts and answers, with ``end`` behind every target that is whole.

    Args:
        source, target: tokens at most; what is longer loses its end, and is counted.
    """
    if len(sources) != len(targets):
        raise UserError("targets", len(targets), f"one per source, {len(sources)}")
    for key, rows in (("source", sources), ("target", targets)):
        empty = next((number for number, row in enumerate(rows) if not len(row)), None)
        if empty is not None:
            raise UserError(f"{key} {empty}", "empty", "at least one token")
    whole = [[*row, end] for row in targets]
    made = Sequences.pad([row[:source] for row in sources], [row[:target] for row in whole], pad=pad)
    return made, Cut(sum(len(row) > source for row in sources), sum(len(row) > target for row in whole))
