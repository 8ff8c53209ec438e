"""The experiments of return-of-encoder: a long input with a short answer, a short one, and what an answer costs."""

from __future__ import annotations

from limbeck.experiment import Experiment

from .cost import Cost
from .docstrings import Docstrings, Glosses

EXPERIMENTS: dict[str, type[Experiment]] = {"docstrings": Docstrings, "glosses": Glosses, "cost": Cost}
