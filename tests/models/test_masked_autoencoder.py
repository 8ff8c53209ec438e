from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.masked_autoencoder import (
    MaskedAutoencoder,
    fill_positions,
    mask_ratio_of,
    patch_grid,
    set_mask_ratio,
)
from limbeck.models.vit import Block, ViT, ViTClassifier, grid_positions
from limbeck.nn.patches import patchify
from limbeck.objectives import MaskedReconstruction

IMAGES, NOISE = torch.randn(3, 1, 16, 16), torch.rand(3, 16)


def small(**options: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(ViT(16, 4, width=16, depth=3, heads=2), width=8, heads=2, **options)


def hugging_face(**options: Any) -> Any:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        num_channels=1, decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, layer_norm_eps=1e-5, **options,
    )  # fmt: skip
    return fill_positions(ViTMAEForPreTraining(config).eval())


def copy_block(ours: Block, theirs: Any) -> None:
    attention, mlp = theirs.attention, theirs.mlp
    for name in ("weight", "bias"):
        parts = [getattr(part, name) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        getattr(ours.qkv, name).copy_(torch.cat(parts))
    pairs = (ours.out, attention.o_proj), (ours.up, mlp.fc1), (ours.down, mlp.fc2)
    norms = (ours.norm1, theirs.layernorm_before), (ours.norm2, theirs.layernorm_after)
    for own, other in (*pairs, *norms):
        own.load_state_dict(other.state_dict())


@torch.no_grad()
def same_weights(theirs: Any) -> MaskedAutoencoder:
    ours, vit, decoder = small(), theirs.vit, theirs.decoder
    projection = vit.embeddings.patch_embeddings.projection
    # A convolution's weights lie channels first, a patch's numbers channels last.
    ours.encoder.embedding.weight.copy_(projection.weight.permute(0, 2, 3, 1).flatten(1))
    ours.encoder.embedding.bias.copy_(projection.bias)
    ours.encoder.class_token.copy_(vit.embeddings.cls_token.flatten())
    for own, other in zip([*ours.encoder.blocks, *ours.decoder.blocks], [*vit.layers, *decoder.decoder_layers]):
        copy_block(own, other)
    ours.encoder.norm.load_state_dict(vit.layernorm.state_dict())
    ours.decoder.embedding.load_state_dict(decoder.decoder_embed.state_dict())
    ours.decoder.mask_token.copy_(decoder.mask_token.flatten())
    ours.decoder.norm.load_state_dict(decoder.decoder_norm.state_dict())
    ours.decoder.pixels.load_state_dict(decoder.decoder_pred.state_dict())
    return ours


@pytest.mark.parametrize("standardised", [False, True])
def test_it_says_what_the_network_of_transformers_says(standardised: bool) -> None:
    theirs = hugging_face(norm_pix_loss=standardised)
    theirs.decoder.mask_token.data.normal_()
    ours = same_weights(theirs)
    with torch.no_grad():
        expected, found = theirs(pixel_values=IMAGES, noise=NOISE), ours(pixel_values=IMAGES, noise=NOISE)
    torch.testing.assert_close(ours.encoder.positions, theirs.vit.embeddings.position_embeddings[0, 1:])
    torch.testing.assert_close(found["logits"], expected.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(found["mask"], expected.mask)
    assert torch.equal(found["ids_restore"], expected.ids_restore)
    objective = MaskedReconstruction(4, standardised=standardised)
    loss = objective(found, {}, {"input": {"pixel_values": IMAGES}})["reconstruction"]
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patchify(IMAGES, 4), theirs.patchify(IMAGES))


def test_positions_are_filled_where_they_are_missing_and_left_where_they_are_not() -> None:
    from transformers import ViTMAEForPreTraining

    bare = ViTMAEForPreTraining(hugging_face().config)
    own = torch.randn_like(bare.decoder.decoder_pos_embed)
    bare.decoder.decoder_pos_embed.data.copy_(own)
    fill_positions(bare)
    torch.testing.assert_close(bare.vit.embeddings.position_embeddings[0, 1:], grid_positions(4, 16))
    assert torch.equal(bare.decoder.decoder_pos_embed, own)


def test_positions_follow_the_formula() -> None:
    place, width = grid_positions(3, 8)[5], 8
    row, column = 1, 2
    rates = [1.0, 10000.0 ** -(1 / 2)]
    expected = [f(axis * rate) for axis in (column, row) for f in (math.sin, math.cos) for rate in rates]
    assert len(expected) == width
    torch.testing.assert_close(place, torch.tensor(expected))


def test_only_seen_patches_reach_the_encoder() -> None:
    model = small().eval()
    answer = model(IMAGES, NOISE)
    hidden = answer["mask"].bool().reshape(3, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    assert torch.equal(model(torch.where(hidden, 99.0, IMAGES), NOISE)["logits"], answer["logits"])
    assert not torch.equal(model(torch.where(hidden, IMAGES, 99.0), NOISE)["logits"], answer["logits"])


def test_without_noise_the_masks_are_drawn_and_a_wrong_one_is_refused() -> None:
    model = small()
    assert not torch.equal(model(IMAGES)["mask"], model(IMAGES)["mask"])
    with pytest.raises(UserError, match=r"noise: given \[3, 9\]"):
        model(IMAGES, torch.rand(3, 9))
    with pytest.raises(UserError, match="16 x 16 pixels"):
        model(torch.randn(3, 1, 8, 8), NOISE)


@pytest.mark.parametrize("build", [small, hugging_face])
def test_the_ratio_can_be_changed_on_either_kind(build: Any) -> None:
    model = build()
    assert (mask_ratio_of(model), patch_grid(model)) == (0.75, (4, 16))
    set_mask_ratio(model, 0.5)
    assert mask_ratio_of(model) == 0.5
    assert float(dict(model(pixel_values=IMAGES, noise=NOISE))["mask"].sum()) == 3 * 8
    with pytest.raises(UserError, match="mask ratio"):
        set_mask_ratio(model, 0.99)
    with pytest.raises(UserError, match="a MaskedAutoencoder or a transformers ViTMAE model"):
        patch_grid(nn.Linear(2, 2))


def test_the_classifier_holds_the_encoder_alone() -> None:
    model = small()
    classifier = ViTClassifier(model.encoder, classes=5)
    assert classifier(IMAGES).shape == (3, 5)
    assert {name.split(".")[0] for name in classifier.state_dict()} == {"encoder", "head"}
    tokens = model.encoder(IMAGES)
    assert tokens.shape == (3, 17, 16)
    torch.testing.assert_close(classifier(IMAGES), classifier.head(tokens[:, 1:].mean(1)))


def test_sizes_that_do_not_fit_are_refused() -> None:
    for build, key in (
        (lambda: ViT(28, 5), "patch"),
        (lambda: Block(16, 3), "heads"),
        (lambda: grid_positions(4, 6), "width"),
    ):
        with pytest.raises(UserError, match=key):
            build()
