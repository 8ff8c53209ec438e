"""A linear head and a row-wise loss on its logits, forward and backward, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.errors import UserError
from limbeck.losses._inputs import check_choice
from limbeck.losses.reduce import REDUCTIONS, finish_rows, full_precision, reduce_rows

# Logits of one chunk (a matrix product) and of one block (a chain of element-wise operations). On a CPU a
# block should stay in the cache; elsewhere the chunk is the block, since every kernel costs a launch. A tile
# is a slice of the head that is converted when its dtype is not the one to sum in.
CHUNK_ELEMENTS = 2**24
BLOCK_ELEMENTS = 2**20
TILE_ELEMENTS = 2**22

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Rows:
    """What the student's logits are compared with.

    Attributes:
        compare: ``(logits [n, vocabulary], *given [n, ...]) -> [n]``, every value from its own row.
        given: tensors with one entry per row; with a ``head``, the first is the teacher's hidden states.
        head: the teacher's weight and bias, which turn ``given[0]`` into logits before ``compare`` sees it.
        overwrite: ``(logits, share [n], *given) -> [n]``, a short cut where the gradient is known: the values
            of ``compare``, with the gradient of their sum weighted by ``share`` written over the logits.
    """

    compare: Callable[..., Tensor]
    given: tuple[Tensor, ...]
    head: tuple[Tensor, Tensor | None] | None = None
    overwrite: Callable[..., Tensor] | None = None


def reduce_chunked(
    hidden: Tensor,
    head_weight: Tensor,
    bias: Tensor | None,
    rows: Rows,
    *,
    chunk: int | None,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    denominator: Tensor | float | None,
) -> Tensor:
    """``reduce_rows`` of ``rows.compare(hidden @ head_weight^T + bias, ...)``; row axes lead everywhere."""
    check_choice("reduction", reduction, REDUCTIONS)
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // max(len(head_weight), 1))
    elif chunk < 1:
        raise UserError("chunk", chunk, "a number of rows, at least 1")
    shape = hidden.shape[:-1]
    count = shape.numel()
    hidden, head_weight, bias = _linear_dtype("head_weight", hidden, head_weight, bias)
    hidden = hidden.reshape(count, hidden.shape[-1])
    given = tuple(tensor.reshape(count, *tensor.shape[len(shape) :]) for tensor in rows.given)
    head = rows.head
    if head is not None:
        teacher_hidden, teacher_weight, teacher_bias = _linear_dtype("teacher_weight", given[0], *head)
        given, head = (teacher_hidden, *given[1:]), (teacher_weight, teacher_bias)
    counted = None
    if mask is not None:
        counted = mask.flatten().nonzero().squeeze(-1)
        hidden, given = hidden[counted], tuple(tensor[counted] for tensor in given)
    rows = replace(rows, given=given, head=head)
    learning = torch.is_grad_enabled()
    if not learning:
        # Or the forward pass would see that the head wants gradients, and compute them.
        hidden, head_weight, bias = (
            hidden.detach(),
            head_weight.detach(),
            bias if bias is None else bias.detach(),
        )

    if reduction == "none" or (learning and (_learned(weight) or _learned(denominator))):
        values = _apply(hidden, head_weight, bias, None, rows, chunk)
        if counted is not None:
            values = values.new_zeros(count).index_put((counted,), values)
        values = values.view(shape)
        return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)
    # What reduce_rows would multiply each row by, known beforehand: gradients can be summed up on the way.
    share = torch.ones(len(hidden), dtype=full_precision(hidden[:0]).dtype, device=hidden.device)
    if weight is not None:
        each = weight.detach().expand(shape).flatten().to(share.dtype)
        share = share * (each if counted is None else each[counted])
    share = finish_rows(share, len(hidden), reduction=reduction, denominator=denominator)
    return _apply(hidden, head_weight, bias, share, rows, chunk)


class _ChunkedHead(torch.autograd.Function):
    """Values per row; with ``share`` their weighted sum and, in the same pass, its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        share: Tensor | None,
        rows: Rows,
        chunk: int,
    ) -> Tensor:
        ctx.rows, ctx.chunk = rows, chunk
        # `rows` holds them too, but autograd would not notice there if one is overwritten.
        ctx.save_for_backward(hidden, weight, bias, share, *rows.given, *(rows.head or ()))
        wanted = ctx.needs_input_grad[:3] if share is not None else (False, False, False)
        values, gradients = _run(hidden, weight, bias, share, rows, chunk, wanted)
        ctx.ready = gradients if any(wanted) else None
        return values if share is None else (values * share).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ready, ctx.ready = ctx.ready, None
        if ready is None:
            hidden, weight, bias, share = ctx.saved_tensors[:4]
            share = gradient if share is None else share * gradient
            _, ready = _run(hidden, weight, bias, share, ctx.rows, ctx.chunk, ctx.needs_input_grad[:3])
        else:
            # Owned by this call alone, so no copy is needed; a second backward pass computes anew.
            ready = tuple(None if x is None else x.mul_(gradient) for x in ready)
        return (*ready, None, None, None)


# Typed here once: the method itself has no annotations.
_apply: Callable[..., Tensor] = _ChunkedHead.apply


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    share: Tensor | None,
    rows: Rows,
    chunk: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """Values of all rows, and the wanted gradients (hidden, weight, bias) of their weighted sum."""
    count, vocabulary = len(hidden), len(weight)
    exact = full_precision(hidden[:0]).dtype
    values = torch.empty(count, dtype=exact, device=hidden.device)
    grad_hidden, grad_weight, grad_bias = (
        torch.zeros_like(x, dtype=exact) if x is not None and want else None
        for x, want in zip((hidden, weight, bias), wanted, strict=True)
    )
    logits_buffer = torch.empty(min(chunk, count), vocabulary, dtype=exact, device=hidden.device)
    teacher_buffer = torch.empty_like(logits_buffer) if rows.head is not None else logits_buffer
    block = chunk if hidden.device.type != "cpu" else max(1, BLOCK_ELEMENTS // max(vocabulary, 1))
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk_rows in _slices(count, chunk):
            logits = _project(hidden[chunk_rows], weight, bias, logits_buffer)
            given = [tensor[chunk_rows] for tensor in rows.given]
            if rows.head is not None:
                given[0] = _project(given[0], *rows.head, teacher_buffer)
            for part in _slices(len(logits), block):
                arguments = [tensor[part] for tensor in given]
                at = slice(chunk_rows.start + part.start, chunk_rows.start + part.stop)
                if not any(wanted):
                    values[at] = rows.compare(logits[part], *arguments)
                    continue
                if rows.overwrite is not None and share is not None:
                    values[at] = rows.overwrite(logits[part], share[at], *arguments)
                    continue
                with torch.enable_grad():
                    leaf = logits[part].detach().requires_grad_()
                    compared = rows.compare(leaf, *arguments)
                    (gradient,) = torch.autograd.grad(compared, leaf, None if share is None else share[at])
                values[at] = compared.detach()
                logits[part] = gradient
            if grad_hidden is not None:
                _project_back(logits, weight, grad_hidden[chunk_rows])
            if grad_weight is not None:
                _add_outer(grad_weight, logits, hidden[chunk_rows])
            if grad_bias is not None:
                grad_bias += logits.sum(0)
    if grad_weight is not None and weight.dtype == torch.bfloat16:
        # Same range as float32, so it may be rounded now. float16 first waits for the scale of the loss.
        grad_weight = grad_weight.to(weight.dtype)
    return values, (grad_hidden, grad_weight, grad_bias)


def _learned(value: Tensor | float | None) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _tiles(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of a half-precision head to multiply: float16 is lifted, since its sums could overflow."""
    for tile in _slices(len(weight), max(1, TILE_ELEMENTS // max(weight.shape[1], 1))):
        yield tile, weight[tile].float() if weight.dtype == torch.float16 else weight[tile]


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    out = buffer[: len(hidden)]
    if weight.dtype == out.dtype:
        return torch.mm(hidden, weight.t(), out=out) if bias is None else torch.addmm(bias, hidden, weight.t(), out=out)
    for tile, part in _tiles(weight):
        out[:, tile] = hidden.to(part.dtype) @ part.t()
    return out if bias is None else out.add_(bias)


def _project_back(gradient: Tensor, weight: Tensor, out: Tensor) -> None:
    if weight.dtype == out.dtype:
        torch.mm(gradient, weight, out=out)
        return
    for tile, part in _tiles(weight):
        out += gradient[:, tile].to(part.dtype) @ part


def _add_outer(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    if hidden.dtype == torch.bfloat16 and hidden.device.type != "cpu":
        for tile in _slices(len(total), max(1, TILE_ELEMENTS // max(total.shape[1], 1))):
            total[tile] += gradient[:, tile].t().to(hidden.dtype) @ hidden
    else:
        total.addmm_(gradient.t(), hidden.to(total.dtype))


def _linear_dtype(
    key: str, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The dtype in which ``torch.nn.functional.linear`` would work, autocast included."""
    if weight.ndim != 2 or hidden.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        given = f"{list(hidden.shape)}, {list(weight.shape)}, {None if bias is None else list(bias.shape)}"
        raise UserError(key, given, "hidden [..., width], weight [vocabulary, width], bias [vocabulary]")
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
