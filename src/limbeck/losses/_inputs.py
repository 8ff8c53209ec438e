"""What losses share before their formula starts: checks, tempering, sums that survive minus infinity."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.reduce import full_precision

SCALES = ("none", "squared")


def check_choice(key: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse a name that is not one of ``allowed``."""
    if given not in allowed:
        raise UserError(key, given, allowed)


def check_same_shape(student: Tensor, teacher: Tensor, key: str = "teacher_logits") -> None:
    """Refuse signals that would broadcast: a class more or less is another label space."""
    if student.shape != teacher.shape:
        raise UserError(key, f"shape {list(teacher.shape)}", f"the student's shape, {list(student.shape)}")


def check_row_mask(mask: Tensor | None, rows: torch.Size, key: str = "mask") -> Tensor | None:
    """The mask in the shape ``rows``; anything that is not bool or lines up by accident is refused."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise UserError(key, f"a tensor of {mask.dtype}", "a bool tensor, True where a row counts")
    if mask.dim() != len(rows) or any(given not in (1, want) for given, want in zip(mask.shape, rows, strict=True)):
        raise UserError(key, f"shape {list(mask.shape)}", f"shape {list(rows)}, with 1 where it repeats")
    return mask.expand(rows)


def check_labels(
    target: Tensor, rows: torch.Size, classes: int, *, mask: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Labels that can index, and the rows that have one.

    Ignored and masked labels become class 0 and False. A label of a counting row outside ``[0, classes)`` is
    refused.
    """
    if target.is_floating_point() or target.dtype == torch.bool or target.shape != rows:
        raise UserError(
            "target", f"{target.dtype} of shape {list(target.shape)}", f"integer labels of shape {list(rows)}"
        )
    counted = target != ignore_index
    if mask is not None:
        counted = counted & mask
    target = torch.where(counted, target, 0).long()
    outside = (target < 0) | (target >= classes)
    if bool(outside.any()):
        raise UserError(
            "target",
            f"label {int(target[outside][0])}",
            f"0 to {classes - 1}, or {ignore_index} for a row to ignore",
        )
    return target, counted


def check_temperature(temperature: float | Tensor, key: str = "temperature") -> None:
    """Refuse a number that is not positive. A tensor is trusted: looking at it would wait for the device."""
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise UserError(key, temperature, "a positive number")


def temper(logits: Tensor, temperature: float | Tensor, key: str = "temperature") -> Tensor:
    """``logits / temperature`` in at least float32; a tensor is one temperature per row, or a scalar."""
    check_temperature(temperature, key)
    logits = full_precision(logits)
    if isinstance(temperature, Tensor):
        return logits / (temperature.unsqueeze(-1) if temperature.dim() else temperature)
    return logits if temperature == 1 else logits / temperature


def scale_rows(values: Tensor, temperature: float | Tensor, scale: str) -> Tensor:
    """Multiply by the squared temperature if the policy ``scale`` says so."""
    check_choice("scale", scale, SCALES)
    return values * temperature**2 if scale == "squared" else values


def log_sum_exp(values: Tensor) -> Tensor:
    """logsumexp over the last axis that gives -inf, and zero gradients, where every member is -inf."""
    dead = torch.isneginf(values).all(dim=-1)
    summed = torch.where(dead.unsqueeze(-1), 0.0, values).logsumexp(dim=-1)
    return torch.where(dead, -torch.inf, summed)


def expected(probability: Tensor, quantity: Tensor) -> Tensor:
    """``sum_c p_c x_c`` with 0 * inf = 0, in value and gradient."""
    live = probability != 0
    return torch.where(live, probability * torch.where(live, quantity, 0.0), 0.0).sum(dim=-1)


def log_ratio_expected(log_target: Tensor, log_model: Tensor) -> Tensor:
    """KL(target || model) over the last axis, from log-probabilities; 0 where the target has no mass."""
    target = log_target.exp()
    # Not "> 0": a NaN must stay visible.
    live = target != 0
    # Both logarithms are replaced before the subtraction: -inf - -inf would put NaN into the gradient.
    ratio = torch.where(live, log_target, 0.0) - torch.where(live, log_model, 0.0)
    return torch.where(live, target * ratio, 0.0).sum(dim=-1)
