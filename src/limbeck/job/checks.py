"""What can be known to be wrong before any long work: the machine, the optional libraries, one step on two samples."""

from __future__ import annotations

import copy
import importlib.util
import logging
from pathlib import Path
from typing import Any

from lightning import Trainer

from limbeck.data.tables import near_files
from limbeck.engine import OptimizerSettings
from limbeck.engine.fit import choose_strategy
from limbeck.errors import UserError, first_line, require
from limbeck.job.plan import Plan
from limbeck.job.served import Address, is_served
from limbeck.job.settings import Settings
from limbeck.job.teachers import teacher_references, with_head
from limbeck.job.train import distiller_of, loader_of
from limbeck.models.references import split_reference
from limbeck.objectives.text import parse_objective
from limbeck.sources import Source

_EXPORTERS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
_TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow", "mlflow_skinny"), "wandb": ("wandb",)}


def check_surroundings(settings: Settings) -> None:
    """Refuse what cannot be read, exports and trackers whose libraries are missing, and devices that are not there."""
    for reference in teacher_references(settings.teacher).values():
        _check_reference("teacher", reference)
    _check_reference("student", settings.student)
    lr = 1.0 if settings.lr is None else settings.lr
    OptimizerSettings(settings.optimizer, lr, settings.weight_decay, settings.schedule, settings.warmup)
    if settings.objective is not None:
        parse_objective(settings.objective)
    for form in settings.export:
        for module in _EXPORTERS[form]:
            require(module, "export")
    for name in settings.logger:
        if not any(importlib.util.find_spec(module) for module in _TRACKERS[name]):
            raise UserError("logger", name, "a tracker that is installed", f"pip install {name}")
    strategy = choose_strategy(settings.strategy, settings.accelerator, settings.devices)
    # Notes on hardware and loggers, which say nothing of this job.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    precision: Any = None if settings.precision == "auto" else settings.precision
    try:
        Trainer(
            accelerator=settings.accelerator, devices=settings.devices, strategy=strategy, precision=precision,
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
    except Exception as error:
        given = {key: getattr(settings, key) for key in ("accelerator", "devices", "strategy", "precision")}
        shown = ", ".join(f"{key}={value}" for key, value in given.items())
        raise UserError("machine", shown, "what Lightning finds here", first_line(error)) from error


def _check_reference(key: str, reference: Any) -> None:
    if not isinstance(reference, str) or reference.startswith("testbed:"):
        return
    if key == "teacher" and is_served(reference):
        Address.parse(reference, key)
        return
    _, rest = split_reference(reference, key)
    path = Path(rest.partition(",")[0]).expanduser()
    if rest.startswith(("/", "./", "../", "~")) and not path.exists():
        raise UserError(key, reference, near_files(path, ()), "no such file or folder")


def check_step(plan: Plan, live: Source) -> None:
    """Run teacher, student and objective once on a few samples: what does not fit together shows here."""
    few = plan.data.splits.train.subset(range(min(4, len(plan.data.splits.train))))
    batch = loader_of(plan, few, shuffle=True, live_teacher=True, batch_size=len(few)).peek()
    teacher = with_head(plan, live) if plan.objective.needs.teacher else None
    # A copy: the projectors that this step makes are not those that learn.
    trial = distiller_of(plan, copy.deepcopy(plan.objective), teacher, taps=plan.student_taps)
    try:
        trial.build(batch)
    except (RuntimeError, TypeError, KeyError, IndexError, ValueError) as error:
        given = f"{plan.teacher.reference} to {plan.student.reference}"
        allowed = "networks and an objective that run on these data"
        raise UserError("first step", given, allowed, first_line(error)) from error
    finally:
        trial.finish()
