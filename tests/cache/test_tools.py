from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.cache import (
    CacheReader,
    CacheWriter,
    LockedCache,
    Manifest,
    StaleCache,
    TornCache,
    codec,
    merge,
    recode,
    show,
    verify,
    write_cache,
)
from limbeck.errors import UserError
from limbeck.signals import SparseLogits
from tests.cache.helpers import PARTS, Formula, batches, logits_of

ROOT = Path(__file__).parents[2]
IDS = torch.arange(200)


def write(folder: Path, count: int = 200, start: int = 0, **options: object) -> Manifest:
    return write_cache(Formula(), batches(count, 16, start), folder, codec="float32", shard_rows=24, **options)  # type: ignore[arg-type]


def right(folder: Path, ids: torch.Tensor = IDS) -> bool:
    return torch.equal(CacheReader(folder, verify="full").read(ids)["logits"], logits_of(ids))


def test_processes_write_parts_side_by_side_and_a_killed_one_is_taken_up(tmp_path: Path) -> None:
    code = (
        "import sys; from limbeck.cache import write_cache; from tests.cache.helpers import *; "
        "write_cache(Formula(0.05), batches(200, 16), sys.argv[1], codec='float32', shard_rows=24, "
        "part=(int(sys.argv[2]), 2))"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, (ROOT, *sys.path))), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)], env=environment) for number in (0, 1)
    ]
    try:
        while not list(tmp_path.glob("part-0001/*.safetensors")):
            assert children[1].poll() is None
        with pytest.raises(LockedCache, match=f"process {children[1].pid}"):
            write(tmp_path, part=(1, 2))
    finally:
        children[1].kill()
        children[1].wait()
    assert children[0].wait() == 0
    kept = CacheReader(tmp_path, verify="full")
    assert 0 < len(kept) < 200
    assert not kept.manifest.complete
    source = Formula()
    write_cache(source, batches(200, 16), tmp_path, codec="float32", shard_rows=24, part=(1, 2))
    assert source.asked < 200 - 96
    assert right(tmp_path)
    assert CacheReader(tmp_path).manifest.complete
    assert show(tmp_path)["parts"] == 2
    before = Manifest.gather(tmp_path)
    merged = merge(tmp_path)
    assert merged.complete
    assert sorted(shard.sha256 for shard in merged.shards) == sorted(shard.sha256 for shard in before.shards)
    assert not list(tmp_path.glob("part-*"))
    assert right(tmp_path)


def test_what_one_part_has_the_others_need_not_write(tmp_path: Path) -> None:
    write(tmp_path, 100)
    source = Formula()
    for part in ((0, 3), (1, 3), (2, 3)):
        write_cache(source, batches(200, 16), tmp_path, codec="float32", shard_rows=24, part=part)
    assert source.asked <= 200 - 96
    assert right(tmp_path)
    again = Formula()
    write_cache(again, batches(200, 16), tmp_path, codec="float32", shard_rows=24)
    assert again.asked == 0
    with pytest.raises(StaleCache, match="another teacher"):
        write_cache(Formula(name="other"), batches(200, 16), tmp_path, codec="float32", part=(5, 6))
    with pytest.raises(StaleCache, match="stored as float32, asked for int8"):
        write_cache(Formula(), batches(200, 16), tmp_path, codec="int8", part=(5, 6))
    with pytest.raises(UserError, match="part"):
        write(tmp_path, part=(3, 3))
    assert right(tmp_path)


def test_a_merge_that_was_cut_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(BaseException):
        pass

    for moment in range(40):
        folder = tmp_path / str(moment)
        write(folder, 96, part=(0, 2))
        write(folder, 96, part=(1, 2))
        calls = 0
        real = os.replace

        def dying(*given: object, fatal: int = moment, real: object = real) -> None:
            nonlocal calls
            calls += 1
            if calls > fatal:
                raise Cut
            real(*given)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                merge(folder)
            except Cut:
                assert right(folder, IDS[:96])
        if calls <= moment:
            break
        if list(folder.glob("part-*")):
            merge(folder)
        assert right(folder, IDS[:96])
        assert Manifest.load(folder).rows == 96
    assert moment > 5


def test_other_caches_are_taken_in_and_foreign_or_torn_ones_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 100)
    write(tmp_path / "b", 100, 100)
    write(tmp_path / "same", 48)
    merged = merge(tmp_path / "new", [tmp_path / "a", tmp_path / "b", tmp_path / "same"])
    assert merged.rows == 200
    assert merged.complete
    assert right(tmp_path / "new")
    assert right(tmp_path / "b", IDS[100:])
    with pytest.raises(UserError, match="a cache with parts"):
        merge(tmp_path / "new")
    write_cache(Formula(name="other"), batches(9, 3), tmp_path / "c", codec="float32")
    with pytest.raises(StaleCache, match="another teacher"):
        merge(tmp_path / "new", [tmp_path / "c"])
    write(tmp_path / "d", 30, 300)
    shard = next((tmp_path / "d").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(TornCache, match="another checksum"):
        merge(tmp_path / "new", [tmp_path / "d"])
    assert right(tmp_path / "new")


def test_verify_names_every_bad_shard(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    seen: list[tuple[int, int]] = []
    assert verify(tmp_path, lambda *numbers: seen.append(numbers))["intact"]
    assert seen[-1] == (9, 9)
    first, second = (tmp_path / manifest.shards[place].file for place in (2, 5))
    first.write_bytes(first.read_bytes()[:-1] + b"\0")
    second.unlink()
    with pytest.raises(TornCache, match=f"{first.name} has another checksum.*{second.name} is missing"):
        verify(tmp_path)


def test_recoding_is_what_the_new_codec_makes_of_the_old_answers(tmp_path: Path) -> None:
    views = torch.arange(60) % 7
    ids = torch.arange(60)
    with CacheWriter(tmp_path / "old", PARTS, "float32", 16) as writer:
        writer.write(ids, {"logits": logits_of(ids, views), "score": ids}, views)
        writer.finish()
    manifest = recode(tmp_path / "old", tmp_path / "new", "packed:4", batch_size=13)
    assert manifest.complete
    reader = CacheReader(tmp_path / "new", {"teacher": PARTS["teacher"]})
    read, expected = reader.read(ids, views), codec("packed:4").roundtrip(logits_of(ids, views))
    assert isinstance(read["logits"], SparseLogits)
    assert isinstance(expected, SparseLogits)
    assert torch.equal(read["logits"].values, expected.values)
    assert torch.equal(read["score"], ids)
    assert reader.manifest.fingerprint["recoded"] == "logits from float32"
    assert manifest.bytes < Manifest.load(tmp_path / "old").bytes
    smaller = recode(tmp_path / "new", tmp_path / "least", {"logits": "topk:2"})
    assert smaller.signals["logits"].codec == "topk:2"
    with pytest.raises(UserError, match="float16.*top-k"):
        recode(tmp_path / "new", tmp_path / "no", "float16")
    with pytest.raises(UserError, match="K up to 4"):
        recode(tmp_path / "new", tmp_path / "none", "packed:5")
    with pytest.raises(UserError, match="cached signal.*other"):
        recode(tmp_path / "new", tmp_path / "none", {"other": "int8"})


def test_ragged_caches_are_recoded_position_by_position(tmp_path: Path) -> None:
    ids, mask = torch.arange(20), torch.arange(6) < (torch.arange(20) % 7).unsqueeze(1)
    hidden = torch.randn(20, 6, 8, generator=torch.Generator().manual_seed(0))
    with CacheWriter(tmp_path / "old", PARTS, "float32", 7, ragged=["hidden"]) as writer:
        writer.write(ids, {"hidden": hidden}, mask=mask)
    recode(tmp_path / "old", tmp_path / "new", "float16", batch_size=6)
    read = CacheReader(tmp_path / "new").read(ids, mask=mask)["hidden"]
    assert isinstance(read, torch.Tensor)
    assert torch.equal(read[mask], hidden[mask].half().float())


def test_what_is_shown(tmp_path: Path) -> None:
    write(tmp_path, 50)
    found = show(tmp_path)
    assert (found["samples"], found["shards"], found["complete"], found["views"]) == (50, 3, True, False)
    assert found["signals"]["logits"]["codec"] == "float32"
    assert found["bytes_per_sample"] == found["bytes"] / 50
    assert found["fingerprint"]["teacher"] == Formula().fingerprint()
