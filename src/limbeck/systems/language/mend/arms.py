"""Arms and claims of the experiments on word languages."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.experiment import Arm, Claim

KL, CE, BOTH = "kl", "ce", "both"


@dataclass(frozen=True)
class Way:
    """How an arm puts demonstrations before the model.

    Attributes:
        kind: ``vectors`` of a compressor, one ``prompt`` for all tasks, or the demonstrations' ``tokens``.
        length: vectors. shots: demonstrations that are left, for tokens. balanced: one of every language.
        first, second: what the stages minimise (``kl``, ``ce``, ``both``); without the first, the second has its steps.
        own: the reader is a small model of its own, not the large one's first layers.
        swapped: the teacher reads another episode's demonstrations.
    """

    kind: str = "vectors"
    length: int = 8
    shots: int = 16
    balanced: bool = False
    first: str | None = KL
    second: str = BOTH
    own: bool = False
    swapped: bool = False


NONE = {"zero-shot": Arm(Way("tokens", shots=0), "no demonstrations", "none")}
ICL = {"icl": Arm(Way("tokens"), "all 16 demonstrations as tokens: the teacher", "rival")}
ARMS = {
    **NONE,
    **ICL,
    "demos-2": Arm(Way("tokens", shots=2), "two demonstrations at random as tokens", "rival"),
    "demos-2-each": Arm(Way("tokens", shots=2, balanced=True), "one demonstration of each language as tokens", "rival"),
    "prompt": Arm(Way("prompt", first=None, second=CE), "8 vectors for all tasks: prompt tuning", "rival"),
    "mend": Arm(Way(), "both stages, 8 vectors"),
    "no-stage-1": Arm(Way(first=None), "fine-tuning alone, with the steps of both stages", "ablation"),
    "kl-only": Arm(Way(second=KL), "both stages with the KL alone", "ablation"),
    "ce-only": Arm(Way(first=CE, second=CE), "both stages with cross-entropy alone: no distillation", "ablation"),
    "swapped": Arm(Way(swapped=True), "the teacher reads another episode's demonstrations", "control"),
    "own-reader": Arm(Way(own=True), "a narrower reader of its own, with projector and tanh", "ablation"),
}
LENGTHS = {
    **NONE,
    **ICL,
    **{f"mend-{length}": Arm(Way(length=length), f"{length} vectors") for length in (2, 4, 8, 16)},
    "prompt-16": Arm(Way("prompt", length=16, first=None, second=CE), "16 vectors for all tasks", "control"),
}
ABSTRACT, RECALLED, SHEET = "[abstract]", "[recalled] ablation", "the project's sheet"
HELD, SEEN = "accuracy", "accuracy_seen"
CLAIMS = [
    Claim("8 vectors come within 6 points of 16 demonstrations as tokens", "mend", "icl", HELD, -0.06, "higher", SHEET),
    Claim("8 vectors match 16 demonstrations as tokens", "mend", "icl", HELD, -0.02, "higher", ABSTRACT),
    Claim("On seen languages 8 vectors come within 6 points", "mend", "icl", SEEN, -0.06, "higher", SHEET),
    Claim(
        "The vectors carry new tasks: better than no demonstrations", "mend", "zero-shot", HELD, 0.05, "higher", SHEET
    ),
    Claim(
        "The vectors carry seen tasks: better than no demonstrations", "mend", "zero-shot", SEEN, 0.1, "higher", SHEET
    ),
    Claim("A prompt shared by all tasks cannot do it", "mend", "prompt", HELD, 0.05, "higher", SHEET),
    Claim("Far above two demonstrations at random", "mend", "demos-2", HELD, 0.05, "higher", SHEET),
    Claim("Above one demonstration of each language", "mend", "demos-2-each", HELD, 0.0, "higher", SHEET),
    Claim("The distillation term adds at least a point", "mend", "ce-only", HELD, 0.01, "higher", RECALLED),
    Claim("On seen languages it adds at least a point", "mend", "ce-only", SEEN, 0.01, "higher", RECALLED),
    Claim("With it the model says more of what it said before", "mend", "ce-only", "kl", 0.0, "lower", RECALLED),
    Claim(
        "The pre-training stage beats as many steps of fine-tuning", "mend", "no-stage-1", HELD, 0.0, "higher", RECALLED
    ),
    Claim("On seen languages it does so too", "mend", "no-stage-1", SEEN, 0.0, "higher", RECALLED),
    Claim("The cross-entropy adds to the KL", "mend", "kl-only", SEEN, 0.0, "higher", RECALLED),
    Claim("The teacher must have read these demonstrations", "mend", "swapped", SEEN, 0.0, "higher", "control"),
    Claim(
        "The model's own layers read better than a reader of its own", "mend", "own-reader", SEEN, 0.0, source="choice"
    ),
    Claim(
        "A query costs less than an eighth of the positions", "mend", "icl", "position_share", 0.875, "lower", ABSTRACT
    ),
]
LENGTH_CLAIMS = [
    Claim("8 vectors are better than 2", "mend-8", "mend-2", SEEN, 0.0, "higher", SHEET),
    Claim("8 vectors are better than 4", "mend-8", "mend-4", SEEN, 0.0, "higher", SHEET),
    Claim("16 vectors are better than 8", "mend-16", "mend-8", SEEN, 0.0, "higher", SHEET),
    Claim("More vectors that read nothing do not help", "mend-16", "prompt-16", SEEN, 0.1, "higher", "control"),
]
