"""The packed file: bits, round trips through the disk, sizes by hand, damaged files."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.export import export
from limbeck.models.small import small_cnn
from limbeck.quantization import (
    LearnedPoints,
    PackedNetwork,
    Scaling,
    UniformWeights,
    first_and_last,
    pack_bits,
    unpack_bits,
)

IMAGES = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = small_cnn("4k")
    with torch.no_grad():
        model.train()(IMAGES)
    return model.eval()


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 9, 16])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_bits_are_packed_without_loss(width: int, count: int) -> None:
    codes = torch.randint(2**width, (count,), generator=torch.Generator().manual_seed(0))
    packed = pack_bits(codes, width)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * width // 8)
    assert torch.equal(unpack_bits(packed, width, count), codes)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="codes"):
        pack_bits(torch.tensor([4]), 2)


VIEWS = {
    "2 bits": lambda model: UniformWeights(model, 2),
    "8 bits": lambda model: UniformWeights(model, 8),
    "whole tensors": lambda model: UniformWeights(model, 4, scaling=Scaling(bucket_size=None)),
    "signed": lambda model: UniformWeights(model, 3, scaling=Scaling("absmax")),
    "edges": lambda model: UniformWeights(model, 2, skip=first_and_last(model)),
    "truncated": lambda model: UniformWeights(model, 4, gradient="truncated"),
    "learned": lambda model: LearnedPoints(model, 3),
    "unequal": lambda model: LearnedPoints(
        model, {name: 2 + number % 5 for number, (name, _) in enumerate(model.named_parameters())}
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_comes_out_of_the_file_is_what_the_view_shows(name: str, tmp_path: Path) -> None:
    model = network()
    view = VIEWS[name](model)
    shown = {key: value.detach().clone() for key, value in view.tensors(model).items()}
    file = PackedNetwork.of(model, view, {"made": "by a test"}).save(tmp_path / "network.safetensors")
    read = PackedNetwork.load(file)
    assert read.about == {"made": "by a test"}
    out = read.write(network(1))
    for key, value in out.named_parameters():
        assert torch.equal(value, shown.get(key, dict(model.named_parameters())[key])), key
    for key, value in out.named_buffers():
        assert torch.equal(value, dict(model.named_buffers())[key])
    view.write(model)
    assert torch.equal(out(IMAGES), model(IMAGES))
    assert file.stat().st_size < read.size().bytes + 6000


def test_sizes_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 10), nn.BatchNorm1d(10))
    size = PackedNetwork.of(model, UniformWeights(model, 2)).size()
    # 1000 weights in 4 buckets, and a bias, a scale and a shift of one bucket each.
    assert size.weights == 1030
    assert size.code_bytes == 250 + 3 + 3 + 3
    assert size.scale_bytes == 7 * 8
    assert size.point_bytes == 0
    assert size.other_bytes == 10 * 4 + 10 * 4 + 8
    assert size.full_bytes == 4 * 1030 + 88
    assert size.bytes == 259 + 56 + 88
    assert size.compression == pytest.approx(size.full_bytes / 403)
    assert 0 < size.huffman_bits <= 2
    assert size.overhead_bits == pytest.approx(8 * 56 / 1030)
    learned = PackedNetwork.of(model, LearnedPoints(model, 2)).size()
    assert learned.point_bytes == 4 * 4 * 4
    assert learned.huffman_bytes == pytest.approx(learned.bytes - 259 + learned.huffman_bits * 1030 / 8)


def test_a_skewed_code_is_shorter_by_huffman() -> None:
    model = nn.Linear(1000, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, :4] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    size = PackedNetwork.of(model, UniformWeights(model, 2, scaling=Scaling(bucket_size=None))).size()
    assert size.huffman_bits == pytest.approx((997 * 1 + 1 * 2 + 1 * 3 + 1 * 3) / 1000)
    assert size.huffman_bytes < size.bytes


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    model = nn.ModuleDict({"in": nn.Embedding(50, 8), "out": nn.Linear(8, 50, bias=False)})
    model["out"].weight = model["in"].weight
    file = PackedNetwork.of(model, UniformWeights(model, 4))
    assert file.size().weights == 400
    other = nn.ModuleDict({"in": nn.Embedding(50, 8), "out": nn.Linear(8, 50, bias=False)})
    other["out"].weight = other["in"].weight
    file.write(other)
    assert other["out"].weight is other["in"].weight
    torch.testing.assert_close(other["out"].weight, next(iter(file.tensors().values())))


def test_a_network_of_another_shape_and_foreign_files_are_refused(tmp_path: Path) -> None:
    model = network()
    packed = PackedNetwork.of(model, UniformWeights(model, 4))
    with pytest.raises(UserError, match="of the network"):
        packed.write(small_cnn("16k"))
    with pytest.raises(UserError, match="quantised network"):
        PackedNetwork.load(tmp_path / "absent.safetensors")
    (tmp_path / "odd.safetensors").write_bytes(b"not at all")
    with pytest.raises(UserError, match="quantised network"):
        PackedNetwork.load(tmp_path / "odd.safetensors")


def test_a_packed_network_goes_through_the_ordinary_export(tmp_path: Path) -> None:
    model = network()
    file = PackedNetwork.of(model, UniformWeights(model, 4)).save(tmp_path / "network.safetensors")
    restored = PackedNetwork.load(file).write(small_cnn("4k"))
    report = export(restored, IMAGES, tmp_path / "network.onnx", "onnx")
    assert report.worst.max_relative_difference < 1e-4
    session = onnxruntime.InferenceSession(str(report.path))
    (logits,) = session.run(None, {"input": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), restored(IMAGES).detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(restored(IMAGES), model(IMAGES), atol=1e-4)
