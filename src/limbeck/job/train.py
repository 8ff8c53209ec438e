"""The work of a distillation: cache the teacher, train the student, train the baseline."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache import Estimate, StaleCache, estimate, write_cache
from limbeck.data.augmentation import CropFlip
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import Distiller, History, fit
from limbeck.job.assess import assess, text_lengths
from limbeck.job.language import language_distiller
from limbeck.job.plan import Plan
from limbeck.job.progress import Progress
from limbeck.job.served import note_unread
from limbeck.job.teachers import with_head
from limbeck.objectives import CrossEntropy, InfoNCE, Objective, TargetMSE
from limbeck.signals import Batch, Forward
from limbeck.sources import Cached, Live, Source


def loader_of(
    plan: Plan, split: Split, *, shuffle: bool, live_teacher: bool, batch_size: int | None = None, alone: bool = False
) -> TensorLoader:
    """Batches of raw samples, prepared for the student, and for a live teacher that prepares in another way.

    Of a language model the training texts, whatever ``split`` is; the data's own for a student that learns ``alone``.
    """
    if plan.language is not None:
        return plan.language.loader(
            "data" if alone else "train", batch_size or plan.read_at_once, seed=plan.settings.seed, shuffle=shuffle,
            drop_last=plan.drops_last and shuffle,
        )  # fmt: skip
    lengths = text_lengths(split.input) if plan.data.modality == "text" else None
    return TensorLoader(
        split,
        batch_size or plan.read_at_once,
        shuffle=shuffle,
        seed=plan.settings.seed,
        lengths=lengths,
        drop_last=plan.drops_last and shuffle,
        # What a cache is filled with has no views, or all of them.
        transform=Prepare(plan, live_teacher, augment=plan.augment and (shuffle or plan.settings.views is not None)),
        views=plan.settings.views,
    )


class Prepare:
    """Turns a batch of raw samples into the networks' inputs."""

    def __init__(self, plan: Plan, live_teacher: bool, augment: bool = False) -> None:
        self.student = plan.student.prepare
        same = plan.student.preprocessing == plan.teacher.preprocessing
        self.teacher = plan.teacher.prepare if live_teacher and not same else None
        self.targets = plan.student.targets
        self.augment = CropFlip() if augment else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        raw = batch["input"]
        batch["input"] = self.student(raw)
        if self.teacher is not None:
            batch["teacher_input"] = self.teacher(raw)
        if self.augment is not None:
            batch = self.augment(batch)
        else:
            # Without augmentation a sample has one view, and the cache one row for it.
            del batch["view"]
        return {**batch, **self.targets(batch)} if self.targets is not None else batch


def cached_teacher(
    plan: Plan, folder: Path, live: Source, progress: Progress, part: tuple[int, int] | None = None
) -> Source:
    """The teacher's signals on the training samples, asked once and kept on disk; or a ``part`` of several writers."""
    loader = _cache_loader(plan)
    fingerprint = {"precision": "bfloat16" if plan.teacher_bfloat16 else "float32"}
    if plan.language is not None:
        # Tokens say all: how the data were split, cut and templated.
        fingerprint |= plan.language.fingerprint()
    else:
        fingerprint |= {"preprocessing": plan.teacher.preprocessing_fingerprint(), **plan.data.fingerprint}
        if plan.augment:
            fingerprint["augmentation"] = repr(CropFlip())
    try:
        _fill(plan, folder, live, loader, fingerprint, progress, part)
    except StaleCache:
        if plan.settings.cache or not plan.settings.overwrite:
            raise
        # The run that is being replaced had another teacher or other data.
        shutil.rmtree(folder)
        _fill(plan, folder, live, loader, fingerprint, progress, part)
    source = Cached(folder, expect={"teacher": live.fingerprint(), **fingerprint})
    if plan.language is not None:
        note_unread(plan.language, live, source.reader)
    return with_head(plan, source)


def _cache_loader(plan: Plan) -> TensorLoader:
    if plan.language is not None:
        return plan.language.loader("train", plan.read_at_once, ready=True, teacher=True)
    split = plan.data.splits.train
    return loader_of(plan, split, shuffle=False, live_teacher=True, batch_size=max(32, plan.batch_size))


def cache_costs(plan: Plan, live: Source, writers: int = 1) -> Estimate:
    """What caching the plan's training samples will take: bytes by the codec, seconds by one measured batch."""
    loader, language, needs = _cache_loader(plan), plan.language, kept_signals(plan)
    # Of a language model's batches, sorted by length, one from the middle.
    middle = islice(iter(loader), len(loader) // 2, None)
    batch = next(middle) if language is not None else loader.peek()
    return estimate(
        live, batch, loader.samples * plan.views, needs, codecs(plan),
        ragged=needs if language is not None else (), positions=language.positions() if language else None,
        writers=writers,
    )  # fmt: skip


def kept_signals(plan: Plan) -> tuple[str, ...]:
    """Names of what a cache of the plan's teacher holds."""
    return ("hidden",) if plan.signals.kind == "hidden" else plan.objective.needs.teacher


def codecs(plan: Plan) -> dict[str, str]:
    """How a cache keeps every signal; of a token's one number beside whole logits all digits."""
    needs = kept_signals(plan)
    alone = needs == ("log_probs",)
    return {name: "float32" if name == "log_probs" and not alone else plan.codec for name in needs}


def _fill(
    plan: Plan,
    folder: Path,
    live: Source,
    loader: TensorLoader,
    fingerprint: Mapping[str, str],
    progress: Progress,
    part: tuple[int, int] | None,
) -> None:
    needs = kept_signals(plan)
    with progress.bar("teacher signals", loader.samples * plan.views) as advance:
        write_cache(
            live,
            loader if plan.settings.views is None else loader.every_view(),
            folder,
            needs,
            codec=codecs(plan),
            fingerprint=fingerprint,
            progress=lambda seen, added: advance(seen),
            # Of a text the tokens that are learnt are kept, whatever they are padded with.
            ragged=needs if plan.language is not None else (),
            part=part,
        )


def train_student(plan: Plan, teacher: Source | None, out: Path | None, progress: Progress) -> History:
    """Train the student of the plan."""
    return _train(plan, plan.objective, teacher, out, progress, "student", plan.student_taps)


def train_baseline(plan: Plan, start: Mapping[str, Tensor], out: Path | None, progress: Progress) -> History:
    """Train the same student from the same start with targets alone; its weights are left in the student."""
    plan.student.module.load_state_dict(start)
    if plan.task == "embedding":
        return _train_on_pairs(plan, out, progress)
    objective: Objective = TargetMSE() if plan.task == "regression" else CrossEntropy()
    return _train(plan, objective, None, out, progress, "without distillation", {}, alone=True)


def _train_on_pairs(plan: Plan, out: Path | None, progress: Progress) -> History:
    queries, documents = (plan.data.pairs or {})["train"]
    count = len(queries)
    split = {"input": list(queries), "document": list(documents), "id": torch.arange(count)}
    prepare = plan.student.prepare

    def both(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "input": prepare(batch["input"]), "document": prepare(batch["document"])}

    # Pairs hold two texts, so half as many of them make as long a step.
    size = max(2, plan.batch_size // 2)
    loader = TensorLoader(split, size, seed=plan.settings.seed, lengths=text_lengths(documents), transform=both)

    def forward(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        query = plan.student.forward(module, batch)["embedding"]
        document = plan.student.forward(module, {**batch, "input": batch["document"]})["embedding"]
        return {"query": query, "document": document}

    # Its negatives are the other pairs of a step, which is therefore read whole.
    whole = replace(plan, settings=replace(plan.settings, accumulate=1))
    return _fit(whole, InfoNCE(), None, loader, forward, out, progress, "without distillation", {})


def _train(
    plan: Plan,
    objective: Objective,
    teacher: Source | None,
    out: Path | None,
    progress: Progress,
    title: str,
    taps: Mapping[str, str],
    *,
    alone: bool = False,
) -> History:
    live = isinstance(teacher, Live)
    loader = loader_of(plan, plan.data.splits.train, shuffle=True, live_teacher=live, alone=alone)
    return _fit(plan, objective, teacher, loader, plan.student.forward, out, progress, title, taps)


def distiller_of(
    plan: Plan,
    objective: Objective,
    teacher: Source | None,
    *,
    forward: Forward | None = None,
    taps: Mapping[str, str] | None = None,
) -> Distiller:
    """What trains the student of a plan. Without a teacher a language model reads the data's own text."""
    if plan.language is not None:
        return language_distiller(plan, objective, teacher, text="data" if teacher is None else None)
    return Distiller(
        plan.student.module, objective, teacher,
        optimizer=plan.optimizer, taps=taps, forward=forward or plan.student.forward,
    )  # fmt: skip


def _fit(
    plan: Plan,
    objective: Objective,
    teacher: Source | None,
    loader: TensorLoader,
    forward: Forward,
    out: Path | None,
    progress: Progress,
    title: str,
    taps: Mapping[str, str],
) -> History:
    settings = plan.settings
    distiller = distiller_of(plan, objective, teacher, forward=forward, taps=taps)
    primary, higher = plan.primary
    try:
        return fit(
            distiller,
            loader,
            epochs=plan.epochs if settings.steps is None else None,
            steps=settings.steps,
            validate=validation(plan) if plan.validates else None,
            out=out,
            resume=settings.resume,
            select=primary if settings.select == "best" else None,
            select_higher=higher,
            progress=progress.callback(title, plan.steps_of(len(loader))),
            logger=trackers(settings.logger, out),
            **trainer_settings(plan),
        )
    finally:
        distiller.finish()


def trainer_settings(plan: Plan) -> dict[str, Any]:
    """What the plan says about the machine and the step."""
    settings = plan.settings
    return {
        "seed": settings.seed,
        "gradient_clip": settings.gradient_clip,
        "accumulate_grad_batches": settings.accumulate,
        "precision": plan.precision,
        "devices": settings.devices,
        "strategy": settings.strategy,
        "accelerator": settings.accelerator,
    }


def validation(plan: Plan) -> Callable[[nn.Module], Mapping[str, float]]:
    """Quality on the validation samples, after every epoch."""

    def run(distiller: nn.Module) -> Mapping[str, float]:
        return assess(plan, plan.student, "validation").quality

    return run


def trackers(names: Sequence[str], out: Path | None) -> Any:
    """Lightning's loggers by name; none by default, since the log is a local file."""
    from lightning.pytorch import loggers

    table = {"tensorboard": "TensorBoardLogger", "mlflow": "MLFlowLogger", "wandb": "WandbLogger"}
    places = {"tensorboard": {"save_dir": str(out)}, "mlflow": {}, "wandb": {"save_dir": str(out)}}
    return [getattr(loggers, table[name])(**places[name]) for name in names] or False
