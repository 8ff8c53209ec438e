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
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    made.train_from_iterator(texts, trainer)
    cls, sep = (made.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return _wrapped(tokenizer_object=made)


def open_word_pieces(path: str | Path) -> Any:
    """A tokenizer from the JSON file of the tokenizers library."""
    return _wrapped(tokenizer_file=str(path))


def _wrapped(**source: Any) -> Any:
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    kind = require("transformers", EXTRA).PreTrainedTokenizerFast
    return kind(model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names, **source)
