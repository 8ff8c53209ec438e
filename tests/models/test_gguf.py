from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.models.gguf import unpacked_gguf


def test_needs_exactly_one_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 GGUF"):
        unpacked_gguf(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match="2 GGUF"):
        unpacked_gguf(tmp_path)
