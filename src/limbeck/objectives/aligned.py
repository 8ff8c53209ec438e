"""Objectives between language models of different tokenizers, on the spans that a batch says belong together.

A batch has ``spans``: ``student`` ``[B, A]`` and ``teacher`` ``[B, A']``, the number of the span of every token that
the two sides' logits are of, -1 for none; and ``teacher_input``, whose ``target`` are the teacher's tokens.
:class:`limbeck.language.Retokenizer` makes both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.losses.aligned import DIVERGENCES
from limbeck.losses.reduce import hide_masked
from limbeck.objectives.base import Needs, Objective
from limbeck.signals import Batch, Signals, SparseLogits, dense, dense_or_sparse


class Spans(NamedTuple):
    """Checked spans of a batch: numbers of both sides' tokens, how many there are at most, and which are there."""

    student: Tensor
    teacher: Tensor
    most: int
    present: Tensor


class AlignedObjective(Objective):
    """An objective on spans. A batch without them, or with others than the signals', is refused.

    A row of the loss is a span: under micro-batches and processes their number is what a mean divides by.
    """

    aligned = True

    def spans(self, batch: Batch, student: Tensor, teacher: Tensor | SparseLogits) -> Spans:
        """The batch's spans, checked against the signals."""
        given = batch.get("spans")
        name = type(self).__name__
        if given is None:
            raise UserError(f"{name} batch", sorted(batch), "one with spans", "use SequenceDistiller(retokenizer=...)")
        rows = {"student": student, "teacher": teacher.rest if isinstance(teacher, SparseLogits) else teacher}
        for side, signal in rows.items():
            if given[side].shape != signal.shape[:2]:
                raise UserError(
                    f"{name} {side} signal",
                    f"positions {list(signal.shape[:2])}",
                    f"those of its spans, {list(given[side].shape)}",
                    "the signals must be of the text that was aligned",
                )
        count = max(_most(given["student"]), _most(given["teacher"]), 0) + 1
        present, theirs = (losses.span_places(given[side], count)[1] >= 0 for side in ("student", "teacher"))
        if not torch.equal(present, theirs):
            raise UserError(f"{name} spans", "some on one side only", "the same spans on both sides")
        return Spans(given["student"], given["teacher"], count, present)


class UniversalLogitDistance(AlignedObjective):
    """Sorted probabilities agree where a span begins; see :func:`limbeck.losses.universal_logit_distance`.

    At the beginning of a span both models have read the same text, so what they say next is compared there. (The paper
    compares position by position, whatever stands there, and cuts off the longer text.)
    """

    needs = Needs(student="logits", teacher="logits")

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = dense(student, "logits"), dense_or_sparse(teacher, "logits")
        spans = self.spans(batch, ours, theirs)
        places = [losses.span_places(side, spans.most)[0] for side in (spans.student, spans.teacher)]
        rows = torch.arange(len(ours), device=ours.device)[:, None].expand_as(spans.present)[spans.present]
        first, second = (place[spans.present] for place in places)
        # The spans alone: padding would make copies of the vocabulary's size for nothing.
        at_theirs = theirs.map(lambda t: t[rows, second]) if isinstance(theirs, SparseLogits) else theirs[rows, second]
        value = losses.universal_logit_distance(ours[rows, first], at_theirs, temperature=self.temperature)
        return {"universal_logit_distance": value}

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class LikelihoodMatching(AlignedObjective):
    """Both models find every span of the text equally likely; see :func:`limbeck.losses.likelihood_matching`.

    A likelihood of a span is that of its tokens in this cut. Another cut of the same text may exist, and a span that
    ends inside a word has a probability that depends on the tokenizer; the paper's remedy ("outcome debiasing")
    multiplies the likelihood by the probability that a word ends there, and joins spans where the teacher finds that
    unlikely.

    Args:
        temperature, divergence: of the loss.
        teacher: ``logits``; or ``log_probs``, the log-probabilities of the teacher's own tokens ``[B, A']``, one number
            per token, cheap to cache. Top-k logits cannot tell what a token that they left out has.
        ends: for debiasing, by id which tokens begin with white space or are special, of student and teacher
            (:func:`limbeck.tokens.begins_word`); None leaves likelihoods as they are.
        threshold: spans behind which the teacher's probability of a word's end is not above it are joined with the
            next; 0.1 in the released recipes. Needs ``ends``.

    The released code compares cross-entropies of chunks; its side paths, space-only and hidden-state variants are not
    here.
    """

    def __init__(
        self,
        temperature: float = 100.0,
        *,
        divergence: str = "kl",
        teacher: str = "logits",
        ends: tuple[Any, Any] | None = None,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        if divergence not in DIVERGENCES:
            raise UserError("divergence", divergence, DIVERGENCES)
        if ends is not None and teacher == "log_probs":
            raise UserError("ends", "with teacher='log_probs'", "teacher='logits': they need the whole distribution")
        if not 0 <= threshold < 1 or (threshold and ends is None):
            raise UserError("threshold", threshold, "0 up to 1, with ends= to compare it with")
        self.temperature, self.divergence, self.threshold = temperature, divergence, threshold
        self.ends = None if ends is None else tuple(torch.as_tensor(side, dtype=torch.bool) for side in ends)
        self.needs = Needs(student="logits", teacher=teacher, target=True)

    def terms(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = dense(student, "logits"), dense(teacher, self.needs.teacher[0])
        spans = self.spans(batch, ours, theirs)
        if "teacher_input" not in batch:
            raise UserError("LikelihoodMatching batch", sorted(batch), "one with teacher_input")
        mine = losses.token_log_probs(ours, batch["target"], mask=spans.student >= 0)
        target = batch["teacher_input"]["target"]
        other = theirs if theirs.dim() == 2 else losses.token_log_probs(theirs, target, mask=spans.teacher >= 0)
        if self.ends is not None:
            spans, closing = self._closed(spans, ours, theirs, batch)
        else:
            closing = (0.0, 0.0)
        sums = [losses.span_sums(side, where, spans.most) for side, where in ((mine, spans[0]), (other, spans[1]))]
        value = losses.likelihood_matching(
            sums[0] + closing[0], sums[1] + closing[1], temperature=self.temperature, divergence=self.divergence,
            mask=spans.present,
        )  # fmt: skip
        return {"likelihood_matching": value}

    def _closed(self, spans: Spans, ours: Tensor, theirs: Tensor, batch: Batch) -> tuple[Spans, Any]:
        """Spans joined where no word ends, and the log-probability of both sides that one ends behind each."""
        counts = batch.get("mask"), batch["teacher_input"].get("mask")
        sides = [
            _word_ends(logits, side, spans.most, table, counted)
            for logits, side, table, counted in zip((ours, theirs), spans[:2], self.ends or (), counts, strict=True)
        ]
        # Behind the last token of a text nothing is known: such a span is closed, with nothing multiplied.
        known = sides[0][1] & sides[1][1]
        factors = [torch.where(known, side[0], 0.0) for side in sides]
        open_ = known & (factors[1].exp() <= self.threshold) & spans.present
        for side in spans[:2]:
            first, last = losses.span_places(side, spans.most)
            follows = torch.zeros_like(open_)
            follows[:, :-1] = spans.present[:, 1:] & (first[:, 1:] == last[:, :-1] + 1)
            open_ = open_ & follows
        kept = spans.present & ~open_
        group = kept.long().cumsum(1) - kept.long()
        # A joined span ends where its last part does.
        closing = [torch.zeros_like(side).scatter_add(1, group, torch.where(kept, side, 0.0)) for side in factors]
        joined = [torch.where(side >= 0, group.gather(1, side.clamp_min(0)), -1) for side in spans[:2]]
        numbers = torch.arange(spans.most, device=ours.device)
        return Spans(joined[0], joined[1], spans.most, numbers < kept.sum(1, keepdim=True)), closing

    def extra_repr(self) -> str:
        debias = f", threshold={self.threshold}" if self.ends is not None else ""
        return f"temperature={self.temperature}, divergence={self.divergence}{debias}"


def _word_ends(
    logits: Tensor, spans: Tensor, count: int, table: Tensor, counted: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-probability ``[B, count]`` that a word ends behind every span, and whether a token of the text follows."""
    if len(table) > logits.shape[-1]:
        raise UserError("ends", f"{len(table)} tokens", f"at most the logits', {logits.shape[-1]}")
    after = losses.span_places(spans, count)[1] + 1
    inside = after < spans.shape[1]
    after = torch.where(inside, after, 0)
    follows = inside if counted is None else inside & counted.gather(1, after)
    at = hide_masked(logits.gather(1, after.unsqueeze(-1).expand(-1, -1, logits.shape[-1])), follows)
    places = table.to(logits.device).nonzero().squeeze(-1)
    return at[..., places].logsumexp(-1) - at.logsumexp(-1), follows


def _most(numbers: Tensor) -> int:
    return int(numbers.max()) if numbers.numel() else -1
