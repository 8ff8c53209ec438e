"""Testbeds: real data with splits, teachers that are made once, metrics, and gates. One file each."""

from __future__ import annotations

import importlib

from limbeck.errors import UserError
from limbeck.testbeds.base import Check, Gate, Size, Split, Splits, Testbed

#: Where every testbed lives; a testbed is imported when it is loaded.
TESTBEDS = {
    "captioned_sprites": "captioned_sprites:CaptionedSprites",
    "cifar10": "cifar10:CIFAR10",
    "code_search": "code_search:CodeSearch",
    "digits": "digits:Digits",
    "docstrings": "docstrings:Docstrings",
    "emoji_pairs": "emoji_pairs:EmojiPairs",
    "fashion_mnist": "fashion_mnist:FashionMNIST",
    "gaussian_mixture": "gaussian_mixture:GaussianMixture",
    "glosses": "glosses:Glosses",
    "manpages": "manpages:ManPages",
    "masked_fashion": "masked_fashion:MaskedFashion",
    "prompt_texts": "prompt_texts:PromptTexts",
    "sam_photos": "sam_photos:SAMPhotos",
    "sentence_pairs": "sentence_pairs:SentencePairs",
    "small_diffusion": "small_diffusion:SmallDiffusion",
    "small_sam": "small_sam:SmallSAM",
    "smollm2": "smollm2:SmolLM2",
    "surfaces": "surfaces:SurfaceImages",
    "textures": "textures:Textures",
    "thumbnails": "thumbnails:Thumbnails",
    "tu_graphs": "tu_graphs:TUGraphs",
    "word_languages": "word_languages:WordLanguages",
}

__all__ = ["TESTBEDS", "Check", "Gate", "Size", "Split", "Splits", "Testbed", "load", "testbed_class"]


def load(reference: str, size: Size = "full") -> Testbed:
    """The testbed ``NAME`` or ``NAME:REGIME`` (regime ``plain`` if none is given).

    Raises:
        UserError: unknown name, regime or size, with the known ones.
    """
    name, _, regime = reference.partition(":")
    return testbed_class(name)(regime or "plain", size)


def testbed_class(name: str) -> type[Testbed]:
    """The class of the testbed ``name``; its ``regimes`` can be read without making one."""
    if name not in TESTBEDS:
        raise UserError("testbed", name, TESTBEDS)
    module, _, attribute = TESTBEDS[name].partition(":")
    found: type[Testbed] = getattr(importlib.import_module(f"limbeck.testbeds.{module}"), attribute)
    return found
