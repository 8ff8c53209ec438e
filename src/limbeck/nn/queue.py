"""A queue of features of earlier batches: many negatives for little memory and no computation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError

#: The id of a place that no sample has taken yet.
EMPTY = -1


class FeatureQueue(nn.Module):
    """The latest ``size`` samples' features, of one or more sides (image and text), with their ids; oldest leave first.

    MoCo's dictionary and ALBEF's pair of them. All sides share one pointer, so that row ``k`` of each belongs to sample
    ``id[k]``. Everything is in buffers: the queue moves with its module and is part of the checkpoint. It begins with
    random unit vectors, as published; :meth:`filled` gives real samples alone.

    Args:
        size: places.
        seed: of the vectors it begins with.
        widths: name of a side -> width of its features.
    """

    id: Tensor
    pointer: Tensor

    def __init__(self, size: int, *, seed: int = 0, **widths: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError("size", size, "1 or more")
        if not widths:
            raise UserError("widths", "none", "at least one side, such as image=256")
        self.size, self.sides = size, tuple(widths)
        generator = torch.Generator().manual_seed(seed)
        for name, width in widths.items():
            start = functional.normalize(torch.randn(size, width, generator=generator), dim=-1)
            self.register_buffer(f"side_{name}", start)
        self.register_buffer("id", torch.full((size,), EMPTY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def __getitem__(self, side: str) -> Tensor:
        """Features ``[size, width]`` of a side, in order of place and not of age."""
        if side not in self.sides:
            raise UserError("side", side, self.sides)
        return self.get_buffer(f"side_{side}")

    def __len__(self) -> int:
        return self.size

    @property
    def filled(self) -> Tensor:
        """Which places hold a sample, bool ``[size]``."""
        return self.id != EMPTY

    @torch.no_grad()
    def push(self, ids: Tensor, **features: Tensor) -> None:
        """Put a batch in the place of the oldest: ids ``[B]``, 0 or more, and features ``[B, width]`` of every side.

        Any number of rows will do: the end is followed by the beginning, and of more than ``size`` the last stay. Under
        several processes the caller gathers the rows first.
        """
        if set(features) != set(self.sides):
            raise UserError("features", sorted(features), self.sides)
        # What does not fit is overwritten within this very call; two writes to one place have no order.
        count = len(ids)
        kept = slice(max(0, count - self.size), count)
        places = (self.pointer + torch.arange(count, device=self.pointer.device)[kept]) % self.size
        for name, rows in features.items():
            if rows.shape != (count, self[name].shape[1]):
                raise UserError(f"features of {name}", list(rows.shape), f"[{count}, {self[name].shape[1]}]")
            self[name][places] = rows[kept].detach().to(self[name].dtype)
        self.id[places] = ids[kept].to(self.id)
        self.pointer.copy_((self.pointer + count) % self.size)
