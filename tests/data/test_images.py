"""Image formats: the pixels of torchvision's and PIL's own transforms, in memory or batch by batch."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.images import ImageFormat, decoded, fault, open_image
from limbeck.data.split import Split
from limbeck.errors import LimbeckError, UserError


def picture(height=20, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def split_of(images):
    return Split(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (24, 24), (10, 50)])
def test_cover_keeps_proportions_and_cuts_the_middle(height, width):
    image_format = ImageFormat((16, 16), (24, 24), "cover", "bilinear")
    image = picture(height, width)
    scale = 24 / min(height, width)
    whole = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = (whole.width - 16) // 2, (whole.height - 16) // 2
    expected = np.asarray(whole.crop((left, top, left + 16, top + 16))).transpose(2, 0, 1)
    np.testing.assert_array_equal(image_format.pixels(image).numpy(), expected)


def test_stretch_does_not_keep_proportions():
    image = picture()
    expected = np.asarray(image.resize((12, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    pixels = ImageFormat((8, 12), (8, 12), "stretch").pixels(image)
    np.testing.assert_array_equal(pixels.numpy(), expected)


def test_a_crop_larger_than_the_image_is_filled_with_black():
    pixels = ImageFormat((8, 8), (4, 4), "stretch", "nearest").pixels(Image.new("RGB", (4, 4), (255, 255, 255)))
    assert pixels[:, 2:6, 2:6].min() == 255
    assert pixels.sum() == 255 * 3 * 16


def test_normalisation():
    image_format = ImageFormat((2, 2), (2, 2), "stretch", mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    out = image_format(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([1.0, 0.75, 0.5]))


def test_grey():
    image_format = ImageFormat((20, 30), (20, 30), "stretch", mean=(0.0,), std=(1.0,), scale=1.0)
    np.testing.assert_array_equal(image_format([picture()])[0, 0].numpy(), np.asarray(picture().convert("L")))


def test_every_form_of_an_image_gives_the_same_pixels(tmp_path):
    image, stream = picture(), io.BytesIO()
    image.save(tmp_path / "a.png")
    image.save(stream, "PNG")
    array = np.asarray(image)
    forms = [
        str(tmp_path / "a.png"), tmp_path / "a.png", stream.getvalue(), image, array, torch.from_numpy(array.copy()),
        torch.from_numpy(array.transpose(2, 0, 1).copy()),
    ]  # fmt: skip
    image_format = ImageFormat((8, 8), (12, 12))
    first = image_format.pixels(forms[0])
    for form in forms[1:]:
        assert torch.equal(image_format.pixels(form), first)
    assert open_image(array[..., 0]).mode == "L"
    with pytest.raises(UserError, match="image: given ndarray of float64"):
        open_image(array / 255)


def test_decoded_once_or_batch_by_batch_is_the_same():
    images = [picture(seed=seed) for seed in range(5)]
    image_format = ImageFormat((8, 8), (12, 12))
    kept = decoded(split_of(images), [image_format])
    assert kept.input.dtype == torch.uint8
    assert torch.equal(image_format(kept.input), image_format(images))
    assert decoded(kept, [image_format]) is kept
    lazily = decoded(split_of(images), [image_format], limit=5 * 3 * 64 - 1)
    assert lazily.input is images or lazily.input == images


def test_networks_that_differ_in_normalisation_alone_share_pixels():
    images = split_of([picture()])
    one = ImageFormat((8, 8), (12, 12))
    other = ImageFormat((8, 8), (12, 12), mean=(0.5,) * 3, std=(0.5,) * 3)
    larger = ImageFormat((8, 8), (16, 16))
    grey = ImageFormat((8, 8), (12, 12), mean=(0.5,), std=(0.5,))
    assert isinstance(decoded(images, [one, other]).input, torch.Tensor)
    assert decoded(images, [one, larger]) is images
    assert decoded(images, [one, grey]) is images


def test_progress_is_told():
    told = []
    decoded(split_of([picture()] * 3), [ImageFormat((8, 8), (8, 8))], progress=lambda *now: told.append(now))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_floats_count_as_prepared():
    image_format = ImageFormat((8, 8), (8, 8))
    floats = torch.zeros(2, 3, 8, 8)
    assert image_format(floats) is floats
    assert decoded(Split(floats, None, torch.arange(2)), [image_format]).input is floats
    with pytest.raises(UserError, match=r"input: given \[2, 1, 8, 8\]"):
        image_format(torch.zeros(2, 1, 8, 8))


def test_description_and_back():
    image_format = ImageFormat((8, 9), (12, 13), "stretch", "box", (0.1,), (0.2,), 1.0)
    assert ImageFormat.from_description(image_format.describe()) == image_format


def test_faults_name_the_file(tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    assert fault(str(path)) is None
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated" in fault(str(path))
    with pytest.raises(LimbeckError, match=r"image .*a\.png cannot be decoded: .*truncated"):
        ImageFormat((8, 8), (8, 8))([str(path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "squash"}, "image fit: given squash; allowed: cover, stretch"),
        ({"interpolation": "cubic"}, "image interpolation: given cubic; allowed: .*bicubic"),
        ({"mean": (0.5, 0.5)}, "image mean"),
        ({"std": (0.0, 1.0, 1.0)}, "image format"),
        ({"size": (0, 4)}, "image format"),
    ],
)
def test_wrong_formats(options, message):
    with pytest.raises(UserError, match=message):
        ImageFormat(**options)
