"""Losses of one score per row, with another score as the target: similarities, relevances, soft yes or no.

A row is one number: predictions and targets are ``[...]``. Neither detaches anything.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.losses._inputs import check_row_mask, check_same_shape
from limbeck.losses.reduce import full_precision, reduce_rows


def soft_bce(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Binary cross-entropy with a soft target: its best logit is that of the target.

    Formula: ``-y log sigmoid(z) - (1 - y) log(1 - sigmoid(z))``
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Liu et al., Trans-Encoder, ICLR 2022
    Batch-wise: no

    Args:
        logits: z, ``[...]``.
        target: y in [0, 1], ``[...]``. Outside, the loss has no lower bound (at y < 0 it falls without end as z does):
            clip or map cosines first. Values are not looked at here, which would wait for the device.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Returns:
        Nats; at ``sigmoid(z) = y`` the entropy of y, not 0, and there the gradient vanishes.

    Raises:
        UserError: unequal shapes, an unknown ``reduction``.

    :func:`score_mse` pulls less where the score is far in the tails of the sigmoid.
    """
    logits, target, mask = _rows(logits, target, mask)
    values = -(target * logsigmoid(logits) + (1 - target) * logsigmoid(-logits))
    return reduce_rows(values, mask=mask, weight=weight, reduction=reduction, denominator=denominator)


def score_mse(
    score: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared error of a score, a cosine say: keeps the scale of the target.

    Formula: ``(s - y)^2``
    Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019 (cosine similarity loss)
    Batch-wise: no

    Args:
        score: s, ``[...]``.
        target: y, ``[...]``, any number.
        mask, weight, reduction, denominator: see :func:`~limbeck.losses.reduce.reduce_rows`.

    Raises:
        UserError: unequal shapes, an unknown ``reduction``.

    For vectors per row use :func:`~limbeck.losses.features.mse`, for differences between the documents of one query
    :func:`~limbeck.losses.ranking.margin_mse`.
    """
    score, target, mask = _rows(score, target, mask)
    return reduce_rows(
        (score - target).square(), mask=mask, weight=weight, reduction=reduction, denominator=denominator
    )


def _rows(score: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both in full precision, with zeros where a row is masked, so that no NaN there reaches a gradient."""
    check_same_shape(score, target, "target")
    mask = check_row_mask(mask, score.shape)
    score, target = full_precision(score), full_precision(target)
    if mask is not None:
        score, target = score.masked_fill(~mask, 0.0), target.masked_fill(~mask, 0.0)
    return score, target, mask
