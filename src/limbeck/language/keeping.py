"""From a score per word to a part of the words: exact budgets, forced words, several contexts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.errors import UserError

RULES = ("exact", "percentile")


@dataclass(frozen=True)
class Keeper:
    """Keeps the words of highest score at a rate.

    Attributes:
        rate: share of the text's cost (words, if no costs are given) to be kept. At 0 and below only forced words stay,
            at 1 and above everything.
        forced: words that always stay (``{"\\n", "?", "."}``), compared as they are written: no vocabulary is asked.
        digits: words with a digit always stay.
        drop_repeats: of equal forced words without any other kept word between them only the first stays.
        rule: ``exact`` meets the budget: the best words that fit, earlier ones first among equals. ``percentile`` is
            the released rule: words above the (100 (1 - rate) + 1)-th percentile of the scores, each counted as often
            as it costs; equal scores leave it far from the rate, often with nothing.

    Forced words are paid from the budget first. Where they alone exceed it, they are kept and nothing else is.
    """

    rate: float
    forced: Collection[str] = ()
    digits: bool = False
    drop_repeats: bool = False
    rule: str = "exact"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError("rule", self.rule, RULES)
        if not math.isfinite(self.rate):
            raise UserError("rate", self.rate, "a finite number, usually from 0 to 1")

    def __call__(
        self,
        words: Sequence[str],
        scores: Sequence[float],
        costs: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> list[bool]:
        """Per word whether it stays.

        Args:
            scores: probabilities or any other finite numbers, one per word.
            costs: what a word costs, such as its number of tokens in the language model that will read the result.
            limit: what may be spent, in the place of ``rate`` (rule ``exact``).
        """
        costs = [1] * len(words) if costs is None else costs
        if len(scores) != len(words) or len(costs) != len(words):
            raise UserError("scores, costs", f"{len(scores)}, {len(costs)}", f"one per word, {len(words)}")
        if not all(math.isfinite(float(score)) for score in scores) or min(costs, default=0) < 0:
            raise UserError("scores, costs", "NaN, infinite or negative values", "finite scores and costs of 0 or more")
        must = [self._forced(word) for word in words]
        if limit is not None:
            keep = best_within(scores, costs, limit, must)
        elif self.rate >= 1:
            keep = [True] * len(words)
        elif self.rule == "percentile":
            keep = self._above(scores, costs, must)
        else:
            keep = best_within(scores, costs, budget(self.rate, costs), must)
        return without_repeats(words, keep, self.forced) if self.drop_repeats else keep

    def _forced(self, word: str) -> bool:
        return word in self.forced or (self.digits and any(letter.isdigit() for letter in word))

    def _above(self, scores: Sequence[float], costs: Sequence[int], must: Sequence[bool]) -> list[bool]:
        given = [1.0 if forced else float(score) for score, forced in zip(scores, must)]
        counted = np.repeat(given, costs)
        # The percentile is cut to a whole number in floating point, as released: at rate 0.8 it is the 20th, not the
        # 21st.
        edge = float(np.percentile(counted, min(int(100 * (1 - max(self.rate, 0.0)) + 1), 100))) if len(counted) else 1
        return [score > edge or score == edge == 1.0 for score in given]


def budget(rate: float, costs: Sequence[int]) -> int:
    """What may be spent: ``rate`` of all costs, rounded half up."""
    return max(math.floor(rate * sum(costs) + 0.5), 0)


def best_within(
    scores: Sequence[float], costs: Sequence[int], limit: int, must: Sequence[bool] | None = None
) -> list[bool]:
    """The words of highest score whose costs fit into ``limit`` together, ``must`` before all others.

    They are taken from the best on; earlier ones first among equals; one that no longer fits is passed over. With unit
    costs exactly ``limit`` words stay (or all).
    """
    must = [False] * len(scores) if must is None else must
    keep, left = list(must), limit - sum(cost for cost, forced in zip(costs, must) if forced)
    for place in sorted(range(len(scores)), key=lambda place: (-float(scores[place]), place)):
        if not keep[place] and costs[place] <= left:
            keep[place] = True
            left -= costs[place]
    return keep


def without_repeats(words: Sequence[str], keep: Sequence[bool], repeated: Collection[str]) -> list[bool]:
    """``keep``, less those of ``repeated`` that follow on an equal kept word with no other kept word between."""
    found, before = list(keep), None
    for place, word in enumerate(words):
        if not found[place]:
            continue
        if word in repeated and word == before:
            found[place] = False
        else:
            before = word
    return found


def best_contexts(
    scores: Sequence[Sequence[float]],
    costs: Sequence[int],
    limit: int,
    forced: Collection[int] = (),
) -> list[bool]:
    """Which of several texts stay, before their words are chosen: those with the highest mean score that fit.

    Args:
        scores: of the words of every text. A text without words has nothing to say and comes last.
        costs: of every text. limit: what may be spent. forced: numbers of texts that stay in any case.

    At least one text stays, so that the words have something to be chosen from.
    """
    wrong = sorted(number for number in forced if not 0 <= number < len(costs))
    if wrong:
        raise UserError("forced contexts", wrong, f"numbers from 0 to {len(costs) - 1}")
    means = [float(np.mean(row)) if len(row) else -math.inf for row in scores]
    keep = best_within(means, costs, limit, [number in forced for number in range(len(costs))])
    if costs and not any(keep):
        keep[max(range(len(means)), key=lambda number: (means[number], -number))] = True
    return keep


def shares(sizes: Sequence[int], limit: int) -> list[int]:
    """``limit`` dealt out in proportion to ``sizes``, in whole numbers that sum to it; nobody gets more than its size.

    By largest remainders, earlier ones first.
    """
    total = sum(sizes)
    if limit >= total:
        return list(sizes)
    found = [limit * size // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda place: (-(limit * sizes[place] % total), place))
    for place in order[: limit - sum(found)]:
        found[place] += 1
    return found
