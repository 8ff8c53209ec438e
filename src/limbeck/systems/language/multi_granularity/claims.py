"""The claims of the main experiment, as comparisons."""

from __future__ import annotations

from limbeck.experiment import Claim, Exact

from . import identities

PAPER = "abstract"
ABLATION = "ablation on Dolly, as restated by reviews"
SHEET = "the project's sheet"


def beats(text: str, arm: str, over: str, source: str, metric: str = "rouge_l", margin: float = 0.0) -> Claim:
    """``arm`` is better than ``over``; lower is better for what costs nats."""
    lower = metric.startswith(("teacher_nll", "kl", "excess", "nll", "reverse_kl"))
    return Claim(text, arm, over, metric, margin, "lower" if lower else "higher", source)


CLAIMS: list[Claim | Exact] = [
    beats("It beats further fine-tuning", "full", "none", PAPER),
    beats("It beats sequence-level distillation", "full", "seqkd", PAPER),
    beats("It beats forward KL on the true answers", "full", "kl-data", PAPER),
    beats("It beats forward KL on the student's own samples (GKD)", "full", "gkd", PAPER),
    beats("It beats GKD in samples too, not only in greedy answers", "full", "gkd", PAPER, "rouge_l_sampled"),
    beats("Own samples beat the true answers as text to learn from", "gkd", "kl-data", SHEET),
    beats("Own samples reduce the excess error on own text", "gkd", "kl-data", PAPER, "excess_error"),
    beats("Sequence level: revised samples beat raw ones", "scrg", "gkd", ABLATION),
    beats("Sequence level: the student's samples look likelier to the teacher", "scrg", "gkd", PAPER, "teacher_nll"),
    beats("Sequence level: the student's samples are more varied", "scrg", "gkd", PAPER, "distinct_2"),
    beats("Token level: the learned window beats the whole distribution", "scrg-dac", "scrg", ABLATION),
    beats("Span level: phrases add to the two others", "full", "scrg-dac", ABLATION),
    beats("The learned window beats a fixed nucleus of 95%", "scrg-dac", "top-p", PAPER),
    beats("The learned window beats the top 5% of tokens", "scrg-dac", "top-5", PAPER),
    beats("Where the correction falls counts: the worst place beats a random one", "scrg", "random-place", "control"),
    beats("Revised samples beat samples of the teacher", "scrg", "teacher-samples", "control"),
    beats("Phrases beat random pieces", "full", "random-spans", "control"),
    beats("A buffer of old texts loses at most half a point", "replay", "full", SHEET, margin=-0.005),
    Exact("A prefix of its own sample goes on to that sample", identities.continues_itself, 0.0, SHEET),
    Exact("The padding side and width change no loss", identities.padding_changes_nothing, 1e-5, SHEET),
    Exact("A model that copies has no loss on what it copies", identities.copying_costs_nothing, 1e-4, SHEET),
    Exact("A window over everything is forward KL", identities.whole_window_is_forward_kl, 1e-6, SHEET),
    Exact(
        "Top-k support of the span loss holds it whole when k is the vocabulary", identities.whole_support, 1e-7, SHEET
    ),
]


def closer(text: str, arm: str, over: str, source: str, metric: str = "reverse_kl", margin: float = 0.0) -> Claim:
    """The same for the entry of the real model, where nearness to the teacher counts."""
    return beats(text, arm, over, source, metric, margin)


#: Of the entry ``own_text``.
OWN_TEXT: list[Claim | Exact] = [
    closer("It beats further training on the sentences", "full", "none", PAPER),
    closer("It beats forward KL on the sentences", "full", "kl-data", PAPER),
    closer("It beats forward KL on the student's own samples (GKD)", "full", "gkd", PAPER),
    closer("GKD beats further training on the sentences", "gkd", "none", PAPER),
    closer("Own samples beat the sentences as text to learn from", "gkd", "kl-data", SHEET),
    closer("Own samples reduce the excess error on own text", "gkd", "kl-data", PAPER, "excess_error"),
    closer("Own samples cost at most 0.05 nats on held-out sentences", "gkd", "kl-data", SHEET, "kl", -0.05),
    closer("Sequence level: revised samples beat raw ones", "scrg", "gkd", ABLATION),
    closer("Sequence level: the student's samples look likelier to the teacher", "scrg", "gkd", PAPER, "teacher_nll"),
    closer("Sequence level: the student's samples are more varied", "scrg", "gkd", PAPER, "distinct_2"),
    closer("Token and span level add to correction", "full", "scrg", ABLATION),
    closer("Where the correction falls counts: the worst place beats a random one", "scrg", "random-place", "control"),
    closer("Revised samples beat samples of the teacher", "scrg", "teacher-samples", "control"),
]
