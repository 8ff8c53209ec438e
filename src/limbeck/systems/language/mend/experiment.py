"""The experiments of mend: word languages, where only demonstrations tell the task, and a real model."""

from __future__ import annotations

from limbeck.experiment import Experiment

from .smollm2 import SmolLM2
from .word_languages import Lengths, WordLanguages

EXPERIMENTS: dict[str, type[Experiment]] = {
    "word_languages": WordLanguages,
    "smollm2": SmolLM2,
    "lengths": Lengths,
}
