"""Episodes: small classification tasks drawn from many classes, with tasks kept back for the test.

An episode picks a task (a set of classes), gives each class a name at random, and draws demonstrations and a query. As
the names are new every time, only the demonstrations can say what they mean.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from limbeck.data.views import integers, uniform
from limbeck.errors import UserError

# What is drawn for one view: the task, the names, then per item its class and its place in that class.
_TASK, _NAMES, _CLASS, _PLACE = 0, 100, 1000, 2000


@dataclass(frozen=True)
class Tasks:
    """Sets of classes: those to train on, and those to be judged by, each of which holds a class never seen."""

    seen: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]


def split_tasks(classes: int, held_out: Collection[int], *, sizes: Sequence[int] = (2,)) -> Tasks:
    """All sets of ``sizes`` classes out of ``classes``, split by whether they hold one of ``held_out``."""
    if not set(held_out) < set(range(classes)):
        raise UserError("held_out", sorted(held_out), f"some of the classes 0 to {classes - 1}, not all")
    every = [chosen for size in sizes for chosen in combinations(range(classes), size)]
    kept = [chosen for chosen in every if set(chosen) & set(held_out)]
    seen = [chosen for chosen in every if not set(chosen) & set(held_out)]
    if not seen or not kept:
        raise UserError("held_out, sizes", f"{len(seen)} tasks to train on, {len(kept)} held out", "some of both")
    return Tasks(tuple(seen), tuple(kept))


@dataclass(frozen=True)
class Episodes:
    """A batch of drawn episodes of ``n`` items each, the last one being the query.

    Attributes:
        task: ``[B]``, number of the task.
        classes: ``[B, n]``, the class of every item.
        places: ``[B, n]``, which sample of its class; no item comes twice in an episode.
        names: ``[B, n]``, the name of every item's class.
        candidates: ``[B, K]``, the names of the task's classes, ``-1`` behind the last of a smaller task.
    """

    task: Tensor
    classes: Tensor
    places: Tensor
    names: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class EpisodeSampler:
    """Draws episodes as a pure function of view seeds (:mod:`limbeck.data.views`): replayable, in any order.

    Args:
        tasks: sets of class numbers, all equally likely.
        sizes: samples of every class.
        items: of an episode, the query included.
        names: how many names there are; an episode uses different ones for its classes.
    """

    tasks: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    items: int
    names: int

    def __post_init__(self) -> None:
        if not self.tasks or self.items < 1:
            raise UserError("tasks, items", f"{len(self.tasks)} and {self.items}", "one or more of each")
        largest = max(len(task) for task in self.tasks)
        if largest > self.names:
            raise UserError("names", self.names, f"as many as the largest task has classes, {largest}")
        smallest = min(self.sizes[one] for task in self.tasks for one in task)
        if smallest < self.items:
            raise UserError("items", self.items, f"at most the samples of a class, {smallest}")

    def draw(self, views: Tensor) -> Episodes:
        """One episode per view ``[B]``. Every item's class is drawn by itself, so the classes' counts differ."""
        largest = max(len(task) for task in self.tasks)
        table = torch.tensor([[*task, *[-1] * (largest - len(task))] for task in self.tasks])
        task = integers(views, _TASK, len(self.tasks))
        chosen = table[task]
        count = (chosen >= 0).sum(1, keepdim=True)
        order = uniform(views[:, None], _NAMES + torch.arange(self.names)).argsort(1)
        candidates = torch.where(chosen >= 0, order[:, :largest], -1)
        items = torch.arange(self.items)
        which = (uniform(views[:, None], _CLASS + items) * count).long()
        classes, names = chosen.gather(1, which), candidates.gather(1, which)
        return Episodes(task, classes, self._places(views, classes), names, candidates)

    def _places(self, views: Tensor, classes: Tensor) -> Tensor:
        """Samples without replacement: the r-th of those of its class that the episode has not used yet."""
        sizes = torch.tensor(self.sizes)
        places = torch.full_like(classes, -1)
        for item in range(classes.shape[1]):
            same = classes[:, :item] == classes[:, item : item + 1]
            left = sizes[classes[:, item]] - same.sum(1)
            found = (uniform(views, _PLACE + item) * left).long()
            # Used ones in rising order: each that stands at or before the place found moves it on by one.
            used = torch.where(same, places[:, :item], torch.iinfo(torch.int64).max).sort(1).values
            for before in used.unbind(1):
                found = found + (before <= found)
            places[:, item] = found
        return places
