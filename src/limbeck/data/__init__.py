"""Data: fetched artefacts, loaders, augmentations (imported late: the table of artefacts needs no torch)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.data.artefacts import fetch, listing, verify
    from limbeck.data.augmentation import CropFlip
    from limbeck.data.loaders import TensorLoader
    from limbeck.data.split import Split, Splits
    from limbeck.data.store import cache_folder

_HOMES = {
    "CropFlip": "augmentation",
    "Split": "split",
    "Splits": "split",
    "TensorLoader": "loaders",
    "cache_folder": "store",
    "fetch": "artefacts",
    "listing": "artefacts",
    "verify": "artefacts",
}

__all__ = ["CropFlip", "Split", "Splits", "TensorLoader", "cache_folder", "fetch", "listing", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
