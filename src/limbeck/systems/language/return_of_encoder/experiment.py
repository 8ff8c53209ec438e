"""The experiments of return-of-encoder: a long input, a short one, and what an answer costs."""

from __future__ import annotations

from limbeck.experiment import Experiment

from .cost import Cost
from .docstrings import Docstrings, Short

EXPERIMENTS: dict[str, type[Experiment]] = {"docstrings": Docstrings, "short": Short, "cost": Cost}
