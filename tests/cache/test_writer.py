from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cache import (
    BadSignals,
    CacheReader,
    CacheWriter,
    DiskFull,
    EmptyCache,
    ForeignCache,
    LockedCache,
    Manifest,
    StaleCache,
    write_cache,
)
from limbeck.errors import UserError
from limbeck.signals import SparseLogits
from tests.cache.helpers import CLASSES, PARTS, Formula, batches, logits_of

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "writer.lock"}


def write(folder: Path, count: int = 100, **options: Any) -> Manifest:
    return write_cache(Formula(), batches(count, 16), folder, shard_rows=24, **options)


def test_write_and_read_back(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = write(tmp_path, needs=("logits", "embedding"), progress=lambda *numbers: seen.append(numbers))
    assert manifest.complete
    assert manifest.rows == 100
    assert [shard.rows for shard in manifest.shards] == [24, 24, 24, 24, 4]
    assert manifest.bytes == sum(
        len(content) for name, content in contents(tmp_path).items() if name != "manifest.json"
    )
    assert seen[0] == (16, 16)
    assert seen[-1] == (100, 100)
    signals = CacheReader(tmp_path, {"teacher": Formula().fingerprint()}).read(torch.arange(100))
    torch.testing.assert_close(signals["logits"], logits_of(torch.arange(100)).half().float(), rtol=0, atol=0)
    assert signals["embedding"].shape == (100, 3)


def test_a_second_run_asks_nothing_and_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    before, source = contents(tmp_path), Formula()
    write_cache(source, batches(100, 16), tmp_path, shard_rows=24)
    assert source.asked == 0
    assert contents(tmp_path) == before
    write_cache(source, batches(132, 16), tmp_path, shard_rows=24)
    # The batch that was there in part is asked whole, so that its answers are those of an uninterrupted run.
    assert source.asked == 132 - 96
    assert CacheReader(tmp_path).manifest.rows == 132


def test_samples_are_kept_once(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, PARTS, shard_rows=4) as writer:
        ids = torch.tensor([5, 3, 5, 9, 3, 5])
        assert writer.write(ids, {"logits": logits_of(ids)}) == 3
        assert writer.write(ids, {"logits": logits_of(ids)}) == 0
        assert writer.write(torch.tensor([9, 10, 11]), {"logits": logits_of(torch.tensor([9, 10, 11]))}) == 2
        assert writer.done(torch.tensor([10, 4, 5])).tolist() == [True, False, True]
        assert writer.done_ids().tolist() == [3, 5, 9, 10, 11]
        assert writer.write(torch.tensor([10, 4]), {"logits": logits_of(torch.tensor([10, 4]))}) == 1
    assert sorted(CacheReader(tmp_path).ids().tolist()) == [3, 4, 5, 9, 10, 11]


def test_shards_close_early_when_they_are_large(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, PARTS, "float32", shard_rows=1000, shard_bytes=CLASSES * 4 * 30) as writer:
        for batch in batches(100, 10):
            writer.write(batch["id"], {"logits": logits_of(batch["id"])})
    assert [shard.rows for shard in writer.manifest.shards] == [30, 30, 30, 10]


def test_kill_and_resume_gives_the_same_cache(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from limbeck.cache import write_cache; "
        "from tests.cache.helpers import *; "
        "write_cache(Formula(0.02), batches(2000, 16), sys.argv[1], shard_rows=24)"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, (ROOT, *sys.path))), "OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", code, str(killed)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(list(killed.glob("*.safetensors"))) < 3:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(LockedCache, match=f"process {child.pid} on"):
            CacheWriter(killed, {"teacher": Formula().fingerprint()})
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    kept = Manifest.load(killed).rows
    assert 48 <= kept < 2000
    source = Formula()
    write_cache(source, batches(2000, 16), killed, shard_rows=24)
    assert source.asked <= 2000 - kept + 16
    whole = tmp_path / "whole"
    write_cache(Formula(), batches(2000, 16), whole, shard_rows=24)
    assert contents(killed) == contents(whole)


class Killed(BaseException):
    """Stands for SIGKILL at a chosen system call: after it the writer does no more than close files."""


def test_death_at_any_system_call_loses_at_most_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    write(whole, 60)
    for moment in range(1000):
        folder = tmp_path / str(moment)
        calls = 0

        def dying(name: str, *, fatal: int = moment) -> Any:
            real = getattr(os, name)

            def call(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls <= fatal:
                    return real(*arguments)
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise Killed

            return call

        writer = None
        with monkeypatch.context() as patch, suppress(Killed):
            for name in ("write", "fsync", "replace"):
                patch.setattr(os, name, dying(name))
            writer = CacheWriter(folder, {"teacher": Formula().fingerprint()}, shard_rows=24)
            for batch in batches(60, 16):
                writer.write(batch["id"], {"logits": logits_of(batch["id"])})
            writer.finish()
        if writer is not None and writer._lock is not None:
            writer._lock.release()
        entered = Manifest.load(folder).rows if (folder / "manifest.json").exists() else 0
        assert entered >= 24 * (len(list(folder.glob("*.safetensors"))) - 1)
        source = Formula()
        write_cache(source, batches(60, 16), folder, shard_rows=24)
        assert source.asked <= 60 - entered + 16
        assert contents(folder) == contents(whole), moment
        if calls <= moment:
            break
    assert moment > 20


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_says_so_and_leaves_a_cache_to_resume(tmp_path: Path) -> None:
    folder, whole = tmp_path / "full", tmp_path / "whole"

    def fill(target: Path) -> None:
        with CacheWriter(target, PARTS, "float32", shard_rows=4) as writer:
            for number in (0, 1):
                writer.write(torch.tensor([number]), {"wide": torch.full((1, 4096), float(number))})
                writer.flush()
            writer.write(torch.arange(4) + 2, {"wide": torch.ones(4, 4096)})

    fill(whole)
    # Room for a shard of one row (16 KiB) and not for one of four.
    with (
        file_size_limit(40_000),
        pytest.raises(DiskFull, match="disk full: .* bytes to write, .* bytes free.*run again"),
    ):
        fill(folder)
    assert Manifest.load(folder).rows == 2
    assert not list(folder.glob("*.tmp"))
    fill(folder)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_quota_are_disk_full_and_other_errors_are_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(code: int) -> Any:
        def write_nothing(handle: int, content: Any) -> int:
            raise OSError(code, os.strerror(code))

        return write_nothing

    writer = CacheWriter(tmp_path, PARTS, shard_rows=4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails(number))
        with pytest.raises(DiskFull):
            writer.write(torch.arange(4), {"logits": logits_of(torch.arange(4))})
    with pytest.raises(UserError, match="closed"):
        writer.write(torch.arange(4), {"logits": logits_of(torch.arange(4))})
    writer.close()
    with monkeypatch.context() as patch, CacheWriter(tmp_path, PARTS, shard_rows=4) as again:
        patch.setattr(os, "write", fails(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            again.write(torch.arange(4), {"logits": logits_of(torch.arange(4))})


def test_rows_of_a_slow_teacher_wait_so_long_and_no_longer(tmp_path: Path) -> None:
    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.cache.writer.time.monotonic", lambda: clock[0])
        with CacheWriter(tmp_path, PARTS, shard_seconds=60) as writer:
            shards = []
            for number in range(6):
                clock[0] += 25
                ids = torch.arange(2) + 2 * number
                writer.write(ids, {"logits": logits_of(ids)})
                shards.append(len(writer.manifest.shards))
    # The first row waits from 25 to 100, the next from there.
    assert shards == [0, 0, 0, 1, 1, 1]
    assert [shard.rows for shard in Manifest.load(tmp_path).shards] == [8, 4]


def test_two_writers(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, PARTS) as first:
        with pytest.raises(LockedCache, match=f"process {os.getpid()} on .* since"):
            CacheWriter(tmp_path, PARTS)
        first.write(torch.arange(3), {"logits": logits_of(torch.arange(3))})
    with CacheWriter(tmp_path, PARTS) as second:
        assert len(second.done_ids()) == 3
    first.close()
    # A lock file whose writer is gone is no lock.
    (tmp_path / "writer.lock").write_text(json.dumps({"process": 1, "host": "elsewhere", "since": 0}))
    with CacheWriter(tmp_path, PARTS) as third:
        assert third._lock is not None
        assert "process 1 on elsewhere" in third._lock.taken_over


def test_another_teacher_or_codec_is_refused_and_named(tmp_path: Path) -> None:
    write(tmp_path, fingerprint={"preprocessing": "p", "tokenizer": "t"})
    before = contents(tmp_path)
    with pytest.raises(
        StaleCache, match="another teacher and tokenizer .*teacher: cache formulaxxxxx, expected newx"
    ) as caught:
        write_cache(Formula(name="new"), batches(4, 2), tmp_path, fingerprint={"preprocessing": "p", "tokenizer": "u"})
    assert caught.value.differs == ("teacher", "tokenizer")
    with pytest.raises(StaleCache, match="another preprocessing and tokenizer .*expected none"):
        write(tmp_path)
    with pytest.raises(StaleCache, match="logits is stored as float16, asked for int8"):
        write(tmp_path, fingerprint={"preprocessing": "p", "tokenizer": "t"}, codec="int8")
    with pytest.raises(UserError, match="parts besides the teacher"):
        write(tmp_path / "new", fingerprint={"teacher": "mine"})
    assert contents(tmp_path) == before


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ForeignCache, match=r"no manifest.json, but other files are \(thesis.tex\)"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_torn_shards_are_dropped_and_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    before = contents(tmp_path)
    names = [shard.file for shard in Manifest.load(tmp_path).shards]
    (tmp_path / names[0]).write_bytes(before[names[0]][:-1])
    flipped = bytearray(before[names[1]])
    flipped[-1] ^= 1
    (tmp_path / names[1]).write_bytes(flipped)
    (tmp_path / names[2]).unlink()
    (tmp_path / "000009-abc.safetensors").write_bytes(b"renamed, but never entered")
    with CacheWriter(tmp_path, {"teacher": Formula().fingerprint()}, verify="full") as writer:
        assert len(writer.dropped) == 3
        assert not writer.manifest.complete
        assert writer.done_ids().tolist() == list(range(72, 100))
        assert {path.name for path in tmp_path.glob("*.safetensors")} == set(names[3:])
    write(tmp_path)
    reader = CacheReader(tmp_path, verify="full")
    assert torch.equal(reader.read(torch.arange(100))["logits"], logits_of(torch.arange(100)).half().float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["logits", "embedding"])
def test_answers_that_are_not_finite_are_refused_by_sample(tmp_path: Path, name: str, value: float) -> None:
    with CacheWriter(tmp_path, PARTS) as writer:
        signals = {"logits": logits_of(torch.arange(4)), "embedding": torch.ones(4, 2)}
        signals[name][2, 1] = value
        with pytest.raises(
            BadSignals, match=rf"signal {name} is NaN or infinite for 1 of 4 samples, first ids \[12\]"
        ) as caught:
            writer.write(torch.arange(10, 14), signals)
        assert caught.value.ids == (12,)
        assert not writer.done(torch.arange(10, 14)).any()
        signals[name][2, 1] = 0
        assert writer.write(torch.arange(10, 14), signals) == 4


def test_ruled_out_classes_are_kept_and_ranges_are_checked(tmp_path: Path) -> None:
    ids = torch.arange(3)
    logits = logits_of(ids)
    logits[:, 4] = -torch.inf
    with CacheWriter(tmp_path / "a", PARTS) as writer:
        writer.write(ids, {"logits": logits})
    assert torch.isneginf(CacheReader(tmp_path / "a").read(ids)["logits"][:, 4]).all()
    with CacheWriter(tmp_path / "b", PARTS) as writer:
        with pytest.raises(BadSignals, match="embedding is NaN or infinite"):
            writer.write(ids, {"embedding": logits})
        with pytest.raises(BadSignals, match=r"out of the range of float16 for 1 of 3 .*\[1\].*bfloat16"):
            writer.write(ids, {"embedding": torch.tensor([[0.0], [7e4], [1.0]])})
    with CacheWriter(tmp_path / "c", PARTS, "topk:2") as writer:
        sparse = SparseLogits.from_dense(logits_of(ids), 2)
        sparse.rest[1] = torch.nan
        with pytest.raises(BadSignals, match=r"\[1\]"):
            writer.write(ids, {"logits": sparse})
        assert writer.write(ids, {"logits": SparseLogits.from_dense(logits_of(ids), 3)}) == 3


def test_an_error_keeps_what_came_before_it(tmp_path: Path) -> None:
    def interrupted() -> Iterator[dict[str, torch.Tensor]]:
        yield from batches(5, 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(Formula(), interrupted(), tmp_path)
    assert len(CacheReader(tmp_path)) == 5


def test_no_data_and_one_sample(tmp_path: Path) -> None:
    with pytest.raises(EmptyCache, match="no sample to write"):
        write_cache(Formula(), [], tmp_path / "none")
    with pytest.raises(EmptyCache, match="holds no samples"):
        CacheReader(tmp_path / "none")
    with CacheWriter(tmp_path / "none", {"teacher": Formula().fingerprint()}) as writer:
        assert writer.write(torch.arange(0), {"logits": logits_of(torch.arange(0))}) == 0
        assert len(writer.done_ids()) == 0
    write(tmp_path / "one", 1)
    assert CacheReader(tmp_path / "one").read(torch.tensor([0, 0]))["logits"].shape == (2, CLASSES)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    ids = torch.arange(4)
    with CacheWriter(tmp_path, PARTS) as writer:
        with pytest.raises(UserError, match="signal logits.*begins with"):
            writer.write(ids, {"logits": logits_of(ids[:3])})
        with pytest.raises(UserError, match="id.*float32"):
            writer.write(ids.float(), {"logits": logits_of(ids)})
        with pytest.raises(UserError, match="view.*one per id"):
            writer.write(ids, {"logits": logits_of(ids)}, views=ids[:2])
        with pytest.raises(UserError, match="at least one"):
            writer.write(ids, {})
        writer.write(ids, {"logits": logits_of(ids)})
        with pytest.raises(UserError, match="same signals"):
            writer.write(ids + 9, {"logits": logits_of(ids), "more": logits_of(ids)})
        with pytest.raises(UserError, match="same signals"):
            writer.write(ids + 9, {"logits": logits_of(ids, classes=8)})
        with pytest.raises(UserError, match="seeds always or never"):
            writer.write(ids + 9, {"logits": logits_of(ids)}, views=ids)
    with pytest.raises(UserError, match="codec"):
        CacheWriter(tmp_path / "x", PARTS, {"logits": "flac16"})
    assert not (tmp_path / "x").exists()
    changing = Formula()
    changing.state_dict = lambda: {"weights": 1}  # type: ignore[method-assign]
    with pytest.raises(UserError, match="frozen"):
        write_cache(changing, batches(4, 2), tmp_path / "y")
    with pytest.raises(UserError, match="mapping with id"):
        write_cache(Formula(), [{"input": ids}], tmp_path / "z")
