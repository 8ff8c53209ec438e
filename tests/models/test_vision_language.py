"""Encoders for pictures and texts, the fusion encoder's two modes, and the network around them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.hf_fusion import BertFusion
from limbeck.models.text import FusionEncoder, TextEncoder
from limbeck.models.vision_language import VisionLanguage
from limbeck.models.vit import ViT


def network(**options: object) -> VisionLanguage:
    torch.manual_seed(0)
    given: dict[str, object] = {"fusion": FusionEncoder(8, 2, 2, image_width=12), "words": nn.Linear(8, 20), **options}
    return VisionLanguage(
        ViT(16, 8, 12, 1, 2, in_channels=3), TextEncoder(20, 8, 1, 2, length=6), nn.Linear(12, 5), nn.Linear(8, 5),
        **given,  # type: ignore[arg-type]
    )  # fmt: skip


IDS = torch.tensor([[1, 5, 6, 7, 0, 0], [1, 8, 9, 10, 11, 12]])
MASK = (IDS != 0).long()
PICTURES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_vectors_of_both_sides_have_length_one() -> None:
    out = network()(PICTURES, IDS, MASK)
    for side in ("image", "text"):
        assert out[side].shape == (2, 5)
        torch.testing.assert_close(out[side].norm(dim=1), torch.ones(2))
    assert out["temperature"].requires_grad


def test_padding_is_never_looked_at() -> None:
    model = network().eval()
    other = IDS.masked_fill(MASK == 0, 13)
    image = model.image_tokens(PICTURES)
    for ids in (other, IDS[:, :4]):
        mask = MASK[:, : ids.shape[1]]
        rows = slice(0, 1) if ids.shape[1] == 4 else slice(None)
        tokens, whole = model.text_tokens(ids[rows], mask[rows]), model.text_tokens(IDS[rows], MASK[rows])
        torch.testing.assert_close(tokens[:, 0], whole[:, 0])
        fused = [model.fuse(part, seen[rows], image[rows])[:, 0] for part, seen in ((tokens, mask), (whole, MASK))]
        torch.testing.assert_close(*fused)


def test_fusion_sees_the_picture_and_the_text_mode_does_not() -> None:
    fusion, tokens = FusionEncoder(8, 2, 2, image_width=12), torch.randn(2, 6, 8)
    pictures = torch.randn(2, 7, 12)
    assert not torch.allclose(fusion(tokens, MASK, pictures), fusion(tokens, MASK, pictures.roll(1, 0)))
    text = fusion(tokens, MASK)
    fusion.blocks[0].key_value.weight.data.add_(1.0)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(fusion(tokens, MASK), text)


def test_the_order_of_words_counts_and_that_of_image_tokens_does_not() -> None:
    model = network().eval()
    tokens, image = model.text_tokens(IDS), model.image_tokens(PICTURES)
    swapped = IDS[:, [0, 2, 1, 3, 4, 5]]
    assert not torch.allclose(model.text_tokens(swapped)[:, 0], tokens[:, 0])
    torch.testing.assert_close(model.fuse(tokens, MASK, image.flip(1)), model.fuse(tokens, MASK, image))


def test_heads_and_missing_parts() -> None:
    model = network()
    fused = model.fuse(model.text_tokens(IDS, MASK), MASK, model.image_tokens(PICTURES))
    assert model.match(fused).shape == (2, 2)
    assert model.predict_words(fused[MASK.bool()]).shape == (int(MASK.sum()), 20)
    alone = network(fusion=None, words=None)
    with pytest.raises(UserError, match="fusion"):
        alone.fuse(fused, MASK, fused)
    with pytest.raises(UserError, match="fusion"):
        network(fusion=None)
    with pytest.raises(UserError, match="temperature"):
        network(temperature=0.7)
    with pytest.raises(UserError, match="input_ids"):
        model.text_tokens(torch.ones(1, 9, dtype=torch.int64))


def test_the_temperature_comes_back_inside() -> None:
    model = network()
    for value, kept in ((3.0, 0.5), (-2.0, 0.001), (0.2, 0.2)):
        model.temperature.data.fill_(value)
        model.clamp_temperature()
        assert float(model.temperature) == pytest.approx(kept)


def test_a_convolutional_stem_gives_the_same_tokens_grid() -> None:
    stem, plain = (ViT(32, 8, 16, 1, 2, in_channels=3, convolutions=kind) for kind in (True, False))
    images = torch.randn(2, 3, 32, 32)
    assert stem(images).shape == plain(images).shape == (2, 17, 16)
    assert stem(images, torch.tensor([[3, 5], [0, 1]])).shape == (2, 3, 16)
    with pytest.raises(UserError, match="power of 2"):
        ViT(36, 6, 16, 1, 2, convolutions=True)


def bert(depth: int = 2) -> BertFusion:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=16
    )
    return BertFusion.from_config(config).eval()


def test_berts_layers_look_both_ways_at_text_and_picture() -> None:
    fusion, tokens, image = bert(), torch.randn(2, 6, 8), torch.randn(2, 4, 8)
    fused = fusion(tokens, MASK, image)

    # The first token depends on a later one, which a decoder's would not.
    later = tokens.clone()
    later[:, 3] += 1
    assert ((fusion(later, MASK, image) - fused)[:, 0].abs().amax(1) > 1e-4).all()
    assert not torch.allclose(fusion(tokens, MASK, image.roll(1, 0)), fused)
    # Padding is not looked at: place 5 of the first row.
    padded = tokens.clone()
    padded[:, 5] += 1
    difference = (fusion(padded, MASK, image) - fused)[:, 0].abs().amax(1)
    assert float(difference[0]) < 1e-6 < float(difference[1])


def test_plain_bert_layers_are_refused() -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(UserError, match="layers"):
        BertFusion(list(transformers.BertModel(config).encoder.layer))
