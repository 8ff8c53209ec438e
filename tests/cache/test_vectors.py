from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch

from limbeck.cache import CacheReader, CacheWriter, Manifest, codec, recode
from limbeck.cache.vectors import WORDS, ProductQuantizer
from limbeck.errors import MissingExtra, UserError
from tests.cache.helpers import PARTS


def clustered(count: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(20, width, generator=generator) * 4
    return middles[torch.randint(0, 20, (count,), generator=generator)] + 0.1 * torch.randn(
        count, width, generator=generator
    )


def test_every_part_is_its_nearest_word() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(3, WORDS, 4, generator=generator).half()
    chosen, value = ProductQuantizer(3, words), torch.randn(50, 2, 12, generator=generator)
    parts = chosen.encode(value)
    assert parts["value"].shape == (50, 2, 3)
    assert parts["value"].dtype == torch.uint8
    decoded = chosen.decode(parts, (2, 12))
    for row, back in zip(value.reshape(-1, 3, 4), decoded.reshape(-1, 3, 4), strict=True):
        for part in range(3):
            distances = (words[part].float() - row[part]).norm(dim=-1)
            assert torch.equal(back[part], words[part, int(distances.argmin())].float())
    assert torch.equal(chosen.encode(value[7:8])["value"][0], parts["value"][7])
    # What was decoded is made of words, and comes back as it is.
    assert torch.equal(chosen.roundtrip(decoded), decoded)
    assert chosen.decode(chosen.encode(value[:0]), (2, 12)).shape == (0, 2, 12)


def test_the_first_batch_teaches_the_codebook_and_later_writers_and_readers_have_it(tmp_path: Path) -> None:
    value, ids = clustered(700), torch.arange(700)
    with CacheWriter(tmp_path, PARTS, {"embedding": "pq:4"}, 100) as writer:
        writer.write(ids[:600], {"embedding": value[:600]})
        writer.write(ids[600:650], {"embedding": value[600:650]})
    book = Manifest.load(tmp_path).signals["embedding"].codebook
    assert len(book) == 4 * WORDS * 3 * 2 // 3 * 4
    with CacheWriter(tmp_path, PARTS, {"embedding": "pq:4"}, 100) as writer:
        writer.write(ids[650:], {"embedding": value[650:]})
    manifest = Manifest.load(tmp_path)
    assert manifest.signals["embedding"].codebook == book
    read = CacheReader(tmp_path).read(ids)["embedding"]
    assert isinstance(read, torch.Tensor)
    assert read.dtype == torch.float32
    assert float((read - value).norm() / value.norm()) < 0.1
    assert torch.equal(read, manifest.signals["embedding"].open().roundtrip(value))
    stored = sum(shard.bytes for shard in manifest.shards)
    assert stored < 700 * (4 + 8) + 8 * 400


def test_codes_and_vectors_are_those_of_faiss() -> None:
    import faiss

    value = clustered(900)
    chosen = ProductQuantizer(4)
    book = chosen.learn(value)
    theirs = faiss.ProductQuantizer(12, 4, 8)
    faiss.copy_array_to_vector(book.float().numpy().ravel(), theirs.centroids)
    codes = chosen.encode(value)
    assert numpy.array_equal(codes["value"].numpy(), theirs.compute_codes(value.numpy()))
    decoded = chosen.decode(codes, (12,)).numpy()
    numpy.testing.assert_allclose(decoded, theirs.decode(codes["value"].numpy()))


def test_ragged_hidden_states_learn_from_counted_positions(tmp_path: Path) -> None:
    hidden, mask = clustered(1200).reshape(100, 12, 12), torch.arange(12) < (torch.arange(100) % 13).unsqueeze(1)
    hidden[~mask] = torch.nan
    with CacheWriter(tmp_path / "pq", PARTS, "pq:6", 30, ragged=["hidden"]) as writer:
        writer.write(torch.arange(100), {"hidden": hidden}, mask=mask)
    read = CacheReader(tmp_path / "pq").read(torch.arange(100), mask=mask)["hidden"]
    assert isinstance(read, torch.Tensor)
    assert float((read[mask] - hidden[mask]).norm() / hidden[mask].norm()) < 0.1
    recode(tmp_path / "pq", tmp_path / "half", "float16")
    again = CacheReader(tmp_path / "half").read(torch.arange(100), mask=mask)["hidden"]
    assert torch.equal(again, read)


def test_what_cannot_be_learnt_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pq:5.*divides the width, 12"):
        ProductQuantizer(5).learn(clustered(300))
    with CacheWriter(tmp_path, PARTS, "pq:4") as writer, pytest.raises(UserError, match="of 100 vectors.*at least 256"):
        writer.write(torch.arange(100), {"embedding": clustered(100)})
    with pytest.raises(UserError, match="one whose codebook was learnt"):
        codec("pq:4").encode(clustered(3))
    for name in ("pq", "pq:0", "pq:x", "pq:4:8"):
        with pytest.raises(UserError, match="pq:M"):
            codec(name)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"limbeck\[quantised\]"):
        ProductQuantizer(4).learn(clustered(300))


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_four_bits_are_half_of_eight(width: int) -> None:
    value = torch.randn(30, 3, width, generator=torch.Generator().manual_seed(width))
    four, eight = codec("int4").encode(value), codec("int8").encode(value)
    assert four["value"].shape[-1] == (width + 1) // 2
    assert eight["value"].shape[-1] == width
    assert codec("int4").roundtrip(value).shape == value.shape
    scalar = torch.randn(9)
    assert torch.equal(codec("int4").roundtrip(scalar), scalar)
