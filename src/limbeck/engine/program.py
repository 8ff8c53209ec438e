"""Programs: training in phases, each with its own trainable part, objective, teacher, data and length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from limbeck.cache.fingerprint import fingerprint_settings, fingerprint_text
from limbeck.engine.checkpoints import replacing
from limbeck.engine.distiller import Distiller
from limbeck.engine.fit import History, fit
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.errors import UserError
from limbeck.nn.gather import is_first_process, wait_for_all
from limbeck.objectives.base import Objective
from limbeck.signals import Forward, run_network
from limbeck.sources import Source


@dataclass
class Phase:
    """A stretch of training.

    Attributes:
        name: unique in its program; names the phase's folder.
        objective: what is minimised.
        train: the loader.
        epochs, steps: how long; one of the two.
        teacher: a source; or a function of the student as the phase finds it, for teachers made from its earlier self.
        trainable: patterns of parameter names that learn; the rest is frozen, in eval mode.
        begin: called with the student before the phase, to hand an artefact over or change a part.
        options: anything else that :func:`~limbeck.engine.fit` takes.
    """

    name: str
    objective: Objective
    train: Iterable[Any]
    epochs: int | None = None
    steps: int | None = None
    teacher: Source | Callable[[nn.Module], Source] | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    trainable: Sequence[str] = ("*",)
    taps: Mapping[str, str] = field(default_factory=dict)
    forward: Forward = run_network
    begin: Callable[[nn.Module], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def run_program(
    student: nn.Module,
    phases: Sequence[Phase],
    *,
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    **options: Any,
) -> dict[str, History]:
    """Run the phases in order on one student.

    With ``out`` every phase keeps its checkpoint and, when done, the student's weights; ``resume`` skips what is done
    and goes on in the middle of the phase that was cut. What a parameter could learn before the program, it can learn
    after it.

    Returns:
        phase name -> its history.

    Raises:
        UserError: a phase to be resumed had another objective, length, optimiser, trainable part or taps.
    """
    names = [phase.name for phase in phases]
    if not names or len(set(names)) < len(names):
        raise UserError("phases", names, "one or more phases, each with a name of its own")
    learned = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    folders = [Path(out) / name if out is not None else None for name in names]
    for phase, folder in zip(phases, folders, strict=True):
        if resume and folder is not None:
            _refuse_changed(phase, folder)
    if not resume and is_first_process():
        # Else the phases of an older run would be taken for this one's when it is resumed.
        for folder in folders:
            if folder is not None:
                (folder / "done.json").unlink(missing_ok=True)
    histories = {}
    try:
        for number, (phase, folder) in enumerate(zip(phases, folders, strict=True)):
            _set_learning(student, learned)
            if phase.begin is not None:
                # What it draws must not depend on whether the phases before were trained or read.
                torch.manual_seed(seed + number)
                phase.begin(student)
            if resume and folder is not None and (folder / "done.json").exists():
                load_model(student, folder / "student.safetensors")
                histories[phase.name] = History(**json.loads((folder / "done.json").read_text()))
                continue
            histories[phase.name] = _run_phase(student, phase, folder, resume, seed + number, options)
    finally:
        _set_learning(student, learned)
    return histories


def _run_phase(
    student: nn.Module, phase: Phase, folder: Path | None, resume: bool, seed: int, options: Mapping[str, Any]
) -> History:
    teacher = phase.teacher
    if teacher is not None and not isinstance(teacher, Source):
        teacher = teacher(student)
    distiller = Distiller(
        student,
        phase.objective,
        teacher,
        optimizer=phase.optimizer,
        taps=phase.taps,
        forward=phase.forward,
        trainable=phase.trainable,
    )
    settings = {**options, **phase.options}
    if folder is not None and is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "phase.json") as aside:
            aside.write_text(json.dumps(_settings(phase)))
    try:
        history = fit(
            distiller,
            phase.train,
            epochs=phase.epochs,
            steps=phase.steps,
            out=folder,
            resume=resume,
            seed=seed,
            **settings,
        )
    finally:
        distiller.finish()
    if folder is not None and is_first_process():
        with replacing(folder / "student.safetensors") as aside:
            save_model(student, str(aside))
        # Written last: its presence says that the phase is complete.
        with replacing(folder / "done.json") as aside:
            aside.write_text(json.dumps(vars(history)))
    wait_for_all()
    return history


def _settings(phase: Phase) -> dict[str, str]:
    """Hashes of what makes a phase the same one; the data and the teacher are not read for it."""
    phase.objective.set_progress(0.0)
    parts = [part for part in phase.objective.modules() if isinstance(part, Objective)]
    lengths = {name: fingerprint_text(getattr(phase, name)) for name in ("epochs", "steps")}
    return {
        "objective": fingerprint_settings(*parts),
        **lengths,
        "optimizer": fingerprint_text(phase.optimizer),
        "trainable": fingerprint_text(list(phase.trainable)),
        "taps": fingerprint_text(dict(phase.taps)),
    }


def _refuse_changed(phase: Phase, folder: Path) -> None:
    begun = folder / "phase.json"
    if not begun.exists():
        return
    now, then = _settings(phase), json.loads(begun.read_text())
    for name, value in now.items():
        if then.get(name) != value:
            raise UserError(
                f"{name} of phase {phase.name}",
                "another than the one begun",
                f"the one begun in {folder}",
                "resume=False or another folder begins anew",
            )


def _set_learning(student: nn.Module, learned: Mapping[str, bool]) -> None:
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(learned.get(name, True))
