"""Network references such as ``hf:./classifier`` and ``slice:layers=0,5``: from a reference to a :class:`Network`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.models.compare import compare_labels, compare_tokenizers
from limbeck.models.network import Network, TensorInput, TextInput, parse_options

SCHEMES = {
    "hf": "hf:NAME_OR_FOLDER of transformers or sentence-transformers",
    "timm": "timm:NAME[,pretrained_file=FILE] or timm:FOLDER",
    "pt2": "pt2:FILE of torch.export",
    "py": "py:PACKAGE.MODULE:CALLABLE, with --allow-py",
    "small": "small:FOLDER of a student that was small: itself",
}
STUDENT_SCHEMES = {
    **SCHEMES,
    "slice": "slice:layers=0,2,5, layers=even:3 or layers=important:3, some layers of the teacher",
    "width": "width:hidden_size=192, a narrower copy of the teacher",
    "small": "small:cnn_16k and the like, small networks from scratch, or small:FOLDER",
}
TASKS = ("classification", "regression", "embedding", "features", "causal-lm")


@dataclass(frozen=True)
class Wanted:
    """What was asked of :func:`load_network`, handed to the reader of one scheme."""

    rest: str
    reference: str
    task: str | None
    key: str
    labels: list[str] | None
    teacher: Network | None
    max_length: int | None
    sample: Any
    allow_py: bool
    samples: Any = None

    @property
    def path(self) -> Path:
        """The rest of the reference as a path."""
        return Path(self.rest).expanduser()

    @property
    def num_classes(self) -> int | None:
        """How many classes a new head gets."""
        if self.labels is not None:
            return len(self.labels)
        return self.teacher.num_classes if self.teacher is not None else None

    @property
    def student(self) -> bool:
        """Whether the network is to learn."""
        return self.key == "student"


def load_network(
    reference: str,
    *,
    task: str | None = None,
    key: str = "teacher",
    allow_py: bool = False,
    labels: Sequence[str] | None = None,
    teacher: Network | None = None,
    max_length: int | None = None,
    sample: Any = None,
    samples: Any = None,
) -> Network:
    """Open the network that a reference names; see ``STUDENT_SCHEMES``.

    Weights come from safetensors or through torch's loader for weights alone; a reference runs no code but ``py:``.

    Args:
        task: one of ``TASKS``; None lets the network's own configuration decide.
        key: ``teacher`` or ``student``, the option's name in error messages. A teacher must have trained weights.
        allow_py: whether ``py:`` may import and call code.
        labels: class names in order, for a student whose head is made new.
        teacher: for ``slice:`` and ``width:``, and for whatever a student leaves open (tokenizer, image size).
        max_length: longest text in tokens.
        sample: one raw sample of the data, from which ``small:`` takes the shape of its input.
        samples: of the training data, on which ``slice:layers=important:N`` measures how much every layer matters.

    Raises:
        UserError: wrong reference, task, folder or option.
        MissingExtra: a library of an optional area is needed.
    """
    scheme, rest = split_reference(reference, key)
    if task is not None and task not in TASKS:
        raise UserError("task", task, TASKS)
    if max_length is not None and max_length < 1:
        raise UserError("max_length", max_length, "1 or more")
    wanted = Wanted(
        rest,
        reference,
        task,
        key,
        list(labels) if labels is not None else None,
        teacher,
        max_length,
        sample,
        allow_py,
        samples,
    )
    network = _reader(scheme)(wanted)
    network.reference = reference
    return network


def split_reference(reference: str, key: str) -> tuple[str, str]:
    """The scheme of a reference and what stands behind it."""
    schemes = SCHEMES if key == "teacher" else STUDENT_SCHEMES
    scheme, colon, rest = reference.partition(":")
    if not colon or scheme not in schemes or not rest:
        raise UserError(key, reference, "; ".join(schemes.values()), _scheme_hint(reference, scheme, key))
    return scheme, rest


def _reader(scheme: str) -> Callable[[Wanted], Network]:
    if scheme == "hf":
        from limbeck.models.hf import read_hf

        return read_hf
    if scheme == "timm":
        from limbeck.models.timm import read_timm

        return read_timm
    if scheme == "pt2":
        from limbeck.models.exported import read_pt2

        return read_pt2
    if scheme in ("slice", "width"):
        from limbeck.models.derived import read_slice, read_width

        return read_slice if scheme == "slice" else read_width
    from limbeck.models.plain import read_py, read_small

    return read_py if scheme == "py" else read_small


def _scheme_hint(reference: str, scheme: str, key: str) -> str:
    if key == "teacher" and scheme in STUDENT_SCHEMES and scheme not in SCHEMES:
        return f"{scheme}: makes students"
    path = Path(reference).expanduser()
    if (path / "config.json").is_file():
        return f"for this folder write hf:{reference}"
    return f"for this file write pt2:{reference}" if path.suffix == ".pt2" and path.is_file() else ""


__all__ = [
    "Network", "SCHEMES", "STUDENT_SCHEMES", "TASKS", "TensorInput", "TextInput", "Wanted", "compare_labels",
    "compare_tokenizers", "load_network", "parse_options", "split_reference",
]  # fmt: skip
