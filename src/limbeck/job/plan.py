"""The plan of a distillation: what the user said, and for everything else a choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from limbeck.data.references import DataSet, load_data
from limbeck.data.split import input_length
from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.job import choices
from limbeck.job.alignment import align, aligned_signals
from limbeck.job.fitting import check_fit, checked_augment
from limbeck.job.language import Language, heads_in_chunks, read_language
from limbeck.job.references import as_data, as_networks
from limbeck.job.served import Address, ServedTeacher, is_served
from limbeck.job.settings import Settings
from limbeck.job.teachers import SignalChoice, check_teachers, language_signals, parse_signals
from limbeck.language import is_aligned
from limbeck.models.compare import shared_vocabulary
from limbeck.models.references import Network
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
    def address(self) -> Address | None:
        """Of a teacher behind a server; None where its weights are here."""
        return self.teacher.address if isinstance(self.teacher, ServedTeacher) else None

    @property
    def networks(self) -> dict[str, Network]:
        """What can be measured: the teacher, where its weights are here, and the student."""
        return {**({} if self.address else {"teacher": self.teacher}), "student": self.student}

    @property
    def cached(self) -> bool:
        """Whether the teacher answers once, before training."""
        return self.signals.cached

    @property
    def codec(self) -> str:
        """How a cache keeps the signals."""
        return self.settings.codec or self.signals.codec

    @property
    def views(self) -> int:
        """Views of every sample that a cache holds."""
        return self.settings.views or 1

    @property
    def read_at_once(self) -> int:
        """Samples that networks read together: a step's, or a part of them."""
        return math.ceil(self.batch_size / self.settings.accumulate)

    @property
    def drops_last(self) -> bool:
        """Whether an epoch leaves out a last batch of one sample, which has no batch statistics."""
        return len(self.data.splits.train) % self.read_at_once == 1 < self.read_at_once

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_of(math.ceil(len(self.data.splits.train) / self.read_at_once) - self.drops_last)

    def steps_of(self, batches: int) -> int:
        """Optimiser steps of a whole training whose loader gives so many ``batches`` in an epoch."""
        return self.settings.steps or self.epochs * math.ceil(batches / self.settings.accumulate)

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
        if self.language is not None and self.language.alignment is not None:
            # Perplexities by different tokens cannot be compared.
            return "bits_per_byte", False
        return PRIMARY[self.task]


def make_plan(settings: Settings) -> Plan:
    """Resolve references, check that they fit together, and choose what was left open.

    Everything that can be known to be wrong is refused here, before any long work.
    """
    settings = settings.complete().check()
    choose = _Chooser()
    data = as_data(settings, load_data)
    task = choose("task", settings.task, _task, data)
    teachers, student = as_networks(settings, task, data)
    teacher = next(iter(teachers.values()))
    address = teacher.address if isinstance(teacher, ServedTeacher) else None
    here = list(teachers.values()) if address is None else []
    choose.note("data", data.notes)
    choose.note("teacher", teacher.notes)
    choose.note("student", [note for note in student.notes if note not in teacher.notes])
    aligned = task == "causal-lm" and settings.objective is not None and is_aligned(parse_objective(settings.objective))
    if aligned and address:
        raise UserError("objective", settings.objective, "one on the same tokens", "a server gives no whole logits")
    for one in teachers.values():
        choose.note("matched", check_fit(settings, task, one, student, data, aligned))
    language = None
    if task == "causal-lm":
        vocabulary = shared_vocabulary(student if aligned else teacher, student)
        served = address is not None or is_served(settings.signals)
        language, data, notes = read_language(
            data, student, settings.text, settings.decoding, vocabulary, served=served
        )
        choose.note("text", notes)
        if aligned:
            choose.note("alignment", align(language, teacher, student, data.splits).describe())
    objective = parse_objective(
        choose("objective", settings.objective, choices.objective, task, teacher, student, data)
    )
    student_taps, teacher_taps = _taps(task, settings, choose)
    batch_size = choose("batch_size", settings.batch_size, choices.batch_size, data)
    lr = choose("lr", settings.lr, choices.learning_rate, student)
    if settings.accumulate > 1:
        batch_size = min(batch_size, len(data.splits.train))
        if settings.accumulate > batch_size:
            raise UserError("accumulate", settings.accumulate, f"1 to {batch_size}, the samples of a step")
        if any(part.batchwise for part in objective.modules() if isinstance(part, Objective)):
            hint = "this objective compares the samples of a step with each other"
            raise UserError("accumulate", settings.accumulate, "1", hint)
        choose.note("accumulate", [f"a step reads its samples in {settings.accumulate} parts"])
    if settings.steps is None:
        epochs = choose("epochs", settings.epochs, choices.epochs, len(data.splits.train), student)
    else:
        epochs = math.ceil(settings.steps * batch_size / len(data.splits.train))
        choose.note("steps", [f"{settings.steps}, as given: {epochs} epochs or a part of them"])
    augment = False
    if data.modality != "text" or settings.augment or settings.views:
        augment = choose("augment", checked_augment(settings, data, teacher, student), choices.augmentation)
    signals = _choose_signals(choose, settings, task, augment, epochs, objective, language, address)
    if address and signals.kind == "hidden":
        raise UserError("signals", "hidden", "live or cache", "a server gives no hidden states")
    if language is not None and language.alignment is not None:
        signals = aligned_signals(signals, objective, teachers.values())
        choose.note("memory", ["whole logits of student and teacher are kept: spans are compared on them"])
    elif language is not None:
        choose.note("memory", [heads_in_chunks(language, [student, *here])])
        if signals.kind == "hidden" and not language.heads:
            raise UserError("signals", "hidden", "live or cache", choose.choices[-1].reason)
    if settings.text.startswith("teacher") and len(teachers) > 1:
        raise UserError("text", settings.text, "data, with several teachers", "one teacher writes")
    if settings.text.startswith("teacher") and language is not None and language.alignment is not None:
        raise UserError("text", settings.text, "data or student, with a teacher of another tokenizer")
    choose.note("teachers", check_teachers(teachers, settings.teacher_weights, signals, language))
    baseline = choose("baseline", _unless_auto(settings.baseline), choices.baseline, task, data)
    if baseline == "trained" and not choices.can_train_alone(task, data):
        raise UserError("baseline", "trained", ("untrained", "none"), "the data have no targets to train on alone")
    precision = choose("precision", _unless_auto(settings.precision), choices.precision, student)
    teaching = "float32"
    if here:
        given = _unless_auto(settings.teacher_precision)
        teaching = choose("teacher precision", given, choices.teacher_precision, teacher)
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


def _taps(task: str, settings: Settings, choose: _Chooser) -> tuple[dict[str, str], dict[str, str]]:
    student, teacher = dict(settings.student_taps), dict(settings.teacher_taps)
    if task == "features":
        why = "the end of each network's stack of blocks"
        for role, taps in (("student", student), ("teacher", teacher)):
            taps["embedding"] = choose(f"{role} tap", taps.get("embedding"), lambda: ("last_stage", why))
    return student, teacher


def _choose_signals(
    choose: _Chooser, settings: Settings, task: str, augment: bool, epochs: int, objective: Objective,
    language: Language | None, address: Address | None,
) -> SignalChoice:  # fmt: skip
    most = {} if address is None else {"most": address.top}
    asked = None if settings.signals is None else parse_signals(settings.signals, task, **most)
    if settings.cache == "off":
        if asked is not None and asked.cached:
            raise UserError("signals", settings.signals, "live, with --cache off")
        asked = asked or SignalChoice("live")
    chosen: SignalChoice
    if language is not None:
        writer = language.writer()
        chosen = choose("teacher signals", None, language_signals, asked, settings.cache, objective, writer, address)
    else:
        chosen = choose("teacher signals", None, choices.signals, asked, augment, epochs, objective, settings)
    return chosen


def example_inputs(network: Network, inputs: Any, count: int) -> Tensor | Mapping[str, Tensor]:
    """The first ``count`` samples, prepared for a network."""
    count = min(count, input_length(inputs))
    raw = inputs[:count] if not isinstance(inputs, Mapping) else {k: v[:count] for k, v in inputs.items()}
    prepared: Tensor | Mapping[str, Tensor] = network.prepare(raw)
    return prepared


def frozen_copy(module: nn.Module) -> dict[str, Tensor]:
    """A network's present weights, kept apart."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
