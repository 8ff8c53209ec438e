"""The claims, as comparisons. Margins are on ROUGE-L (0 to 1) unless a metric is named."""

from __future__ import annotations

import math

from limbeck.experiment import Claim, Exact

from . import identities

PAPER, README, SHEET = "abstract", "released README", "the project's sheet"


def beats(text: str, arm: str, over: str, source: str, metric: str = "rouge_l", margin: float = 0.0) -> Claim:
    """``arm`` is better than ``over``; lower is better for what costs nats or work."""
    lower = metric.startswith(("nll", "first", "token_work", "answer_work", "cache", "memory"))
    return Claim(text, arm, over, metric, margin, "lower" if lower else "higher", source)


BOTH: list[Claim | Exact] = [
    beats("Distillation lifts the encoder-decoder by a point of ROUGE-L", "kd", "none", PAPER, margin=0.01),
    beats("Distillation lifts the decoder-only twin too", "decoder-kd", "decoder-none", SHEET),
    beats("Distilled, it beats the distilled decoder-only twin", "kd", "decoder-kd", README),
    beats("Undistilled, it beats the decoder-only twin", "none", "decoder-none", README),
    beats("A teacher that knows something is what helps", "kd", "untrained-teacher", "control", margin=0.01),
    beats("Own samples are no worse than the true answers as text", "kd", "kd-data", SHEET, margin=-0.01),
    beats("It beats sequence-level distillation", "kd", "seqkd", SHEET),
    beats("Distillation lowers the perplexity of the true answers", "kd", "none", SHEET, "nll"),
    beats("The mask beats the average over padding", "kd", "released", SHEET),
    beats("Alpha 0.9 beats 0.5", "kd", "alpha-0.5", "released default"),
    beats("Alpha 0.9 beats 1", "kd", "alpha-1.0", SHEET),
    Exact("A copying teacher's slice is the sample, whatever the padding", identities.misread, 0.0, SHEET),
    Exact("Writing with both caches is one pass over the text", identities.cached_differs, 1e-4, SHEET),
    Exact("Centred encoder positions change nothing", identities.centring_changes, 1e-4, "released code"),
]
SWEEP: list[Claim | Exact] = [
    beats("Two thirds in the encoder beat a sixth", "kd", "kd-1+5", README),
    beats("Two thirds in the encoder beat a half", "kd", "kd-3+3", README),
    beats("Two thirds in the encoder beat five sixths", "kd", "kd-5+1", README),
]
GLOSSES: list[Claim | Exact] = [
    *BOTH,
    beats("Distillation lifts the share of exact answers", "kd", "none", PAPER, "exact_match"),
]
MAIN: list[Claim | Exact] = [
    *BOTH,
    beats("Distillation lifts token F1 too", "kd", "none", PAPER, "token_f1"),
]
# Costs are logarithms to base 2: a margin of 1 says half.
COST: list[Claim | Exact] = [
    beats("The first token of 1,024 costs less work", "4+2", "decoder-only", PAPER, "first_1024"),
    beats(
        "The first token of 1,024 costs 47% less work", "4+2", "decoder-only", README, "first_1024",
        -math.log2(1 - 0.47),
    ),
    beats("A token more at 1,024 costs less than half the work", "4+2", "decoder-only", PAPER, "token_work_1024", 1.0),
    beats("A token more at 64 costs less than half the work", "4+2", "decoder-only", PAPER, "token_work_64", 1.0),
    beats(
        "A whole answer to 1,024 costs 22% less work", "4+2", "decoder-only", README, "answer_work_1024",
        -math.log2(1 - 0.22),
    ),
    beats("It keeps fewer bytes between two tokens", "4+2", "decoder-only", README, "cache_1024"),
    beats(
        "Weights and what it keeps take 11% less at 1,024", "4+2", "decoder-only", README, "memory_1024",
        -math.log2(1 - 0.11),
    ),
    beats("Two thirds in the encoder write more cheaply than a half", "4+2", "3+3", README, "token_work_1024"),
]  # fmt: skip
