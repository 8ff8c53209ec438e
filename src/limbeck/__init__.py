"""Limbeck distils neural networks: a teacher, a student and data in, a smaller or faster model with proof out.

Everything below is imported when it is first used, so ``import limbeck`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck import losses
    from limbeck.data import TensorLoader
    from limbeck.engine import (
        Distiller,
        Generations,
        History,
        OptimizerSettings,
        PeerDistiller,
        Phase,
        fit,
        run_program,
    )
    from limbeck.errors import LimbeckError, UserError
    from limbeck.job import Settings, distill
    from limbeck.nn.transfer import WeightTransfer, blend, keep_layers, slice_width
    from limbeck.objectives import (
        DIST,
        DKD,
        KL,
        Brier,
        Cosine,
        CrossEntropy,
        FeatureMSE,
        FeatureObjective,
        InfoNCE,
        JensenShannon,
        LogitObjective,
        Needs,
        Objective,
        ProbabilityMSE,
        ReverseKL,
        SimilarityDistribution,
        TargetMSE,
    )
    from limbeck.schedules import Linear, Schedule
    from limbeck.signals import Signals, SparseLogits
    from limbeck.sources import EMA, Average, Cached, ClassVectors, Live, Snapshot, Source, Table
    from limbeck.taps import Taps, edit, swap

_HOMES = {
    "data": ("TensorLoader",),
    "engine": (
        "Distiller", "Generations", "History", "OptimizerSettings", "PeerDistiller", "Phase", "fit", "run_program",
    ),
    "errors": ("LimbeckError", "UserError"),
    "job": ("Settings", "distill"),
    "nn.transfer": ("WeightTransfer", "blend", "keep_layers", "slice_width"),
    "objectives": (
        "DIST", "DKD", "KL", "Brier", "Cosine", "CrossEntropy", "FeatureMSE", "FeatureObjective", "InfoNCE",
        "JensenShannon", "LogitObjective", "Needs", "Objective", "ProbabilityMSE", "ReverseKL",
        "SimilarityDistribution", "TargetMSE",
    ),
    "schedules": ("Linear", "Schedule"),
    "signals": ("Signals", "SparseLogits"),
    "sources": ("EMA", "Average", "Cached", "ClassVectors", "Live", "Snapshot", "Source", "Table"),
    "taps": ("Taps", "edit", "swap"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DIST", "DKD", "EMA", "KL", "Average", "Brier", "Cached", "ClassVectors", "Cosine", "CrossEntropy", "Distiller",
    "FeatureMSE", "FeatureObjective", "Generations", "History", "InfoNCE", "JensenShannon", "LimbeckError",
    "Linear", "Live", "LogitObjective", "Needs", "Objective", "OptimizerSettings", "PeerDistiller", "Phase",
    "ProbabilityMSE", "ReverseKL", "Schedule", "Settings", "Signals", "SimilarityDistribution", "Snapshot",
    "Source", "SparseLogits", "Table", "Taps", "TargetMSE", "TensorLoader", "UserError", "WeightTransfer", "blend",
    "distill", "edit", "fit", "keep_layers", "losses", "run_program", "slice_width", "swap",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("limbeck.losses")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    return getattr(importlib.import_module(f"limbeck.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
