"""Things that are tensors and a few texts, each in one safetensors file that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.data.store import locked, written_aside
from limbeck.errors import UserError, first_line


@dataclass(frozen=True)
class TensorFile:
    """One kind of file.

    Attributes:
        what: the thing's name in errors.
        format: the kind's name in the file.
        writer: what writes such files, for errors.
    """

    what: str
    format: str
    writer: str

    def write(self, path: str | Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Path:
        """Write a file; the old one stays until the new one is whole."""
        file = Path(path)
        content = {name: value.contiguous() for name, value in tensors.items()}
        with locked(f"{self.format}-{file.name}"), written_aside(file) as aside:
            save_file(content, aside, {"format": self.format, **texts})
        return file

    def read(self, path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and texts of a file.

        Raises:
            UserError: no file, or not one of this kind.
        """
        try:
            with safe_open(path, "pt") as file:
                texts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(self.what, str(path), f"a file that {self.writer} wrote", first_line(error)) from error
        if texts.get("format") != self.format:
            raise UserError(self.what, str(path), f"a file of the format {self.format}")
        return tensors, texts
