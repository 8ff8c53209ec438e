"""Data references such as ``csv:train.csv``: from a reference to samples in three splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from limbeck.data.partition import complete
from limbeck.data.split import Split, Splits
from limbeck.errors import UserError

SCHEMES = {
    "folder": "folder:DIR of images, a sub-folder per class",
    "parquet": "parquet:FILE_OR_DIR",
    "csv": "csv:FILE_OR_DIR",
    "jsonl": "jsonl:FILE_OR_DIR, an object per line",
    "hf": "hf:DIR written by datasets.save_to_disk, or a snapshot of a hub data set",
    "testbed": "testbed:NAME[:REGIME]",
    "py": "py:PACKAGE.MODULE:CALLABLE, with --allow-py",
}
TASKS = ("classification", "regression", "embedding", "features", "causal-lm")
ON_CORRUPT = ("error", "skip")
Pairs = tuple[list[str], list[str]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DataSet:
    """Samples with what is known about them.

    Attributes:
        splits: training, validation and test samples, not yet prepared for any network: texts (or tuples of two
            texts), paths or bytes of images, a uint8 tensor of images, or a float tensor. Targets are class numbers,
            float32 numbers, or None.
        modality: ``text``, ``image`` or ``tensor``.
        task: what the data are good for, and ``task_reason`` why that was concluded.
        labels: class names in the order of the class numbers; None when the data only number their classes.
        num_classes: how many classes there are; None where there are none.
        name: short, for reports.
        fingerprint: content hashes by what they cover.
        notes: what was decided on the way.
        pairs: for data of (query, document): queries and documents of every split, row by row; those held out
            serve a retrieval test.
    """

    splits: Splits
    modality: str
    task: str
    task_reason: str = ""
    labels: list[str] | None = None
    num_classes: int | None = None
    name: str = "data"
    fingerprint: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pairs: dict[str, Pairs] | None = None

    def describe(self) -> str:
        """One line: what there is, how much of it, and of how many classes."""
        sizes = ", ".join(f"{len(getattr(self.splits, name))} {name}" for name in ("train", "validation", "test"))
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name}: {self.modality}, {self.task}, {sizes}{classes}"


@dataclass(frozen=True)
class Request:
    """What was asked of :func:`load_data`, handed to the reader of one scheme."""

    rest: str
    reference: str
    task: str | None
    key: str
    columns: Mapping[str, str] | None
    labels: list[str] | None
    validation_share: float
    test_share: float
    seed: int
    on_corrupt: str
    allow_py: bool
    progress: Progress | None

    @property
    def path(self) -> Path:
        """The rest of the reference as a path."""
        return Path(self.rest).expanduser()

    def completed(self, given: dict[str, Split], *, stratify: bool) -> tuple[Splits, list[str]]:
        """See :func:`~limbeck.data.partition.complete`, with the shares and the seed that were asked for."""
        return complete(
            given, stratify=stratify, validation_share=self.validation_share, test_share=self.test_share,
            seed=self.seed, key=self.key,
        )  # fmt: skip


def load_data(
    reference: str,
    *,
    task: str | None = None,
    key: str = "data",
    allow_py: bool = False,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    on_corrupt: str = "error",
    testbeds: Callable[[str], DataSet] | None = None,
    progress: Progress | None = None,
) -> DataSet:
    """Open the data that a reference names; see ``SCHEMES``.

    Args:
        task: one of ``TASKS``, or None to conclude it from the data.
        key: the option's name in error messages.
        allow_py: whether ``py:`` may import and call code.
        columns: which column is ``text``, ``text_pair``, ``label`` or ``image``, where the guess is wrong.
        labels: class names in order. Without them names are sorted, and whole numbers 0, 1, ... are class numbers.
        validation_share, test_share: of the training samples, for splits that the data do not bring.
        seed: of the split.
        on_corrupt: ``error`` names images that cannot be decoded, ``skip`` leaves them out with a note.
        testbeds: opens what stands behind ``testbed:``; its room is above this one.
        progress: called with what is being done, how many are done and how many there are.

    Raises:
        UserError: the reference, its files, columns, labels or targets are wrong; nothing was trained yet.
        MissingExtra: a library of an optional area is needed.
    """
    scheme, colon, rest = reference.partition(":")
    if not colon or scheme not in SCHEMES or not rest:
        raise UserError(key, reference, "; ".join(SCHEMES.values()), _scheme_hint(reference))
    if task is not None and task not in TASKS:
        raise UserError("task", task, TASKS)
    if on_corrupt not in ON_CORRUPT:
        raise UserError("on_corrupt", on_corrupt, ON_CORRUPT)
    if labels is not None and len(set(labels)) != len(labels):
        raise UserError("labels", list(labels), "names that differ from each other")
    if scheme == "testbed":
        if testbeds is None:
            raise UserError(key, reference, "a call that knows the testbeds (load_data(..., testbeds=...))")
        return testbeds(rest)
    request = Request(
        rest, reference, task, key, columns, list(labels) if labels else None, validation_share, test_share, seed,
        on_corrupt, allow_py, progress,
    )  # fmt: skip
    return _reader(scheme)(request)


def _reader(scheme: str) -> Callable[[Request], DataSet]:
    if scheme == "folder":
        from limbeck.data.image_folder import read_image_folder

        return read_image_folder
    if scheme == "hf":
        from limbeck.data.hf_disk import read_hf

        return read_hf
    if scheme == "py":
        from limbeck.data.code import read_py

        return read_py
    from limbeck.data.samples import read_file

    return lambda request: read_file(request, scheme)


def with_notes(data: DataSet, notes: Sequence[str]) -> DataSet:
    """The same data with further notes in front."""
    return replace(data, notes=[*notes, *data.notes])


def _scheme_hint(reference: str) -> str:
    path = Path(reference.partition(":")[2] or reference).expanduser()
    if path.is_dir():
        return f"for the folder {path} write folder:{path}, hf:{path} or parquet:{path}"
    ending = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}.get(path.suffix)
    return f"for this file write {ending}:{path}" if ending and path.is_file() else ""
