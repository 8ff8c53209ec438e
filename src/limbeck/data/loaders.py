"""Seeded loading of samples in memory, with an order that can be stopped anywhere and resumed exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from limbeck.data.split import Input, input_length, take
from limbeck.data.views import epoch_seed, numbered_views, view_numbers, view_seeds
from limbeck.errors import UserError

# Texts are sorted by length inside windows of this many batches: long enough for little padding, short enough
# that batches stay mixed.
_WINDOW = 50


class Samples(Protocol):
    """Anything with ``input``, ``target`` and ``id``: a ``Split``."""

    @property
    def input(self) -> Input: ...
    @property
    def target(self) -> Tensor | None: ...
    @property
    def id(self) -> Tensor: ...


class TensorLoader:
    """Batches ``{input, target, id}`` of samples in memory, by direct indexing, without worker processes.

    The order is a pure function of ``(seed, epoch)``, whatever was drawn before. Iterating gives one epoch
    and moves to the next; leaving an iteration early and starting another begins the same epoch again, so
    that looking at a batch never disturbs the order. After ``load_state_dict`` the next iteration continues
    with the very next batch.

    Args:
        data: a ``Split``, or a mapping with ``input``, usually ``target``, ``id`` (the position if it is
            missing) and any further tensors with a row per sample, which travel along.
        batch_size: samples of one batch over all ranks together.
        shuffle: a new order every epoch; otherwise the order of the data.
        seed: of the order and of the views.
        drop_last: leave out a last short batch.
        transform: ``batch -> batch``, called last. The batch then also holds ``view``: an int64 seed per
            sample that depends on (seed, epoch, id) alone, from which an augmentation draws (see
            ``data.augmentation``).
        views: every sample has so many views and shows them in turn, so that a cache can hold them all; without it,
            a new one every epoch. Which seeds these are depends on the sample alone, not on ``seed``.
        collate: turns the list of texts or graphs of a batch into a tensor or a mapping of tensors (a tokenizer,
            ``data.graphs.collate``).
        ahead: prepare the next batch in a thread while this one is at work, and pass it through this function last:
            :meth:`limbeck.sources.Cached.attach` then reads the teacher's signals ahead. Order and state are the same.
        lengths: length of every sample. Batches then hold samples of similar length, which saves padding; the
            order of the batches is still shuffled. Without ``shuffle`` the longest come first.
        rank, world_size: of this process. Every rank sees the same global batches and takes each
            ``world_size``-th sample of them, beginning with its rank.
    """

    def __init__(
        self,
        data: Samples | Mapping[str, Any],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        views: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        ahead: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.columns = _columns(data)
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.transform, self.views, self.collate, self.ahead = transform, views, collate, ahead
        self.lengths = None if lengths is None else torch.as_tensor(lengths)
        self.rank, self.world_size = rank, world_size
        self._check()
        self._epoch = 0
        self._position = 0
        self._resume = False

    def __len__(self) -> int:
        """Batches of one epoch, the same number on every rank."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def samples(self) -> int:
        """Samples of the data, over all ranks."""
        return len(self.columns["id"])

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one, from its first batch; the running epoch changes nothing."""
        if epoch != self._epoch:
            self._epoch, self._position, self._resume = epoch, 0, False

    def set_rank(self, rank: int, world_size: int) -> None:
        """Feed process ``rank`` of ``world_size`` from now on; the global batches stay what they are.

        Limbeck's distillers call it when training starts, so a loader need not know how many processes there will be.
        """
        self.rank, self.world_size = rank, world_size
        self._check()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        position = self._position if self._resume else 0
        self._resume = False
        epoch, batches = self._epoch, len(self)
        order = self.order(epoch)[position:]
        work = ((index, epoch, place) for place, index in enumerate(order, position))
        for batch in self._made(work) if self.ahead is None else self._made_ahead(work, self.ahead):
            position += 1
            # The state moves on before the batch is handed out: saved while the batch is at work, it means
            # the next one.
            self._epoch, self._position = (epoch + 1, 0) if position == batches else (epoch, position)
            yield batch

    def _made(self, work: Iterator[tuple[Tensor, int, int]]) -> Iterator[dict[str, Any]]:
        return (self._batch(*one) for one in work)

    def _made_ahead(
        self, work: Iterator[tuple[Tensor, int, int]], last: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """The same batches, each made while the one before is at work; an error comes with its own batch."""

        def make(index: Tensor, epoch: int, position: int) -> dict[str, Any]:
            return last(self._batch(index, epoch, position))

        with ThreadPoolExecutor(1, "limbeck-ahead") as thread:
            coming = [thread.submit(make, *one) for one in islice(work, 1)]
            while coming:
                ready = coming.pop()
                batch = ready.result()
                coming += [thread.submit(make, *one) for one in islice(work, 1)]
                yield batch

    def peek(self) -> dict[str, Any]:
        """The next epoch's first batch, without moving the state: for dry runs and for measuring."""
        return self._batch(self.order(self._epoch)[0], self._epoch, 0)

    def every_view(self) -> Iterator[dict[str, Any]]:
        """Batches of all views of all samples, each once and in the order of the data, for filling a cache."""
        count = self.views or 1
        for epoch in range(count):
            for position, index in enumerate(torch.arange(self.samples).split(self.batch_size)):
                yield self._batch(index, epoch, position)

    def order(self, epoch: int) -> list[Tensor]:
        """Positions of the samples of every global batch of ``epoch``."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        count = self.samples
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        if self.lengths is None:
            batches = list(torch.split(order, self.batch_size))
        else:
            window = self.batch_size * _WINDOW if self.shuffle else count
            parts = [_longest_first(part, self.lengths) for part in torch.split(order, window)]
            batches = [batch for part in parts for batch in torch.split(part, self.batch_size)]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        if self.lengths is not None and self.shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch, and what its meaning depends on."""
        return {"epoch": self._epoch, "position": self._position, **self._meaning()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue with the batch after the one that was handed out last when ``state`` was taken.

        Raises:
            UserError: the state belongs to another seed, batch size or number of samples, so "next" has no
                meaning.
        """
        for name, mine in self._meaning().items():
            if state[name] != mine:
                raise UserError(f"loader {name}", mine, str(state[name]), "the saved position belongs to another order")
        self._epoch, self._position, self._resume = state["epoch"], state["position"], True

    def _meaning(self) -> dict[str, int]:
        return {"seed": self.seed, "batch_size": self.batch_size, "samples": self.samples}

    def _batch(self, index: Tensor, epoch: int, position: int) -> dict[str, Any]:
        draws = torch.arange(len(index)) + position * self.batch_size
        index, draws = index[self.rank :: self.world_size], draws[self.rank :: self.world_size]
        batch = {name: take(values, index) for name, values in self.columns.items()}
        if self.collate is not None:
            batch["input"] = self.collate(batch["input"])
        if self.transform is not None:
            batch["view"] = self._views(batch["id"], epoch, draws)
            batch = dict(self.transform(batch))
        return batch

    def _views(self, ids: Tensor, epoch: int, draws: Tensor) -> Tensor:
        """View seeds; ``draws`` are the samples' places in the epoch, of which seeds are to be independent here."""
        if self.views is None:
            return view_seeds(self.seed, epoch, ids)
        return numbered_views(ids, view_numbers(self.seed, epoch, ids, self.views))

    def _check(self) -> None:
        if self.samples == 0:
            raise UserError("data", "no samples", "at least one sample")
        if self.batch_size < 1:
            raise UserError("batch_size", self.batch_size, "1 or more")
        if self.views is not None and (self.views < 1 or self.transform is None):
            raise UserError("views", self.views, "1 or more, with a transform that draws them")
        if self.drop_last and self.batch_size > self.samples:
            raise UserError("batch_size", self.batch_size, f"at most {self.samples} samples with drop_last")
        if not 0 <= self.rank < self.world_size:
            raise UserError("rank", self.rank, f"0 to world_size - 1, {self.world_size - 1}")
        smallest = self.batch_size if self.drop_last else self.samples % self.batch_size or self.batch_size
        if smallest < self.world_size:
            hint = "set drop_last=True or another batch_size, so that no process gets an empty batch"
            raise UserError("batch_size", self.batch_size, f"batches of at least {self.world_size} samples", hint)
        if self.lengths is not None and len(self.lengths) != self.samples:
            raise UserError("lengths", f"{len(self.lengths)} lengths", f"one per sample, {self.samples}")


def _longest_first(index: Tensor, lengths: Tensor) -> Tensor:
    return index[lengths[index].argsort(descending=True, stable=True)]


def _columns(data: Samples | Mapping[str, Any]) -> dict[str, Any]:
    given = dict(data) if isinstance(data, Mapping) else {"input": data.input, "target": data.target, "id": data.id}
    if "input" not in given:
        raise UserError("data", sorted(given), "a split, or a mapping with input")
    columns = {name: value for name, value in given.items() if value is not None}
    count = input_length(columns["input"])
    columns.setdefault("id", torch.arange(count))
    for name, value in columns.items():
        if input_length(value) != count:
            raise UserError(f"data {name}", f"{input_length(value)} rows", f"as many as input has, {count}")
    return columns
