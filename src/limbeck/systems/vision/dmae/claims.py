"""What the paper says, as comparisons of the arms of ``experiment.py``, and what mathematics decides."""

from __future__ import annotations

from limbeck.experiment import Claim, Exact

from . import identities

ABSTRACT, RECALLED, SHEET, CODE = "[abstract]", "[recalled]", "sheet", "[code]"


def beats(
    text: str,
    over: str,
    source: str,
    *,
    arm: str = "dmae",
    metric: str = "accuracy",
    margin: float = 0.0,
) -> Claim:
    """``arm`` is better than ``over`` by more than ``margin``."""
    return Claim(text, arm, over, metric, margin, source=source)


CLAIMS: list[Claim | Exact] = [
    beats("It beats training on the labels alone", "none", SHEET, margin=0.01),
    beats("It beats the student's own masked pre-training", "mae", SHEET),
    beats("It is not the compute: it beats its own pre-training for twice as long", "mae-longer", "control"),
    beats("Distilling the pre-trained teacher beats distilling the fine-tuned one", "kd", ABSTRACT),
    beats("It does so too when that student was pre-trained by itself", "mae+kd", ABSTRACT),
    beats("With more labels it still beats its own pre-training", "mae", SHEET, metric="accuracy_more"),
    beats("With more labels it still beats the teacher's logits", "mae+kd", ABSTRACT, metric="accuracy_more"),
    beats("What the teacher learned counts: it beats an untrained teacher", "random", "control"),
    beats("Three quarters of the depth beats the last block", "last", RECALLED),
    beats("Three quarters of the depth beats one quarter", "quarter", RECALLED),
    beats("Reconstruction helps: it beats features alone", "feature-only", SHEET),
    beats("Normalised L1 is no worse than raw squared error", "mse", RECALLED, margin=-0.005),
    beats("Summed over channels, as small widths ask for, it beats the published mean", "mean", SHEET),
    beats("At 90% masked it beats its own pre-training", "mae-90", SHEET, arm="dmae-90"),
    beats("At 95% masked it beats its own pre-training", "mae-95", SHEET, arm="dmae-95"),
    beats("It loses at most a point at 90% masked", "dmae", ABSTRACT, arm="dmae-90", margin=-0.01),
    beats("It loses at most a point at 95% masked", "dmae", ABSTRACT, arm="dmae-95", margin=-0.01),
    beats("A linear probe of frozen features gains too", "mae", SHEET, metric="probe"),
    beats("Nearest neighbours of frozen features gain too", "mae", SHEET, metric="neighbours"),
    Exact(
        "The teacher stopped at its tap gives the loss of the whole pass",
        identities.partial_against_whole,
        0.0,
        ABSTRACT,
    ),
    Exact("The teacher costs tokens seen x blocks up to the tap", identities.teacher_cost, 0.0, ABSTRACT),
    Exact(
        "Predictions for seen patches do not change the reconstruction loss",
        identities.seen_patches_do_not_count,
        0.0,
        CODE,
    ),
    Exact(
        "The length of the teacher's features does not change the feature loss",
        identities.length_does_not_count,
        1e-7,
        CODE,
    ),
]
