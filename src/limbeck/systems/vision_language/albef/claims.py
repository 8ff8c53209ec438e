"""What the paper says and the sheet expects, as comparisons of the arms of ``experiment.py``."""

from __future__ import annotations

from limbeck.experiment import Claim

ABLATION, SHEET, CONTROL = "[recalled] ablation of the paper", "sheet", "control"


def beats(
    text: str, over: str, source: str, *, arm: str = "mod", metric: str = "recall@1", margin: float = 0.0
) -> Claim:
    """``arm`` is better than ``over`` by more than ``margin``."""
    return Claim(text, arm, over, metric, margin, source=source)


NOISY = [
    beats("With half of the captions spoilt MoD finds more, by half a point", "none", ABLATION, margin=0.005),
    beats("MoD fills in more words rightly", "none", SHEET, metric="word_accuracy"),
    beats("MoD in the alignment loss alone finds more", "none", ABLATION, arm="mod-ita"),
    beats("MoD in the words too fills in more of them than MoD in the alignment alone", "mod-ita", ABLATION,
          metric="word_accuracy"),
    beats("It is not smoothness: MoD finds more than label smoothing", "smoothing", SHEET),
    beats("It is the targets: MoD finds more than the average of plainly trained weights", "average", SHEET),
    beats("It is what is said of this pair: MoD finds more than with another pair's answers", "shuffled", CONTROL),
]  # fmt: skip

SOME_NOISE = [
    beats("With 30% of the captions spoilt MoD finds more", "none", ABLATION),
    beats("MoD fills in more words rightly", "none", SHEET, metric="word_accuracy"),
    beats("It is the targets: MoD finds more than the average of plainly trained weights", "average", SHEET),
]

CLEAN = [
    beats("With true captions MoD costs at most a point of recall@1", "none", SHEET, margin=-0.01),
    beats("With true captions MoD brings at most a point of recall@1", "mod", SHEET, arm="none", margin=-0.01),
    beats(
        "Hard negatives bring two points of recall@1 after re-ranking", "random-negatives", ABLATION,
        arm="none", metric="reranked_recall@1", margin=0.02,
    ),
    beats(
        "Alignment with hard negatives: the matching head alone finds more, by two points, than without alignment",
        "no-ita", ABLATION, arm="none", metric="judged_recall@1", margin=0.02,
    ),
]  # fmt: skip

REAL = [
    beats("On real pairs MoD finds more: recall@5 of unseen concepts", "none", ABLATION, metric="recall@5"),
    beats("It is the targets: MoD finds more than the average of plainly trained weights", "average", SHEET,
          metric="recall@5"),
    beats("It is what is said of this pair: MoD finds more than with another pair's answers", "shuffled", CONTROL,
          metric="recall@5"),
]  # fmt: skip
