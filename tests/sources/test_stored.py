from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError, UserError
from limbeck.losses import forward_kl
from limbeck.sources.base import Source
from limbeck.sources.cached import Cached
from limbeck.sources.live import Live
from limbeck.sources.stored import ClassVectors, Given, Table
from tests.sources.contract import check_source
from tests.sources.helpers import NEEDS, Network, batch


def table() -> Table:
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    signals = Live(Network(), taps={"middle": "middle"})(batch())
    return Table(batch()["id"][shuffled], {name: value[shuffled] for name, value in signals.items()})


def test_the_contract_of_every_source() -> None:
    check_source(table(), batch(), NEEDS)
    vectors = torch.randn(5, 3)
    signals = check_source(ClassVectors(vectors), batch(), ["embedding"])
    assert torch.equal(signals["embedding"], vectors[batch()["target"]])


def test_exchanging_the_source_is_one_line_and_the_same_loss(tmp_path: object) -> None:
    live = Live(Network(), taps={"middle": "middle"})
    student = torch.randn(12, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    losses, gradients = [], []
    sources: list[Source] = [live, table(), Cached(tmp_path / "c", live, fill=True, codec="float32")]  # type: ignore
    for source in sources:
        loss = forward_kl(student, source(batch(), ["logits"])["logits"], temperature=2.0)
        (gradient,) = torch.autograd.grad(loss, student)
        losses.append(loss.detach())
        gradients.append(gradient)
    for loss, gradient in zip(losses, gradients, strict=True):
        assert torch.equal(loss, losses[0])
        assert torch.equal(gradient, gradients[0])


def test_ids_outside_the_table_are_named() -> None:
    source = table()
    with pytest.raises(UserError, match=r"batch id: given \[1, 1000\] \(2 of 3\); allowed: ids of the table"):
        source({"id": torch.tensor([1, 3, 1000]), "input": torch.ones(3, 6)}, ["logits"])
    with pytest.raises(UserError, match="a batch with id"):
        source({"input": torch.ones(3, 6)}, ["logits"])
    with pytest.raises(UserError, match="teacher signal: given embedding; allowed: logits, middle"):
        source(batch(), ["embedding"])


def test_bad_tables_are_refused_when_they_are_made() -> None:
    ids = torch.arange(3)
    with pytest.raises(UserError, match="one or more ids, each once"):
        Table(torch.tensor([1, 1, 2]), {"logits": torch.ones(3, 2)})
    with pytest.raises(UserError, match="one or more ids"):
        Table(torch.tensor([], dtype=torch.int64), {})
    with pytest.raises(UserError, match="signal logits: given 2 rows; allowed: 3, one per id"):
        Table(ids, {"logits": torch.ones(2, 2)})
    bad = torch.ones(3, 2)
    bad[1, 0] = torch.nan
    with pytest.raises(
        LimbeckError, match=r"teacher signal logits: NaN or infinite for 1 of 3 samples, first ids \[1\]"
    ):
        Table(ids, {"logits": bad})
    with pytest.raises(LimbeckError, match=r"1 of 3 rows, first rows \[1\]"):
        ClassVectors(bad)
    with pytest.raises(UserError, match=r"vectors: given \[3\]"):
        ClassVectors(torch.ones(3))
    with pytest.raises(UserError, match="class_vectors is the whole table"):
        ClassVectors(torch.ones(3, 2), name="class_vectors")


def test_a_table_keeps_no_graph() -> None:
    source = Table(torch.arange(3), {"logits": torch.ones(3, 2, requires_grad=True) * 2})
    signals = source({"id": torch.arange(2)}, ["logits"])
    assert not signals["logits"].requires_grad


def test_class_vectors_give_the_table_and_refuse_unknown_labels() -> None:
    source = ClassVectors(torch.eye(5), name="soft_label")
    assert set(source(batch())) == {"soft_label", "class_vectors"}
    assert source(batch(), ["class_vectors"])["class_vectors"].shape == (5, 5)
    with pytest.raises(UserError, match="target: given 0 to 5; allowed: 0 to 4"):
        source({"id": torch.arange(2), "target": torch.tensor([0, 5])}, ["soft_label"])
    with pytest.raises(UserError, match="a batch with target"):
        source({"id": torch.arange(2)}, ["soft_label"])


def test_fingerprints_follow_the_content() -> None:
    one, two = torch.eye(3), torch.eye(3) * 2
    ids = torch.arange(3)
    assert Table(ids, {"a": one}).fingerprint() == Table(ids.flip(0), {"a": one.flip(0)}).fingerprint()
    prints = {
        Table(ids, {"a": one}).fingerprint(),
        Table(ids, {"a": two}).fingerprint(),
        Table(ids, {"b": one}).fingerprint(),
        Table(ids + 1, {"a": one}).fingerprint(),
        ClassVectors(one).fingerprint(),
        ClassVectors(one, name="other").fingerprint(),
    }
    assert len(prints) == 6


def test_a_table_of_a_source_is_asked_once_and_says_the_same() -> None:
    live, asked = Live(Network(), taps={"middle": "middle"}), []

    def batches() -> Iterator[dict[str, Any]]:
        whole = batch()
        for rows in (slice(0, 5), slice(5, 12)):
            asked.append(rows)
            yield {name: value[rows] for name, value in whole.items()}

    source = Table.of(live, batches(), ["logits", "middle"])
    assert len(asked) == 2
    check_source(source, batch(), ["logits", "middle"])
    torch.testing.assert_close(source(batch(), ["logits"])["logits"], live(batch(), ["logits"])["logits"])


def test_samples_that_share_an_id_have_one_row_the_first() -> None:
    class Counting(Source):
        def __call__(self, batch: Any, needs: Any = ()) -> Any:
            return {"logits": batch["input"]}

        def fingerprint(self) -> str:
            return ""

    parts = [
        {"id": torch.tensor([7, 3, 7]), "input": torch.tensor([[1.0], [2.0], [3.0]])},
        {"id": torch.tensor([3, 9]), "input": torch.tensor([[4.0], [5.0]])},
    ]
    source = Table.of(Counting(), parts)
    assert source({"id": torch.tensor([3, 7, 9])})["logits"].flatten().tolist() == [2.0, 1.0, 5.0]


def test_augmented_batches_and_nothing_make_no_table() -> None:
    with pytest.raises(UserError, match="augmented ones"):
        Table.of(Live(Network()), [{**batch(), "view": torch.arange(12)}])
    with pytest.raises(UserError, match="at least one batch"):
        Table.of(Live(Network()), [])


def test_a_given_teacher_says_what_the_student_is_given() -> None:
    maps = {"deep": torch.randn(4, 3, 2, 2), "fine": torch.randn(4, 3, 4, 4)}
    given = {"input": maps, "id": torch.arange(4)}
    check_source(Given(), given, ("deep",))
    assert set(Given()(given)) == {"deep", "fine"}
    with pytest.raises(UserError, match="mapping"):
        Given()({"input": maps["deep"], "id": torch.arange(4)})
    with pytest.raises(UserError, match="middle"):
        Given()(given, ("middle",))
