"""The experiments of return-of-encoder: what it learns, how its layers are best split, and what an answer costs."""

from __future__ import annotations

from limbeck.experiment import Experiment

from .cost import Cost
from .docstrings import Docstrings, Glosses, Long, Splits

EXPERIMENTS: dict[str, type[Experiment]] = {
    "docstrings": Docstrings,
    "splits": Splits,
    "long": Long,
    "glosses": Glosses,
    "cost": Cost,
}
