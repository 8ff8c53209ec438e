"""Fidelity: how far a student says what its teacher says, whatever the truth is.

A student can match its teacher's accuracy and agree with it on few samples (Stanton et al., 2021), so
fidelity is reported beside quality and never instead of it. All functions work in float64 on the CPU and
return plain floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UserError

SCORES_AT_ONCE = 1 << 24


def fidelity_summary(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float]:
    """Every figure that two sets of signals allow.

    ``logits`` give ``agreement``, ``kl`` and ``js``; ``embedding`` gives ``cosine`` (when the widths are
    equal), ``cka`` and ``neighbour_overlap``. Other signals, and those that only one side has, are left out.
    """
    found: dict[str, float] = {}
    said, echoed = teacher.get("logits"), student.get("logits")
    if isinstance(said, Tensor) and isinstance(echoed, Tensor):
        found |= {"agreement": agreement(said, echoed), "kl": kl(said, echoed), "js": js(said, echoed)}
    said, echoed = teacher.get("embedding"), student.get("embedding")
    if isinstance(said, Tensor) and isinstance(echoed, Tensor):
        if said.shape == echoed.shape:
            found["cosine"] = cosine(said, echoed)
        if len(said) > 1:
            found |= {"cka": cka(said, echoed), "neighbour_overlap": neighbour_overlap(said, echoed)}
    return found


def agreement(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Share of rows whose arg-max is the same, for logits ``[..., C]``."""
    teacher, student = _log_probs(teacher_logits, student_logits)
    return float((teacher.argmax(dim=-1) == student.argmax(dim=-1)).double().mean())


def kl(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Mean ``KL(teacher || student)`` in nats at temperature 1, for logits ``[..., C]``."""
    return float(_kl(*_log_probs(teacher_logits, student_logits)).mean().clamp(min=0))


def js(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Mean Jensen-Shannon divergence, from 0 to ``ln 2``: symmetric, and finite where :func:`kl` is not."""
    teacher, student = _log_probs(teacher_logits, student_logits)
    middle = torch.logaddexp(teacher, student) - math.log(2)
    return float((0.5 * (_kl(teacher, middle) + _kl(student, middle))).mean().clamp(min=0))


def cosine(teacher: Tensor, student: Tensor) -> float:
    """Mean cosine of paired embeddings ``[N, D]``; a zero vector has cosine 0 with everything."""
    teacher, student = _rows("embedding", teacher, student)
    if teacher.shape != student.shape:
        raise UserError("student embedding", str(tuple(student.shape)), f"the teacher's shape {tuple(teacher.shape)}")
    return float(functional.cosine_similarity(teacher, student, dim=-1, eps=1e-12).mean())


def cka(teacher: Tensor, student: Tensor, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of features ``[N, ...]``; widths may differ (Kornblith et al., 2019).

    ``||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F)`` with centred columns; 1 means equal up to rotation and scale. With
    fewer
    samples than features it is high for any two networks: ``unbiased=True`` takes the U-statistic of HSIC
    (Song et al., 2012), which is about 0 for unrelated features (and may be slightly negative) and needs four
    samples. A constant feature gives 0.
    """
    x, y = _rows("features", teacher, student)
    if unbiased and len(x) < 4:
        raise UserError("features", f"{len(x)} samples", "at least 4 for the unbiased estimate")
    x, y = (_unit(values - values.mean(dim=0)) for values in (x, y))
    if unbiased:
        a, b = _u_centred(x @ x.T), _u_centred(y @ y.T)
        cross, own = (a * b).sum(), (a.square().sum() * b.square().sum()).sqrt()
    elif len(x) < max(x.shape[1], y.shape[1]):
        a, b = x @ x.T, y @ y.T
        cross, own = (a * b).sum(), a.norm() * b.norm()
    else:
        cross, own = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(cross / own) if own > 0 else 0.0


def neighbour_overlap(teacher: Tensor, student: Tensor, *, k: int = 10) -> float:
    """Mean share of the ``k`` nearest neighbours by cosine that a sample has in both embeddings ``[N, D]``.

    The figure for retrieval: it asks for the same order and not for the same vectors, so widths may differ. A
    sample is not its own neighbour; with ``k`` or fewer samples ``k`` becomes ``N - 1`` (then everything
    overlaps).
    """
    teacher, student = _rows("embedding", teacher, student)
    size = len(teacher)
    if size < 2:
        raise UserError("embedding", f"{size} samples", "at least 2 to have neighbours")
    if k < 1:
        raise UserError("k", k, "at least 1")
    k = min(k, size - 1)
    teacher, student = (functional.normalize(values, dim=-1) for values in (teacher, student))
    step = max(1, SCORES_AT_ONCE // size)
    shared = 0
    for start in range(0, size, step):
        near = []
        for values in (teacher, student):
            scores = values[start : start + step] @ values.T
            own = torch.arange(len(scores))
            scores[own, own + start] = -torch.inf
            near.append(torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k, dim=1).indices, True))
        shared += int((near[0] & near[1]).sum())
    return shared / (size * k)


def _kl(target: Tensor, model: Tensor) -> Tensor:
    # 0 log 0 = 0, where -inf - -inf would be NaN.
    terms = torch.where(target == -torch.inf, 0.0, target.exp() * (target - model))
    return terms.sum(dim=-1)


def _log_probs(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    if teacher.shape != student.shape or teacher.ndim < 2 or teacher.shape[-1] < 2:
        raise UserError(
            "student logits",
            str(tuple(student.shape)),
            f"the teacher's shape {tuple(teacher.shape)}, which must be [..., classes]",
        )
    if teacher.numel() == 0:
        raise UserError("logits", "no samples", "at least one sample")
    pair = [values.detach().cpu().double().log_softmax(dim=-1) for values in (teacher, student)]
    for name, values in zip(("teacher logits", "student logits"), pair, strict=True):
        if values.isnan().any():
            raise UserError(name, "NaN or infinite values", "finite logits")
    return pair[0], pair[1]


def _rows(key: str, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    if teacher.ndim < 2 or student.ndim < 2 or len(teacher) != len(student) or len(teacher) == 0:
        raise UserError(
            f"student {key}",
            str(tuple(student.shape)),
            f"[N, ...] with the teacher's samples, {tuple(teacher.shape)}",
        )
    pair = [values.detach().flatten(1).cpu().double() for values in (teacher, student)]
    for name, values in zip(("teacher", "student"), pair, strict=True):
        if not values.isfinite().all():
            raise UserError(f"{name} {key}", "NaN or infinite values", "finite values")
    return pair[0], pair[1]


def _unit(values: Tensor) -> Tensor:
    # The ratio does not see the scale, but squares of large features would overflow and of tiny ones vanish.
    size = values.abs().max()
    return values / size if size > 0 else values


def _u_centred(gram: Tensor) -> Tensor:
    size = len(gram)
    gram = gram - torch.diag(gram.diagonal())
    row = gram.sum(dim=1) / (size - 2)
    centred = gram - row.unsqueeze(1) - row.unsqueeze(0) + gram.sum() / ((size - 1) * (size - 2))
    return centred - torch.diag(centred.diagonal())
