"""The experiments of multi-granularity: the method and its rivals, what correction does to text, and a real model,
on fixed text from a cache and on its own text."""

from __future__ import annotations

from limbeck.experiment import Experiment

from .docstrings import Docstrings
from .own_text import OwnText
from .smollm2 import SmolLM2
from .texts import Texts

EXPERIMENTS: dict[str, type[Experiment]] = {
    "docstrings": Docstrings,
    "texts": Texts,
    "smollm2": SmolLM2,
    "own_text": OwnText,
}
