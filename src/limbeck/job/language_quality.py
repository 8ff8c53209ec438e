"""What a language model is worth on held-out texts: perplexity, closeness to the teacher, its answers to prompts."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck import measure
from limbeck.data.split import take
from limbeck.errors import LimbeckError
from limbeck.job.alignment import span_sums
from limbeck.language import Sequences, with_log_probs, without_answers
from limbeck.language.retokenizer import prompts_of
from limbeck.losses import cross_entropy, forward_kl
from limbeck.measure.text import rouge_l
from limbeck.models.network import Network
from limbeck.nn.mode import evaluating
from limbeck.signals import move

if TYPE_CHECKING:
    from limbeck.job.assess import Assessment
    from limbeck.job.language import Language
    from limbeck.job.plan import Plan

# Rows of logits that exist at once, of two networks.
_TOKENS = 2048


def assess_language(plan: Plan, network: Network, part: str) -> Assessment:
    """Quality of a language model on the tokens that count, and on the ``test`` part its fidelity and its answers."""
    from limbeck.job.assess import Assessment

    language = plan.language
    if language is None:
        raise LimbeckError(f"{plan.task}: a plan without texts")
    teacher = plan.networks.get("teacher") if part == "test" and network is not plan.teacher else None
    if language.alignment is not None:
        found = assess_aligned(plan, network, part)
        if part == "test" and language.prompts and plan.settings.answers:
            _add_answers(plan, language, network, found)
        return found
    totals, tokens = {"nll": 0.0, "kl": 0.0, "agreement": 0.0}, 0
    device = next(network.module.parameters()).device
    run = language.forward(whole=True)
    longest = max(len(one) for one in getattr(language.splits, part).input)
    with evaluating(network.module), torch.inference_mode():
        for given in language.loader(part, max(1, _TOKENS // longest), ready=True):
            batch = move(given, device)
            logits, mask = run(network.module, batch)["logits"], batch["mask"]
            totals["nll"] += float(cross_entropy(logits, batch["target"], mask=mask, reduction="sum"))
            tokens += int(mask.sum())
            if teacher is not None:
                with evaluating(teacher.module):
                    theirs = run(teacher.module, batch)["logits"]
                totals["kl"] += float(forward_kl(logits, theirs, mask=mask, reduction="sum"))
                totals["agreement"] += float(((logits.argmax(-1) == theirs.argmax(-1)) & mask).sum())
    found = Assessment(measure.language_modelling(totals["nll"], tokens))
    if teacher is not None:
        found.fidelity = {name: totals[name] / tokens for name in ("agreement", "kl")}
    if part == "test" and language.prompts and plan.settings.answers:
        _add_answers(plan, language, network, found)
    return found


def assess_aligned(plan: Plan, network: Network, part: str) -> Assessment:
    """Quality where teacher and student have different tokenizers: ``bits_per_byte`` on the spans that both sides have,
    which is of the same text whatever the tokens; a student's perplexity by its own; ``span_gap``, the mean distance of
    the log-likelihoods of a span."""
    from limbeck.job.assess import Assessment

    language = plan.language
    alignment = language.alignment if language is not None else None
    if language is None or alignment is None:
        raise LimbeckError(f"{plan.task}: a plan without an alignment")
    teaches, run = network is plan.teacher, with_log_probs(language.forward(whole=True))
    compares = part == "test" and not teaches
    totals, tokens, spans, size = {"nll": 0.0, "inside": 0.0, "gap": 0.0}, 0, 0, 0
    device = next(network.module.parameters()).device
    longest = max(len(one) for one in getattr(language.splits, part).input)
    with evaluating(network.module), evaluating(plan.teacher.module), torch.inference_mode():
        for given in language.loader(part, max(1, _TOKENS // longest)):
            rows = move(given["input"], device)
            text = Sequences.of(rows)
            read = alignment.retokenizer(text, prompts_of(rows))
            size += read.report.text - read.report.unaligned
            spans += read.report.spans
            theirs = ours = torch.empty(0)
            if teaches or compares:
                theirs = alignment.forward()(plan.teacher.module, read.teacher.batch())["log_probs"]
            if not teaches:
                ours = run(network.module, text.batch())["log_probs"]
                totals["nll"] -= float(ours.double().sum())
                tokens += int(text.counted.sum())
            inside = (theirs, read.teacher_span) if teaches else (ours, read.student_span)
            totals["inside"] -= float(inside[0].double()[inside[1] >= 0].sum())
            if compares:
                sides = span_sums(ours, theirs, {"student": read.student_span, "teacher": read.teacher_span})
                totals["gap"] += float((sides[0] - sides[1]).abs().sum())
    found = Assessment({} if teaches else measure.language_modelling(totals["nll"], tokens))
    found.quality["bits_per_byte"] = totals["inside"] / max(size, 1) / math.log(2)
    if compares:
        found.fidelity = {"span_gap": totals["gap"] / max(spans, 1)}
    return found


def _add_answers(plan: Plan, language: Language, network: Network, found: Assessment) -> None:
    written, references, speed = answers(plan, language, network)
    if not references:
        return
    scores = rouge_l(written, references)
    found.quality["rouge_l"] = sum(scores) / len(scores)
    found.quality["written_per_second"] = speed
    if network is plan.teacher:
        language.answers = written
    elif language.answers:
        scores = rouge_l(written, language.answers)
        found.fidelity["rouge_l_to_teacher"] = sum(scores) / len(scores)


def answers(plan: Plan, language: Language, network: Network) -> tuple[list[str], list[str], float]:
    """Greedy answers to the first held-out prompts by id, the data's own, and tokens written per second."""
    split = language.splits.test
    samples: Any = split.input
    # By id, which is drawn by content: the first of a file may be of one kind.
    order = [place for place in split.id.argsort().tolist() if _answered(samples[place])][: plan.settings.answers]
    if not order:
        return [], [], 0.0
    device = next(network.module.parameters()).device
    chosen = take(samples, torch.tensor(order))
    rows, decoding = move(_columns(chosen, language.pad), device), language.decoding
    if language.alignment is not None and network is plan.teacher:
        given, decoding = language.alignment.read(rows), language.alignment.decoding(decoding)
    else:
        given = Sequences.of(rows)
    started = time.perf_counter()
    made = decoding(network.module, without_answers(given))
    seconds = time.perf_counter() - started
    written = [_text(network.tokenizer, row[mask]) for row, mask in zip(made.answer, made.answer_mask)]
    # The data are in the student's tokens.
    tokenizer = plan.student.tokenizer
    references = [_text(tokenizer, _first_answer(one)[: language.decoding.length]) for one in chosen]
    return written, references, float(made.answer_mask.sum()) / seconds


def _columns(samples: Any, pad: int) -> dict[str, Tensor]:
    from limbeck.job.language import columns

    return columns(samples, pad=pad, prompts=True)


def _answered(one: Any) -> bool:
    return bool(0 < one.start < len(one))


def _first_answer(one: Any) -> Tensor:
    """Tokens of the first answer, up to the next turn of somebody else."""
    rest = one.learnt[one.start :]
    end = len(rest) if bool(rest.all()) else int((~rest).int().argmax())
    found: Tensor = one.ids[one.start : one.start + end]
    return found


def _text(tokenizer: Any, ids: Tensor) -> str:
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return text.strip()
