"""Image processors of transformers, read and written: the pixels must be theirs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.hf_images import read_image_format, write_image_format
from tests.models.tiny import picture

SIZES = [(60, 90), (91, 60), (64, 64), (33, 40)]


def processors():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return {
        "vit": lambda: ViTImageProcessorPil(size={"height": 32, "width": 48}),
        "clip": lambda: CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        "convnext": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        "large convnext": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        "unscaled": lambda: ViTImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False),
    }


@pytest.mark.parametrize("name", ["vit", "clip", "convnext", "large convnext", "unscaled"])
def test_pixels_equal_the_processors(name, tmp_path):
    processor = processors()[name]()
    processor.save_pretrained(tmp_path)
    image_format = read_image_format(tmp_path, "teacher")
    pictures = [picture(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
    expected = torch.stack([torch.as_tensor(np.asarray(processor(p)["pixel_values"][0])) for p in pictures])
    torch.testing.assert_close(image_format(pictures), expected, atol=2e-6, rtol=0)
    write_image_format(image_format, tmp_path / ".." / tmp_path.name)
    assert read_image_format(tmp_path, "teacher") == image_format


def test_no_file_is_no_format(tmp_path):
    assert read_image_format(tmp_path, "teacher") is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": {"shortest_edge": 32}}, "images of one size"),
        ({"size": 32, "do_pad": True}, "padding"),
        ({"size": {"longest_edge": 32}}, "height and width"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, config, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"teacher: .*{message}"):
        read_image_format(tmp_path, "teacher")


def test_old_files_with_bare_numbers(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"size": 32, "feature_extractor_type": "ViTFeatureExtractor"}))
    assert (read_image_format(tmp_path, "x").resize, read_image_format(tmp_path, "x").fit) == ((32, 32), "stretch")
    path.write_text(json.dumps({"size": 40, "crop_size": 32, "do_center_crop": True}))
    found = read_image_format(tmp_path, "x")
    assert (found.size, found.resize, found.fit) == ((32, 32), (40, 40), "cover")


def test_torn_file(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="teacher: .*readable JSON"):
        read_image_format(tmp_path, "teacher")
