"""Statistics of a handful of seeds: summaries, the paired bootstrap interval and the verdict on a claim.

How the interval is made, since seeds are few:

* 5 seeds or more: the bootstrap distribution of the mean of the paired differences, with the *expanded*
  percentiles of Hesterberg (What Teachers Should Know About the Bootstrap, 2015): plain percentiles are too
  narrow for small samples, so the tail is Phi(-sqrt(n / (n - 1)) t), with t the 97.5% point of Student's
  distribution. Up to 9 seeds the distribution is enumerated exactly (all multisets with their
  probabilities), so no random number is involved; above, 20,000 seeded resamples.
* 2 to 4 seeds: resampling cannot carry 95% (even the whole range of 3 values covers 75%), so the bootstrap's
  standard error is used with Student's t, which is the ordinary paired t interval.
* Fewer than 3 paired seeds never decide a claim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from limbeck.experiment.base import Claim, Exact, finite

LEVEL = 0.95
FEWEST_PAIRS = 3
METHOD = (
    "95% interval of the mean of the seed-paired differences: bootstrap with expanded percentiles "
    "(exact enumeration up to 9 seeds, 20,000 seeded resamples above); with 2 to 4 seeds the bootstrap "
    "standard error with Student's t. A claim needs at least 3 paired seeds."
)
_EXACT_UP_TO = 9
_RESAMPLES = 20_000


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (over n - 1; None for one value) and count of the finite values.

    ``diverged`` counts the others and is present only where there are any.
    """
    kept = [float(value) for value in values if value is not None and math.isfinite(value)]
    count = len(kept)
    record: dict[str, Any] = {
        "mean": float(np.mean(kept)) if kept else None,
        "std": float(np.std(kept, ddof=1)) if count > 1 else None,
        "n": count,
    }
    if count < len(values):
        record["diverged"] = len(values) - count
    return record


def mean_interval(values: Sequence[float], *, level: float = LEVEL, seed: int = 0) -> tuple[float, float] | None:
    """Interval that covers the mean behind ``values`` at ``level``; None below two values."""
    sample = np.sort(np.asarray(values, dtype=np.float64))
    count = len(sample)
    if count < 2 or not np.isfinite(sample).all():
        return None
    if sample[0] == sample[-1]:
        return float(sample[0]), float(sample[0])
    student = float(stdtrit(count - 1, 0.5 + level / 2))
    if count < 5:
        reach = student * float(np.std(sample, ddof=1)) / math.sqrt(count)
        return float(sample.mean()) - reach, float(sample.mean()) + reach
    tail = float(ndtr(-math.sqrt(count / (count - 1)) * student))
    if count <= _EXACT_UP_TO:
        shares, weights = _resamples(count)
        means = shares @ sample
    else:
        means = np.random.default_rng(seed).choice(sample, size=(_RESAMPLES, count)).mean(axis=1)
        weights = np.full(_RESAMPLES, 1 / _RESAMPLES)
    return _lower_quantile(means, weights, tail), -_lower_quantile(-means, weights, tail)


def decide(claim: Claim, outcomes: Mapping[str, Mapping[int, Mapping[str, float | None]]]) -> dict[str, Any]:
    """The verdict on a comparison.

    Args:
        outcomes: arm -> seed -> metrics; a metric that is None or not finite diverged there, an absent seed
            was not run.

    An arm that diverged where its rival did not is worse, so its claim is ``not reproduced``; a diverged
    rival leaves nothing to measure, so the claim is ``inconclusive``. Neither is dropped: the reason names
    the seeds.
    """
    record: dict[str, Any] = {
        "kind": "comparison",
        "text": claim.text,
        "source": claim.source,
        "arm": claim.arm,
        "over": claim.over,
        "metric": claim.metric,
        "margin": claim.margin,
        "better": claim.better,
        "difference": None,
        "interval": None,
        "differences": {},
    }
    missing = [name for name in (claim.arm, claim.over) if not outcomes.get(name)]
    if missing:
        return record | _verdict("inconclusive", f"{' and '.join(missing)} did not run")
    ours, theirs = outcomes[claim.arm], outcomes[claim.over]
    seeds = sorted(set(ours) & set(theirs))
    unknown = [
        name
        for name in (claim.arm, claim.over)
        if not any(claim.metric in metrics for metrics in outcomes[name].values())
    ]
    if unknown:
        return record | _verdict("inconclusive", f"{' and '.join(unknown)} did not report {claim.metric}")
    sign = 1.0 if claim.better == "higher" else -1.0
    values = {seed: (_number(ours[seed], claim.metric), _number(theirs[seed], claim.metric)) for seed in seeds}
    pairs = {seed: sign * (a - b) for seed, (a, b) in values.items() if a is not None and b is not None}
    record["differences"] = {str(seed): value for seed, value in pairs.items()}
    if pairs:
        record["difference"] = float(np.mean(list(pairs.values())))
        interval = mean_interval(list(pairs.values()))
        record["interval"] = None if interval is None else list(interval)
    lost = [seed for seed, (a, _) in values.items() if a is None]
    if lost:
        return record | _verdict("not reproduced", f"{claim.arm} diverged with {_seeds(lost)}")
    lost = [seed for seed, (_, b) in values.items() if b is None]
    if lost:
        return record | _verdict(
            "inconclusive", f"{claim.over} diverged with {_seeds(lost)}: nothing to compare with there"
        )
    unpaired = sorted(set(ours) ^ set(theirs))
    if unpaired:
        return record | _verdict("inconclusive", f"{_seeds(unpaired)} ran on one side only")
    if len(pairs) < FEWEST_PAIRS or record["interval"] is None:
        return record | _verdict("inconclusive", f"{len(pairs)} paired seeds; at least {FEWEST_PAIRS} are needed")
    low, high = record["interval"]
    if low > claim.margin:
        return record | _verdict("reproduced", "the whole interval lies above the margin")
    if high < claim.margin:
        return record | _verdict("not reproduced", "the whole interval lies below the margin")
    return record | _verdict("inconclusive", "the interval contains the margin")


def decide_exact(claim: Exact, deviation: float | None, reason: str = "") -> dict[str, Any]:
    """The verdict on an exact claim from its deviation; None, with a reason, where the check failed."""
    measured = None if deviation is None else finite(deviation)
    record: dict[str, Any] = {
        "kind": "exact",
        "text": claim.text,
        "source": claim.source,
        "deviation": measured,
        "tolerance": claim.tolerance,
    }
    if deviation is None:
        return record | _verdict("inconclusive", reason or "the check did not run")
    if measured is None:
        return record | _verdict("not reproduced", "the deviation is not finite")
    if measured <= claim.tolerance:
        return record | _verdict("reproduced", "the deviation is within the tolerance")
    return record | _verdict("not reproduced", "the deviation exceeds the tolerance")


def void(claims: Sequence[dict[str, Any]], reason: str) -> list[dict[str, Any]]:
    """The same claims without a verdict, because the gate failed: what was measured stays visible."""
    return [claim | _verdict("inconclusive", reason) if claim["kind"] == "comparison" else claim for claim in claims]


@cache
def _resamples(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every multiset of ``count`` draws from ``count`` values: shares of the values, and probability."""
    draws = np.array(list(combinations_with_replacement(range(count), count)))
    shares = np.stack([(draws == value).sum(axis=1) for value in range(count)], axis=1)
    factorial = np.array([math.factorial(number) for number in range(count + 1)], dtype=np.float64)
    weights = factorial[count] / factorial[shares].prod(axis=1) / float(count) ** count
    return shares / count, weights


def _lower_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], tail: float) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.searchsorted(np.cumsum(weights[order]), tail, side="right")
    return float(values[order][min(int(reached), len(values) - 1)])


def _number(metrics: Mapping[str, float | None], name: str) -> float | None:
    value = metrics.get(name)
    return None if value is None else finite(value)


def _verdict(verdict: str, reason: str) -> dict[str, Any]:
    return {"verdict": verdict, "reason": reason}


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
