from __future__ import annotations

import pytest
import torch

from limbeck.data.split import Split
from limbeck.errors import UserError


def test_a_subset_keeps_the_ids() -> None:
    split = Split(["a", "b", "c"], torch.tensor([0, 1, 0]), torch.tensor([7, 8, 9]))
    part = split.subset([2, 0])
    assert part.input == ["c", "a"]
    assert part.id.tolist() == [9, 7]
    assert part.labels.tolist() == [0, 0]


def test_batches_cover_the_split_in_order() -> None:
    inputs = {"x": torch.arange(5), "y": torch.arange(5) * 2}
    batches = list(Split(inputs, None, torch.arange(5)).batches(2))
    assert [batch["id"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches[2]["input"]["y"].tolist() == [8]
    assert "target" not in batches[0]


@pytest.mark.parametrize(
    ("input", "target"),
    [(torch.zeros(3, 2), torch.zeros(4)), (torch.zeros(4, 2), torch.zeros(3)), (["a"] * 4, torch.zeros(5))],
)
def test_rows_that_do_not_fit_are_refused(input: object, target: torch.Tensor) -> None:
    with pytest.raises(UserError, match="as many rows as id has, 4"):
        Split(input, target, torch.arange(4))  # type: ignore[arg-type]


def test_unlabelled_data_have_no_labels() -> None:
    with pytest.raises(UserError, match="labelled split"):
        _ = Split(torch.zeros(2), None, torch.arange(2)).labels
