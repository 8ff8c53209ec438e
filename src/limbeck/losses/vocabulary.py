"""Losses of a linear head over a large vocabulary, from hidden states, a chunk of rows at a time.

``logits = hidden @ weight^T + bias`` of all rows at once is the largest tensor of a language model's
training, and the plain path holds several of its size. Here the logits of a few rows exist at a time, and
their gradient is folded into the gradients of hidden, weight and bias in the same pass, so nothing is
computed twice and memory does not grow with ``rows * vocabulary``. The comparison itself is done by the
functions of ``divergences`` and ``classification``: there is no second version of any formula that could
drift (cross-entropy without smoothing alone has its short gradient written out). Results equal the plain path
to rounding for every ``chunk``.

Hidden states and weights share a dtype (under autocast they are cast as ``linear`` would); bfloat16 stays
bfloat16 in the matrix products, float16 is multiplied in float32, and all else is float32 (float64 for
float64). Masked rows are never computed. Only first derivatives exist.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import divergences
from limbeck.losses._chunked_head import Rows, reduce_chunked
from limbeck.losses._inputs import check_choice, check_labels, check_row_mask
from limbeck.losses.classification import IGNORE_INDEX, cross_entropy
from limbeck.signals import SparseLogits

DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jeffreys": divergences.jeffreys,
    "jensen_shannon": divergences.jensen_shannon,
    "skewed_kl": divergences.skewed_kl,
    "skewed_reverse_kl": divergences.skewed_reverse_kl,
    "total_variation": divergences.total_variation,
    "soft_cross_entropy": divergences.soft_cross_entropy,
}
Divergence = str | Callable[[Tensor, Tensor], Tensor]


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    finish: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of a linear head on labels, without the logits of all rows.

    Formula: ``-log softmax(hidden W^T + b)_y``, with label smoothing as in ``classification.cross_entropy``
    Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025
    Batch-wise: no

    Args:
        hidden: ``[..., width]``, the head's input.
        head_weight: ``[vocabulary, width]``; ``weight`` is the weight of the rows, as in every loss.
        target: integer labels ``[...]``.
        bias: ``[vocabulary]`` of the head.
        label_smoothing, ignore_index: see :func:`~limbeck.losses.classification.cross_entropy`.
        finish: what some rows' logits go through before the softmax, such as ``HeadLogits.finish``.
        chunk: rows whose logits exist at a time; by default about 64 MiB of them.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`. With
            ``reduction="none"``, or a ``weight`` or ``denominator`` that needs a gradient, the logits are
            computed a second time in the backward pass.

    Returns:
        Nats; a scalar or ``[...]``.

    Raises:
        UserError: a label outside the vocabulary, shapes that do not fit, a chunk below 1.

    :func:`linear_divergence` is its sibling for a teacher.
    """
    rows = hidden.shape[:-1]
    target, mask = check_labels(
        target, rows, len(head_weight), mask=check_row_mask(mask, rows), ignore_index=ignore_index
    )

    def compare(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits if finish is None else finish(logits)
        return cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")

    plain = label_smoothing == 0 and finish is None
    given = Rows(compare, (target,), overwrite=_softmax_minus_label if plain else None)
    return reduce_chunked(
        hidden, head_weight, bias, given, chunk=chunk,
        mask=mask, weight=weight, reduction=reduction, denominator=denominator,
    )  # fmt: skip


def linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor | None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    scale: str | None = None,
    chunk: int | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Divergence of two linear heads over one vocabulary, without the logits of all rows of either.

    Formula: ``D(softmax(h_t W_t^T + b_t), softmax(h_s W_s^T + b_s))``, D a function of ``losses.divergences``
    Source: Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training, 2024
    Batch-wise: no

    The teacher's tensors are detached here, by declaration: no gradient is computed for them.

    Args:
        student_hidden: ``[..., width]``.
        student_weight: ``[vocabulary, width]``.
        teacher_hidden: ``[..., width of the teacher]``, the same rows.
        teacher_weight: ``[vocabulary, width of the teacher]``; None where ``teacher_hidden`` are logits already.
        student_bias, teacher_bias: ``[vocabulary]``.
        divergence: a name in :data:`DIVERGENCES`, or a function of (student logits, teacher logits), both
            ``[n, vocabulary]``, that gives one value per row from that row alone:
            ``functools.partial(divergences.jensen_shannon, beta=0.1, reduction="none")``.
        temperature, teacher_temperature, scale: see :func:`~limbeck.losses.divergences.forward_kl`;
            ``scale=None`` is the default of the divergence. A function has its own, and takes none of them.
        chunk, mask, weight, reduction, denominator: as :func:`linear_cross_entropy`.

    Returns:
        Nats; a scalar or ``[...]``.

    Raises:
        UserError: an unknown divergence, other rows or another vocabulary than the student's, a chunk below
            1.

    :func:`linear_sparse_divergence` takes a stored top-k teacher instead of a live one.
    """
    rows = student_hidden.shape[:-1]
    if teacher_hidden.shape[:-1] != rows:
        raise UserError("teacher_hidden", f"rows {list(teacher_hidden.shape[:-1])}", f"the student's, {list(rows)}")
    vocabulary = teacher_hidden.shape[-1] if teacher_weight is None else len(teacher_weight)
    if vocabulary != len(student_weight):
        key = "teacher_hidden" if teacher_weight is None else "teacher_weight"
        raise UserError(key, f"a vocabulary of {vocabulary}", f"the student's, {len(student_weight)}")
    compare = _named(divergence, temperature, teacher_temperature, scale)
    teacher_bias = None if teacher_bias is None else teacher_bias.detach()
    head = None if teacher_weight is None else (teacher_weight.detach(), teacher_bias)
    given = Rows(compare, (teacher_hidden.detach(),), head)
    return reduce_chunked(
        student_hidden, student_weight, student_bias, given, chunk=chunk,
        mask=check_row_mask(mask, rows), weight=weight, reduction=reduction, denominator=denominator,
    )  # fmt: skip


def linear_sparse_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: SparseLogits,
    *,
    student_bias: Tensor | None = None,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    scale: str | None = None,
    chunk: int | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Divergence of a linear head from a teacher's top-k, the rest of the vocabulary being one exact outcome.

    Formula: ``D`` over ``k + 1`` outcomes: the kept classes, and all the others together
    Source: Shum et al., FIRST: Teach a Reliable Language Model through Trustworthy Distillation, 2024
    Batch-wise: no

    The student's rest is summed from its own members, so this is a divergence and never a truncated sum: not
    negative, and zero with zero gradient where the outcomes agree. The teacher is detached by declaration.
    See ``losses.divergences`` for what a temperature other than 1 means for a rest that was stored as one
    number.

    Args:
        teacher: ``values`` and ``indices`` ``[..., k]``, ``rest`` ``[...]``, ``size`` the student's
            vocabulary.
        divergence: a name in :data:`DIVERGENCES`, or a function of (student logits, sparse teacher) with one
            value per row.
        student_hidden, student_weight, student_bias: as :func:`linear_divergence`, like all other options.

    Returns:
        Nats; a scalar or ``[...]``.

    Raises:
        UserError: as :func:`linear_divergence`.
    """
    rows = student_hidden.shape[:-1]
    if teacher.rest.shape != rows or teacher.size != len(student_weight):
        shape, own = [*teacher.rest.shape, teacher.size], [*rows, len(student_weight)]
        raise UserError("teacher", f"sparse logits of shape {shape}", f"the student's, {own}")
    function = _named(divergence, temperature, teacher_temperature, scale)

    def compare(logits: Tensor, values: Tensor, indices: Tensor, rest: Tensor) -> Tensor:
        return function(logits, SparseLogits(values, indices, rest, teacher.size))

    given = Rows(compare, (teacher.values.detach(), teacher.indices, teacher.rest.detach()))
    return reduce_chunked(
        student_hidden, student_weight, student_bias, given, chunk=chunk,
        mask=check_row_mask(mask, rows), weight=weight, reduction=reduction, denominator=denominator,
    )  # fmt: skip


def _softmax_minus_label(logits: Tensor, share: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy per row; the logits become its gradient, weighted by ``share``, without another copy."""
    share, label = share.unsqueeze(-1), target.unsqueeze(-1)
    highest = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(-1, label) - highest
    total = logits.sub_(highest).exp_().sum(dim=-1, keepdim=True)
    logits.mul_(share / total).scatter_add_(-1, label, -share)
    return (total.log() - chosen).squeeze(-1)


def _named(
    divergence: Divergence, temperature: float, teacher_temperature: float | None, scale: str | None
) -> Callable[..., Tensor]:
    if callable(divergence):
        if temperature != 1 or teacher_temperature is not None or scale is not None:
            raise UserError(
                "temperature, scale", "with a function as divergence", "functools.partial with these options"
            )
        return divergence
    check_choice("divergence", divergence, tuple(DIVERGENCES))
    function = DIVERGENCES[divergence]
    options = {} if scale is None else {"scale": scale}

    def compare(student: Tensor, teacher: Tensor | SparseLogits) -> Tensor:
        return function(
            student,
            teacher,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            reduction="none",
            **options,
        )

    return compare
