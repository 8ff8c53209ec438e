"""The weighted loader and the loader by class: probabilities, order, resume."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.sampling import ClassLoader, WeightedLoader
from limbeck.data.split import Split
from limbeck.errors import UserError

DATA = {"input": torch.arange(4.0), "id": torch.arange(4)}


def ids(loader: WeightedLoader) -> list[list[int]]:
    return [batch["id"].tolist() for batch in loader]


def test_samples_come_as_often_as_they_weigh() -> None:
    loader = WeightedLoader(DATA, 1000, weight=[1.0, 0.0, 2.0, 5.0], draws=8000)
    counts = torch.bincount(torch.tensor([one for batch in ids(loader) for one in batch]), minlength=4)
    assert counts[1] == 0
    torch.testing.assert_close(counts / 8000, torch.tensor([0.125, 0.0, 0.25, 0.625]), atol=0.02, rtol=0)


def test_without_weights_none_comes_again_before_all_others_came() -> None:
    drawn = [one for batch in ids(WeightedLoader(DATA, 3, draws=22)) for one in batch]
    passes = [drawn[start : start + 4] for start in range(0, 20, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes)
    assert len(set(map(tuple, passes))) > 1
    assert len(drawn) == 22


@pytest.mark.parametrize("weight", [None, [1.0, 1.0, 1.0, 1.0]])
def test_a_sample_that_comes_again_gets_another_view(weight: list[float] | None) -> None:
    options = {"weight": weight, "draws": 40, "seed": 3, "transform": lambda batch: batch}
    loader = WeightedLoader(DATA, 5, **options)  # type: ignore[arg-type]
    batches = list(loader)
    views = [view for batch in batches for view in batch["view"].tolist()]
    assert len(set(views)) == 40
    again = WeightedLoader(DATA, 5, **options)  # type: ignore[arg-type]
    assert [view for batch in again for view in batch["view"].tolist()] == views
    halves = [WeightedLoader(DATA, 5, **options) for _ in range(2)]  # type: ignore[arg-type]
    for rank, half in enumerate(halves):
        half.set_rank(rank, 2)
        for batch, part in zip(batches, half, strict=True):
            assert part["view"].tolist() == batch["view"][rank::2].tolist()


def test_an_epoch_has_the_draws_that_were_asked_for() -> None:
    loader = WeightedLoader(DATA, 3, draws=7)
    assert len(loader) == 3
    assert [len(batch) for batch in ids(loader)] == [3, 3, 1]
    assert len(WeightedLoader(DATA, 3)) == 2


def test_it_resumes_with_the_next_batch() -> None:
    whole = ids(WeightedLoader(DATA, 2, draws=10, seed=5))
    loader = WeightedLoader(DATA, 2, draws=10, seed=5)
    walk = iter(loader)
    next(walk), next(walk)
    again = WeightedLoader(DATA, 2, draws=10, seed=5)
    again.load_state_dict(loader.state_dict())
    assert ids(again) == whole[2:]
    assert ids(again) != whole, "the next epoch is drawn anew"
    with pytest.raises(UserError, match="loader draws"):
        WeightedLoader(DATA, 2, draws=8, seed=5).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": [1.0]}, "weight: given 1 weights; allowed: one per sample, 4"),
        ({"weight": [0.0] * 4}, "weight: given negative or all zero"),
        ({"weight": [1.0, -1.0, 1.0, 1.0]}, "weight: given negative or all zero"),
        ({"draws": 0}, "draws: given 0"),
    ],
)
def test_wrong_weights_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        WeightedLoader(DATA, 2, **options)  # type: ignore[arg-type]


def labelled() -> Split:
    return Split(torch.arange(10.0), torch.tensor([5, 2, 5, 2, 2, 5, 2, 5, 9, 9]), torch.arange(10))


def test_a_batch_has_equally_many_of_every_class_sorted() -> None:
    loader = ClassLoader(labelled(), 3, batches=20)
    batches = list(loader)
    assert len(batches) == len(loader) == 20
    for batch in batches:
        assert batch["target"].tolist() == [2, 2, 2, 5, 5, 5, 9, 9, 9]
        first = batch["id"][:6].tolist()
        assert len(set(first)) == 6, "nothing twice where there is enough"
        assert set(batch["id"][6:].tolist()) <= {8, 9}, "a small class is drawn from with replacement"
    seen = {one for batch in batches for one in batch["id"].tolist()}
    assert seen == set(range(10))


def test_the_class_loader_resumes_with_the_next_batch() -> None:
    whole = [batch["id"].tolist() for batch in ClassLoader(labelled(), 2, batches=4, seed=3)]
    loader = ClassLoader(labelled(), 2, batches=4, seed=3)
    stream = iter(loader)
    assert [next(stream)["id"].tolist() for _ in range(2)] == whole[:2]
    other = ClassLoader(labelled(), 2, batches=4, seed=3)
    other.load_state_dict(loader.state_dict())
    assert [batch["id"].tolist() for batch in other] == whole[2:]


def test_what_the_class_loader_refuses() -> None:
    with pytest.raises(UserError, match="class loader: given per_class 0"):
        ClassLoader(labelled(), 0)
    with pytest.raises(UserError, match="no target"):
        ClassLoader(Split(torch.zeros(2), None, torch.arange(2)), 1)
    with pytest.raises(UserError, match="world_size: given 2"):
        ClassLoader(labelled(), 2).set_rank(0, 2)
