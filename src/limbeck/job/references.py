"""From what a user gave for teacher, student and data to networks and samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from limbeck import testbeds
from limbeck.data.images import ImageFormat, decoded, open_image
from limbeck.data.references import DataSet
from limbeck.data.split import Split, Splits
from limbeck.errors import UserError
from limbeck.job.served import Address, ServedTeacher, is_served
from limbeck.job.settings import Settings
from limbeck.job.teachers import teacher_references
from limbeck.models.chat_input import ChatInput
from limbeck.models.compare import compare_tokenizers
from limbeck.models.hf import own_tokenizer
from limbeck.models.hf_networks import text_length, text_network
from limbeck.models.network import Network, TensorInput, embed, image_format_of
from limbeck.models.plain import PlainSaver
from limbeck.models.references import load_network
from limbeck.signals import run_network
from limbeck.testbeds.code_search import CodeSearch

if TYPE_CHECKING:
    from limbeck.job.plan import Plan
    from limbeck.job.progress import Progress


def as_data(settings: Settings, load: Callable[..., DataSet]) -> DataSet:
    """The data: a reference, or a :class:`DataSet` as it is."""
    if isinstance(settings.data, DataSet):
        return settings.data
    if not isinstance(settings.data, str):
        raise UserError("data", type(settings.data).__name__, "a reference or a DataSet")
    return load(
        settings.data, task=settings.task, columns=settings.columns or None, seed=settings.seed,
        allow_py=settings.allow_py, on_corrupt=settings.on_corrupt, testbeds=testbed_data,
    )  # fmt: skip


def as_networks(settings: Settings, task: str, data: DataSet) -> tuple[dict[str, Network], Network]:
    """The teachers by name, in their order, and the student."""
    given = teacher_references(settings.teacher)
    if any(map(is_served, given.values())):
        teacher, student = _served(settings, list(given.values()), task, data)
        return {"": teacher}, student
    teachers = {name: as_network(replace(settings, teacher=one), "teacher", task, data) for name, one in given.items()}
    first = next(iter(teachers.values()))
    return teachers, as_network(settings, "student", task, data, teacher=first, labels=data.labels or first.labels)


def _served(settings: Settings, given: list[Any], task: str, data: DataSet) -> tuple[Network, Network]:
    """A teacher behind a server, and the student, whose tokenizer and chat template read the data.

    With a ``tokenizer`` in the reference that one does, where its tokens are the student's.
    """
    if len(given) > 1:
        raise UserError("teacher", given, "one, where it is behind a server")
    if task != "causal-lm":
        raise UserError("teacher", given[0], "a network that is here, for this task", "servers are for causal-lm")
    if settings.teacher_precision != "auto":
        raise UserError("teacher_precision", settings.teacher_precision, "auto", "a server computes in its own")
    address = Address.parse(given[0], "teacher")
    if str(settings.student).startswith(("slice:", "width:")):
        hint = "the layers of a teacher behind a server are not here"
        raise UserError("student", settings.student, "a network of its own, such as hf:FOLDER", hint)
    tokenizer = own_tokenizer(address.tokenizer, "teacher tokenizer") if address.tokenizer else None
    lender = None
    if tokenizer is not None:
        prepare = ChatInput(tokenizer, text_length(None, tokenizer, settings.max_length))
        lender = ServedTeacher(address, given[0], tokenizer, prepare)
    student = as_network(settings, "student", task, data, teacher=lender)
    if lender is not None and student.tokenizer is not tokenizer:
        # Refused here, before the reading of the data hides that the student's own tokens are others.
        compare_tokenizers(lender, student)
        read = text_network(student.module, task, tokenizer, settings.max_length)
        student = replace(read, reference=student.reference, pretrained=student.pretrained, notes=student.notes)
    return ServedTeacher(address, given[0], student.tokenizer, student.prepare), student


def as_network(
    settings: Settings,
    key: str,
    task: str,
    data: DataSet,
    *,
    teacher: Network | None = None,
    labels: Sequence[str] | None = None,
) -> Network:
    """The teacher or the student: a reference, a network of your own, or a :class:`Network` as it is."""
    given: Any = getattr(settings, key)
    if isinstance(given, Network):
        return given
    if isinstance(given, nn.Module):
        return _own(given, task, type(given).__name__, data, teacher)
    if not isinstance(given, str):
        raise UserError(key, type(given).__name__, "a reference, an nn.Module or a Network")
    if given.startswith("testbed:"):
        return _of_testbed(given, key, task, data, settings)
    return load_network(
        given, task=task, key=key, allow_py=settings.allow_py, labels=labels, teacher=teacher,
        max_length=settings.max_length, sample=data.splits.train.input[0],  # type: ignore[index]
        samples=data.splits.train.input,
    )  # fmt: skip


def _own(module: nn.Module, task: str, reference: str, data: DataSet, like: Network | None = None) -> Network:
    """A bare network: it reads what the teacher reads, or tensors."""
    prepare: Any = like.prepare if like is not None else _reader(data)
    network = Network(
        module, embed if task == "embedding" else run_network, data.modality, task, prepare,
        like.preprocessing if like is not None else {"kind": data.modality, **prepare.describe()}, reference,
        PlainSaver({"reference": reference}), like.tokenizer if like is not None else None,
        num_classes=data.num_classes if task == "classification" else None,
    )  # fmt: skip
    network.targets = like.targets if like is not None else None
    return network


def _reader(data: DataSet) -> ImageFormat | TensorInput:
    """How a bare network is given its samples: tensors as they are, images of the first one's size from 0 to 1."""
    if data.modality != "image":
        return TensorInput()
    picture = open_image(data.splits.train.input[0])  # type: ignore[index]
    channels = 1 if picture.mode in ("1", "L", "I;16") else 3
    size = (picture.height, picture.width)
    return ImageFormat(size, size, "stretch", "bilinear", (0.0,) * channels, (1.0,) * channels)


def _of_testbed(reference: str, key: str, task: str, data: DataSet, settings: Settings) -> Network:
    bed = testbeds.load(reference.partition(":")[2])
    if isinstance(bed, CodeSearch):
        network = load_network(
            f"hf:{bed.teacher_folder()}", task=task, key=key, max_length=settings.max_length or bed.plan.max_length
        )
        network.reference = reference
        return network
    module = bed.teacher() if key == "teacher" else bed.student(settings.seed)
    return _own(module, task, reference, data)


def testbed_data(reference: str) -> DataSet:
    """The samples of a testbed, with its pairs where it is about retrieval."""
    bed = testbeds.load(reference)
    splits = bed.splits()
    why, hashes = "the testbed's task", bed.data_hashes()
    if isinstance(splits.train.input, Tensor):
        return DataSet(
            splits, "tensor", "classification", why,
            num_classes=bed.num_classes, name=bed.reference, fingerprint=hashes,
        )  # fmt: skip
    pairs = {part: _pairs(getattr(splits, part)) for part in ("train", "validation", "test")}
    return DataSet(splits, "text", "embedding", why, name=bed.reference, fingerprint=hashes, pairs=pairs)


def _pairs(split: Split) -> tuple[list[str], list[str]]:
    half, texts = len(split) // 2, list(split.input)
    return texts[:half], texts[half:]


def keep_decoded(plan: Plan, progress: Progress) -> None:
    """Decode small image sets once instead of in every batch, where teacher and student see the same pixels."""
    formats = [image_format_of(network) for network in (plan.teacher, plan.student)]
    known = [image_format for image_format in formats if image_format is not None]
    if plan.data.modality != "image" or len(known) < len(formats):
        return
    parts = {name: getattr(plan.data.splits, name) for name in ("train", "validation", "test")}
    with progress.bar("decoding images", sum(map(len, parts.values()))) as advance:
        done = 0
        for name, split in parts.items():
            parts[name] = decoded(split, known, progress=_after(done, advance))
            done += len(split)
    plan.data = replace(plan.data, splits=Splits(**parts))


def _after(before: int, advance: Callable[[int], None]) -> Callable[[int, int], None]:
    return lambda here, _: advance(before + here)
