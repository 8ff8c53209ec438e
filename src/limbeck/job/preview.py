"""A dry run: a few measured steps, and what the whole training would cost."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from limbeck.engine import fit
from limbeck.job.plan import Plan, frozen_copy
from limbeck.job.progress import Progress
from limbeck.job.teachers import with_head
from limbeck.job.train import cache_costs, distiller_of, loader_of, trainer_settings
from limbeck.measure import PeakMemory, parameters, state_bytes, watched_memory
from limbeck.report.tables import format_duration, format_value
from limbeck.signals import Batch, Signals
from limbeck.sources import Source

_STEPS = 6
#: What was counted, by kind of :class:`~limbeck.measure.PeakMemory`.
_MEMORY = {"rss": "resident memory of this process", "cuda": "tensors on the GPU"}


def preview(plan: Plan, live: Source, progress: Progress) -> dict[str, Any]:
    """Take a few steps as training would take them, time them, and put the student's weights back."""
    before = frozen_copy(plan.student.module)
    memory = _largest_step(plan, live)
    plan.student.module.load_state_dict(before)
    teacher = _Timed(with_head(plan, live))
    loader = loader_of(plan, plan.data.splits.train, shuffle=True, live_teacher=True)
    distiller = distiller_of(plan, plan.objective, teacher, taps=plan.student_taps)
    steps = _Steps(teacher)
    fit(distiller, loader, steps=_STEPS, progress=steps, **trainer_settings(plan))
    plan.student.module.load_state_dict(before)
    distiller.finish()
    asks = len(plan.data.splits.train) * plan.views / plan.batch_size if plan.cached else plan.steps
    trainable = parameters(plan.student.module)["trainable"]
    needed = state_bytes(plan.student.module) + state_bytes(plan.teacher.module) + 12 * trainable
    cache = cache_costs(plan, live).bytes if plan.cached else 0.0
    costs: dict[str, Any] = {
        "steps": plan.steps,
        "step_seconds": steps.student,
        "teacher_step_seconds": steps.teacher,
        "seconds": plan.steps * steps.student + asks * steps.teacher,
        "weights_and_optimizer_bytes": needed,
        "step_bytes": memory.growth,
        "peak_bytes": memory.peak,
        "memory_of": memory.kind,
        "cache_bytes": cache,
        "first_loss": steps.first_loss,
    }
    progress.say(
        f"would take {plan.steps} steps of {1000 * steps.student:.0f} ms, the teacher {1000 * steps.teacher:.0f} ms "
        f"a batch: about {format_duration(costs['seconds'])}; {format_value('bytes', cache)} of cache"
    )
    progress.say(
        f"memory, measured on one step of the longest samples: at most {format_value('bytes', memory.peak)} "
        f"({_MEMORY[memory.kind]}), {format_value('bytes', memory.growth)} more than before it; weights, gradients "
        f"and optimiser take {format_value('bytes', needed)} of all"
    )
    return {"task": plan.task, "plan": [choice.plain() for choice in plan.choices], "costs": costs}


def _largest_step(plan: Plan, live: Source) -> PeakMemory:
    """Peak memory of one whole step, with its optimiser, on the longest samples where they differ in length."""
    objective = copy.deepcopy(plan.objective)
    # Without shuffling the longest come first.
    loader = loader_of(plan, plan.data.splits.train, shuffle=False, live_teacher=True)
    trial = distiller_of(plan, objective, with_head(plan, live), taps=plan.student_taps)
    on_cuda = torch.cuda.is_available() and plan.settings.accelerator in ("auto", "gpu", "cuda")
    with watched_memory("cuda" if on_cuda else "cpu") as found:
        fit(trial, loader, steps=1, **trainer_settings(plan))
    trial.finish()
    return found[0]


class _Timed(Source):
    """The teacher, with a watch."""

    def __init__(self, live: Source) -> None:
        self.live = live
        self.seconds = 0.0

    def __call__(self, batch: Batch, needs: Collection[str] = ()) -> Signals:
        started = time.perf_counter()
        signals = self.live(batch, needs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return signals

    def fingerprint(self) -> str:
        return self.live.fingerprint()

    def to(self, device: torch.device | str) -> _Timed:
        self.live.to(device)
        return self

    def modules(self) -> list[nn.Module]:
        return self.live.modules()


class _Steps(Callback):
    """Mean seconds of a step and of its teacher. The first step also allocates and plans, and does not count."""

    def __init__(self, teacher: _Timed) -> None:
        self.watch = teacher
        self.student = self.teacher = self.first_loss = self._started = self._asked = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        now = time.perf_counter()
        if trainer.global_step == 1:
            self._started, self._asked = now, self.watch.seconds
            self.first_loss = float(pl_module.latest_terms["loss"])  # type: ignore[operator, index]
        else:
            taken = trainer.global_step - 1
            self.teacher = (self.watch.seconds - self._asked) / taken
            self.student = (now - self._started) / taken - self.teacher
