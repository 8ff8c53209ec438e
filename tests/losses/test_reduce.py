from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck import losses
from limbeck.errors import UserError
from limbeck.losses.reduce import reduce_rows, split_over

G = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(7, 5, generator=G).double(), torch.randn(7, 5, generator=G).double()
MASK, WEIGHT = torch.tensor([1, 0, 0, 1, 1, 1, 1]).bool(), torch.rand(7, generator=G).double()
HEAD = torch.randn(9, 5, generator=G).double()
LABELS = torch.tensor([1, -100, 2, 0, 8, 3, -100])


def of_rows(rows: slice, options: dict[str, Any], kind: str) -> torch.Tensor:
    given = {key: value[rows] if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    if kind == "kl":
        return losses.forward_kl(STUDENT[rows], TEACHER[rows], **given)
    if kind == "labels":
        return losses.cross_entropy(STUDENT[rows] @ HEAD.T, LABELS[rows], **given)
    return losses.linear_cross_entropy(STUDENT[rows], HEAD, LABELS[rows], chunk=2, **given)


@pytest.mark.parametrize("kind", ["kl", "labels", "chunked"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("given", ["nothing", "mask", "weight", "denominator", "nobody counts"])
def test_parts_on_several_processes_average_to_the_whole(kind: str, reduction: str, given: str) -> None:
    options: dict[str, Any] = {"reduction": reduction}
    options |= {
        "nothing": {},
        "mask": {"mask": MASK},
        "weight": {"mask": MASK, "weight": WEIGHT},
        "denominator": {"denominator": 11.0},
        "nobody counts": {"mask": torch.zeros(7, dtype=torch.bool)},
    }[given]
    whole = of_rows(slice(None), options, kind)
    pieces = (slice(0, 3), slice(3, 7))
    counts: list[torch.Tensor] = []

    def note(count: torch.Tensor) -> torch.Tensor:
        counts.append(count)
        return count

    # What a process learns from the others is the number of their rows.
    for piece in pieces:
        with split_over(2, note):
            of_rows(piece, options, kind)
    parts = []
    for piece in pieces:
        with split_over(2, lambda count: torch.stack(counts).sum()):
            parts.append(of_rows(piece, options, kind))
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    assert bool(counts) is (reduction == "mean" and given != "denominator")


def test_outside_nothing_is_split() -> None:
    with split_over(1, lambda count: count * 100):
        assert reduce_rows(torch.ones(4)) == 1.0
    with pytest.raises(ZeroDivisionError), split_over(2, lambda count: count * 100):
        1 / 0  # noqa: B018
    assert reduce_rows(torch.ones(4)) == 1.0
    with split_over(2, lambda count: count * 2):
        assert torch.equal(reduce_rows(torch.ones(4), reduction="none"), torch.ones(4))


def test_a_wrong_reduction_is_named() -> None:
    with pytest.raises(UserError, match="reduction: given average; allowed: none, sum, mean"):
        reduce_rows(torch.ones(4), reduction="average")
