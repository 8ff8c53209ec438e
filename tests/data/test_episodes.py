"""Episodes: replayable, without repeats, held-out tasks apart."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.episodes import EpisodeSampler, split_tasks
from limbeck.data.views import view_seeds
from limbeck.errors import UserError


def views(count: int) -> torch.Tensor:
    return view_seeds(0, 0, torch.arange(count))


def test_every_held_out_task_has_a_class_that_no_other_task_has() -> None:
    tasks = split_tasks(5, [3, 4], sizes=(2, 3))
    assert not {one for task in tasks.seen for one in task} & {3, 4}
    assert all(set(task) & {3, 4} for task in tasks.held_out)
    # C(5,2) + C(5,3) tasks in all, of which C(3,2) + C(3,3) hold neither.
    assert (len(tasks.seen), len(tasks.held_out)) == (4, 16)
    with pytest.raises(UserError, match="held_out"):
        split_tasks(3, [0, 1, 2])


def test_no_item_comes_twice_even_where_a_class_is_used_up() -> None:
    sampler = EpisodeSampler(((0, 1), (2,)), (6, 6, 6), items=6, names=3)
    drawn = sampler.draw(views(200))
    for classes, places in zip(drawn.classes, drawn.places):
        pairs = list(zip(classes.tolist(), places.tolist()))
        assert len(set(pairs)) == len(pairs)
        assert int(places.min()) >= 0
        assert int(places.max()) < 6
    alone = drawn.places[drawn.task == 1]
    assert torch.equal(alone.sort(1).values, torch.arange(6).expand(len(alone), -1)), "six of six: all of them"
    assert len(alone.unique(dim=0)) > 20, "in many orders"


def test_names_tell_classes_apart_and_mean_nothing_beyond_an_episode() -> None:
    drawn = EpisodeSampler(((0, 1, 2), (1, 2)), (50, 50, 50), items=12, names=4).draw(views(300))
    for row in range(300):
        named = set(zip(drawn.classes[row].tolist(), drawn.names[row].tolist()))
        assert len({one for one, _ in named}) == len(named) == len({name for _, name in named})
        assert {name for _, name in named} <= set(drawn.candidates[row].tolist()) - {-1}
    first = drawn.names[drawn.classes == 1]
    shares = torch.bincount(first, minlength=4) / len(first)
    assert float((shares - 0.25).abs().max()) < 0.08


def test_an_episode_is_its_view_and_nothing_else() -> None:
    sampler = EpisodeSampler(((0, 1), (1, 2)), (50, 50, 50), items=5, names=2)
    whole, one = sampler.draw(views(8)), sampler.draw(views(8)[3:4])
    for name in ("task", "classes", "places", "names", "candidates"):
        assert torch.equal(getattr(whole, name)[3:4], getattr(one, name))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"names": 1}, "names"), ({"items": 60}, "items"), ({"tasks": ()}, "tasks"), ({"items": 0}, "items")],
)
def test_impossible_episodes_are_refused(options: dict[str, int], named: str) -> None:
    given = {"tasks": ((0, 1),), "sizes": (50, 50), "items": 5, "names": 2}
    with pytest.raises(UserError, match=named):
        EpisodeSampler(**{**given, **options})  # type: ignore[arg-type]
