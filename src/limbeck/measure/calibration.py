"""Calibration: does a network that says 80% be right 80% of the time, and what would one temperature mend?

Every function takes ``logits`` ``[..., C]`` and class indices ``target`` ``[...]``, works in float64 and
returns plain floats. Confidence is the largest probability of a row; a bin ``(low, high]`` excludes its lower
end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError

Binning = Literal["width", "mass"]


def check_classification(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[N, C]`` in float64 and targets ``[N]`` on the CPU, or one clear error."""
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise UserError("logits", str(tuple(logits.shape)), "a shape [..., classes] with at least two classes")
    if logits.shape[:-1] != target.shape:
        raise UserError("target", str(tuple(target.shape)), f"one class per row, {tuple(logits.shape[:-1])}")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise UserError("target", str(target.dtype), "integer class indices")
    if target.numel() == 0:
        raise UserError("target", "no samples", "at least one sample")
    classes = logits.shape[-1]
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        raise UserError("target", low if low < 0 else high, f"class indices from 0 to {classes - 1}")
    log_probs = logits.detach().reshape(-1, classes).cpu().double().log_softmax(dim=-1)
    broken = log_probs.isnan().any(dim=-1)
    if broken.any():
        raise UserError(
            "logits", f"NaN or infinite values in {int(broken.sum())} of {len(broken)} rows", "finite logits"
        )
    return log_probs, target.detach().reshape(-1).cpu().long()


def nll(logits: Tensor, target: Tensor) -> float:
    """Mean negative log-likelihood of the true class, in nats."""
    log_probs, target = check_classification(logits, target)
    return float(-log_probs.gather(-1, target.unsqueeze(-1)).mean())


def brier(logits: Tensor, target: Tensor) -> float:
    """Brier score, mean of ``sum_c (p_c - [c = target])^2`` over samples, 0 (perfect) to 2 (Brier, 1950)."""
    log_probs, target = check_classification(logits, target)
    probs = log_probs.exp()
    at_target = probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return float((probs.square().sum(dim=-1) - 2 * at_target + 1).mean().clamp(min=0))


def expected_calibration_error(logits: Tensor, target: Tensor, *, bins: int = 15, binning: Binning = "width") -> float:
    """Expected calibration error, ``sum_b n_b / N |accuracy_b - confidence_b|``.

    Args:
        bins: number of bins.
        binning: ``"width"`` cuts ``(0, 1]`` into equal intervals (Guo et al., 2017), the number papers quote;
            ``"mass"`` puts equally many samples into each bin, which is steadier when confidences crowd near
            1.
    """
    confidence, correct = _confidence(*check_classification(logits, target))
    return _ece(confidence, correct, bins, binning)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram; ``confidence`` and ``accuracy`` are means over its samples."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """All calibration figures of one set of predictions; see :func:`calibration_summary`."""

    ece: float
    ece_interval: tuple[float, float]
    ece_equal_mass: float
    brier: float
    nll: float
    reliability: list[ReliabilityBin]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def calibration_summary(
    logits: Tensor, target: Tensor, *, bins: int = 15, resamples: int = 500, seed: int = 0
) -> Calibration:
    """Everything of this module for one set of predictions."""
    return Calibration(
        ece=expected_calibration_error(logits, target, bins=bins),
        ece_interval=ece_interval(logits, target, bins=bins, resamples=resamples, seed=seed),
        ece_equal_mass=expected_calibration_error(logits, target, bins=bins, binning="mass"),
        brier=brier(logits, target),
        nll=nll(logits, target),
        reliability=reliability(logits, target, bins=bins),
    )


def reliability(logits: Tensor, target: Tensor, *, bins: int = 15, binning: Binning = "width") -> list[ReliabilityBin]:
    """The bins of a reliability diagram, from low to high confidence; empty bins are left out."""
    confidence, correct = _confidence(*check_classification(logits, target))
    index = _assign(confidence, bins, binning)
    table = []
    for b in range(bins):
        inside = index == b
        if not inside.any():
            continue
        own = confidence[inside]
        low, high = (b / bins, (b + 1) / bins) if binning == "width" else (float(own.min()), float(own.max()))
        table.append(ReliabilityBin(low, high, int(inside.sum()), float(own.mean()), float(correct[inside].mean())))
    return table


def ece_interval(
    logits: Tensor,
    target: Tensor,
    *,
    bins: int = 15,
    binning: Binning = "width",
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the ECE over samples.

    The ECE of resamples is biased upwards (each bin's noise counts as error), so the interval of a nearly
    calibrated network can lie above its ECE; it says how far two ECEs must be apart, not where the true value
    lies.
    """
    if not 0 < level < 1:
        raise UserError("level", level, "a number between 0 and 1")
    if resamples < 1:
        raise UserError("resamples", resamples, "at least 1")
    confidence, correct = _confidence(*check_classification(logits, target))
    generator = np.random.default_rng(seed)
    size = len(confidence)
    values = []
    for _ in range(resamples):
        index = generator.integers(0, size, size)
        values.append(_ece(confidence[index], correct[index], bins, binning))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature ``T`` that minimises the NLL of ``logits / T`` on held-out data (Guo et al., 2017).

    The simplest rival of any distillation that claims calibration: one number, fitted after training, which
    leaves every arg-max as it is. The NLL is convex in ``1 / T``, so a bounded scalar search finds the
    optimum.

    Returns:
        ``T`` between 0.01 and 100; divide logits by it.
    """
    from scipy.optimize import minimize_scalar

    log_probs, target = check_classification(logits, target)

    def loss(log_temperature: float) -> float:
        scaled = (log_probs * float(np.exp(-log_temperature))).log_softmax(dim=-1)
        return float(-scaled.gather(-1, target.unsqueeze(-1)).mean())

    edge = float(np.log(100.0))
    found = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _confidence(log_probs: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    best, predicted = log_probs.max(dim=-1)
    return best.exp().clamp(max=1).numpy(), (predicted == target).double().numpy()


def _assign(confidence: np.ndarray, bins: int, binning: Binning) -> np.ndarray:
    if bins < 1:
        raise UserError("bins", bins, "at least 1")
    if binning == "width":
        return np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    if binning == "mass":
        rank = np.empty(len(confidence), dtype=np.int64)
        rank[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
        return rank * bins // len(confidence)
    raise UserError("binning", binning, ["width", "mass"])


def _ece(confidence: np.ndarray, correct: np.ndarray, bins: int, binning: Binning) -> float:
    gap = np.bincount(_assign(confidence, bins, binning), weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
