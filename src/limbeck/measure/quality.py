"""Quality on a task: classification, regression, retrieval and language modelling, as plain floats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.measure import calibration

SCORES_AT_ONCE = 1 << 24


def classification(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Quality of ``logits`` ``[..., C]`` for class indices ``target`` ``[...]``.

    Returns:
        ``accuracy``; ``top5`` when there are more than five classes; ``macro_f1`` (mean over the classes that
        occur in the target or the prediction); ``nll`` in nats; ``ece`` (15 bins of equal width on the
        largest probability); ``brier`` (sum over classes, 0 to 2). Of equal logits the lowest class index is
        the prediction.

    Raises:
        UserError: shapes that do not fit, labels out of range, no samples, NaN or infinite logits.
    """
    from sklearn.metrics import f1_score

    log_probs, target = calibration.check_classification(logits, target)
    predicted = log_probs.argmax(dim=-1)
    quality = {"accuracy": float((predicted == target).double().mean())}
    if log_probs.shape[-1] > 5:
        at_target = log_probs.gather(-1, target.unsqueeze(-1))
        earlier = torch.arange(log_probs.shape[-1]) < target.unsqueeze(-1)
        rank = ((log_probs > at_target) | ((log_probs == at_target) & earlier)).sum(dim=-1)
        quality["top5"] = float((rank < 5).double().mean())
    quality["macro_f1"] = float(f1_score(target.numpy(), predicted.numpy(), average="macro", zero_division=0))
    quality["nll"] = calibration.nll(log_probs, target)
    quality["ece"] = calibration.expected_calibration_error(log_probs, target)
    quality["brier"] = calibration.brier(log_probs, target)
    return quality


def auc(logits: Tensor, target: Tensor) -> float:
    """Area under the ROC curve of ``logits`` ``[N, C]``: the chance that a sample of a class gets a higher probability
    of it than one of another class, as a mean over the classes that some but not all samples have (with two classes
    both halves agree). 0.5 where there is no such class: nothing can be ranked."""
    from sklearn.metrics import roc_auc_score

    log_probs, target = calibration.check_classification(logits, target)
    # Differences of log-odds rank like probabilities and do not saturate at 1.
    others = torch.stack(
        [log_probs.index_fill(-1, torch.tensor([c]), -torch.inf).logsumexp(-1) for c in range(log_probs.shape[-1])],
        dim=-1,
    )
    scores, present = log_probs - others, torch.bincount(target, minlength=log_probs.shape[-1])
    usable = [c for c, count in enumerate(present.tolist()) if 0 < count < len(target)]
    areas = [float(roc_auc_score((target == c).numpy(), scores[:, c].numpy())) for c in usable]
    return sum(areas) / len(areas) if areas else 0.5


def regression(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Quality of ``prediction`` for ``target``, both ``[N]`` or ``[N, D]`` (columns are averaged).

    Returns:
        ``mse``, ``mae``, ``r2``, ``pearson``, ``spearman``. A correlation with a constant is 0: it explains
            nothing.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import r2_score

    if prediction.shape != target.shape or prediction.ndim not in (1, 2):
        raise UserError(
            "prediction",
            str(tuple(prediction.shape)),
            f"the target's shape {tuple(target.shape)}, [N] or [N, D]",
        )
    if target.numel() == 0:
        raise UserError("target", "no samples", "at least one sample")
    guess, truth = (_columns(values) for values in (prediction, target))
    for name, values in (("prediction", guess), ("target", truth)):
        if not np.isfinite(values).all():
            raise UserError(
                name, f"NaN or infinite values in {int((~np.isfinite(values)).sum())} places", "finite values"
            )
    return {
        "mse": float(np.square(guess - truth).mean()),
        "mae": float(np.abs(guess - truth).mean()),
        "r2": float(r2_score(truth, guess)) if len(truth) > 1 else 0.0,
        "pearson": _correlation(guess, truth),
        "spearman": _correlation(rankdata(guess, axis=0), rankdata(truth, axis=0)),
    }


def retrieval(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor | Sequence[Iterable[int]] | None = None,
    *,
    similarity: Literal["cosine", "dot"] = "cosine",
    at: Sequence[int] = (1, 10),
) -> dict[str, float]:
    """Quality of embeddings: does the right document come first?

    Args:
        queries: ``[Q, D]``.
        documents: ``[N, D]``.
        positives: indices of the right documents: ``None`` (query ``i`` wants document ``i``), an integer
            tensor ``[Q]``, or for every query the indices of all that are right (identical documents, several
            captions).
        similarity: how a pair is scored.
        at: the depths of ``recall``.

    Returns:
        ``recall@k`` (share of queries with a right document among the first ``k``) and ``mrr`` (mean of one
        over the rank of the first right document). Other right documents never push a right one down. Ties,
        up to the rounding of the product, count against the query, so that a collapsed encoder scores as
        badly as it should.
    """
    queries, documents = (values.detach().cpu() for values in (queries, documents))
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise UserError(
            "queries and documents",
            f"{tuple(queries.shape)} and {tuple(documents.shape)}",
            "[Q, D] and [N, D]",
        )
    if len(queries) == 0 or len(documents) == 0:
        raise UserError("queries and documents", f"{len(queries)} and {len(documents)}", "at least one of each")
    precision = torch.promote_types(torch.promote_types(queries.dtype, documents.dtype), torch.float32)
    queries, documents = queries.to(precision), documents.to(precision)
    for name, values in (("queries", queries), ("documents", documents)):
        if not values.isfinite().all():
            bad = int((~values.isfinite()).any(dim=-1).sum())
            raise UserError(name, f"NaN or infinite values in {bad} of {len(values)} rows", "finite embeddings")
    if similarity == "cosine":
        queries, documents = (torch.nn.functional.normalize(values, dim=-1) for values in (queries, documents))
    elif similarity != "dot":
        raise UserError("similarity", similarity, ["cosine", "dot"])
    rows, columns = _pairs(positives, len(queries), len(documents))

    # Equal vectors may differ in the last digits of a blocked product.
    tolerance = 8 * torch.finfo(precision).eps * queries.norm(dim=-1) * documents.norm(dim=-1).max()
    step = max(1, SCORES_AT_ONCE // len(documents))
    ranks = []
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ documents.T
        inside = (rows >= start) & (rows < start + step)
        right = torch.zeros(scores.shape, dtype=torch.bool)
        right[rows[inside] - start, columns[inside]] = True
        best = scores.masked_fill(~right, -torch.inf).amax(dim=-1)
        ahead = (scores >= (best - tolerance[start : start + step]).unsqueeze(-1)) & ~right
        ranks.append(ahead.sum(dim=-1) + 1)
    rank = torch.cat(ranks).double()
    quality = {f"recall@{k}": float((rank <= k).double().mean()) for k in at}
    quality["mrr"] = float(rank.reciprocal().mean())
    return quality


def perplexity(nll: float | Tensor | Iterable[float], tokens: int | Tensor | Iterable[int]) -> float:
    """``exp(sum of nll / number of tokens)``, from summed negative log-likelihoods in nats and token counts.

    Both may be a number or one value per batch or document: they are summed first, so that batches of
    different lengths weigh as they should. A mean beyond what a float can raise gives ``inf``.
    """
    total, count = _total(nll), _total(tokens)
    if not count > 0:
        raise UserError("tokens", count, "a positive number of tokens")
    if math.isnan(total):
        raise UserError("nll", total, "a number")
    mean = total / count
    return math.exp(mean) if mean < 709 else math.inf


def language_modelling(nll: float | Tensor | Iterable[float], tokens: int | Tensor | Iterable[int]) -> dict[str, float]:
    """``nll`` and ``bits`` per token, and ``perplexity``; arguments as for :func:`perplexity`."""
    value = perplexity(nll, tokens)
    mean = _total(nll) / _total(tokens)
    return {"nll": mean, "bits": mean / math.log(2), "perplexity": value}


def _columns(values: Tensor) -> np.ndarray:
    array = values.detach().cpu().double().numpy()
    return array.reshape(len(array), -1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    # A constant column leaves only the rounding of its own mean; that is no variation.
    varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    with np.errstate(all="ignore"):
        a, b = a / np.abs(a).max(axis=0), b / np.abs(b).max(axis=0)
        value = (a * b).sum(axis=0) / np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return float(np.where(varies, value, 0.0).clip(-1, 1).mean())


def _pairs(positives: Tensor | Sequence[Iterable[int]] | None, queries: int, documents: int) -> tuple[Tensor, Tensor]:
    if positives is None:
        if queries > documents:
            raise UserError("documents", documents, f"at least one per query, {queries}, when positives are left out")
        rows = columns = torch.arange(queries)
    elif isinstance(positives, Tensor):
        if positives.shape != (queries,) or positives.is_floating_point() or positives.dtype == torch.bool:
            raise UserError(
                "positives", f"{positives.dtype} {tuple(positives.shape)}", f"integers of shape ({queries},)"
            )
        rows, columns = torch.arange(queries), positives.detach().cpu().long()
    else:
        if len(positives) != queries:
            raise UserError("positives", f"{len(positives)} entries", f"one per query, {queries}")
        flat = [(row, int(column)) for row, wanted in enumerate(positives) for column in wanted]
        if len({row for row, _ in flat}) < queries:
            raise UserError("positives", "a query without any right document", "at least one for every query")
        rows, columns = torch.tensor(flat, dtype=torch.long).unbind(dim=1)
    outside = (columns < 0) | (columns >= documents)
    if outside.any():
        raise UserError("positives", int(columns[outside][0]), f"document indices from 0 to {documents - 1}")
    return rows, columns


def _total(values: float | Tensor | Iterable[float]) -> float:
    if isinstance(values, Tensor):
        return float(values.double().sum())
    return float(values) if isinstance(values, (int, float)) else math.fsum(float(value) for value in values)
