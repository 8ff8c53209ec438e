"""Do two networks, or a network and the data, mean the same: classes by name and order, vocabularies by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_tokenizer
from limbeck.errors import UserError
from limbeck.models.network import Network
from limbeck.signals import Batch, Forward, HeadLogits


def compare_labels(network: Network, labels: Sequence[str] | int | None, *, key: str = "teacher labels") -> str:
    """Make a network answer in the order of ``labels``; refuse one that knows other classes.

    Names are compared as they are, then without regard to case, spaces, hyphens and underscores. Where the order
    differs, ``network.forward`` is wrapped so that its logits come in the order of ``labels``, and
    ``network.labels`` follows.

    Args:
        labels: class names in order; or only their number, when the data name nothing; or None, which fits all.

    Returns:
        What was concluded, for the plan; empty when names and order agree.

    Raises:
        UserError: another number of classes, or other names.
    """
    if labels is None:
        return ""
    count = labels if isinstance(labels, int) else len(labels)
    have = network.num_classes if network.labels is None else len(network.labels)
    if have is not None and have != count:
        raise UserError(
            key, f"{have} classes{_named(network.labels)}", f"the {count} classes of the data{_named(labels)}"
        )
    if isinstance(labels, int):
        return (
            "" if network.labels is None else "the data only number their classes: taken to be in the network's order"
        )
    if network.labels is None:
        return "the network does not name its classes: taken to be in the data's order"
    permutation = match_labels(network.labels, labels, key=key)
    if permutation is None:
        return ""
    network.forward = reordered(network.forward, permutation)
    network.labels = list(labels)
    return f"the network has the same classes in another order; its logits are re-ordered to {_few(labels)}"


def match_labels(have: Sequence[str], want: Sequence[str], *, key: str = "labels") -> list[int] | None:
    """Where each wanted name stands among those that are there; None when the order is the same already."""
    places = {name: place for place, name in enumerate(have)}
    missing = [name for name in want if name not in places]
    if missing:
        loose = {_loosely(name): place for place, name in enumerate(have)}
        if len(loose) == len(have) and all(_loosely(name) in loose for name in want):
            permutation = [loose[_loosely(name)] for name in want]
        else:
            raise UserError(key, f"no class {missing[0]!r}{_named(have)}", f"the data's classes {_few(want)}")
    else:
        permutation = [places[name] for name in want]
    return None if permutation == list(range(len(have))) else permutation


def reordered(forward: Forward, permutation: Sequence[int]) -> Forward:
    """The same run with its logits re-ordered: logit ``i`` is the network's logit ``permutation[i]``."""
    index = torch.tensor(list(permutation))

    def run(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        signals = forward(model, batch)
        return {**signals, "logits": signals["logits"].index_select(-1, index.to(signals["logits"].device))}

    # Sources fingerprint a forward by its name: another order is another teacher.
    run.__qualname__ = f"{forward.__qualname__}[{','.join(map(str, permutation))}]"
    return run


def compare_tokenizers(teacher: Network, student: Network, *, key: str = "student tokenizer") -> str:
    """Make sure that two language models count tokens alike, and cut padded vocabularies to what both have.

    Embedding tables are often padded beyond the tokenizer; when the two networks' differ in that alone, both are
    made to answer for the tokenizer's own tokens only.

    Returns:
        What was concluded, for the plan; empty when there was nothing to do.

    Raises:
        UserError: the tokenizers differ in their vocabulary or in how they cut text.
    """
    ours, theirs = student.tokenizer, teacher.tokenizer
    if ours is None or theirs is None:
        who = "student" if ours is None else "teacher"
        raise UserError(key, f"a {who} without a tokenizer", "two networks with the same tokenizer")
    notes = []
    if fingerprint_tokenizer(ours) != fingerprint_tokenizer(theirs):
        difference = _difference(theirs, ours)
        if difference:
            hint = "give a student with the teacher's tokenizer, such as slice:layers=..., or distil embeddings instead"
            raise UserError(key, difference, "the teacher's vocabulary and rules", hint)
        notes.append("the tokenizers differ only in special tokens or templates")
    rows = (_vocabulary_rows(teacher), _vocabulary_rows(student))
    if rows[0] != rows[1] and None not in rows:
        size = len(theirs)
        if min(row for row in rows if row is not None) < size:
            raise UserError(
                key,
                f"{rows[1]} rows of logits, the teacher has {rows[0]}",
                f"at least the tokenizer's {size}",
            )
        for network in (teacher, student):
            network.forward = first_logits(network.forward, size)
        notes.append(f"padded vocabularies of {rows[0]} and {rows[1]} rows are compared on the {size} tokens")
    return "; ".join(notes)


def shared_vocabulary(teacher: Network, student: Network) -> int | None:
    """Tokens that both networks answer for, where one of them has padding behind its vocabulary; else None."""
    size, rows = len(student.tokenizer), (_vocabulary_rows(teacher), _vocabulary_rows(student))
    return size if any(row is not None and row > size for row in rows) else None


def first_logits(forward: Forward, size: int) -> Forward:
    """The same run with only the first ``size`` logits: the rest of a padded vocabulary means nothing."""

    def run(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        signals = forward(model, batch)
        logits: Any = signals["logits"]
        if not isinstance(logits, HeadLogits):
            return {**signals, "logits": logits[..., :size]}
        bias = None if logits.bias is None else logits.bias[:size]
        cut: Any = replace(logits, weight=logits.weight[:size], bias=bias)
        return {**signals, "logits": cut}

    run.__qualname__ = f"{forward.__qualname__}[:{size}]"
    return run


def _difference(theirs: Any, ours: Any) -> str:
    """How two tokenizers differ, in words; empty when only special tokens or templates do."""
    left, right = dict(theirs.get_vocab()), dict(ours.get_vocab())
    if left != right:
        moved = sum(left[token] != number for token, number in right.items() if token in left)
        lost, new = set(left) - set(right), set(right) - set(left)
        example = next(iter(sorted(lost | new)), None) or next(t for t in sorted(left) if left[t] != right.get(t))
        return (
            f"another vocabulary: {len(lost)} tokens are missing, {len(new)} are new, {moved} have other numbers "
            f"(for example {example!r})"
        )
    if _rules(theirs) != _rules(ours):
        return "the same vocabulary with other merges or another normaliser"
    return ""


def _rules(tokenizer: Any) -> Any:
    import json

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__qualname__
    content = json.loads(backend.to_str())
    return {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer")}


def _vocabulary_rows(network: Network) -> int | None:
    config = getattr(network.module, "config", None)
    rows = getattr(config, "vocab_size", None)
    return int(rows) if rows is not None else None


def _loosely(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " _-")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" ... ({len(names)})" if len(names) > 6 else "")


def _named(names: Sequence[str] | int | None) -> str:
    return "" if names is None or isinstance(names, int) else f" ({_few(names)})"
