"""Objectives: what a student is trained to do, as parts that add and scale."""

from limbeck.objectives.aligned import AlignedObjective, LikelihoodMatching, UniversalLogitDistance
from limbeck.objectives.asking import ASK, AskTeacher
from limbeck.objectives.base import Needs, Objective, Scaled, Sum, row_options, total
from limbeck.objectives.contrastive import InfoNCE
from limbeck.objectives.features import (
    Cosine,
    FeatureMSE,
    FeatureObjective,
    LevelCosine,
    SimilarityDistribution,
)
from limbeck.objectives.language import ClippedKL, DataCrossEntropy, SelectedKL, SpanProduct, same_span
from limbeck.objectives.logits import (
    DIST,
    DKD,
    KL,
    Divergence,
    JensenShannon,
    LogitObjective,
    ProbabilityMSE,
    ReverseKL,
)
from limbeck.objectives.masks import PromptedMasks
from limbeck.objectives.penalties import WeightNorm, with_weight_norm
from limbeck.objectives.reconstruction import MaskedReconstruction
from limbeck.objectives.scores import ScoreBCE, ScoreMSE, ScoreObjective
from limbeck.objectives.supervised import Brier, CrossEntropy, TargetMSE
from limbeck.objectives.text import parse_objective

__all__ = [
    "ASK",
    "DIST",
    "DKD",
    "KL",
    "AlignedObjective",
    "AskTeacher",
    "Brier",
    "ClippedKL",
    "Cosine",
    "CrossEntropy",
    "DataCrossEntropy",
    "Divergence",
    "FeatureMSE",
    "FeatureObjective",
    "InfoNCE",
    "JensenShannon",
    "LevelCosine",
    "LikelihoodMatching",
    "LogitObjective",
    "MaskedReconstruction",
    "Needs",
    "Objective",
    "ProbabilityMSE",
    "PromptedMasks",
    "ReverseKL",
    "Scaled",
    "ScoreBCE",
    "ScoreMSE",
    "ScoreObjective",
    "SelectedKL",
    "SimilarityDistribution",
    "SpanProduct",
    "Sum",
    "TargetMSE",
    "UniversalLogitDistance",
    "WeightNorm",
    "parse_objective",
    "row_options",
    "same_span",
    "total",
    "with_weight_norm",
]
