"""Do two networks, or a network and the data, mean the same: classes by name and order, vocabularies by content."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_tokenizer
from limbeck.errors import UserError
from limbeck.models.network import Network
from limbeck.nn.mode import evaluating
from limbeck.signals import Batch, Forward, HeadLogits, name_output
from limbeck.tokens import added_tokens, pipeline, token_bytes, token_kind, vocabulary_size

SAME_TOKENS = "both have the same tokens under other numbers: compare_tokenizers(remap=True) lets the teacher translate"
OTHER_TOKENS = (
    "give a student with the teacher's tokenizer, such as slice:layers=...; or keep both and train on aligned spans, "
    "with an objective such as cross_entropy + likelihood_matching or universal_logit_distance (from Python "
    "SequenceDistiller(retokenizer=...)); or distil embeddings"
)


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


def compare_tokenizers(
    teacher: Network, student: Network, *, remap: bool = False, key: str = "student tokenizer"
) -> str:
    """Make sure that two language models mean the same by every token, and cut padded vocabularies to what both have.

    Tokenizers are compared by content: the bytes of every id, the merges and rules that cut text, special tokens and
    chat template. Embedding tables are often padded beyond the tokenizer, to a multiple of 64 say: whoever has such
    rows is made to answer for the tokenizer's own tokens only, so that the padding gets no mass. (Nobody trains those
    rows then. Cut them off a student that starts at random: ``resize_token_embeddings``.)

    Args:
        remap: where both have the same tokens under other numbers, let the teacher translate: a copy of it takes the
            student's ids and gives its logits in the student's order (:func:`renumber`).

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
        difference = tokenizer_difference(theirs, ours)
        permutation = match_tokens(theirs, ours) if difference else None
        if permutation is not None and remap:
            renumber(teacher, permutation, student)
            notes.append("both have the same tokens under other numbers; the teacher translates")
        elif difference:
            options = SAME_TOKENS if permutation is not None else OTHER_TOKENS
            raise UserError(key, difference, "the teacher's vocabulary and rules", options)
        else:
            differing = ", ".join(_markers(theirs, ours))
            notes.append(f"the tokenizers differ only in special tokens or templates: {differing}")
    size, rows = vocabulary_size(ours), (_vocabulary_rows(teacher), _vocabulary_rows(student))
    if any(row is not None and row < size for row in rows):
        raise UserError(key, f"{rows[1]} rows of logits, the teacher has {rows[0]}", f"at least the tokenizer's {size}")
    padded = [network for network, row in zip((teacher, student), rows, strict=True) if row is not None and row > size]
    for network in padded:
        network.forward = first_logits(network.forward, size)
    if padded:
        notes.append(f"padded vocabularies of {rows[0]} and {rows[1]} rows are compared on the {size} tokens")
    return "; ".join(notes)


def tokenizer_difference(theirs: Any, ours: Any) -> str:
    """How two tokenizers differ in what their ids mean or in how they cut text, in words.

    Empty when they agree in that, whatever their special tokens and templates are.
    """
    left, right = _content(theirs), _content(ours)
    if left != right:
        numbers, others = ({what: number for number, what in side.items()} for side in (left, right))
        lost, new = numbers.keys() - others.keys(), others.keys() - numbers.keys()
        moved = [what for what, number in numbers.items() if others.get(what, number) != number]
        example = _shown(min(lost | new, default=None) or min(moved, default=None))
        return (
            f"another vocabulary: {len(lost)} tokens are missing, {len(new)} are new, {len(moved)} have other numbers"
            f"{example}"
        )
    if _rules(theirs) != _rules(ours):
        return "the same vocabulary with other merges or another normaliser"
    return ""


def match_tokens(theirs: Any, ours: Any) -> list[int] | None:
    """For every id of ``ours`` the id of the same token in ``theirs``; None where one has what the other lacks.

    Both must also cut text alike.
    """
    left, right = _content(theirs), _content(ours)
    numbers = {what: number for number, what in left.items()}
    if len(numbers) != len(left) or len(set(right.values())) != len(right) or numbers.keys() != set(right.values()):
        return None
    if _rules(theirs) != _rules(ours) or sorted(right) != list(range(len(right))):
        return None
    return [numbers[right[number]] for number in range(len(right))]


def renumber(network: Network, numbers: Sequence[int], like: Network) -> None:
    """Let a language model of transformers speak the tokens of ``like``: what it called ``numbers[i]`` is token ``i``.

    The rows of its embedding and of its head are re-ordered in a copy, so that everything else (heads run in chunks,
    cached states, generation) needs to know nothing of it; rows of padding stay behind.

    Raises:
        UserError: it does not work on one short text, since the model knows its tokens by another table too.
    """
    before = network.module
    module: Any = copy.deepcopy(before)
    tables: list[Any] = [getattr(module, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    known = [table.weight for table in tables if table is not None and hasattr(table, "weight")]
    known += [table.bias for table in tables if getattr(table, "bias", None) is not None]
    rows = min((len(weight) for weight in known), default=0)
    order = torch.tensor([*numbers, *sorted(set(range(rows)) - set(numbers))])
    # Tied tables are one tensor.
    for weight in {id(weight): weight for weight in known}.values():
        weight.data.copy_(weight.data[order.to(weight.device)])
    few = torch.arange(min(len(numbers), 8), device=known[0].device if known else None)[None]
    with evaluating(before), evaluating(module), torch.no_grad():
        want = name_output(before(input_ids=order.to(few.device)[few]))["logits"].index_select(-1, order.to(few.device))
        found = name_output(module(input_ids=few))["logits"]
    if not torch.allclose(found, want, rtol=1e-3, atol=1e-3):
        raise UserError("teacher", type(before).__name__, "a model whose tokens are the rows of embedding and head")
    network.module, network.tokenizer = module, like.tokenizer
    network.prepare, network.preprocessing = like.prepare, like.preprocessing


def shared_vocabulary(teacher: Network, student: Network) -> int | None:
    """Tokens that both networks answer for, where one of them has padding behind its vocabulary; else None."""
    size, rows = vocabulary_size(student.tokenizer), (_vocabulary_rows(teacher), _vocabulary_rows(student))
    return size if any(row is not None and row > size for row in rows) else None


def first_logits(forward: Forward, size: int) -> Forward:
    """The same run with only the first ``size`` logits: the rest of a padded vocabulary means nothing."""

    def run(model: nn.Module, batch: Batch) -> dict[str, Any]:
        signals = forward(model, batch)
        logits: Any = signals["logits"]
        if not isinstance(logits, HeadLogits):
            return {**signals, "logits": logits[..., :size]}
        bias = None if logits.bias is None else logits.bias[:size]
        cut: Any = replace(logits, weight=logits.weight[:size], bias=bias)
        return {**signals, "logits": cut}

    run.__qualname__ = f"{forward.__qualname__}[:{size}]"
    return run


def _content(tokenizer: Any) -> dict[int, tuple[bytes, str]]:
    """What every id stands for: its bytes, and what kind of token writes them."""
    if not hasattr(getattr(tokenizer, "backend_tokenizer", tokenizer), "to_str"):
        return {number: (token.encode(), "") for token, number in tokenizer.get_vocab().items()}
    added, kind = added_tokens(tokenizer), token_kind(tokenizer)
    words = tokenizer.get_vocab()
    table = token_bytes(tokenizer)

    def sort(token: str, number: int) -> str:
        if number in added:
            return "added"
        # SentencePiece may have a letter as a token and as a byte; WordPiece inside a word and at its beginning.
        return kind if token.startswith(("<0x", "##")) and kind in ("sentencepiece", "wordpiece") else ""

    return {number: (table[number] or b"", sort(token, number)) for token, number in words.items()}


def _shown(what: tuple[bytes, str] | None) -> str:
    return "" if what is None else f" (for example {what[0].decode(errors='backslashreplace')!r})"


def _rules(tokenizer: Any) -> Any:
    if not hasattr(getattr(tokenizer, "backend_tokenizer", tokenizer), "to_str"):
        return type(tokenizer).__qualname__
    content = pipeline(tokenizer)
    model = {key: value for key, value in (content.get("model") or {}).items() if key != "vocab"}
    if isinstance(content["model"].get("vocab"), list):
        # Unigram: a token's score decides how text is cut.
        model["scores"] = sorted((str(token), score) for token, score in content["model"]["vocab"])
        model.pop("unk_id", None)
    return model, content.get("normalizer"), content.get("pre_tokenizer")


def _markers(theirs: Any, ours: Any) -> list[str]:
    """Which special tokens and templates differ."""
    left, right = (dict(getattr(side, "special_tokens_map", None) or {}) for side in (theirs, ours))
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    if getattr(theirs, "chat_template", None) != getattr(ours, "chat_template", None):
        names.append("chat_template")
    return names or ["what is added around a text"]


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
