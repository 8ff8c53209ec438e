"""A dry run: one measured step, and what the whole training would cost."""

from __future__ import annotations

import time
from typing import Any

import torch

from limbeck.engine import Distiller
from limbeck.job.plan import Plan
from limbeck.job.progress import Progress
from limbeck.job.train import loader_of
from limbeck.measure import parameters, state_bytes
from limbeck.objectives.base import total
from limbeck.report.tables import format_duration, format_value
from limbeck.sources import Live

_STEPS = 3


def preview(plan: Plan, live: Live, progress: Progress) -> dict[str, Any]:
    """Take a few steps, time them, and put the student's weights back."""
    before = {name: tensor.detach().clone() for name, tensor in plan.student.module.state_dict().items()}
    teacher = live if plan.objective.needs.teacher else None
    loader = loader_of(plan, plan.data.splits.train, shuffle=True, live_teacher=True)
    distiller = Distiller(
        plan.student.module, plan.objective, teacher,
        optimizer=plan.optimizer, taps=plan.student_taps, forward=plan.student.forward,
    )  # fmt: skip
    batch = loader.peek()
    distiller.build(batch)
    distiller.train()
    optimizer, _ = plan.optimizer.build(distiller.parameters(), plan.steps)
    teaching, training = [], []
    for _ in range(_STEPS):
        started = time.perf_counter()
        signals = distiller.teacher_signals(batch)
        asked = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16-mixed"):
            loss = total(distiller.objective(distiller.student_signals(batch), signals, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teaching.append(asked - started)
        training.append(time.perf_counter() - asked)
    plan.student.module.load_state_dict(before)
    distiller.finish()
    # The first step also allocates and plans.
    teacher_step, student_step = min(teaching), min(training)
    asks = len(plan.data.splits.train) / plan.batch_size if plan.cached else plan.steps
    trainable = parameters(plan.student.module)["trainable"]
    needed = state_bytes(plan.student.module) + state_bytes(plan.teacher.module) + 12 * trainable
    cache = _cache_bytes(plan, signals)
    costs = {
        "steps": plan.steps,
        "step_seconds": student_step,
        "teacher_step_seconds": teacher_step,
        "seconds": plan.steps * student_step + asks * teacher_step,
        "weights_and_optimizer_bytes": needed,
        "cache_bytes": cache,
        "first_loss": float(loss.detach()),
    }
    progress.say(
        f"would take {plan.steps} steps of {1000 * student_step:.0f} ms, the teacher {1000 * teacher_step:.0f} ms "
        f"a batch: about {format_duration(costs['seconds'])}; {format_value('bytes', needed)} for weights, gradients "
        f"and optimiser, besides the activations of one batch; {format_value('bytes', cache)} of cache"
    )
    return {"task": plan.task, "plan": [choice.plain() for choice in plan.choices], "costs": costs}


def _cache_bytes(plan: Plan, signals: Any) -> float:
    if not plan.cached:
        return 0.0
    per_batch = sum(value.numel() * 2 for value in signals.values() if isinstance(value, torch.Tensor))
    return per_batch / plan.batch_size * len(plan.data.splits.train)
