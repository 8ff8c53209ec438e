"""MGSR, multi-granularity semantic revision: distil a language model on its own text, corrected at three levels.

Text that the student writes itself is good to learn from, since it is what the student will stand on later; but behind
an error the teacher's word means little. So

    sequence  (SCRG)   y^s ~ student;  j = argmax_{i: y^s_i != y^t_i} KL(p_t,i || p_s,i),  y^t_i = argmax p_t,i
                       y  = y^s_1 .. y^s_{j-1}, y^t_j, then the student writes on             all logits anew on y
    token     (DAC-KL) KL(p~_t || p~_s) on classes within the quantiles (l, u) = f(p_t, p_s)  f learned with the student
    span               mean over neighbours in a phrase of | p_t,i * p_t,i+1 - p_s,i * p_s,i+1 |^2

    L = L_SFT(data) + L_DAC(y) + L_span(y)                                                    weights 1

"Multi-Granularity Semantic Revision for Large Language Model Distillation", 2024. No code was released, and the paper
leaves open the form of f and of the window, the norm of L_span, the direction of the KL in j and what happens where
teacher and student agree everywhere; README.md lists what was chosen.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.language import Decoding, OnPolicy, Replayed, Revised, Reviser, SequenceDistiller, Writer
from limbeck.nn.quantile_bounds import QuantileBounds
from limbeck.objectives import ClippedKL, DataCrossEntropy, Objective, SpanProduct
from limbeck.objectives.language import Spans
from limbeck.schedules import Schedule
from limbeck.sources import Source


def scrg(
    decoding: Decoding,
    *,
    rounds: int = 1,
    rule: str = "divergence",
    first: int | None = None,
    replay: int = 0,
) -> Writer:
    """Sequence correction and re-generation: the student's samples, their worst token replaced, written on.

    Args:
        decoding: how the student writes; temperature 1 as published.
        rounds: corrections one after the other (published: 1; 3 and 5 gained 0.04 and 0.10 ROUGE-L).
        rule: ``divergence``; ``random`` for the teacher's token at a random one of the places where they differ.
        first: look at the first so many of these places only.
        replay: with a number of texts, DistiLLM's off-policy schedule over a buffer of that size: ever fewer steps
            write anew.
    """
    writer: Writer = Revised(OnPolicy(decoding), Reviser(decoding, rounds=rounds, rule=rule, first=first))
    return Replayed(writer, replay) if replay else writer


def mgsr_objective(
    spans: Spans | None,
    *,
    token: Objective | None = None,
    bounds: QuantileBounds | None = None,
    k: int = 512,
    span_k: int | None = 32,
    data_weight: float | Schedule = 1.0,
    token_weight: float | Schedule = 1.0,
    span_weight: float | Schedule = 1.0,
) -> Objective:
    """``data_weight L_SFT + token_weight L_DAC + span_weight L_span``.

    Args:
        spans: which tokens make a phrase; None for no span term.
        token: in the place of L_DAC, such as ``KL()`` or ``ClippedKL((0.0, 0.95), softness=0)``, a fixed nucleus.
        bounds: the network f. k: classes that L_DAC looks at. span_k: classes per position of L_span.
        data_weight, token_weight, span_weight: 1 as published; 0 leaves a term out. L_span is tiny: products of
            probabilities, squared. Compare ``gradient_norm/span`` with the others in the log.
    """
    parts: list[Objective] = []
    if data_weight:
        parts.append(data_weight * DataCrossEntropy())
    if token_weight:
        parts.append(token_weight * (token or ClippedKL(bounds, k=k)))
    if spans is not None and span_weight:
        parts.append(span_weight * SpanProduct(spans, k=span_k))
    if not parts:
        raise UserError("weights", "all zero", "at least one that is not")
    return sum(parts[1:], parts[0])


def mgsr(
    student: nn.Module,
    teacher: Source | nn.Module,
    decoding: Decoding,
    spans: Spans | None,
    *,
    writer: Writer | None = None,
    optimizer: OptimizerSettings | None = None,
    seed: int = 0,
    log_gradient_norms: bool = False,
    **options: Any,
) -> SequenceDistiller:
    """A distiller for :func:`limbeck.engine.fit`, on batches of :class:`~limbeck.language.Sequences` columns.

    Args:
        student: a causal language model of transformers, fine-tuned on the task already: its samples must be worth
            correcting.
        teacher: one with the same tokenizer, run live: a revised text is new, no cache holds it.
        decoding, spans: of :func:`scrg` and :func:`mgsr_objective`, like ``options``.
        writer: in the place of ``scrg(decoding)``.
        seed: of the samples.
    """
    return SequenceDistiller(
        student,
        mgsr_objective(spans, **options),
        teacher,
        writer=writer or scrg(decoding),
        optimizer=optimizer or OptimizerSettings(lr=5e-4, weight_decay=0.01, warmup=0.05),
        seed=seed,
        log_gradient_norms=log_gradient_norms,
    )
