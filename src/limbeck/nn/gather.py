"""Rows of all processes as one batch, with gradients that add up to those of one process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from limbeck.signals import HeadLogits, SparseLogits


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first_process() -> bool:
    """Whether this process is the one that writes files; True without torch.distributed."""
    return world_size() == 1 or distributed.get_rank() == 0


def wait_for_all() -> None:
    """Let no process go on before every one is here, as after writing what the others will read."""
    if world_size() > 1:
        distributed.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's ``value``, without a gradient."""
    if world_size() == 1:
        return value
    summed = value.detach().clone()
    distributed.all_reduce(summed)
    return summed


def share_buffers(network: nn.Module) -> None:
    """Give every process the first one's buffers: their BatchNorm statistics come from other rows."""
    if world_size() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, src=0)


def row_counts(rows: int, device: torch.device) -> list[int]:
    """How many rows every process brings."""
    if world_size() == 1:
        return [rows]
    mine = torch.tensor([rows], device=device)
    pieces = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(pieces, mine)
    return [int(piece) for piece in pieces]


class _AllGather(torch.autograd.Function):
    """Concatenate along the first axis; the gradient of every process is summed before it goes back.

    Every process then computes the loss of the whole batch. DDP divides the summed parameter gradients by the number
    of processes, which leaves exactly the gradient that one process would have found.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _collect(tensor, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient.split(ctx.counts)[distributed.get_rank()], None


def gather_rows(value: Any, counts: list[int], *, tables: Iterable[str] = ()) -> Any:
    """Gather every tensor of a nested structure over processes, along its first axis.

    Args:
        value: tensors, sparse logits, and mappings and tuples of them; anything else, and a scalar, stays as it is.
        counts: rows of every process, from :func:`row_counts`; they need not be equal.
        tables: keys of mappings whose tensors are no rows of the batch (class vectors), and stay as they are.
    """
    if len(counts) == 1:
        return value
    if isinstance(value, Tensor):
        if value.dim() == 0:
            return value
        return _AllGather.apply(value, counts) if value.requires_grad else _collect(value, counts)
    if isinstance(value, (SparseLogits, HeadLogits)):
        return value.map(lambda tensor: gather_rows(tensor, counts))
    if isinstance(value, Mapping):
        kept = set(tables)
        return {key: item if key in kept else gather_rows(item, counts, tables=kept) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(gather_rows(item, counts, tables=tables) for item in value)
    return value


def _collect(tensor: Tensor, counts: list[int]) -> Tensor:
    # Booleans do not travel over every backend.
    carried = (tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor).contiguous()
    longest = max(counts)
    if len(carried) < longest:
        # All pieces of a collective have one size.
        carried = torch.cat([carried, carried.new_zeros(longest - len(carried), *carried.shape[1:])])
    pieces = [torch.empty_like(carried) for _ in counts]
    distributed.all_gather(pieces, carried)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)]).to(tensor.dtype)
