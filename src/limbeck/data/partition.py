"""Stable sample ids from content, and seeded splits that keep duplicates together and classes in proportion."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.data.split import Split, Splits
from limbeck.errors import UserError

NAMES = ("train", "validation", "test")


def content_id(content: bytes) -> int:
    """A non-negative int64 that depends on the content alone: equal texts or images have equal ids."""
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def text_ids(texts: Iterable[str | tuple[str, ...]]) -> Tensor:
    """Ids of texts, or of tuples of texts, int64 ``[N]``."""
    # The unit separator keeps ("ab", "c") and ("a", "bc") apart.
    joined = (text if isinstance(text, str) else "\x1f".join(text) for text in texts)
    return torch.tensor([content_id(text.encode("utf-8", "surrogatepass")) for text in joined], dtype=torch.int64)


def partition(
    whole: Split, *, stratify: bool, shares: Sequence[float], seed: int, key: str = "data"
) -> tuple[list[Split], list[str]]:
    """Cut a split in ``1 + len(shares)`` disjoint parts, the first taking what the shares leave, with notes.

    Samples with one id stay together. With ``stratify`` every class with at least as many distinct samples as there
    are parts is in every part; a rarer class is only in the first.

    Raises:
        UserError: a share is not between 0 and 1, or there are too few samples.
    """
    check_shares(shares)
    unique, first, group = np.unique(whole.id.numpy(), return_index=True, return_inverse=True)
    parts = 1 + len(shares)
    if len(unique) < parts:
        given = f"{len(whole)} samples, {len(unique)} of them distinct"
        raise UserError(key, given, f"at least {parts} distinct samples, one for each of {', '.join(NAMES[:parts])}")
    strata = whole.labels.numpy()[first] if stratify else np.zeros(len(unique), dtype=np.int64)
    generator = np.random.default_rng(seed)
    where = np.zeros(len(unique), dtype=np.int64)
    rare = 0
    for stratum in np.unique(strata):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        if len(members) < parts:
            rare += 1
            continue
        start = 0
        for part, count in enumerate(_counts(len(members), shares), start=1):
            where[members[start : start + count]] = part
            start += count
    notes = _notes(len(whole), len(unique), rare)
    placed = where[group.reshape(-1)]
    if any(not (placed == part).any() for part in range(parts)):
        raise UserError(
            key,
            f"{len(whole)} samples in classes of at most {int(np.unique(strata, return_counts=True)[1].max())}",
            f"at least one class of {parts} distinct samples, so that no split is empty",
        )
    return [whole.subset(torch.from_numpy(np.flatnonzero(placed == part))) for part in range(parts)], notes


def complete(
    given: dict[str, Split],
    *,
    stratify: bool,
    validation_share: float,
    test_share: float,
    seed: int,
    key: str = "data",
) -> tuple[Splits, list[str]]:
    """The three splits: those that are given, and the missing ones cut from the training samples; with notes."""
    if "train" not in given:
        raise UserError(key, f"only {', '.join(given) or 'nothing'}", "at least training samples")
    for name, split in given.items():
        if not len(split):
            raise UserError(f"{key} {name}", "no samples", "at least one sample")
    shares = {"validation": validation_share, "test": test_share}
    missing = [name for name in NAMES[1:] if name not in given]
    whole, notes = dict(given), list[str]()
    if missing:
        parts, notes = partition(
            given["train"], stratify=stratify, shares=[shares[name] for name in missing], seed=seed, key=key
        )
        whole.update(zip(["train", *missing], parts))
        notes.insert(0, f"cut {' and '.join(missing)} from the training samples with seed {seed}")
    notes += _shared(whole)
    sizes = ", ".join(f"{len(whole[name])} {name}" for name in NAMES)
    return Splits(whole["train"], whole["validation"], whole["test"]), [*notes, f"samples: {sizes}"]


def check_shares(shares: Sequence[float]) -> None:
    """Refuse shares of the data that are no shares."""
    for share in shares:
        if not (isinstance(share, (int, float)) and 0 < share < 1):
            raise UserError("share of the data", share, "a number between 0 and 1")
    if sum(shares) >= 1:
        raise UserError(
            "share of the data", f"{sum(shares):g} held out", "less than 1, so that training samples are left"
        )


def _counts(members: int, shares: Sequence[float]) -> list[int]:
    """How many of a class go to each held-out part: at least one, and never all."""
    counts = [max(1, round(members * share)) for share in shares]
    while sum(counts) >= members:
        counts[int(np.argmax(counts))] -= 1
    return counts


def _notes(samples: int, unique: int, rare: int) -> list[str]:
    notes = []
    if unique < samples:
        notes.append(f"{samples - unique} samples are duplicates of others; each stays in one split with its double")
    if rare:
        notes.append(f"{rare} classes have too few distinct samples for every split and are only in training")
    return notes


def _shared(splits: dict[str, Split]) -> list[str]:
    notes = []
    train = set(splits["train"].id.tolist())
    for name in NAMES[1:]:
        again = sum(number in train for number in splits[name].id.tolist())
        if again:
            share = math.ceil(100 * again / len(splits[name]))
            notes.append(f"{again} {name} samples ({share} %) also stand in training: their results flatter")
    return notes
