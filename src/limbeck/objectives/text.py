"""Objectives written as text: ``0.1 * cross_entropy + 0.9 * kl(temperature=4)``, without running any code."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.errors import UserError
from limbeck.expressions import read_expression
from limbeck.objectives.aligned import LikelihoodMatching, UniversalLogitDistance
from limbeck.objectives.base import Objective
from limbeck.objectives.features import Cosine, FeatureMSE, SimilarityDistribution
from limbeck.objectives.logits import DIST, DKD, KL, JensenShannon, ProbabilityMSE, ReverseKL
from limbeck.objectives.scores import ScoreBCE, ScoreMSE
from limbeck.objectives.supervised import Brier, CrossEntropy, TargetMSE
from limbeck.schedules import Cosine as CosineSchedule
from limbeck.schedules import Linear, Schedule

NAMES: dict[str, Callable[..., Objective]] = {
    "cross_entropy": CrossEntropy,
    "brier": Brier,
    "target_mse": TargetMSE,
    "kl": KL,
    "reverse_kl": ReverseKL,
    "jensen_shannon": JensenShannon,
    "probability_mse": ProbabilityMSE,
    "dkd": DKD,
    "dist": DIST,
    "cosine": Cosine,
    "feature_mse": FeatureMSE,
    "similarity": SimilarityDistribution,
    "score_bce": ScoreBCE,
    "score_mse": ScoreMSE,
    "likelihood_matching": LikelihoodMatching,
    "universal_logit_distance": UniversalLogitDistance,
}
SCHEDULES: dict[str, Callable[..., Schedule]] = {"linear": Linear, "cosine_schedule": CosineSchedule}
_FORM = "sums of terms such as 0.9 * kl(temperature=4)"


def parse_objective(text: str) -> Objective:
    """Read an objective from text; names and options are checked against the classes they stand for."""
    built = read_expression(text, {**NAMES, **SCHEDULES}, key="objective", form=_FORM)
    if not isinstance(built, Objective):
        raise UserError("objective", text, _FORM)
    return built
