"""Experiments: arms times seeds on a testbed, claims as comparisons of arms, and the ledger of results."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.experiment.base import Arm, Claim, Exact, Experiment, Outcome, load_experiment
    from limbeck.experiment.logits import LogitExperiment
    from limbeck.experiment.runner import run_experiment

__all__ = [
    "Arm",
    "Claim",
    "Exact",
    "Experiment",
    "LogitExperiment",
    "Outcome",
    "load_experiment",
    "run_experiment",
]

_HOME = {"LogitExperiment": "logits", "run_experiment": "runner"}


def __getattr__(name: str) -> Any:
    # Late, because a worker process must set its number of threads before numpy or torch is imported.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOME.get(name, 'base')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
