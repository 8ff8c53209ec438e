"""What every loss must satisfy, as checks that any loss can be put through.

A loss here is any callable ``loss(*inputs, **options)`` of the contract: ``inputs`` are tensors (or
``SparseLogits``) whose first axis counts rows, the first input is the student's, and ``mask``, ``weight``,
``reduction`` and ``denominator`` are keyword options. Bind everything else with ``functools.partial``. Every
check raises ``AssertionError``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from limbeck.signals import SparseLogits

Loss = Callable[..., Tensor]
HALF_TYPES = (torch.float16, torch.bfloat16)
GARBAGE = (float("nan"), float("inf"), float("-inf"), 3e38)


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    """Reproducible normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


def labels(*shape: int, classes: int, seed: int = 0) -> Tensor:
    """Reproducible class numbers."""
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def extreme_logits(classes: int = 5, gap: float = 1e4) -> tuple[Tensor, Tensor]:
    """Student and teacher rows with gaps of ``gap``: agreeing, opposed, flat against sharp, alternating."""
    peak = torch.zeros(classes, dtype=torch.float64)
    peak[0] = gap
    signs = gap / 2 * torch.tensor([1.0 if i % 2 else -1.0 for i in range(classes)], dtype=torch.float64)
    flat = torch.zeros(classes, dtype=torch.float64)
    student = torch.stack([peak, peak, -peak, flat, peak, signs, signs, signs.roll(1)])
    teacher = torch.stack([peak, peak.roll(1), peak, peak, flat, signs, -signs, peak.roll(2)])
    return student, teacher


def gradient(loss: Loss, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Value (summed if it has rows) and gradient with respect to the first input."""
    student = inputs[0].detach().clone().requires_grad_(True)
    value = loss(student, *inputs[1:], **options)
    (grad,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), grad


def check_gradient(loss: Loss, *inputs: Any, wrt: tuple[int, ...] = (0,), **options: Any) -> None:
    """Analytic against numerical gradient in float64, for the inputs numbered ``wrt``."""
    inputs = tuple(
        item.detach().clone().requires_grad_(i in wrt) if i in wrt else item for i, item in enumerate(inputs)
    )
    leaves = tuple(inputs[i] for i in wrt)

    def of_leaves(*values: Tensor) -> Tensor:
        given = list(inputs)
        for i, value in zip(wrt, values, strict=True):
            given[i] = value
        return loss(*given, reduction="none", **options)

    assert torch.autograd.gradcheck(of_leaves, leaves, eps=1e-6, atol=1e-6, rtol=1e-4)


def check_zero_at_match(loss: Loss, student: Tensor, *others: Any, tolerance: float = 1e-12, **options: Any) -> None:
    """Value and gradient vanish where ``others`` hold the student's own numbers."""
    value, grad = gradient(loss, student, *others, reduction="none", **options)
    assert value.abs().max() <= tolerance, f"value {value.abs().max():.3e} at student = teacher"
    assert grad.abs().max() <= tolerance, f"gradient {grad.abs().max():.3e} at student = teacher"


def check_reductions(loss: Loss, *inputs: Any, **options: Any) -> None:
    """``none`` adds up to ``sum``; ``mean`` is the sum over the rows, or over the given denominator."""
    rows = loss(*inputs, reduction="none", **options)
    total = loss(*inputs, reduction="sum", **options)
    torch.testing.assert_close(rows.sum(), total)
    torch.testing.assert_close(loss(*inputs, reduction="mean", **options), total / rows.numel())
    torch.testing.assert_close(loss(*inputs, **options), total / rows.numel())
    torch.testing.assert_close(loss(*inputs, reduction="mean", denominator=7.0, **options), total / 7.0)
    torch.testing.assert_close(loss(*inputs, reduction="mean", denominator=torch.tensor(7), **options), total / 7.0)


def check_split(loss: Loss, *inputs: Any, pieces: int = 3, **options: Any) -> None:
    """Uneven micro-batches with one ``denominator`` add up to the whole, in value and gradient."""
    count = _rows(inputs[0])
    for keep in (torch.ones(count, dtype=torch.bool), torch.arange(count) % 3 != 1):
        mask = _row_mask(loss, inputs, keep, options)
        whole, whole_grad = gradient(loss, *inputs, mask=mask, **options)
        value, grads = torch.zeros_like(whole), []
        for piece in _uneven(count, pieces):
            given = [_take(item, piece) for item in inputs]
            share, grad = gradient(loss, *given, mask=mask[piece], denominator=mask.sum(), **options)
            value = value + share
            grads.append(grad)
        torch.testing.assert_close(value, whole)
        torch.testing.assert_close(torch.cat(grads), whole_grad)


def check_masked_rows(loss: Loss, *inputs: Any, poison: tuple[int, ...] | None = None, **options: Any) -> None:
    """Garbage in masked rows changes nothing: all is as in the batch without these rows, and 0 in them.

    ``poison`` numbers the inputs that get garbage (default: all). Works for batch-wise losses too. If every
    row is masked the value and the gradient are exactly zero.
    """
    count = _rows(inputs[0])
    keep = torch.arange(count) % 3 != 1
    places = range(len(inputs)) if poison is None else poison
    mask = _row_mask(loss, inputs, keep, options)
    kept = [_take(item, keep) for item in inputs]
    clean, clean_grad = gradient(loss, *kept, **options)
    for number in GARBAGE:
        dirty = [_soil(item, ~keep, number) if i in places else item for i, item in enumerate(inputs)]
        value, grad = gradient(loss, *dirty, mask=mask, **options)
        torch.testing.assert_close(value, clean)
        torch.testing.assert_close(grad[keep], clean_grad)
        assert torch.equal(grad[~keep], torch.zeros_like(grad[~keep])), f"gradient leaks from rows of {number}"
        rows = loss(*dirty, mask=mask, reduction="none", **options)
        assert torch.equal(rows[~keep], torch.zeros_like(rows[~keep]))
        everything = [
            _soil(item, torch.ones_like(keep), number) if i in places else item for i, item in enumerate(inputs)
        ]
        value, grad = gradient(loss, *everything, mask=torch.zeros_like(mask), **options)
        assert value.item() == 0.0, f"fully masked batch gives {value.item()}"
        assert torch.equal(grad, torch.zeros_like(grad))


def check_weight(loss: Loss, *inputs: Any, **options: Any) -> None:
    """``weight`` multiplies the rows, leaves the denominator alone, and cannot revive a masked row."""
    rows = loss(*inputs, reduction="none", **options)
    weight = torch.linspace(0.0, 2.0, rows.numel(), dtype=rows.dtype).reshape(rows.shape)
    torch.testing.assert_close(loss(*inputs, weight=weight, reduction="none", **options), rows * weight)
    torch.testing.assert_close(loss(*inputs, weight=weight, **options), (rows * weight).sum() / rows.numel())
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[0] = False
    masked = loss(*inputs, mask=mask, reduction="none", **options)
    weight[0] = float("nan")
    value, grad = gradient(loss, *inputs, mask=mask, weight=weight, reduction="sum", **options)
    torch.testing.assert_close(value, (masked[mask] * weight[mask]).sum())
    assert torch.isfinite(grad).all(), "the weight of a masked row leaks into the gradient"


def check_half(loss: Loss, *inputs: Any, **options: Any) -> None:
    """Finite float32 value and finite gradient for half-precision inputs, at the gaps of ``inputs``."""
    for dtype in HALF_TYPES:
        given = [_cast(item, dtype) for item in inputs]
        value, grad = gradient(loss, *given, **options)
        assert value.dtype == torch.float32, f"{value.dtype} from {dtype}"
        assert torch.isfinite(value).all(), f"value {value} in {dtype}"
        assert torch.isfinite(grad).all(), f"gradient {grad} in {dtype}"
        rows = loss(*given, reduction="none", **options)
        assert torch.isfinite(rows).all(), f"rows {rows} in {dtype}"


def check_shift(loss: Loss, *inputs: Any, places: tuple[int, ...] = (0, 1), **options: Any) -> None:
    """Adding a constant to a whole row of the inputs numbered ``places`` changes nothing."""
    before = loss(*inputs, reduction="none", **options)
    for place in places:
        shift = logits(_rows(inputs[0]), seed=77, dtype=inputs[place].dtype, scale=5.0)
        shifted = list(inputs)
        shifted[place] = inputs[place] + shift.reshape(-1, *[1] * (inputs[place].dim() - 1))
        torch.testing.assert_close(loss(*shifted, reduction="none", **options), before)


def check_row_order(loss: Loss, *inputs: Any, **options: Any) -> None:
    """Permuting the rows permutes the values (true for per-row and for batch-wise losses)."""
    order = torch.randperm(_rows(inputs[0]), generator=torch.Generator().manual_seed(5))
    before = loss(*inputs, reduction="none", **options)
    after = loss(*[_take(item, order) for item in inputs], reduction="none", **options)
    torch.testing.assert_close(after, before[order])


def check_leading_axes(loss: Loss, *inputs: Any, **options: Any) -> None:
    """``[B, T, ...]`` gives what the flattened ``[B * T, ...]`` gives. The number of rows must be even."""
    flat = loss(*inputs, reduction="none", **options)
    folded = [_fold(item) for item in inputs]
    value = loss(*folded, reduction="none", **options)
    assert value.shape == (2, flat.shape[0] // 2)
    torch.testing.assert_close(value.reshape(-1), flat)
    torch.testing.assert_close(loss(*folded, **options), loss(*inputs, **options))


def check_contract(loss: Loss, *inputs: Any, batchwise: bool = False, **options: Any) -> None:
    """Reductions, weights, masks and row order; splitting too unless the loss compares rows."""
    check_reductions(loss, *inputs, **options)
    check_weight(loss, *inputs, **options)
    check_masked_rows(loss, *inputs, **options)
    check_row_order(loss, *inputs, **options)
    if not batchwise:
        check_split(loss, *inputs, **options)


def _rows(item: Any) -> int:
    return len(item.values if isinstance(item, SparseLogits) else item)


def _each(item: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(item, SparseLogits):
        return item.map(function)
    return function(item) if isinstance(item, Tensor) else item


def _take(item: Any, index: Any) -> Any:
    return _each(item, lambda tensor: tensor[index])


def _cast(item: Any, dtype: torch.dtype) -> Any:
    return _each(item, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _fold(item: Any) -> Any:
    return _each(item, lambda tensor: tensor.reshape(2, len(tensor) // 2, *tensor.shape[1:]))


def _soil(item: Any, rows: Tensor, number: float) -> Any:
    def soil(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:
            return tensor
        dirty = tensor.clone()
        dirty[rows] = number if tensor.is_floating_point() else 999_999
        return dirty

    return _each(item, soil)


def _row_mask(loss: Loss, inputs: tuple[Any, ...], keep: Tensor, options: dict[str, Any]) -> Tensor:
    """``keep`` in the shape of the loss's rows, which may have more axes than the first."""
    shape = loss(*inputs, reduction="none", **options).shape
    return keep.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def _uneven(count: int, pieces: int) -> Iterator[slice]:
    cuts = sorted({0, 1, *[count * i // pieces for i in range(1, pieces)], count})
    for start, stop in itertools.pairwise(cuts):
        yield slice(start, stop)
