"""The plan of a distillation: what the user said, and for everything else a choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.references import DataSet, load_data
from limbeck.data.split import input_length
from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.job.language import Language, heads_in_chunks, read_language
from limbeck.job.references import as_data, as_network, as_teachers
from limbeck.job.settings import Settings
from limbeck.job.teachers import SignalChoice, check_teachers, language_signals, parse_signals
from limbeck.measure import parameters
from limbeck.models.compare import shared_vocabulary
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
    teachers: dict[str, Network]
    student: Network
    data: DataSet
    objective: Objective
    optimizer: OptimizerSettings
    batch_size: int
    epochs: int
    signals: SignalChoice
    augment: bool
    baseline: str
    precision: str
    teacher_bfloat16: bool
    student_taps: dict[str, str] = field(default_factory=dict)
    teacher_taps: dict[str, str] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    language: Language | None = None

    @property
    def teacher(self) -> Network:
        """The first teacher, which students are compared with."""
        return next(iter(self.teachers.values()))

    @property
    def cached(self) -> bool:
        """Whether the teacher answers once, before training."""
        return self.signals.cached

    @property
    def codec(self) -> str:
        """How a cache keeps the signals."""
        return self.settings.codec or self.signals.codec

    @property
    def drops_last(self) -> bool:
        """Whether an epoch leaves out a last batch of one sample, which has no batch statistics."""
        return len(self.data.splits.train) % self.batch_size == 1 < self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * (math.ceil(len(self.data.splits.train) / self.batch_size) - self.drops_last)

    @property
    def validates(self) -> bool:
        """Whether held-out samples say how good a student is after every epoch."""
        if self.task in ("classification", "regression"):
            return self.data.splits.validation.target is not None
        return self.task == "causal-lm" or (self.task == "embedding" and "validation" in (self.data.pairs or {}))

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
    choose = _Chooser()
    data = as_data(settings, load_data)
    task = choose("task", settings.task, _task, data)
    teachers = as_teachers(settings, task, data)
    teacher = next(iter(teachers.values()))
    labels = data.labels or teacher.labels
    student = as_network(settings, "student", task, data, teacher=teacher, labels=labels)
    choose.note("data", data.notes)
    choose.note("teacher", teacher.notes)
    choose.note("student", [note for note in student.notes if note not in teacher.notes])
    for one in teachers.values():
        choose.note("matched", _check_fit(task, one, student, data))
    language = None
    if task == "causal-lm":
        language, data, notes = read_language(
            data, student, settings.text, settings.decoding, shared_vocabulary(teacher, student)
        )
        choose.note("text", notes)
    objective = parse_objective(choose("objective", settings.objective, _objective, task, teacher, student, data))
    student_taps, teacher_taps = _taps(task, settings, choose)
    batch_size = choose("batch_size", settings.batch_size, _batch_size, data)
    lr = choose("lr", settings.lr, _learning_rate, student)
    epochs = choose("epochs", settings.epochs, _epochs, len(data.splits.train), student)
    augment = False
    if data.modality != "text" or settings.augment:
        augment = choose("augment", _checked_augment(settings, data), _augment)
    signals = _choose_signals(choose, settings, task, augment, epochs, objective, language)
    if language is not None:
        choose.note("memory", [heads_in_chunks(language, [student, *teachers.values()])])
        if signals.kind == "hidden" and not language.heads:
            raise UserError("signals", "hidden", "live or cache", choose.choices[-1].reason)
    choose.note("teachers", check_teachers(teachers, settings.teacher_weights, signals, language))
    baseline = choose("baseline", _unless_auto(settings.baseline), _baseline, task, data)
    if baseline == "trained" and not _can_train_alone(task, data):
        raise UserError("baseline", "trained", ("untrained", "none"), "the data have no targets to train on alone")
    precision = choose("precision", _unless_auto(settings.precision), _precision, student)
    teaching = choose("teacher precision", _unless_auto(settings.teacher_precision), _teacher_precision, teacher)
    optimizer = OptimizerSettings(settings.optimizer, lr, settings.weight_decay, settings.schedule, settings.warmup)
    plan = Plan(
        settings, task, teachers, student, data, objective, optimizer, min(batch_size, len(data.splits.train)), epochs,
        signals, augment, baseline, precision, teaching == "bfloat16", student_taps, teacher_taps, choose.choices,
        language,
    )  # fmt: skip
    if settings.select == "best" and not plan.validates:
        raise UserError("select", "best", "last", f"{task} on these data has no validation measure")
    return plan


class _Chooser:
    """Takes what the user said, or else decides; writes down both with the reason."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []

    def __call__(self, key: str, given: Any, decide: Callable[..., tuple[Any, str]], *known: object) -> Any:
        value, reason = (given, "as given") if given is not None else decide(*known)
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        self.choices.append(Choice(key, shown, reason))
        return value

    def note(self, key: str, notes: Iterable[str]) -> None:
        self.choices += [Choice(key, "", note) for note in notes if note]


def _unless_auto(value: str) -> str | None:
    return None if value == "auto" else value


def _task(data: DataSet) -> tuple[str, str]:
    if data.task is None:
        raise UserError("task", "not given, and the data leave it open", ", ".join(PRIMARY))
    return data.task, data.task_reason


def _check_fit(task: str, teacher: Network, student: Network, data: DataSet) -> list[str]:
    """Refuse networks and data that cannot work together; notes on what was made to fit."""
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
    return [compare_tokenizers(teacher, student)] if task == "causal-lm" else []


def _check_targets(data: DataSet) -> None:
    for part in ("train", "validation", "test"):
        target = getattr(data.splits, part).target
        if target is None or data.num_classes is None or not len(target):
            continue
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= data.num_classes:
            allowed = f"class numbers 0 to {data.num_classes - 1}"
            raise UserError(f"data labels of {part}", low if low < 0 else high, allowed)


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
        why = "the end of each network's stack of blocks"
        for role, taps in (("student", student), ("teacher", teacher)):
            taps["embedding"] = choose(f"{role} tap", taps.get("embedding"), lambda: ("last_stage", why))
    return student, teacher


def _batch_size(data: DataSet) -> tuple[int, str]:
    usual = 32 if data.modality == "text" else 64
    few = max(1, len(data.splits.train) // 10)
    if few < usual:
        return max(few, 2), "at least ten steps per epoch on few samples"
    return usual, f"a usual size for {data.modality}s"


def _learning_rate(student: Network) -> tuple[float, str]:
    if student.pretrained:
        large = parameters(student.module)["parameters"] > 50_000_000
        return (1e-4 if large else 5e-4), "pretrained weights that have to find together again"
    return 2e-3, "weights that start from chance"


def _epochs(samples: int, student: Network) -> tuple[int, str]:
    wanted = _SAMPLES["pretrained" if student.pretrained else "new"]
    epochs = max(2, min(100, round(wanted / samples)))
    return epochs, f"about {wanted:,} presentations of {samples:,} samples"


def _checked_augment(settings: Settings, data: DataSet) -> bool | None:
    if settings.augment and data.modality != "image":
        raise UserError("augment", True, "images only", f"these data are {data.modality}s")
    return settings.augment


def _augment() -> tuple[bool, str]:
    return False, "one teacher pass serves every epoch"


def _choose_signals(
    choose: _Chooser, settings: Settings, task: str, augment: bool, epochs: int, objective: Objective,
    language: Language | None,
) -> SignalChoice:  # fmt: skip
    asked = None if settings.signals is None else parse_signals(settings.signals, task)
    if settings.cache == "off":
        if asked is not None and asked.cached:
            raise UserError("signals", settings.signals, "live, with --cache off")
        asked = asked or SignalChoice("live")
    chosen: SignalChoice
    if language is not None:
        chosen = choose("teacher signals", None, language_signals, asked, settings.cache, objective, language.writer())
    else:
        chosen = choose("teacher signals", None, _signals, asked, augment, epochs, objective, settings)
    return chosen


def _signals(
    asked: SignalChoice | None, augment: bool, epochs: int, objective: Objective, settings: Settings
) -> tuple[SignalChoice, str]:
    why = {
        "the objective needs no teacher": not objective.needs.teacher,
        "augmented views are new every epoch": augment,
    }
    live = next((reason for reason, holds in why.items() if holds), None)
    if live is not None and (settings.cache not in (None, "off") or (asked is not None and asked.cached)):
        raise UserError("cache", settings.cache or str(asked), "off", live)
    if asked is not None:
        return asked, "as given"
    return (
        (SignalChoice("live"), live)
        if live
        else (SignalChoice("cache"), f"the teacher answers once for {epochs} epochs")
    )


def _baseline(task: str, data: DataSet) -> tuple[str, str]:
    if _can_train_alone(task, data):
        return "trained", "the same student, data and steps without a teacher"
    return "untrained", "without a teacher these data have nothing to train on"


def _can_train_alone(task: str, data: DataSet) -> bool:
    if task == "embedding":
        return bool(data.pairs and "train" in data.pairs)
    return task == "causal-lm" or (task in ("classification", "regression") and data.splits.train.target is not None)


def _precision(student: Network) -> tuple[str, str]:
    if student.modality == "text" and _fast_bfloat16():
        return "bf16-mixed", "this machine multiplies bfloat16 faster; weights and losses stay float32"
    return "32-true", "plain and safe"


def _teacher_precision(teacher: Network) -> tuple[str, str]:
    if teacher.modality == "text" and _fast_bfloat16() and not isinstance(teacher.module, torch.fx.GraphModule):
        return "bfloat16", "halves the teacher's time; the cache keeps float16"
    return "float32", "plain and safe"


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
