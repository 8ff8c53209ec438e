"""Condensation: small sets of samples that stand for large ones, whatever the samples are.

The store (what a distilled set is and what it weighs), selectors of real samples (random, herding, k-center) at an
equal number of bytes, loaders that draw by weight or by class, and the evaluator: fresh networks trained on the set,
tested on real data. For images that are learned: ``SyntheticImages`` (tiles, eight bits), networks to match features
with (``ExpertPool``, ``FreshNetworks``), and ``DistributionMatching``, the loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.condensation.evaluation import Training, evaluate, train_fresh
    from limbeck.condensation.experts import ExpertPool, FreshNetworks
    from limbeck.condensation.images import SyntheticImages
    from limbeck.condensation.itemsets import TooManyItemsets, frequent_itemsets
    from limbeck.condensation.matching import DistributionMatching, distil
    from limbeck.condensation.packing import Tiles
    from limbeck.condensation.sampling import ClassLoader, WeightedLoader
    from limbeck.condensation.selection import herding_order, k_center_order, random_order, select
    from limbeck.condensation.store import DistilledSet

_HOMES = {
    "ClassLoader": "sampling",
    "DistilledSet": "store",
    "DistributionMatching": "matching",
    "ExpertPool": "experts",
    "FreshNetworks": "experts",
    "SyntheticImages": "images",
    "Tiles": "packing",
    "TooManyItemsets": "itemsets",
    "Training": "evaluation",
    "WeightedLoader": "sampling",
    "distil": "matching",
    "evaluate": "evaluation",
    "frequent_itemsets": "itemsets",
    "herding_order": "selection",
    "k_center_order": "selection",
    "random_order": "selection",
    "select": "selection",
    "train_fresh": "evaluation",
}

__all__ = [
    "ClassLoader",
    "DistilledSet",
    "DistributionMatching",
    "ExpertPool",
    "FreshNetworks",
    "SyntheticImages",
    "Tiles",
    "TooManyItemsets",
    "Training",
    "WeightedLoader",
    "distil",
    "evaluate",
    "frequent_itemsets",
    "herding_order",
    "k_center_order",
    "random_order",
    "select",
    "train_fresh",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
