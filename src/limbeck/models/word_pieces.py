"""Word-piece tokenizers made from texts, in the class that transformers uses for its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from limbeck.errors import UserError, require
from limbeck.models.sentence import EXTRA

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_pieces(texts: Iterable[str], size: int) -> Any:
    """A lower-casing tokenizer of at most ``size`` pieces, for BERT-like networks: ``[CLS] a [SEP] b [SEP]``.

    The same texts give the same pieces, in every process.

    Returns:
        a ``PreTrainedTokenizerFast``: ``save_pretrained``, padding and truncation work as with any other.
    """
    if size <= len(SPECIAL):
        raise UserError("size", size, f"more than the {len(SPECIAL)} special tokens")
    tokenizers = require("tokenizers", EXTRA)
    texts = list(texts)
    made = _empty(tokenizers, {})
    letters = sorted(
        {letter for text in texts for letter in made.normalizer.normalize_str(text) if not letter.isspace()}
    )
    # The trainer numbers inner letters in the order of a hash table, and numbers break its ties: unless they are given.
    given = [*SPECIAL, *(f"##{letter}" for letter in letters)]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=size, special_tokens=given, show_progress=False)
    made.train_from_iterator(texts, trainer)
    # In a tokenizer of its own the inner letters are pieces like all others, and not special.
    return _wrapped(tokenizer_object=_empty(tokenizers, made.get_vocab()))


def open_word_pieces(path: str | Path) -> Any:
    """A tokenizer from the JSON file of the tokenizers library."""
    return _wrapped(tokenizer_file=str(path))


def _empty(tokenizers: Any, vocabulary: dict[str, int]) -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    numbers = {token: vocabulary.get(token, place) for place, token in enumerate(SPECIAL)}
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"]))
    return made


def _wrapped(**source: Any) -> Any:
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    kind = require("transformers", EXTRA).PreTrainedTokenizerFast
    return kind(model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names, **source)
