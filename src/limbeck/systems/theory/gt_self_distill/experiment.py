"""The experiments of gt-self-distill: two of the kernel track, three of the network track."""

from __future__ import annotations

from limbeck.experiment import Experiment

from .classification import DigitsClean, DigitsNoise, FashionNoise
from .diabetes import Diabetes
from .toy import Toy

EXPERIMENTS: dict[str, type[Experiment]] = {
    "digits_noise": DigitsNoise,
    "digits_clean": DigitsClean,
    "fashion_noise": FashionNoise,
    "diabetes": Diabetes,
    "toy": Toy,
}
