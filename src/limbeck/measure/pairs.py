"""Quality of scores for sentence pairs: against graded similarities, or against yes and no."""

from __future__ import annotations

from torch import Tensor

from limbeck.errors import UserError
from limbeck.measure.quality import regression

KINDS = ("graded", "binary")


def pair_quality(scores: Tensor, target: Tensor, kind: str = "graded") -> dict[str, float]:
    """How well scores order pairs.

    Args:
        scores: ``[N]``; only their order counts, but for ``pearson``.
        target: ``[N]``, similarities; or 0 and 1 for ``binary`` (paraphrase or not, answer or not).
        kind: ``graded`` or ``binary``.

    Returns:
        ``spearman`` and ``pearson`` for graded targets, 0 where scores or targets are all the same; ``auc`` and
        ``average_precision`` for binary ones.

    Raises:
        UserError: shapes that differ, no pairs, scores that are not finite, a binary target that is not 0 and 1.
    """
    if kind not in KINDS:
        raise UserError("kind", kind, KINDS)
    if scores.dim() != 1:
        raise UserError("scores", f"shape {list(scores.shape)}", "one per pair, [N]")
    found = regression(scores, target.to(scores.dtype))
    if kind == "graded":
        return {name: found[name] for name in ("spearman", "pearson")}
    from sklearn.metrics import average_precision_score, roc_auc_score

    values = sorted(set(target.tolist()))
    if values != [0, 1]:
        raise UserError("target", values[:5], "0 and 1, both of them")
    truth, given = target.cpu().numpy(), scores.detach().cpu().numpy()
    return {
        "auc": float(roc_auc_score(truth, given)),
        "average_precision": float(average_precision_score(truth, given)),
    }
