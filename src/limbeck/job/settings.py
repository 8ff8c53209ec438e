"""What a user can say about a distillation; everything that is left out is chosen and printed with its reason."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from limbeck.errors import UserError

#: The three references, with what the command line says of them.
REFERENCES = {
    "teacher": (
        "the network to learn from: hf:NAME_OR_FOLDER, timm:NAME_OR_FOLDER, pt2:FILE, py:PACKAGE.MODULE:NAME or "
        "server:URL,model=NAME"
    ),
    "student": "the same forms, slice:layers=0,5 or width:hidden_size=192 of the teacher, or small:NAME",
    "data": "folder:DIR of images by class, csv:, jsonl: or parquet:FILE, hf:DIR, testbed:NAME or py:",
}
TASKS = ("classification", "regression", "embedding", "features", "causal-lm")


@dataclass
class Settings:
    """Settings of ``limbeck distill``.

    Args:
        teacher: the network to learn from: hf:NAME_OR_FOLDER, timm:NAME, pt2:FILE or py:package.module:callable. For
            causal-lm also several: a list, given again, or NAME=REFERENCE for each; or server:URL,model=NAME, one
            whose weights are not here (the default with such signals).
        student: the same forms, or a part of the teacher: slice:layers=0,5 or width:hidden_size=192.
        data: folder:DIR of images by class, parquet:, csv: or jsonl:FILE, hf:DIR, testbed:NAME or py:.
        out: folder for the student, its report and everything to resume from.
        task: classification, regression, embedding, features or causal-lm.
        objective: such as "0.1 * cross_entropy + 0.9 * kl(temperature=4)".
        student_taps: inner tensors of the student for feature terms, name=path.
        teacher_taps: the same for the teacher.
        columns: columns of a table, such as text=body,label=stars.
        epochs: passes over the training data.
        steps: optimiser steps, in the place of epochs.
        batch_size: samples per step.
        accumulate: parts that a step's samples are read in, one after the other: less memory, the same step.
        lr: learning rate at its height.
        weight_decay: of the optimiser.
        optimizer: adamw, adam or sgd.
        schedule: of the learning rate: cosine, linear, step or constant.
        warmup: share of the steps over which the learning rate rises.
        gradient_clip: largest gradient norm.
        max_length: longest text in tokens.
        augment: flip and crop training images; the teacher then answers live instead of from the cache.
        views: every image is shown in so many augmented views, in turn, whose signals a cache holds.
        signals: where the teacher's signals come from: live, cache, hidden (cached states under the teacher's head,
            for causal-lm) or server:URL,model=NAME (causal-lm).
        cache: folder of the teacher's cached signals (default: OUT/cache), or "off" for a live teacher.
        codec: how the cache keeps them, such as float16 or above:0.0008:128.
        teacher_weights: of several teachers, in their order.
        text: for causal-lm, whose text is learnt: data, teacher (its answers, written once), student,
            mix(student=0.5), replay(...), corrected(...).
        decoding: how the student writes, such as temperature=1,top_p=0.95,length=64.
        answers: for causal-lm, held-out prompts that are answered greedily for ROUGE-L at the end.
        teacher_precision: bfloat16 halves the teacher's time where the processor supports it.
        precision: of training, as Lightning writes it: 32-true, bf16-mixed, 16-mixed.
        baseline: the student to compare with: trained (the same steps without a teacher), untrained, or none.
        select: keep the last epoch, or the best on validation data.
        export: formats to export the student to: onnx, pt2.
        seed: of everything drawn.
        devices: processes or devices to train on.
        strategy: Lightning's: auto, ddp, fsdp.
        accelerator: Lightning's: auto, cpu, gpu.
        logger: trackers beside the local log: tensorboard, mlflow, wandb.
        on_corrupt: an unreadable image is an error, or skipped.
        allow_py: let py: references run code.
        resume: go on where an interrupted run of OUT stopped.
        overwrite: replace a finished run in OUT.
        dry_run: print the plan and its costs, and train nothing.
    """

    teacher: Any = ""
    student: Any = ""
    data: Any = ""
    out: str = ""
    task: str | None = None
    objective: str | None = None
    student_taps: dict[str, str] = field(default_factory=dict)
    teacher_taps: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    lr: float | None = None
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.1
    gradient_clip: float | None = 1.0
    max_length: int | None = None
    augment: bool | None = None
    views: int | None = None
    signals: str | None = None
    cache: str | None = None
    codec: str | None = None
    teacher_weights: list[float] = field(default_factory=list)
    text: str = "data"
    decoding: dict[str, float] = field(default_factory=dict)
    answers: int = 16
    teacher_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    precision: str = "auto"
    baseline: Literal["auto", "trained", "untrained", "none"] = "auto"
    select: Literal["last", "best"] = "last"
    export: list[Literal["onnx", "pt2"]] = field(default_factory=list)
    seed: int = 0
    devices: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"
    logger: list[Literal["tensorboard", "mlflow", "wandb"]] = field(default_factory=list)
    on_corrupt: Literal["error", "skip"] = "error"
    allow_py: bool = False
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False

    def check(self) -> Settings:
        """Refuse at once what can never work."""
        if self.resume and self.overwrite:
            raise UserError("resume", "together with overwrite", "one of the two")
        if str(self.teacher).startswith("server:") and str(self.signals).startswith("server:"):
            raise UserError("signals", self.signals, "live or cache, with a teacher behind a server")
        for key in ("teacher", "student", "data"):
            if getattr(self, key) in ("", None):
                raise UserError(key, "", "a reference; see limbeck distill --help")
        if not self.out and not self.dry_run:
            raise UserError("out", "", "a folder for the student and its report")
        if self.task is not None and self.task not in TASKS:
            raise UserError("task", self.task, TASKS)
        if self.task not in (None, "causal-lm") and (self.text != "data" or self.decoding):
            key = "text" if self.text != "data" else "decoding"
            raise UserError(key, getattr(self, key), "nothing, for this task", "only language models write texts")
        if self.epochs is not None and self.steps is not None:
            raise UserError("steps", f"{self.steps}, with {self.epochs} epochs", "one of the two")
        for key in ("epochs", "steps", "batch_size", "accumulate", "views", "max_length", "devices", "answers"):
            least = 0 if key == "answers" else 1
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(key, value, f"{least} or more")
        return self

    def complete(self) -> Settings:
        """With the teacher in its place, where only ``signals`` name it."""
        if self.teacher in ("", None) and str(self.signals).startswith("server:"):
            return dataclasses.replace(self, teacher=self.signals, signals=None)
        return self

    def plain(self) -> dict[str, Any]:
        """As plain values for a YAML file; objects given from Python are named by their class."""
        values = dataclasses.asdict(dataclasses.replace(self, teacher="", student="", data=""))
        for key in ("teacher", "student", "data"):
            given = getattr(self, key)
            several = isinstance(given, (list, tuple)) and all(isinstance(one, str) for one in given)
            values[key] = list(given) if several else given if isinstance(given, str) else f"<{type(given).__name__}>"
        return values
