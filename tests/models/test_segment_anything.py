"""The small SAM against transformers' own prompt encoder and mask decoder, and MobileSAM's published weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from limbeck.data.prompts import box_prompt, point_prompt
from limbeck.errors import UserError
from limbeck.models import mobile_sam
from limbeck.models.image_encoders import HybridEncoder
from limbeck.models.segment_anything import LayerNorm2d, SegmentAnything, candidates, neck

WIDTH, SIDE, CELLS = 32, 64, 8


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=32, output_channels=WIDTH, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE,
        patch_size=8, mlp_dim=32, global_attn_indexes=[0], window_size=0, num_pos_feats=WIDTH // 2,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=WIDTH, image_size=SIDE, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=WIDTH, mlp_dim=48, num_attention_heads=4, iou_head_hidden_dim=WIDTH, layer_norm_eps=1e-5
    )
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of prompt encoder and mask decoder in SAM's own."""
    names = {
        r"shared_embedding\.positional_embedding": "pe_layer.positional_encoding_gaussian_matrix",
        r"\.point_embed\.": ".point_embeddings.",
        r"upscale_conv1": "output_upscaling.0",
        r"upscale_layer_norm": "output_upscaling.1",
        r"upscale_conv2": "output_upscaling.3",
        r"layer_norm(\d)": r"norm\1",
        r"layer_norm_final_attn": "norm_final_attn",
        r"\.proj_in\.": ".layers.0.",
        r"\.layers\.0\.(weight|bias)$": r".layers.1.\1",
        r"\.proj_out\.": ".layers.2.",
    }
    made = {}
    for name, value in state.items():
        if not name.startswith(("prompt_encoder.", "mask_decoder.")) or "mask_embed." in name.replace(
            "no_mask_embed.", ""
        ):
            continue
        plain = name
        for pattern, text in names.items():
            # proj_in is layer 0 and transformers' own layers.0 is layer 1.
            if pattern.startswith(r"\.layers") and ".proj_in." in name:
                continue
            if pattern.startswith(r"\.layers") and not re.search(r"(mlps\.\d|head)\.layers", name):
                continue
            plain = re.sub(pattern, text, plain)
        made[plain] = value
    return made


@pytest.fixture(scope="module")
def ours(theirs: Any) -> SegmentAnything:
    model = SegmentAnything(nn.Identity(), width=WIDTH, heads=4, hidden=48)
    model.load_state_dict(renamed(theirs.state_dict()))
    return model.eval()


@pytest.mark.parametrize("kind", ["box", "point"])
def test_decoder_and_prompts_agree_with_transformers(theirs: Any, ours: SegmentAnything, kind: str) -> None:
    torch.manual_seed(1)
    embedding = torch.randn(2, WIDTH, CELLS, CELLS)
    corners = torch.rand(2, 3, 2, 2) * SIDE
    with torch.no_grad():
        if kind == "box":
            boxes = corners.flatten(2)
            points, labels = box_prompt(boxes)
            # transformers takes boxes or points, and pads points itself.
            expected = theirs(image_embeddings=embedding, input_boxes=boxes, multimask_output=False)
        else:
            points, labels = point_prompt(corners[:, :, 0])
            ones = torch.ones(2, 3, 1, dtype=torch.int64)
            expected = theirs(
                image_embeddings=embedding, input_points=corners[:, :, :1], input_labels=ones, multimask_output=True
            )
        found = ours.decode(embedding, points, labels, (SIDE, SIDE))
    masks = found["masks"][:, :, :1] if kind == "box" else found["masks"][:, :, 1:]
    iou = found["iou"][:, :, :1] if kind == "box" else found["iou"][:, :, 1:]
    torch.testing.assert_close(masks, expected.pred_masks, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(iou, expected.iou_scores, rtol=1e-4, atol=1e-4)
    assert expected.pred_masks.std() > 0.1


def small(seed: int = 0) -> SegmentAnything:
    torch.manual_seed(seed)
    encoder = HybridEncoder(stem=8, width=16, local=1, depth=1, heads=2, out=16)
    return SegmentAnything(encoder, width=16, heads=2, hidden=16).eval()


def test_prompts_do_not_know_of_each_other_and_an_embedding_may_be_repeated() -> None:
    """One image with two prompts says what the image does that is repeated for each: no broadcast by accident."""
    model, images = small(), torch.randn(2, 3, 32, 32)
    points, labels = box_prompt(torch.tensor([[[2, 3, 9, 12], [5, 5, 30, 20]], [[0, 0, 8, 8], [9, 1, 31, 15]]]))
    with torch.no_grad():
        whole = model(images, points, labels)
        repeated = model.decode(
            whole["embedding"].repeat_interleave(2, 0), points.flatten(0, 1)[:, None], labels.flatten(0, 1)[:, None],
            (32, 32),
        )  # fmt: skip
        first = model(images[:1], points[:1, :1], labels[:1, :1])
    assert whole["masks"].shape == (2, 2, 4, 32, 32)
    torch.testing.assert_close(repeated["masks"], whole["masks"].flatten(0, 1)[:, None])
    torch.testing.assert_close(first["masks"], whole["masks"][:1, :1])
    torch.testing.assert_close(model(images, points, labels, whole["embedding"])["iou"], whole["iou"])


def test_a_prompt_counts_in_pixels_of_its_image() -> None:
    """Twice the pixels and the same embedding: corners at twice the place (plus SAM's half pixel) mean the same."""
    model, embedding = small(), torch.randn(1, 16, 8, 8)
    points, labels = box_prompt(torch.tensor([[[4.0, 6.0, 12.0, 20.0]]]))
    with torch.no_grad():
        once = model.decode(embedding, points, labels, (32, 32))
        twice = model.decode(embedding, (points + 0.5) * 2 - 0.5, labels, (64, 64))
        moved = model.decode(embedding, points * 2, labels, (32, 32))
    torch.testing.assert_close(twice["masks"], once["masks"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(moved["masks"], once["masks"], atol=1e-2)


def test_a_box_has_one_candidate_and_a_point_three() -> None:
    _, box = box_prompt(torch.zeros(1, 1, 4))
    _, point = point_prompt(torch.zeros(1, 1, 2))
    assert candidates(box).tolist() == [[[True, False, False, False]]]
    assert candidates(point).tolist() == [[[False, True, True, True]]]


def test_prompts_of_other_images_are_refused() -> None:
    points, labels = box_prompt(torch.zeros(3, 1, 4))
    with pytest.raises(UserError, match="prompts"):
        small().decode(torch.zeros(2, 16, 8, 8), points, labels, (32, 32))


def test_the_neck_fixes_the_scale() -> None:
    torch.manual_seed(0)
    end = neck(6, 8)
    made = end(torch.randn(2, 6, 5, 5) * 100)
    torch.testing.assert_close(made.var(1, unbiased=False), torch.ones(2, 5, 5), rtol=1e-3, atol=1e-3)
    norm = LayerNorm2d(8)
    torch.manual_seed(3)
    maps = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(norm(maps), nn.LayerNorm(8, eps=1e-6)(maps.movedim(1, -1)).movedim(-1, 1))


def test_mobile_sam_finds_a_square_and_has_the_published_sizes() -> None:
    model = mobile_sam.mobile_sam()
    assert sum(parameter.numel() for parameter in model.image_encoder.parameters()) == 5_743_892
    pixels = torch.full((1, 3, 256, 256), 230, dtype=torch.uint8)
    pixels[:, :, 80:180, 60:160] = torch.tensor([180, 30, 40], dtype=torch.uint8).view(3, 1, 1)
    truth = torch.zeros(64, 64, dtype=torch.bool)
    truth[20:45, 15:40] = True
    points, labels = box_prompt(torch.tensor([[[58, 78, 162, 182]]]))
    with torch.no_grad():
        found = model(mobile_sam.normalise(pixels), points, labels)

    assert found["embedding"].shape == (1, 256, 16, 16)
    mask = found["masks"][0, 0, 0] > 0
    assert float((mask & truth).sum() / (mask | truth).sum()) > 0.9
    assert float(found["iou"][0, 0, 0]) > 0.8
    assert not any(parameter.requires_grad for parameter in model.parameters())
