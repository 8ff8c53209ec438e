from __future__ import annotations

import pytest
from torch import nn

from limbeck.errors import UserError
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.vit import ViT
from limbeck.nn.depth import block_at, block_path, kept_layers


def test_three_quarters_are_the_blocks_of_the_paper() -> None:
    assert (block_at(0.75, 24), block_at(0.75, 12), block_at(0.75, 8), block_at(0.75, 4)) == (17, 8, 5, 2)
    assert (block_at(1.0, 12), block_at(0.25, 4), block_at(0.01, 4)) == (11, 0, 0)
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match="share of the depth"):
            block_at(share, 4)


def test_rules_keep_what_they_say() -> None:
    assert kept_layers("even", 3, 12) == [0, 5, 11]
    assert kept_layers("even", 12, 12) == list(range(12))
    assert kept_layers("first", 2, 12) == [0, 1]
    assert kept_layers("last", 2, 12) == [10, 11]
    assert kept_layers("even", 1, 12) == [0]
    with pytest.raises(UserError, match="layers: given middle; allowed: even, first, last"):
        kept_layers("middle", 2, 12)
    for count in (0, 13):
        with pytest.raises(UserError, match="1 to 12 layers"):
            kept_layers("even", count, 12)


def test_the_path_is_that_of_the_encoder_block() -> None:
    model = MaskedAutoencoder(ViT(8, 4, width=16, depth=4, heads=2), width=8, depth=2, heads=2)
    assert block_path(model, 0.75) == "encoder.blocks.2"
    assert block_path(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 1.0) == "1"
