"""How well anomalies are found: by image, by pixel and by region."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UserError


def auroc(scores: Tensor, anomalous: Tensor) -> float:
    """Chance that an anomalous one scores above a good one, ties counting half; images ``[N]`` or pixels ``[N, H, W]``.

    Raises:
        UserError: shapes that differ, scores that are not finite, only one kind.
    """
    from scipy.stats import rankdata

    values, truth = _checked(scores, anomalous)
    bad = int(truth.sum())
    ranks = rankdata(values)
    return float((ranks[truth].sum() - bad * (bad + 1) / 2) / (bad * (len(truth) - bad)))


def best_f1(scores: Tensor, anomalous: Tensor) -> tuple[float, float]:
    """The largest F1 over all thresholds, and its threshold (``score >= threshold`` is anomalous).

    The threshold is chosen by the labels it is judged with, as the literature does: a bound, not a way to set one.
    """
    values, truth = _checked(scores, anomalous)
    order = np.argsort(-values, kind="stable")
    values, found = values[order], np.cumsum(truth[order])
    last = np.append(values[1:] != values[:-1], True)
    f1 = np.where(last, 2 * found / (np.arange(1, len(values) + 1) + found[-1]), 0.0)
    best = int(f1.argmax())
    return float(f1[best]), float(values[best])


def region_overlap(maps: Tensor, masks: Tensor, *, limit: float = 0.3, steps: int = 200) -> float:
    """PRO: mean share of a defect that is found, over thresholds up to a false-positive rate; 1 is perfect.

    Every connected region (diagonals count) weighs alike, whatever its size. The share is averaged over ``steps``
    false-positive rates spread evenly over ``(0, limit]``, taken on the pixels outside of all regions.

    Args:
        maps: ``[N, H, W]``. masks: bool of that shape.

    Source: Bergmann et al., Uninformed Students, CVPR 2020.
    """
    from scipy.ndimage import label

    values, truth = _checked(maps, masks)
    if maps.dim() != 3 or not 0 < limit <= 1:
        raise UserError("maps, limit", f"{list(maps.shape)}, {limit}", "[N, H, W], and a rate above 0 up to 1")
    values, truth = values.reshape(maps.shape), truth.reshape(maps.shape)
    good = np.sort(values[~truth])[::-1]
    rates = limit * np.arange(1, steps + 1) / steps
    thresholds = good[np.clip(np.ceil(rates * len(good)).astype(int) - 1, 0, len(good) - 1)]
    shares = []
    for image, mask in zip(values, truth):
        regions, count = label(mask, structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            inside = np.sort(image[regions == number])
            shares.append(1 - np.searchsorted(inside, thresholds, side="left") / len(inside))
    return float(np.mean(shares))


def alarm_rates(scores: Tensor, anomalous: Tensor, calibration: Tensor, quantile: float = 0.95) -> dict[str, float]:
    """``false_alarms`` and ``recall`` at the ``quantile`` of the scores of held-out good samples.

    Nothing but good samples sets the threshold, so that it can be had where no defect has been seen yet.
    """
    values, truth = _checked(scores, anomalous)
    threshold = float(np.quantile(calibration.double().numpy(), quantile))
    above = values > threshold
    return {"false_alarms": float(above[~truth].mean()), "recall": float(above[truth].mean())}


def _checked(scores: Tensor, anomalous: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if scores.shape != anomalous.shape:
        raise UserError("scores", list(scores.shape), f"the shape of the labels, {list(anomalous.shape)}")
    values, truth = scores.detach().double().flatten().numpy(), anomalous.bool().flatten().numpy()
    if not np.isfinite(values).all():
        raise UserError("scores", "NaN or infinite ones", "finite scores")
    if truth.all() or not truth.any():
        raise UserError("labels", "one kind only", "good and anomalous ones")
    return values, truth
