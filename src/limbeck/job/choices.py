"""What a plan chooses where the user said nothing, each with its reason."""

from __future__ import annotations

import torch

from limbeck.data.references import DataSet
from limbeck.errors import UserError
from limbeck.job.settings import Settings
from limbeck.job.teachers import SignalChoice
from limbeck.measure import parameters
from limbeck.models.network import Network
from limbeck.objectives import Objective

# Presentations of training samples that were enough in our own trials; more helps little, fewer shows.
_SAMPLES = {"pretrained": 60_000, "new": 300_000}


def objective(task: str, teacher: Network, student: Network, data: DataSet) -> tuple[str, str]:
    """What is compared, by task."""
    if task == "classification":
        if data.splits.train.target is None:
            return "kl(temperature=4)", "no labels: the teacher is the only source"
        return "0.1 * cross_entropy + 0.9 * kl(temperature=4)", "the usual balance of labels and teacher"
    if task == "regression":
        if data.splits.train.target is None:
            return 'feature_mse(student="logits", teacher="logits")', "no targets: the teacher is the only source"
        return (
            '0.5 * target_mse + 0.5 * feature_mse(student="logits", teacher="logits")',
            "half target, half teacher, which averages the targets' noise away",
        )
    if task == "embedding":
        if teacher.width is not None and teacher.width == student.width:
            return "cosine", "embeddings of one width can be met directly"
        return "similarity", "embeddings of different widths: neighbours are kept instead of positions"
    if task == "features":
        return "feature_mse", "features are met through a projector where their shapes differ"
    return "0.1 * cross_entropy + 0.9 * kl(temperature=1)", "token by token, with a little of the text itself"


def batch_size(data: DataSet) -> tuple[int, str]:
    """Samples per step."""
    usual = 32 if data.modality == "text" else 64
    few = max(1, len(data.splits.train) // 10)
    if few < usual:
        return max(few, 2), "at least ten steps per epoch on few samples"
    return usual, f"a usual size for {data.modality}s"


def learning_rate(student: Network) -> tuple[float, str]:
    """At its height."""
    if student.pretrained:
        large = parameters(student.module)["parameters"] > 50_000_000
        return (1e-4 if large else 5e-4), "pretrained weights that have to find together again"
    return 2e-3, "weights that start from chance"


def epochs(samples: int, student: Network) -> tuple[int, str]:
    """Passes over the training samples."""
    wanted = _SAMPLES["pretrained" if student.pretrained else "new"]
    return max(2, min(100, round(wanted / samples))), f"about {wanted:,} presentations of {samples:,} samples"


def augmentation() -> tuple[bool, str]:
    """Whether images are flipped and cropped."""
    return False, "one teacher pass serves every epoch"


def signals(
    asked: SignalChoice | None, augment: bool, epochs: int, objective: Objective, settings: Settings
) -> tuple[SignalChoice, str]:
    """Where the teacher's signals come from, of any task but causal-lm."""
    why = {
        "the objective needs no teacher": not objective.needs.teacher,
        "augmented views are new every epoch": augment and settings.views is None,
    }
    live = next((reason for reason, holds in why.items() if holds), None)
    if live is not None and (settings.cache not in (None, "off") or (asked is not None and asked.cached)):
        raise UserError("cache", settings.cache or str(asked), "off", live)
    if asked is not None:
        return asked, "as given"
    if live is not None:
        return SignalChoice("live"), live
    views = "" if settings.views is None else f", {settings.views} views of every sample"
    return SignalChoice("cache"), f"the teacher answers once for {epochs} epochs{views}"


def baseline(task: str, data: DataSet) -> tuple[str, str]:
    """What the student is compared with."""
    if can_train_alone(task, data):
        return "trained", "the same student, data and steps without a teacher"
    return "untrained", "without a teacher these data have nothing to train on"


def can_train_alone(task: str, data: DataSet) -> bool:
    """Whether the data teach something without a teacher."""
    if task == "embedding":
        return bool(data.pairs and "train" in data.pairs)
    return task == "causal-lm" or (task in ("classification", "regression") and data.splits.train.target is not None)


def precision(student: Network) -> tuple[str, str]:
    """Of training, as Lightning writes it."""
    if student.modality == "text" and _fast_bfloat16():
        return "bf16-mixed", "this machine multiplies bfloat16 faster; weights and losses stay float32"
    return "32-true", "plain and safe"


def teacher_precision(teacher: Network) -> tuple[str, str]:
    """Of the teacher's answers."""
    if teacher.modality == "text" and _fast_bfloat16() and not isinstance(teacher.module, torch.fx.GraphModule):
        return "bfloat16", "halves the teacher's time; the cache keeps float16"
    return "float32", "plain and safe"


def _fast_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())
