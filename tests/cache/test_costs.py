from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cache import write_cache
from limbeck.cache.costs import estimate
from limbeck.errors import UserError
from tests.cache.helpers import Formula, batches


class Words:
    """Logits per position; sleeps, so that there is something to time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.formula = Formula(seconds)

    def __call__(self, batch: Any, needs: Any = ()) -> dict[str, torch.Tensor]:
        self.formula({"id": batch["id"]})
        seeds = batch["id"].reshape(-1, 1, 1) + torch.arange(9).reshape(1, -1, 1)
        return {"logits": torch.sin(seeds * torch.arange(1.0, 301)) * 6, "embedding": torch.ones(len(batch["id"]), 5)}

    def fingerprint(self) -> str:
        return "w" * 64

    def state_dict(self) -> dict[str, Any]:
        return {}


def padded(ids: torch.Tensor) -> dict[str, Any]:
    return {"id": ids, "mask": torch.arange(9) < (ids % 9 + 1).unsqueeze(1)}


@pytest.mark.parametrize("codec", ["float16", "int8", "topk:3", "packed:3", "above:0.01:7"])
def test_bytes_are_those_of_the_cache_that_is_written(tmp_path: Path, codec: str) -> None:
    whole = list(batches(512, 64))
    found = estimate(Formula(), whole[0], 512, ("logits", "embedding"), codec)
    written = write_cache(Formula(), whole, tmp_path, ("logits", "embedding"), codec)
    assert found.samples == 512
    assert found.exact == (not codec.startswith(("packed", "above")))
    assert found.bytes == pytest.approx(written.bytes, rel=0.06 if not found.exact else 0.04, abs=1200)
    assert found.bytes == pytest.approx(512 * found.bytes_per_sample, abs=1)


@pytest.mark.parametrize("codec", ["topk:4:float32", "above:0.002:64"])
def test_positions_count_for_ragged_signals(tmp_path: Path, codec: str) -> None:
    ids, needs, codecs = torch.arange(360), ("logits", "embedding"), {"logits": codec, "embedding": "float32"}
    positions = int(padded(ids)["mask"].sum())
    written = write_cache(Words(), [padded(some) for some in ids.split(40)], tmp_path, needs, codecs, ragged=["logits"])
    for given in (positions, None):
        # Nine samples have all the lengths there are.
        found = estimate(Words(), padded(ids[:36]), 360, needs, codecs, ragged=["logits"], positions=given)
        assert found.bytes == pytest.approx(written.bytes, rel=0.03, abs=1500)
        assert found.exact == (codec.startswith("topk") and given is not None)
        per_sample = 20 + 24 + found.bytes_per_position * positions / 360 - (0 if codec.startswith("topk") else 8)
        assert found.bytes_per_sample == pytest.approx(per_sample, abs=9)


def test_time_is_that_of_the_teacher_and_writers_share_it() -> None:
    first = next(batches(64, 16))
    alone = estimate(Words(0.05), first, 1600, ("embedding",))
    assert 5 <= alone.seconds < 20
    assert estimate(Words(0.05), first, 1600, ("embedding",), writers=4).seconds < 0.5 * alone.seconds
    assert alone.hours == alone.seconds / 3600


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(UserError, match="writers"):
        estimate(Formula(), next(batches(4, 4)), 4, writers=0)
    with pytest.raises(UserError, match="samples"):
        estimate(Formula(), next(batches(4, 4)), -1)
    with pytest.raises(UserError, match="codec"):
        estimate(Formula(), next(batches(4, 4)), 4, codec="flac")
