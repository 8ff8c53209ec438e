"""Whether teacher, student and data fit together: networks that read the data, labels, tokenizers, augmentation."""

from __future__ import annotations

from limbeck.data.references import DataSet
from limbeck.errors import UserError
from limbeck.job.served import SCHEME
from limbeck.job.settings import Settings
from limbeck.models.references import Network, compare_labels, compare_tokenizers


def check_fit(
    settings: Settings, task: str, teacher: Network, student: Network, data: DataSet, aligned: bool
) -> list[str]:
    """Refuse networks and data that cannot work together; notes on what was made to fit.

    Tokenizers may be any where the objective compares ``aligned`` spans of text.
    """
    roles = {"teacher": teacher, "student": student}
    for role, network in roles.items():
        if data.modality != network.modality and "tensor" not in (data.modality, network.modality):
            raise UserError(role, f"a network for {network.modality}s", f"one for the data's {data.modality}s")
    if len(data.splits.train) < 2:
        raise UserError("data", f"{len(data.splits.train)} training samples", "at least 2")
    if not any(parameter.requires_grad for parameter in student.module.parameters()):
        raise UserError("student", student.reference, "a network with trainable weights", "pt2 files can only teach")
    if task == "classification":
        _check_targets(data)
        names = data.labels if data.labels is not None else data.num_classes
        found = {role: compare_labels(network, names, key=f"{role} labels") for role, network in roles.items()}
        return [f"{role}: {note}" for role, note in found.items() if note]
    # A server goes on speaking its own numbers.
    remap = not (settings.signals or "").startswith(SCHEME)
    return [compare_tokenizers(teacher, student, remap=remap)] if task == "causal-lm" and not aligned else []


def _check_targets(data: DataSet) -> None:
    for part in ("train", "validation", "test"):
        target = getattr(data.splits, part).target
        if target is None or data.num_classes is None or not len(target):
            continue
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= data.num_classes:
            allowed = f"class numbers 0 to {data.num_classes - 1}"
            raise UserError(f"data labels of {part}", low if low < 0 else high, allowed)


def checked_augment(settings: Settings, data: DataSet, teacher: Network, student: Network) -> bool | None:
    """What the user said of augmentation, where data and networks allow it."""
    if settings.augment and data.modality != "image":
        raise UserError("augment", True, "images only", f"these data are {data.modality}s")
    if (settings.augment or settings.views is not None) and teacher.preprocessing != student.preprocessing:
        key, given = ("augment", True) if settings.views is None else ("views", settings.views)
        hint = "both have to be shown the same view"
        raise UserError(key, given, "teacher and student that prepare images in one way", hint)
    if settings.views is None:
        return settings.augment
    if settings.augment is False or data.modality != "image":
        why = "augment is off" if data.modality == "image" else f"these data are {data.modality}s"
        raise UserError("views", settings.views, "images, which are augmented", why)
    return True
