"""Objectives: what a student is trained to do, as parts that add and scale."""

from limbeck.objectives.base import Needs, Objective, Scaled, Sum, row_options, total
from limbeck.objectives.contrastive import InfoNCE
from limbeck.objectives.features import Cosine, FeatureMSE, FeatureObjective, SimilarityDistribution
from limbeck.objectives.logits import DIST, DKD, KL, JensenShannon, LogitObjective, ReverseKL
from limbeck.objectives.supervised import CrossEntropy, TargetMSE
from limbeck.objectives.text import parse_objective

__all__ = [
    "DIST",
    "DKD",
    "KL",
    "Cosine",
    "CrossEntropy",
    "FeatureMSE",
    "FeatureObjective",
    "InfoNCE",
    "JensenShannon",
    "LogitObjective",
    "Needs",
    "Objective",
    "ReverseKL",
    "Scaled",
    "SimilarityDistribution",
    "Sum",
    "TargetMSE",
    "parse_objective",
    "row_options",
    "total",
]
