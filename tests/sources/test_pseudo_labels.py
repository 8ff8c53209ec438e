"""The store of labels: rounds by cycle and producer, asked once, resumable, never mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.cache import StaleCache
from limbeck.errors import UserError
from limbeck.signals import Batch
from limbeck.sources import Live, PseudoLabels

INPUT = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


def score(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    return {"score": model(batch["input"]).squeeze(-1)}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def batches(asked: list[int] | None = None, stop: int = 99) -> Iterator[Batch]:
    for number, index in enumerate(torch.arange(10).split(4)):
        if number == stop:
            raise RuntimeError("cut")
        if asked is not None:
            asked.append(number)
        yield {"input": INPUT[index], "id": index + 100}


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PseudoLabels:
    return PseudoLabels(tmp_path / "labels" if request.param == "disk" else None, data="pool")


def test_labels_are_looked_up_by_id_to_the_bit(store: PseudoLabels) -> None:
    source = store.ask(1, "bi-0", Live(network(), forward=score), batches())
    index = torch.tensor([7, 2, 7])
    expected = torch.cat([score(network(), batch)["score"] for batch in batches()])[index]
    assert torch.equal(source({"id": index + 100}, ("score",))["score"], expected.detach())
    assert torch.equal(store.read(1, "bi-0")({"id": index + 100}, ("score",))["score"], expected.detach())


def test_rounds_carry_cycle_and_producer(store: PseudoLabels) -> None:
    store.ask(2, "cross-0", Live(network(1), forward=score), batches())
    store.ask(1, "bi-0", Live(network(), forward=score), batches())
    assert [(one.cycle, one.producer, one.rows, one.complete) for one in store.rounds()] == [
        (1, "bi-0", 10, True),
        (2, "cross-0", 10, True),
    ]
    store.clear()
    assert store.rounds() == []


def test_a_cut_round_is_continued_and_a_finished_one_is_not_asked_again(tmp_path: Path) -> None:
    store = PseudoLabels(tmp_path, data="pool")
    teacher = CountingLive(network(), forward=score)
    with pytest.raises(RuntimeError, match="cut"):
        store.ask(1, "bi-0", teacher, batches(stop=2))
    assert [(one.rows, one.complete) for one in store.rounds()] == [(8, False)]
    assert teacher.calls == 2
    store.ask(1, "bi-0", teacher, batches())
    assert teacher.calls == 3, "only what was missing"
    PseudoLabels(tmp_path, data="pool").ask(1, "bi-0", teacher, batches())
    assert teacher.calls == 3


class CountingLive(Live):
    calls = 0

    def __call__(self, *args: object, **options: object) -> object:  # type: ignore[override]
        self.calls += 1
        return super().__call__(*args, **options)  # type: ignore[arg-type]


def test_labels_of_other_weights_or_other_pairs_are_refused(tmp_path: Path) -> None:
    PseudoLabels(tmp_path, data="pool").ask(1, "bi-0", Live(network(), forward=score), batches())
    with pytest.raises(StaleCache, match="teacher"):
        PseudoLabels(tmp_path, data="pool").ask(1, "bi-0", Live(network(1), forward=score), batches())
    with pytest.raises(StaleCache, match="data"):
        PseudoLabels(tmp_path, data="other").ask(1, "bi-0", Live(network(), forward=score), batches())
    with pytest.raises(StaleCache, match="data"):
        PseudoLabels(tmp_path, data="other").read(1, "bi-0")


def test_names_and_missing_rounds() -> None:
    with pytest.raises(UserError, match="producer"):
        PseudoLabels().ask(1, "../bi", Live(network(), forward=score), batches())
    with pytest.raises(UserError, match="round"):
        PseudoLabels().read(1, "bi-0")
