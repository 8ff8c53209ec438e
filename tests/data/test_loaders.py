from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import pytest
import torch

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.errors import UserError


def samples(count: int = 23) -> Split:
    return Split(torch.arange(count).float().view(-1, 1), torch.arange(count) % 3, torch.arange(count) + 100)


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def flat(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def test_an_epoch_holds_every_sample_once_and_keeps_rows_together() -> None:
    loader = TensorLoader(samples(), 5)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    assert sorted(flat(ids(batches))) == list(range(100, 123))
    for batch in batches:
        assert torch.equal(batch["input"].view(-1), batch["id"].float() - 100)
        assert torch.equal(batch["target"], (batch["id"] - 100) % 3)
        assert "view" not in batch


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, second = ids(loader := TensorLoader(samples(), 5)), ids(loader)
    assert first != second
    again = TensorLoader(samples(), 5)
    again.set_epoch(1)
    assert ids(again) == second
    assert ids(TensorLoader(samples(), 5, seed=1)) != first
    assert flat(ids(TensorLoader(samples(), 5, shuffle=False))) == list(range(100, 123))


def test_looking_at_batches_does_not_disturb_the_order() -> None:
    expected = ids(TensorLoader(samples(), 5))
    loader = TensorLoader(samples(), 5)
    assert loader.peek()["id"].tolist() == expected[0]
    assert ids(islice(loader, 2)) == expected[:2]
    assert ids(loader) == expected
    assert loader.epoch == 1


@pytest.mark.parametrize("done", [0, 1, 4, 5, 7, 10])
def test_resume_goes_on_with_the_very_next_batch(done: int) -> None:
    through = TensorLoader(samples(), 5, seed=3)
    expected = flat(ids(through) for _ in range(4))
    stopped = TensorLoader(samples(), 5, seed=3)
    first: list[list[int]] = []
    while len(first) < done:
        for batch in stopped:
            first.append(batch["id"].tolist())
            if len(first) == done:
                break
    resumed = TensorLoader(samples(), 5, seed=3)
    resumed.load_state_dict(stopped.state_dict())
    rest = flat(ids(resumed) for _ in range(2))
    assert first + rest == expected[: len(first + rest)]
    assert len(rest) >= 6


def test_views_follow_a_resume() -> None:
    def made() -> TensorLoader:
        return TensorLoader(samples(), 5, transform=lambda batch: batch)

    expected = [batch["view"].tolist() for batch in made()]
    stopped, resumed = made(), made()
    list(islice(stopped, 3))
    resumed.load_state_dict(stopped.state_dict())
    assert [batch["view"].tolist() for batch in resumed] == expected[3:]


def test_a_state_of_another_order_is_refused() -> None:
    state = TensorLoader(samples(), 5).state_dict()
    for other in (
        TensorLoader(samples(), 4),
        TensorLoader(samples(), 5, seed=1),
        TensorLoader(samples(9), 5),
    ):
        with pytest.raises(UserError, match="another order"):
            other.load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batches(world_size: int) -> None:
    whole = ids(TensorLoader(samples(), 5))
    ranks = [ids(TensorLoader(samples(), 5, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        for rank, parts in enumerate(ranks):
            assert parts[number] == batch[rank::world_size]


def test_drop_last() -> None:
    assert [len(batch) for batch in ids(TensorLoader(samples(), 5, drop_last=True))] == [5, 5, 5, 5]


def test_texts_are_collated_and_further_columns_travel_along() -> None:
    data = {"input": ["a", "bb", "ccc"], "extra": torch.tensor([1.0, 2.0, 3.0])}

    def lengths(texts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([len(text) for text in texts])}

    batch = next(iter(TensorLoader(data, 2, shuffle=False, collate=lengths)))
    assert batch["input"]["input_ids"].tolist() == [1, 2]
    assert batch["extra"].tolist() == [1.0, 2.0]
    assert batch["id"].tolist() == [0, 1]
    assert next(iter(TensorLoader(data, 2, shuffle=False)))["input"] == ["a", "bb"]


def test_batches_by_length_hold_similar_lengths_in_a_mixed_order() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 1000, (2000,), generator=generator)
    data = {"input": lengths, "id": torch.arange(2000)}
    mixed, sorted_ = (TensorLoader(data, 20, lengths=which) for which in (None, lengths))

    def padding(loader: TensorLoader) -> float:
        return float(sum((batch["input"].max() - batch["input"]).sum() for batch in loader))

    batches = list(sorted_)
    assert padding(sorted_) < 0.1 * padding(mixed)
    assert sorted(flat(ids(batches))) == list(range(2000))
    tops = torch.tensor([float(batch["input"].max()) for batch in batches])
    steps = torch.stack([tops[:-1], tops[1:]])
    assert abs(torch.corrcoef(steps)[0, 1]) < 0.4, "the order of the batches is not by length"
    assert ids(TensorLoader(data, 20, lengths=lengths)) == ids(batches)
    longest_first = [int(batch["input"][0]) for batch in TensorLoader(data, 20, lengths=lengths, shuffle=False)]
    assert longest_first == sorted(longest_first, reverse=True)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 30, "drop_last": True}, "batch_size"),
        ({"batch_size": 11, "world_size": 2}, "drop_last=True"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"lengths": [1, 2]}, "lengths"),
    ],
)
def test_impossible_settings_name_their_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        TensorLoader(samples(), **{"batch_size": 5, **options})


def test_no_samples_and_uneven_columns_are_refused() -> None:
    with pytest.raises(UserError, match="at least one sample"):
        TensorLoader({"input": torch.zeros(0, 2)}, 1)
    with pytest.raises(UserError, match="extra"):
        TensorLoader({"input": torch.zeros(3), "extra": torch.zeros(2)}, 1)
