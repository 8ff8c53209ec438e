"""Which words of a text did someone keep who wrote a shorter one? Alignment, its quality, and a filter on it.

The annotation of LLMLingua-2 (Pan et al., Findings of ACL 2024), whose compressor is a language model that may change,
add or move words although it was told not to. Words are compared without regard to case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.errors import UserError


@dataclass(frozen=True)
class Alignment:
    """Labels of the original's words, and how far they can be trusted.

    Attributes:
        labels: per word of the original, whether a word of the compressed text was found there.
        compressed: words of the compressed text. found: those of them that stand anywhere in the original.
    """

    labels: tuple[bool, ...]
    compressed: int
    found: int

    @property
    def variation_rate(self) -> float:
        """Share of the compressed words that the original does not have: invented or changed. 1 if there are none."""
        return 1 - self.found / self.compressed if self.compressed else 1.0

    @property
    def hitting_rate(self) -> float:
        """Found words per word of the original."""
        return self._per_word(self.found)

    @property
    def matching_rate(self) -> float:
        """Share of the original's words with a label."""
        return self._per_word(sum(self.labels))

    @property
    def alignment_gap(self) -> float:
        """``hitting_rate - matching_rate``: words that are in the original, but for which no place was left or near."""
        return self.hitting_rate - self.matching_rate

    @property
    def compression_rate(self) -> float:
        """Words of the compressed text per word of the original."""
        return self._per_word(self.compressed)

    def _per_word(self, count: int) -> float:
        return count / len(self.labels) if self.labels else 0.0


def align(original: Sequence[str], compressed: Sequence[str], window: int = 150) -> Alignment:
    """Label the words of ``original`` that ``compressed`` has kept.

    The words of ``compressed`` are looked for one after the other, each around the place ``p`` of the one before: at
    ``p``, ``p + 1``, ``p - 1``, ``p + 2`` ... up to ``window - 1`` away. The first place with the same word and without
    a label gets it. Then ``p`` moves there, but forward by at most ``window / 2``: one far hit of a frequent word must
    not carry the window past everything else.

    Args:
        window: 150 by default in the released code, 400 in its recipe.
    """
    if window < 1:
        raise UserError("window", window, "1 or more")
    ours, theirs = [[word.casefold() for word in words] for words in (original, compressed)]
    labels, place = [False] * len(ours), 0
    for word in theirs:
        found = _nearest(ours, labels, word, place, window)
        if found is None:
            continue
        labels[found] = True
        place = place + window // 2 if found - place > window // 2 else found
    known = set(ours)
    return Alignment(tuple(labels), len(theirs), sum(word in known for word in theirs))


def _nearest(words: Sequence[str], taken: Sequence[bool], word: str, place: int, window: int) -> int | None:
    for distance in range(window):
        for spot in (place + distance, place - distance):
            if 0 <= spot < len(words) and words[spot] == word and not taken[spot]:
                return spot
    return None


def trusted(
    alignments: Sequence[Alignment],
    *,
    variation: float | None = 90.0,
    gap: float | None = 90.0,
) -> list[int]:
    """Numbers of the pairs to learn from: those with little variation, and of these those with a small gap.

    An empty compressed text says nothing and is always left out.

    Args:
        variation, gap: percentiles; a pair at or above that percentile of its score is left out. None does not look.
            The gap's percentile is among the pairs that variation has left.
    """
    kept = [number for number, one in enumerate(alignments) if one.compressed]
    for percentile, name in ((variation, "variation_rate"), (gap, "alignment_gap")):
        if percentile is not None and kept:
            scores = [getattr(alignments[number], name) for number in kept]
            kept = [kept[place] for place in below_percentile(scores, percentile)]
    return kept


def below_percentile(scores: Sequence[float], percentile: float) -> list[int]:
    """Positions of the scores below their own percentile.

    The smallest score always stays: where most scores are equal, the percentile is that value, and "at or above" would
    leave nothing.
    """
    if not 0 <= percentile <= 100:
        raise UserError("percentile", percentile, "0 to 100")
    if len(scores) == 0:
        return []
    values = np.asarray(scores, dtype=float)
    if not np.isfinite(values).all():
        raise UserError("scores", "NaN or infinite values", "finite numbers")
    # Equal scores that were computed in two ways differ in their last digits.
    edge = max(float(np.percentile(values, percentile)) - 1e-12, float(values.min()) + 1e-12)
    return [int(place) for place in np.flatnonzero(values < edge)]
