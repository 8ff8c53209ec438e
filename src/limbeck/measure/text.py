"""How good written text is: overlap with a reference, variety, and what goes wrong on one's own words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor

from limbeck.errors import UserError


def rouge_l(candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L of every candidate: the F-measure of the longest common subsequence of words (Lin, 2004).

    Words are what stands between spaces, lower-cased; no stemming. With l the length of that subsequence,
    ``F = 2 l / (words of the candidate + words of the reference)``; two empty texts agree.
    """
    if len(candidates) != len(references):
        raise UserError("candidates", len(candidates), f"one per reference, {len(references)}")
    return [_rouge_l(ours.lower().split(), wanted.lower().split()) for ours, wanted in zip(candidates, references)]


def token_f1(candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 of the words of every candidate, as SQuAD counts: common words, each as often as in both.

    Words as in :func:`rouge_l`. Two empty texts agree.
    """
    if len(candidates) != len(references):
        raise UserError("candidates", len(candidates), f"one per reference, {len(references)}")
    found = []
    for candidate, reference in zip(candidates, references):
        ours, wanted = Counter(candidate.lower().split()), Counter(reference.lower().split())
        count = ours.total() + wanted.total()
        found.append(2 * (ours & wanted).total() / count if count else 1.0)
    return found


def exact_match(candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 for every candidate of the very words of its reference, else 0. Words as in :func:`rouge_l`."""
    if len(candidates) != len(references):
        raise UserError("candidates", len(candidates), f"one per reference, {len(references)}")
    return [float(ours.lower().split() == wanted.lower().split()) for ours, wanted in zip(candidates, references)]


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Share of different n-grams of words among all of them (Li et al., 2016); 0 where there is none.

    It falls with the amount of text: compare equally many texts.
    """
    if n < 1:
        raise UserError("n", n, "1 or more")
    found = [tuple(words[i : i + n]) for words in (text.lower().split() for text in texts) for i in range(len(words))]
    grams = [gram for gram in found if len(gram) == n]
    return len(set(grams)) / len(grams) if grams else 0.0


def excess_error(
    on_own: Tensor, own_mask: Tensor, on_reference: Tensor, reference_mask: Tensor, upto: int | None = None
) -> dict[str, float]:
    """How much worse a model's next-token distribution is behind its own words than behind its teacher's.

    Args:
        on_own: ``[B, A]``, KL(teacher || student) at every position of texts that the student wrote.
        on_reference: ``[B', A']``, the same at texts that the teacher wrote.
        own_mask, reference_mask: bool, positions that count.
        upto: only the first so many positions.

    Returns:
        ``own`` and ``reference``, the mean per counted token in nats, and ``excess = own / reference - 1``: 0 without
        exposure bias (Arora et al., Why Exposure Bias Matters, 2022, with the teacher in the place of the data).
    """
    means = []
    for name, values, mask in (("own_mask", on_own, own_mask), ("reference_mask", on_reference, reference_mask)):
        values, mask = values[:, :upto], mask[:, :upto]
        if values.shape != mask.shape or not bool(mask.any()):
            raise UserError(name, list(mask.shape), f"a mask of {list(values.shape)} with a position that counts")
        means.append(float(values[mask].double().mean()))
    return {"own": means[0], "reference": means[1], "excess": means[0] / max(means[1], 1e-12) - 1}


def _rouge_l(ours: Sequence[str], wanted: Sequence[str]) -> float:
    if not ours and not wanted:
        return 1.0
    row = [0] * (len(wanted) + 1)
    for word in ours:
        before = 0
        for place, other in enumerate(wanted, start=1):
            above = row[place]
            row[place] = before + 1 if word == other else max(above, row[place - 1])
            before = above
    return 2 * row[-1] / (len(ours) + len(wanted))
