from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.encoder_decoder import BlockSizes, SharedT5Gemma, core_parameters, encoder_decoder, twin

NAMES = {"vocabulary": 50, "pad": 0, "start": 2, "end": 1}
BLOCKS = BlockSizes(32, 4, 2)


def test_one_table_and_grouped_heads() -> None:
    made = encoder_decoder(BLOCKS, 2, 1, **NAMES)
    table = made.lm_head.out_proj.weight
    assert made.model.encoder.embed_tokens.weight is table
    assert made.model.decoder.embed_tokens.weight is table
    assert core_parameters(made) == sum(p.numel() for p in made.parameters()) - 50 * 32
    assert made.model.encoder.layers[0].self_attn.k_proj.out_features == 16


def test_it_is_saved_and_read(tmp_path: Path) -> None:
    made, ids = encoder_decoder(BLOCKS, 2, 1, **NAMES).eval(), torch.randint(3, 50, (2, 5))
    made.save_pretrained(tmp_path)
    read = SharedT5Gemma.from_pretrained(tmp_path).eval()
    assert read.model.encoder.embed_tokens.weight is read.lm_head.out_proj.weight
    assert torch.equal(*(one(input_ids=ids, decoder_input_ids=ids).logits for one in (made, read)))


@pytest.mark.parametrize(("encoder", "decoder"), [(1, 5), (3, 3), (4, 2), (5, 1)])
def test_twins_have_as_many_weights(encoder: int, decoder: int) -> None:
    ours = core_parameters(encoder_decoder(BLOCKS, encoder, decoder, **NAMES))
    assert core_parameters(twin(BLOCKS, encoder, decoder, **NAMES)) == pytest.approx(ours, rel=0.02)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="heads"):
        BlockSizes(32, 3, 1)
    with pytest.raises(UserError, match="kv_heads"):
        BlockSizes(32, 4, 3)
    with pytest.raises(UserError, match="twin"):
        twin(BLOCKS, 4, 2, tolerance=0.0, **NAMES)
