from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest
import torch

from limbeck.cache import (
    CacheReader,
    ForeignCache,
    LockedCache,
    StaleCache,
    TornCache,
    merge,
    show,
    verify,
    write_cache,
)
from limbeck.cache.places import Local, Remote, place_of
from limbeck.errors import UserError
from tests.cache.helpers import Formula, batches, logits_of


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return f"memory://caches/{uuid.uuid4().hex}"


def write(url: str, count: int = 60, codec: str = "float32", **options: object) -> Formula:
    source = Formula()
    write_cache(source, batches(count, 16), url, codec=codec, shard_rows=24, **options)  # type: ignore[arg-type]
    return source


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "above:0.05:5"])
def test_a_remote_cache_is_that_of_a_folder(url: str, tmp_path: Path, codec: str) -> None:
    write(url, codec=codec)
    write(str(tmp_path / "here"), codec=codec)
    files = fsspec.filesystem("memory")
    names = [Path(name).name for name in files.ls(url.removeprefix("memory:/"), detail=False)]
    assert sorted(name for name in names if name != "writer.lock") == sorted(
        path.name for path in (tmp_path / "here").iterdir() if path.name != "writer.lock"
    )
    far, near = CacheReader(url, {"teacher": Formula().fingerprint()}), CacheReader(tmp_path / "here")
    order = torch.randperm(60)
    one, other = far.read(order)["logits"], near.read(order)["logits"]
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    assert far.manifest == near.manifest
    assert verify(url)["shards"] == 3
    assert show(url)["folder"] == url


def test_shards_are_copied_when_they_are_read_and_found_again(url: str, tmp_path: Path) -> None:
    write(url)
    reader = CacheReader(url)
    assert reader.contains(torch.tensor([3, 99])).tolist() == [True, False]
    copies = list(tmp_path.glob("limbeck-shards-*/*"))
    assert not copies
    reader.read(torch.arange(10))
    copies = list(tmp_path.glob("limbeck-shards-*/*"))
    assert [copy.stem for copy in copies] == [reader.manifest.shards[0].sha256]
    before = copies[0].stat().st_mtime_ns
    CacheReader(url).read(torch.arange(10))
    assert copies[0].stat().st_mtime_ns == before


def test_writing_goes_on_and_other_caches_are_refused(url: str) -> None:
    write(url)
    assert write(url).asked == 0
    assert write(url, 92).asked == 92 - 48
    read = CacheReader(url).read(torch.arange(92))["logits"]
    assert isinstance(read, torch.Tensor)
    assert torch.equal(read, logits_of(torch.arange(92)))
    with pytest.raises(StaleCache, match="another teacher"):
        write_cache(Formula(name="other"), batches(4, 2), url)
    fsspec.filesystem("memory").pipe_file(f"{url}-foreign/thesis.tex", b"mine")
    with pytest.raises(ForeignCache, match=r"thesis\.tex"):
        write(f"{url}-foreign")
    with pytest.raises(UserError, match="an existing cache folder"):
        CacheReader(f"{url}-nowhere")


def test_torn_remote_shards_are_named_and_written_again(url: str) -> None:
    write(url)
    shard = CacheReader(url).manifest.shards[1]
    files = fsspec.filesystem("memory")
    content = files.cat_file(f"{url}/{shard.file}")
    files.pipe_file(f"{url}/{shard.file}", content[:-1] + b"\1")
    with pytest.raises(TornCache, match=f"{shard.file} has another checksum"):
        CacheReader(url).read(torch.arange(24, 30))
    with pytest.raises(TornCache, match=shard.file):
        verify(url)
    write(url)
    assert verify(url)["intact"]
    files.rm(f"{url}/{CacheReader(url).manifest.shards[1].file}")
    with pytest.raises(TornCache, match="is missing"):
        CacheReader(url)


def test_a_claim_keeps_others_out_until_it_is_deleted(url: str) -> None:
    place = place_of(url)
    lock = place.lock()
    with pytest.raises(LockedCache, match=f"if it is gone, delete {url}/writer.lock"):
        write(url)
    lock.release()
    write(url)
    assert place.lock().taken_over == ""


def test_remote_parts_are_merged(url: str) -> None:
    for number in (0, 1):
        write(url, part=(number, 2))
    assert CacheReader(url).manifest.complete
    merged = merge(url)
    assert merged.rows == 60
    assert not [name for name in place_of(url).names() if name.startswith("part-")]
    read = CacheReader(url).read(torch.arange(60))["logits"]
    assert isinstance(read, torch.Tensor)
    assert torch.equal(read, logits_of(torch.arange(60)))


def test_places_of_paths_and_urls(tmp_path: Path) -> None:
    assert isinstance(place_of(tmp_path), Local)
    assert place_of(f"file://{tmp_path}").folder == tmp_path
    assert isinstance(place_of("memory://x"), Remote)
    assert place_of(place_of(tmp_path)).folder == tmp_path
