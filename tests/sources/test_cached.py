from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.cache import (
    BadSignals,
    CacheReader,
    LockedCache,
    MissingSamples,
    StaleCache,
    TornCache,
    write_cache,
)
from limbeck.errors import UserError
from limbeck.signals import SparseLogits, run_network
from limbeck.sources.average import Average
from limbeck.sources.base import Source
from limbeck.sources.cached import Cached, select
from limbeck.sources.live import Live
from tests.sources.contract import check_source

NEEDS = ("logits", "middle")


class Counting(nn.Module):
    """A small network with a dropout and a BatchNorm that notices how many samples it is asked about."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.middle = nn.Linear(6, 8)
        self.norm = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 5)
        self._asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._asked += len(x)
        return self.head(self.norm(self.middle(x)))


def teacher(seed: int = 0) -> Live:
    return Live(Counting(seed), taps={"middle": "middle"})


def batch(ids: torch.Tensor) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(64, 6, generator=generator)
    return {
        "id": ids,
        "input": table[ids % 64],
        "target": ids % 5,
        "name": [f"sample {i}" for i in ids.tolist()],
    }


def cache(folder: Path, source: Source, count: int = 32, **options: Any) -> Path:
    parts = [batch(ids) for ids in torch.arange(count).split(10)]
    write_cache(source, parts, folder, NEEDS, **options)
    return folder


@pytest.mark.parametrize("kind", ["live", "cached", "fallback", "filled"])
def test_one_line_changes_and_the_same_contract_holds(tmp_path: Path, kind: str) -> None:
    live = teacher()
    sources = {
        "live": lambda: live,
        "cached": lambda: Cached(cache(tmp_path, live, codec="float32")),
        "fallback": lambda: Cached(cache(tmp_path, live, 20, codec="float32"), fallback=live),
        "filled": lambda: Cached(tmp_path / "new", fallback=live, fill=True, codec="float32"),
    }
    source = sources[kind]()
    wanted = batch(torch.arange(32).flip(0)[:24])
    signals = check_source(source, wanted, NEEDS)
    expected = live(wanted, NEEDS)
    for name in NEEDS:
        torch.testing.assert_close(signals[name], expected[name], rtol=1e-5, atol=1e-6)
    assert source.fingerprint() == live.fingerprint()


def test_sparse_logits_keep_the_contract(tmp_path: Path) -> None:
    live = teacher()
    folder = cache(tmp_path, live, 20, codec={"logits": "topk:3:float32"})
    source = Cached(folder, fallback=live)
    wanted = batch(torch.arange(8, 30))
    signals = check_source(source, wanted, NEEDS)
    expected = SparseLogits.from_dense(live(wanted, NEEDS)["logits"], 3)
    assert isinstance(signals["logits"], SparseLogits)
    assert signals["logits"].size == 5
    torch.testing.assert_close(signals["logits"].values, expected.values)
    assert torch.equal(signals["logits"].indices, expected.indices)


def test_another_teacher_is_refused_at_once(tmp_path: Path) -> None:
    folder = cache(tmp_path, teacher(), fingerprint={"preprocessing": "p"})
    with pytest.raises(StaleCache, match="stale: written with another teacher "):
        Cached(folder, fallback=teacher(seed=1))
    with pytest.raises(StaleCache, match="another preprocessing"):
        Cached(folder, fallback=teacher(), expect={"preprocessing": "q"})
    with pytest.raises(StaleCache, match="another teacher"):
        Cached(folder, fallback=teacher(seed=1), fill=True)
    Cached(folder, fallback=teacher(), expect={"preprocessing": "p"})


def test_missing_samples_need_a_fallback(tmp_path: Path) -> None:
    folder = cache(tmp_path, teacher())
    with pytest.raises(MissingSamples, match=r"8 of 20 samples are not there, first ids \[32, 33"):
        Cached(folder)(batch(torch.arange(20, 40)), NEEDS)
    live = teacher()
    source = Cached(folder, fallback=live)
    source(batch(torch.arange(20, 40)), NEEDS)
    assert live.model._asked == 8
    source(batch(torch.arange(12)), NEEDS)
    assert live.model._asked == 8


def test_a_signal_that_is_not_stored_comes_live_or_is_refused(tmp_path: Path) -> None:
    live = teacher()
    folder = tmp_path / "logits"
    write_cache(live, [batch(torch.arange(16))], folder, ["logits"], codec="float32")
    with pytest.raises(UserError, match="cached signal.*middle.*logits"):
        Cached(folder)(batch(torch.arange(4)), NEEDS)
    wanted = batch(torch.arange(4))
    signals = Cached(folder, fallback=live)(wanted, NEEDS)
    torch.testing.assert_close(signals["middle"], live(wanted, NEEDS)["middle"], rtol=0, atol=0)
    assert set(Cached(folder)(wanted)) == {"logits"}


@pytest.mark.parametrize("codec", ["float16", "int8", {"logits": "topk:2", "middle": "bfloat16"}])
def test_filling_gives_the_same_bits_now_and_later(tmp_path: Path, codec: Any) -> None:
    live = teacher()
    source = Cached(tmp_path, fallback=live, fill=True, codec=codec)
    wanted = [batch(torch.arange(first, first + 8)) for first in (0, 8, 4, 16)]
    first = [source(one, NEEDS) for one in wanted]
    asked = live.model._asked
    source.after_epoch(nn.Identity(), 1)
    assert len(source.reader) == 24
    second = [source(one, NEEDS) for one in wanted]
    assert live.model._asked == asked
    source.close()
    third = [Cached(tmp_path)(one, NEEDS) for one in wanted]
    for runs in zip(first, second, third, strict=True):
        for name in NEEDS:
            for other in runs[1:]:
                mine, theirs = runs[0][name], other[name]
                if isinstance(mine, SparseLogits):
                    assert torch.equal(mine.values, theirs.values)
                    assert torch.equal(mine.rest, theirs.rest)
                else:
                    assert torch.equal(mine, theirs)
    again = Cached(tmp_path, fallback=teacher(), fill=True)
    again(batch(torch.arange(20, 30)), ["middle"])
    with pytest.raises(LockedCache):
        Cached(tmp_path, fallback=teacher(), fill=True)
    del again
    gc.collect()
    assert len(CacheReader(tmp_path)) == 30


def test_sources_that_cannot_be_cached(tmp_path: Path) -> None:
    folder = cache(tmp_path, teacher())
    with pytest.raises(UserError, match="gradient"):
        Cached(folder, fallback=Live(Counting(), gradient="through"))
    with pytest.raises(UserError, match="fill"):
        Cached(folder, fill=True)

    class Moving(Live):
        def state_dict(self) -> dict[str, Any]:
            return {"weights": 1}

    with pytest.raises(UserError, match="frozen"):
        Cached(folder, fallback=Moving(Counting()))


def test_faults_reach_the_user(tmp_path: Path) -> None:
    broken = teacher()
    broken.check = False
    with torch.no_grad():
        broken.model.head.bias[0] = torch.nan
    with pytest.raises(BadSignals, match=r"logits is NaN.*first ids \[0, 1"):
        cache(tmp_path / "nan", broken)
    folder = cache(tmp_path / "torn", teacher())
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TornCache, match="bytes instead of"):
        Cached(folder)
    with pytest.raises(UserError, match="existing cache folder"):
        Cached(tmp_path / "nowhere", fallback=teacher())
    with pytest.raises(UserError, match="mapping with id"):
        Cached(cache(tmp_path / "fine", teacher()))({"input": torch.ones(2, 6)}, NEEDS)


def test_views_are_part_of_the_key(tmp_path: Path) -> None:
    live = teacher()

    def augmented(ids: torch.Tensor, seed: int) -> dict[str, Any]:
        plain = batch(ids)
        return {**plain, "input": plain["input"] + seed, "view": torch.full_like(ids, seed)}

    ids = torch.arange(12)
    write_cache(live, [augmented(ids, seed) for seed in (3, 5)], tmp_path, NEEDS, codec="float32")
    for seed in (3, 5):
        signals = check_source(Cached(tmp_path), augmented(ids, seed), NEEDS)
        torch.testing.assert_close(signals["logits"], live(augmented(ids, seed))["logits"])
    with pytest.raises(MissingSamples):
        Cached(tmp_path)(augmented(ids, 4), NEEDS)
    mixed = augmented(ids, 4)
    torch.testing.assert_close(Cached(tmp_path, fallback=live)(mixed, NEEDS)["logits"], live(mixed)["logits"])
    with pytest.raises(UserError, match="view"):
        Cached(tmp_path)(batch(ids), NEEDS)


class Tagger(nn.Module):
    """Token sequences to one vector per position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"last_hidden_state": self.table(input_ids), "logits": self.table(input_ids)}


@pytest.mark.parametrize("codec", ["float32", {"logits": "topk:2"}])
def test_sequences_of_any_padding(tmp_path: Path, codec: Any) -> None:
    live, needs = Live(Tagger(), forward=run_network), ("last_hidden_state", "logits")
    lengths = torch.randint(1, 7, (18,), generator=torch.Generator().manual_seed(2))
    words = torch.randint(0, 20, (18, 9), generator=torch.Generator().manual_seed(3))

    def padded(ids: torch.Tensor, left: bool) -> dict[str, Any]:
        longest = int(lengths[ids].max())
        mask = torch.arange(longest) < lengths[ids].unsqueeze(1)
        tokens = words[ids, :longest] * mask
        if left:
            rows = [torch.cat([t[n:], t[:n]]) for t, n in zip(tokens, lengths[ids].tolist(), strict=True)]
            tokens, mask = torch.stack(rows), mask.flip(1)
        return {"id": ids, "input": {"input_ids": tokens, "attention_mask": mask.long()}}

    parts = [padded(ids, False) for ids in torch.arange(12).split(5)]
    write_cache(live, parts, tmp_path, needs, codec, ragged=needs, shard_rows=4)
    for source in (
        Cached(tmp_path, fallback=live),
        Cached(tmp_path / "new", live, fill=True, codec=codec, ragged=needs),
    ):
        for left in (False, True):
            wanted = padded(torch.tensor([3, 17, 11, 0, 8, 14]), left)
            signals, expected = check_source(source, wanted, needs), live(wanted, needs)
            mask = wanted["input"]["attention_mask"].bool()
            torch.testing.assert_close(
                signals["last_hidden_state"][mask], expected["last_hidden_state"][mask], rtol=1e-3, atol=1e-3
            )
            assert signals["last_hidden_state"][~mask].abs().sum() == 0
            logits = signals["logits"]
            assert (logits.rest if isinstance(logits, SparseLogits) else logits[..., 0]).shape == mask.shape


def test_select_takes_rows_of_everything_with_rows() -> None:
    rows = torch.tensor([True, False, True])
    given = {
        "id": torch.arange(3),
        "input": {"x": torch.ones(3, 2), "size": 7},
        "text": ["a", "b", "c"],
        "epoch": torch.tensor(2),
    }
    chosen = select(given, rows)
    assert chosen["id"].tolist() == [0, 2]
    assert chosen["input"]["x"].shape == (2, 2)
    assert chosen["text"] == ["a", "c"]
    assert chosen["input"]["size"] == 7
    assert chosen["epoch"] == 2


def test_an_average_is_cached_like_any_source(tmp_path: Path) -> None:
    both = Average([teacher(0), teacher(1)])
    folder = cache(tmp_path, both, codec="float32")
    wanted = batch(torch.arange(9))
    torch.testing.assert_close(Cached(folder, fallback=both)(wanted, NEEDS)["logits"], both(wanted, NEEDS)["logits"])
    with pytest.raises(StaleCache):
        Cached(folder, fallback=Average([teacher(0), teacher(2)]))
