"""The plan of a distillation: what the user said, and for everything else a choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.references import DataSet, load_data
from limbeck.data.split import input_length
from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.job.references import as_data, as_network
from limbeck.job.settings import Settings
from limbeck.measure import parameters
from limbeck.models.references import Network, compare_labels, compare_tokenizers
from limbeck.objectives import Objective
from limbeck.objectives.text import parse_objective

#: What decides whether a student is any good, by task: a measure, and whether more is better.
PRIMARY = {
    "classification": ("accuracy", True),
    "regression": ("mse", False),
    "embedding": ("cosine", True),
    "features": ("feature_mse", False),
    "causal-lm": ("perplexity", False),
}
# Presentations of training samples that were enough in our own trials; more helps little, fewer shows.
_SAMPLES = {"pretrained": 60_000, "new": 300_000}


@dataclass(frozen=True)
class Choice:
    """One line of the plan."""

    key: str
    value: str
    reason: str

    def plain(self) -> dict[str, str]:
        """For JSON."""
        return {"key": self.key, "value": self.value, "reason": self.reason}


@dataclass
class Plan:
    """Everything that a run needs, resolved."""

    settings: Settings
    task: str
    teacher: Network
    student: Network
    data: DataSet
    objective: Objective
    optimizer: OptimizerSettings
    batch_size: int
    epochs: int
    cached: bool
    augment: bool
    baseline: str
    precision: str
    teacher_bfloat16: bool
    student_taps: dict[str, str] = field(default_factory=dict)
    teacher_taps: dict[str, str] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * math.ceil(len(self.data.splits.train) / self.batch_size)

    @property
    def primary(self) -> tuple[str, bool]:
        """The measure that decides, and whether more is better."""
        if self.task == "embedding" and self.data.pairs:
            return "recall@10", True
        return PRIMARY[self.task]


def make_plan(settings: Settings) -> Plan:
    """Resolve references, check that they fit together, and choose what was left open.

    Everything that can be known to be wrong is refused here, before any long work.
    """
    settings.check()
    choices: list[Choice] = []
    choose = _Chooser(choices)
    data = as_data(settings, load_data)
    task, why = _task(settings, data)
    choose("task", task, why, settings.task)
    teacher = as_network(settings, "teacher", task, data)
    labels = data.labels or teacher.labels
    student = as_network(settings, "student", task, data, teacher=teacher, labels=labels)
    for note in data.notes:
        choices.append(Choice("data", data.name, note))
    _check_fit(task, teacher, student, data, choices)

    text, why = _objective(task, teacher, student, data)
    objective = parse_objective(settings.objective or text)
    choose("objective", settings.objective or text, why, settings.objective)
    student_taps, teacher_taps = _taps(task, settings, choose)
    batch_size, why = _batch_size(data, settings)
    choose("batch_size", batch_size, why, settings.batch_size)
    pretrained = student.pretrained
    lr, why = _learning_rate(student, settings)
    choose("lr", lr, why, settings.lr)
    epochs, why = _epochs(len(data.splits.train), pretrained, settings)
    choose("epochs", epochs, why, settings.epochs)
    augment, why = _augment(data, task, pretrained, settings)
    choose("augment", augment, why, settings.augment)
    cached, why = _cached(task, augment, epochs, objective, settings)
    choose("teacher signals", "cached" if cached else "live", why, settings.cache)
    baseline, why = _baseline(task, data, settings)
    choose("baseline", baseline, why, None if settings.baseline == "auto" else settings.baseline)
    precision, why = _precision(settings, student)
    choose("precision", precision, why, None if settings.precision == "auto" else settings.precision)
    bfloat16, why = _teacher_precision(settings, teacher, cached)
    given = None if settings.teacher_precision == "auto" else settings.teacher_precision
    choose("teacher precision", "bfloat16" if bfloat16 else "float32", why, given)
    optimizer = OptimizerSettings(settings.optimizer, lr, settings.weight_decay, settings.schedule, settings.warmup)
    return Plan(
        settings,
        task,
        teacher,
        student,
        data,
        objective,
        optimizer,
        batch_size,
        epochs,
        cached,
        augment,
        baseline,
        precision,
        bfloat16,
        student_taps,
        teacher_taps,
        choices,
    )


class _Chooser:
    def __init__(self, choices: list[Choice]) -> None:
        self.choices = choices

    def __call__(self, key: str, value: object, reason: str, given: object = None) -> None:
        self.choices.append(Choice(key, str(value), "as given" if given is not None else reason))


def _task(settings: Settings, data: DataSet) -> tuple[str, str]:
    if settings.task is not None:
        return settings.task, "as given"
    if data.task is None:
        raise UserError("task", "not given, and the data leave it open", ", ".join(PRIMARY))
    return data.task, data.task_reason


def _check_fit(task: str, teacher: Network, student: Network, data: DataSet, choices: list[Choice]) -> None:
    roles = {"teacher": teacher, "student": student}
    for role, network in roles.items():
        if data.modality != network.modality and "tensor" not in (data.modality, network.modality):
            raise UserError(role, f"a network for {network.modality}s", f"one for the data's {data.modality}s")
    if len(data.splits.train) < 2:
        raise UserError("data", f"{len(data.splits.train)} training samples", "at least 2")
    notes = []
    if task == "classification":
        names = data.labels if data.labels is not None else data.num_classes
        notes = [compare_labels(network, names, key=f"{role} labels") for role, network in roles.items()]
    if task == "causal-lm":
        notes = [compare_tokenizers(teacher, student)]
    choices += [
        Choice("labels" if task == "classification" else "tokenizer", "matched", note) for note in notes if note
    ]
    if not any(parameter.requires_grad for parameter in student.module.parameters()):
        raise UserError("student", student.reference, "a network with trainable weights", "pt2 files can only teach")


def _objective(task: str, teacher: Network, student: Network, data: DataSet) -> tuple[str, str]:
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


def _taps(task: str, settings: Settings, choose: _Chooser) -> tuple[dict[str, str], dict[str, str]]:
    student, teacher = dict(settings.student_taps), dict(settings.teacher_taps)
    if task == "features":
        for taps in (student, teacher):
            taps.setdefault("embedding", "last_stage")
        choose(
            "taps",
            f"{student['embedding']} / {teacher['embedding']}",
            "the end of each network's stack of blocks",
            settings.student_taps or None,
        )
    return student, teacher


def _batch_size(data: DataSet, settings: Settings) -> tuple[int, str]:
    if settings.batch_size is not None:
        return min(settings.batch_size, len(data.splits.train)), "as given"
    usual = 32 if data.modality == "text" else 64
    few = max(1, len(data.splits.train) // 10)
    if few < usual:
        return max(few, 2), "at least ten steps per epoch on few samples"
    return usual, f"a usual size for {data.modality}s"


def _learning_rate(student: Network, settings: Settings) -> tuple[float, str]:
    if settings.lr is not None:
        return settings.lr, "as given"
    if student.pretrained:
        large = parameters(student.module)["parameters"] > 50_000_000
        return (1e-4 if large else 5e-4), "pretrained weights that have to find together again"
    return 2e-3, "weights that start from chance"


def _epochs(samples: int, pretrained: bool, settings: Settings) -> tuple[int, str]:
    if settings.epochs is not None:
        return settings.epochs, "as given"
    wanted = _SAMPLES["pretrained" if pretrained else "new"]
    epochs = max(2, min(100, round(wanted / samples)))
    return epochs, f"about {wanted:,} presentations of {samples:,} samples"


def _augment(data: DataSet, task: str, pretrained: bool, settings: Settings) -> tuple[bool, str]:
    if settings.augment is not None:
        if settings.augment and data.modality != "image":
            raise UserError("augment", True, "images only", f"these data are {data.modality}s")
        return settings.augment, "as given"
    return False, "one teacher pass serves every epoch"


def _cached(task: str, augment: bool, epochs: int, objective: Objective, settings: Settings) -> tuple[bool, str]:
    if settings.cache == "off":
        return False, "as given"
    if not objective.needs.teacher:
        return False, "the objective needs no teacher"
    if augment:
        return False, "augmented views are new every epoch"
    if task == "causal-lm":
        return False, "full vocabularies are too large to keep"
    return True, f"the teacher answers once for {epochs} epochs"


def _baseline(task: str, data: DataSet, settings: Settings) -> tuple[str, str]:
    if settings.baseline != "auto":
        if settings.baseline == "trained" and not _can_train_alone(task, data):
            raise UserError("baseline", "trained", ("untrained", "none"), "the data have no targets to train on alone")
        return settings.baseline, "as given"
    if _can_train_alone(task, data):
        return "trained", "the same student, data and steps without a teacher"
    return "untrained", "without a teacher these data have nothing to train on"


def _can_train_alone(task: str, data: DataSet) -> bool:
    if task == "embedding":
        return bool(data.pairs and "train" in data.pairs)
    return task == "causal-lm" or (task in ("classification", "regression") and data.splits.train.target is not None)


def _precision(settings: Settings, student: Network) -> tuple[str, str]:
    if settings.precision != "auto":
        return settings.precision, "as given"
    if student.modality == "text" and _fast_bfloat16():
        return "bf16-mixed", "this machine multiplies bfloat16 faster; weights and losses stay float32"
    return "32-true", "plain and safe"


def _teacher_precision(settings: Settings, teacher: Network, cached: bool) -> tuple[bool, str]:
    if settings.teacher_precision != "auto":
        return settings.teacher_precision == "bfloat16", "as given"
    if teacher.modality == "text" and _fast_bfloat16() and not isinstance(teacher.module, torch.fx.GraphModule):
        return True, "halves the teacher's time; the cache keeps float16"
    return False, "plain and safe"


def _fast_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())


def example_inputs(network: Network, inputs: Any, count: int) -> Tensor | Mapping[str, Tensor]:
    """The first ``count`` samples, prepared for a network."""
    count = min(count, input_length(inputs))
    raw = inputs[:count] if not isinstance(inputs, Mapping) else {k: v[:count] for k, v in inputs.items()}
    prepared: Tensor | Mapping[str, Tensor] = network.prepare(raw)
    return prepared


def frozen_copy(module: nn.Module) -> dict[str, Tensor]:
    """A network's present weights, kept apart."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
