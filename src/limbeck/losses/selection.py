"""The same tokens of two networks that see them at different places."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.signals import SparseLogits


def selected_tokens(
    student_logits: Tensor, student_mask: Tensor, teacher_logits: Tensor | SparseLogits, teacher_mask: Tensor
) -> tuple[Tensor, Tensor | SparseLogits]:
    """Logits at the tokens that both masks name, in order, side by side: what any divergence then compares.

    Each sample must have as many tokens in one mask as in the other; the k-th of the one is compared with the k-th of
    the other. Were only the totals equal, tokens of one sample would silently meet those of the next.

    Args:
        student_logits: ``[B, S, V]``. student_mask: bool ``[B, S]``.
        teacher_logits: ``[B, T, V]``, or sparse ones. teacher_mask: bool ``[B, T]``.

    Returns:
        both ``[N, V]``, N the number of named tokens.

    Raises:
        UserError: the masks do not fit the logits, or a sample's counts differ.
    """
    theirs = teacher_logits.rest.shape if isinstance(teacher_logits, SparseLogits) else teacher_logits.shape[:-1]
    for name, shape, mask in (
        ("student_mask", student_logits.shape[:-1], student_mask),
        ("teacher_mask", theirs, teacher_mask),
    ):
        if mask.dtype != torch.bool or mask.shape != shape or mask.dim() != 2:
            raise UserError(name, f"{mask.dtype} {list(mask.shape)}", f"bool of the logits' rows, {list(shape)}")
    if len(student_mask) != len(teacher_mask):
        raise UserError("teacher_mask", f"{len(teacher_mask)} samples", f"the student's, {len(student_mask)}")
    ours, wanted = student_mask.sum(1), teacher_mask.sum(1)
    if not torch.equal(ours, wanted):
        row = int((ours != wanted).int().argmax())
        raise UserError(
            f"tokens of sample {row}", f"{int(wanted[row])} in teacher_mask",
            f"as many as in student_mask, {int(ours[row])}", "both masks must name the same tokens",
        )  # fmt: skip
    student_rows = student_logits[student_mask]
    if isinstance(teacher_logits, SparseLogits):
        return student_rows, teacher_logits.map(lambda part: part[teacher_mask])
    return student_rows, teacher_logits[teacher_mask]
