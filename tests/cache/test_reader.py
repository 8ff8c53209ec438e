from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from limbeck.cache import (
    CacheReader,
    CacheWriter,
    ForeignCache,
    Manifest,
    MissingSamples,
    StaleCache,
    TornCache,
    write_cache,
)
from limbeck.errors import UserError
from limbeck.signals import SparseLogits
from tests.cache.helpers import PARTS, Formula, batches, logits_of

EDGE = torch.tensor([0, -1, 7, -(2**63), 2**63 - 1, 2**40, -(2**40), 3, 2**63 - 9])


def made(folder: Path, ids: torch.Tensor, codec: str = "float32", shard_rows: int = 5) -> CacheReader:
    with CacheWriter(folder, PARTS, codec, shard_rows) as writer:
        writer.write(ids, {"logits": logits_of(ids)})
    return CacheReader(folder)


@pytest.mark.parametrize(
    "ids",
    [
        torch.arange(23),
        torch.arange(23).flip(0) - 11,
        torch.arange(23) * 3,
        torch.arange(23) ** 5 - 999,
        EDGE,
    ],
    ids=["plain", "negative", "gaps", "far", "edge"],
)
def test_any_ids_in_any_order_with_repeats(tmp_path: Path, ids: torch.Tensor) -> None:
    reader = made(tmp_path, ids)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 4, len(ids), 64):
        wanted = ids[torch.randint(len(ids), (count,), generator=generator)]
        assert torch.equal(reader.read(wanted)["logits"], logits_of(wanted))
    for wanted in (ids, ids.flip(0), ids[2:4], ids[5:9], ids[:0], ids.repeat(2)):
        assert torch.equal(reader.read(wanted)["logits"], logits_of(wanted))
    absent = torch.tensor([5, 2**62, -(2**62), 2**63 - 2, -(2**63) + 3, 1000])
    absent = absent[~torch.isin(absent, ids)]
    assert not reader.contains(absent).any()
    assert reader.contains(ids).all()
    small = ids[(ids.abs() < 2**31)]
    assert reader.contains(small.int()).all()


def test_missing_samples_are_counted_and_named(tmp_path: Path) -> None:
    reader = made(tmp_path, torch.arange(10))
    with pytest.raises(
        MissingSamples, match=r"8 of 10 .*\[10, 11, 12, 13, 14\]; it holds 10 samples and was not finished"
    ) as caught:
        reader.read(torch.arange(8, 18))
    assert caught.value.ids == tuple(range(10, 18))


def test_what_is_read_is_the_caller_s(tmp_path: Path) -> None:
    reader = made(tmp_path, torch.arange(20))
    for wanted in (torch.arange(3), torch.tensor([4, 2]), torch.arange(20)):
        reader.read(wanted)["logits"].zero_()
        assert torch.equal(reader.read(wanted)["logits"], logits_of(wanted))


@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16", "int8", "topk:3", "topk:3:float32"])
def test_every_codec_comes_back_as_it_went_in(tmp_path: Path, codec: str) -> None:
    from limbeck.cache import codec as find

    ids = torch.arange(40)
    reader = made(tmp_path, ids, codec)
    wanted = ids[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    read, expected = reader.read(wanted)["logits"], find(codec).roundtrip(logits_of(wanted))
    if isinstance(expected, SparseLogits):
        assert isinstance(read, SparseLogits)
        assert read.size == 7
        for part in ("values", "indices", "rest"):
            torch.testing.assert_close(getattr(read, part), getattr(expected, part), rtol=0, atol=0)
    else:
        assert isinstance(read, torch.Tensor)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, expected, rtol=0, atol=0)


def test_stored_types(tmp_path: Path) -> None:
    ids = torch.arange(6)
    given = {
        "cluster": ids * 10**12,
        "keep": ids > 2,
        "map": torch.randn(6, 2, 3, 4).half(),
        "score": torch.randn(6, dtype=torch.float64),
    }
    with CacheWriter(tmp_path, PARTS, {"map": "bfloat16", "score": "exact"}, 4) as writer:
        writer.write(ids, given)
    read = CacheReader(tmp_path).read(ids)
    assert torch.equal(read["cluster"], given["cluster"])
    assert torch.equal(read["keep"], given["keep"])
    assert torch.equal(read["score"], given["score"])
    assert read["map"].shape == (6, 2, 3, 4)
    assert read["map"].dtype == torch.float32
    assert CacheReader(tmp_path, dtype=None).read(ids, names=["map"])["map"].dtype == torch.bfloat16
    assert set(CacheReader(tmp_path).read(ids, names=["keep"])) == {"keep"}
    with pytest.raises(UserError, match="cached signal.*maps.*cluster, keep, map, score"):
        CacheReader(tmp_path).read(ids, names=["maps"])


def test_views(tmp_path: Path) -> None:
    ids, views = torch.arange(6).repeat(3), torch.tensor([-5, 2**62, 8]).repeat_interleave(6)
    with CacheWriter(tmp_path, PARTS, "float32", 4) as writer:
        assert writer.write(ids[:11], {"logits": logits_of(ids[:11], views[:11])}, views[:11]) == 11
        assert writer.write(ids, {"logits": logits_of(ids, views)}, views) == 7
        assert len(writer.done_ids()) == 6
    reader = CacheReader(tmp_path)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(2))
    assert torch.equal(reader.read(ids[order], views[order])["logits"], logits_of(ids[order], views[order]))
    assert reader.contains(torch.tensor([0, 0, 6]), torch.tensor([8, 9, 8])).tolist() == [True, False, False]
    with pytest.raises(UserError, match="view.*seed of every sample"):
        reader.read(ids)
    plain = made(tmp_path / "plain", torch.arange(6))
    with pytest.raises(UserError, match="batches without views"):
        plain.read(ids, views)


def ragged(folder: Path, codec: str = "float32") -> tuple[CacheReader, torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.arange(11) * 7
    lengths = torch.tensor([3, 1, 5, 0, 2, 5, 4, 1, 1, 3, 2])
    hidden = torch.randn(11, 5, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(5) < lengths.unsqueeze(1)
    hidden[~mask] = torch.nan
    with CacheWriter(folder, PARTS, codec, 3, ragged=["hidden"]) as writer:
        pooled = logits_of(ids)
        writer.write(ids[:8], {"hidden": hidden[:8], "logits": pooled[:8]}, mask=mask[:8])
        # Another batch may be padded to another length and from the other side.
        left = mask[8:, :3].flip(1)
        tail = torch.zeros(3, 3, 4)
        tail[left] = hidden[8:][mask[8:]]
        writer.write(ids[8:], {"hidden": tail, "logits": pooled[8:]}, mask=left)
    return CacheReader(folder), ids, hidden.nan_to_num(0.0), mask


def test_ragged_signals_take_the_space_of_their_positions_and_any_padding(tmp_path: Path) -> None:
    reader, ids, hidden, mask = ragged(tmp_path)
    for order in (
        torch.arange(11),
        torch.randperm(11),
        torch.tensor([2]),
        torch.tensor([4, 4, 3, 10]),
        torch.arange(3, 6),
    ):
        read = reader.read(ids[order])
        longest = int(mask[order].sum(1).max())
        assert torch.equal(read["hidden"], hidden[order, :longest])
        assert torch.equal(read["mask"], mask[order, :longest])
        assert torch.equal(read["logits"], logits_of(ids[order]))
        left = torch.cat([mask[order].flip(1), torch.zeros(len(order), 2, dtype=torch.bool)], 1)
        placed = reader.read(ids[order], names=["hidden"], mask=left)
        assert set(placed) == {"hidden"}
        assert torch.equal(placed["hidden"][left], hidden[order][mask[order]])
        assert placed["hidden"][~left].abs().sum() == 0
    with pytest.raises(UserError, match=r"samples \[0\] were written with another tokenizer"):
        reader.read(ids[:2], mask=torch.tensor([[True, True], [True, False]]))
    stored = sum(shard.bytes for shard in reader.manifest.shards)
    assert stored < 4 * (1000 + 11 * 7 * 4 + 27 * 4 * 4 + 11 * 24)


def test_ragged_top_k(tmp_path: Path) -> None:
    reader, ids, hidden, mask = ragged(tmp_path, "topk:2:float32")
    read = reader.read(ids)["hidden"]
    assert isinstance(read, SparseLogits)
    expected = SparseLogits.from_dense(hidden, 2)
    assert torch.equal(read.values[mask], expected.values[mask])
    assert torch.equal(read.indices[mask], expected.indices[mask])
    assert torch.equal(read.rest[mask], expected.rest[mask])


def spoil(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(content[:-3])
    elif kind == "longer":
        path.write_bytes(content + b"x")
    elif kind == "header":
        content[9] ^= 255
        path.write_bytes(content)
    elif kind == "flipped":
        content[-2] ^= 4
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", "bytes instead of"),
        ("longer", "bytes instead of"),
        ("missing", "is missing"),
        ("header", "cannot be read"),
    ],
)
def test_torn_shards_are_refused_with_the_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / made(tmp_path, torch.arange(12)).manifest.shards[1].file
    spoil(path, kind)
    with pytest.raises(TornCache, match=rf"torn: shard {path.name} .*{reason}.*run the writer again"):
        CacheReader(tmp_path)


def test_a_flipped_bit_is_found_when_its_shard_is_read_or_all_are_verified(tmp_path: Path) -> None:
    path = tmp_path / made(tmp_path, torch.arange(12)).manifest.shards[1].file
    spoil(path, "flipped")
    lazy = CacheReader(tmp_path)
    assert torch.equal(lazy.read(torch.arange(5))["logits"], logits_of(torch.arange(5)))
    with pytest.raises(TornCache, match="another checksum than was written"):
        lazy.read(torch.arange(5, 7))
    with pytest.raises(TornCache, match="checksum"):
        CacheReader(tmp_path, verify="size").verify()
    with pytest.raises(TornCache, match="checksum"):
        CacheReader(tmp_path, verify="full")


def test_stale_caches_are_refused_with_what_differs(tmp_path: Path) -> None:
    made(tmp_path, torch.arange(5))
    CacheReader(tmp_path, {"preprocessing": PARTS["preprocessing"]})
    for expect, words in (
        ({**PARTS, "teacher": "c" * 64}, "another teacher "),
        ({**PARTS, "preprocessing": "d"}, "another preprocessing "),
        ({**PARTS, "tokenizer": "e"}, "another tokenizer .*cache none"),
        ({"teacher": "1", "preprocessing": "2", "data": "3"}, "another teacher and preprocessing and data "),
    ):
        with pytest.raises(StaleCache, match="stale: written with " + words):
            CacheReader(tmp_path, expect)


def test_foreign_and_mangled_manifests(tmp_path: Path) -> None:
    made(tmp_path, torch.arange(5))
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    for change, error, words in (
        ({"version": 2}, ForeignCache, "format version 2, this release reads 1"),
        ({"format": "parquet"}, ForeignCache, "not written by Limbeck"),
        ({"shards": [{"file": "x"}]}, TornCache, "lacks or mangles"),
        ({"signals": {"logits": {}}}, TornCache, "lacks or mangles"),
        ({"signals": {"logits": {**good["signals"]["logits"], "codec": "topk:x"}}}, UserError, "codec"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(error, match=words):
            CacheReader(tmp_path)
    path.write_text(json.dumps(good)[:-20])
    with pytest.raises(TornCache, match="not JSON"):
        CacheReader(tmp_path)
    path.unlink()
    with pytest.raises(ForeignCache, match=r"no manifest\.json"):
        CacheReader(tmp_path)
    with pytest.raises(UserError, match="an existing cache folder"):
        CacheReader(tmp_path / "nowhere")


def test_a_reader_follows_a_writer_and_travels_to_workers(tmp_path: Path) -> None:
    write_cache(Formula(), batches(10, 5), tmp_path)
    reader = CacheReader(tmp_path, {"teacher": Formula().fingerprint()})
    copy = pickle.loads(pickle.dumps(reader))
    write_cache(Formula(), batches(20, 5), tmp_path)
    assert not reader.contains(torch.tensor([15])).any()
    reader.refresh()
    for one in (reader, pickle.loads(pickle.dumps(copy))):
        assert torch.equal(one.read(torch.arange(20))["logits"], logits_of(torch.arange(20)).half().float())
    assert Manifest.load(tmp_path).complete
