"""A queue of features: order, wrap-around, ids, state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.nn.queue import EMPTY, FeatureQueue


def rows(first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, and features that say whose they are."""
    ids = torch.arange(first, first + count)
    return ids, ids[:, None].float().expand(-1, 3), -ids[:, None].float().expand(-1, 2)


def filled_by(*counts: int, size: int = 10) -> FeatureQueue:
    queue, first = FeatureQueue(size, image=3, text=2), 0
    for count in counts:
        ids, image, text = rows(first, count)
        queue.push(ids, image=image, text=text)
        first += count
    return queue


def test_it_begins_with_unit_vectors_and_nobodys_ids() -> None:
    queue = FeatureQueue(50, image=8, text=4, seed=3)
    for side in ("image", "text"):
        torch.testing.assert_close(queue[side].norm(dim=1), torch.ones(50))
    assert not queue.filled.any()
    assert bool((queue.id == EMPTY).all())
    torch.testing.assert_close(queue["image"], FeatureQueue(50, image=8, text=4, seed=3)["image"])


@pytest.mark.parametrize("counts", [(4,), (4, 4, 4), (7, 6, 7), (10, 3), (3, 25), (25, 25), (1,) * 23])
def test_it_holds_the_latest_in_any_cut(counts: tuple[int, ...]) -> None:
    queue = filled_by(*counts)
    total = sum(counts)
    assert sorted(queue.id[queue.filled].tolist()) == list(range(max(0, total - 10), total))
    kept = queue.filled
    # The sides stay in step with the ids, wherever the pointer went round.
    torch.testing.assert_close(queue["image"][kept], queue.id[kept, None].float().expand(-1, 3))
    torch.testing.assert_close(queue["text"][kept], -queue.id[kept, None].float().expand(-1, 2))


def test_the_oldest_leave_first() -> None:
    queue = filled_by(6, 6)
    assert queue.id.tolist() == [10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    queue.push(*(value[:1] for value in rows(12, 1)[:1]), image=torch.ones(1, 3), text=torch.ones(1, 2))
    assert 2 not in queue.id.tolist()


def test_one_batch_or_many_is_the_same_queue() -> None:
    one, many = filled_by(17), filled_by(5, 5, 7)
    for name, value in one.state_dict().items():
        assert torch.equal(value, many.state_dict()[name]), name


def test_it_takes_no_gradient_and_goes_on_from_its_state() -> None:
    queue = filled_by(6)
    twin = FeatureQueue(10, image=3, text=2, seed=9)
    twin.load_state_dict(copy.deepcopy(queue.state_dict()))
    ids, image, text = rows(6, 7)
    for one in (queue, twin):
        one.push(ids, image=image.clone().requires_grad_(), text=text)
        assert not one["image"].requires_grad
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in queue.state_dict().items())


def test_wrong_use_is_named() -> None:
    queue = FeatureQueue(4, image=3)
    with pytest.raises(UserError, match="features"):
        queue.push(torch.arange(2), text=torch.ones(2, 3))
    with pytest.raises(UserError, match="features of image"):
        queue.push(torch.arange(2), image=torch.ones(2, 5))
    with pytest.raises(UserError, match="side"):
        queue["sound"]
    with pytest.raises(UserError, match="size"):
        FeatureQueue(0, image=3)
