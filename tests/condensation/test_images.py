"""Learned images: tiles there and back, starts, clamp, and what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.condensation.images import SyntheticImages, eight_bits, encode_tiles
from limbeck.condensation.packing import decode_tiles
from limbeck.condensation.store import DistilledSet
from limbeck.data.split import Split
from limbeck.errors import UserError


def real(per_class: int = 6, side: int = 8) -> Split:
    """Every image is one shade, which tells its number."""
    target = torch.arange(3).repeat(per_class)
    shade = (torch.arange(len(target)) + 1) / 20
    return Split(shade.view(-1, 1, 1, 1).expand(-1, 2, side, side).contiguous(), target, torch.arange(len(target)))


def test_tiles_are_cut_row_by_row_and_enlarged() -> None:
    quarters = torch.arange(4.0).view(1, 1, 2, 2).repeat_interleave(3, -1).repeat_interleave(3, -2)
    decoded = decode_tiles(quarters, 2)
    assert decoded.shape == (4, 1, 6, 6)
    assert decoded.mean(dim=(1, 2, 3)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (9, 2), (9, 3), (8, 3), (8, 1)])
def test_encoding_and_decoding_are_each_others_undoing_on_flat_pictures(side: int, factor: int) -> None:
    pictures = torch.linspace(0.3, 0.7, 2 * factor**2).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    stored = encode_tiles(pictures, factor)
    assert stored.shape == (2, 3, side, side)
    inner = decode_tiles(stored, factor)[..., : side // 2, : side // 2]
    torch.testing.assert_close(inner, pictures[..., : side // 2, : side // 2])


def test_an_odd_side_is_filled_with_grey() -> None:
    last = decode_tiles(torch.zeros(1, 1, 5, 5), 2)[3]
    assert last.max() == 0.5
    assert decode_tiles(torch.zeros(1, 1, 4, 4), 2).max() == 0


def test_decoding_can_be_differentiated() -> None:
    pixels = torch.rand(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: decode_tiles(one, 2), pixels)


def test_mix_puts_real_images_of_the_class_into_the_tiles() -> None:
    data = real()
    made = SyntheticImages.start("mix", data, 1, factor=2)
    assert made.pixels.shape == (3, 2, 8, 8)
    assert made.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    shades = made().mean(dim=(1, 2, 3))
    numbers = (20 * shades - 1).round().long()
    assert len(set(numbers.tolist())) == 12, "no image twice"
    assert torch.equal(data.labels[numbers], made.labels)


def test_other_starts() -> None:
    data = real()
    whole = SyntheticImages.start("real", data, 2, factor=2)
    numbers = (20 * whole.pixels.mean(dim=(1, 2, 3)) - 1).round().long()
    assert torch.equal(data.labels[numbers], whole.target)
    noise = SyntheticImages.start("noise", data, 2, seed=1)
    assert 0 <= float(noise.pixels.min()) < float(noise.pixels.max()) <= 1
    assert torch.equal(noise.pixels, SyntheticImages.start("noise", data, 2, seed=1).pixels)
    assert SyntheticImages.start("mix", data, 3, factor=2).pixels.shape[0] == 9, "12 tiles from 6 images"


def test_classes_can_be_read_in_parts() -> None:
    made = SyntheticImages.start("noise", real(), 2, factor=2)
    torch.testing.assert_close(torch.cat([made(0, 1), made(1, 3)]), made())


def test_what_is_kept_is_eight_bits_and_can_be_gone_on_with(tmp_path: Path) -> None:
    made = SyntheticImages.start("noise", real(), 2, factor=2)
    with torch.no_grad():
        made.pixels.add_(0.5).clamp_(0.2)
    assert made.pixels.max() > 1
    made.clamp_()
    assert made.pixels.max() == 1
    kept = made.distilled({"made by": "test"})
    assert kept.bytes == 6 * 2 * 64 + 1 + 6
    assert torch.equal(kept.tensors["pixels"], eight_bits(made.pixels))
    again = SyntheticImages.load(DistilledSet.load(kept.save(tmp_path / "set.safetensors")))
    assert (again.factor, again.per_class, again.classes) == (2, 2, [0, 1, 2])
    assert (again.pixels - made.pixels).abs().max() <= 0.5 / 255 + 1e-6
    torch.testing.assert_close(kept.split().input, again())


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="start: given zeros"):
        SyntheticImages.start("zeros", real(), 1)
    with pytest.raises(UserError, match="per_class: given 0"):
        SyntheticImages.start("mix", real(), 0)
    with pytest.raises(UserError, match="factor: given 9"):
        SyntheticImages.start("noise", real(), 1, factor=9)
    with pytest.raises(UserError, match="a rising class"):
        SyntheticImages(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1]))
    with pytest.raises(UserError, match="pictures: given 3"):
        encode_tiles(torch.zeros(3, 1, 4, 4), 2)
    with pytest.raises(UserError, match="tiled images with classes"):
        SyntheticImages.load(DistilledSet.of(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])))
