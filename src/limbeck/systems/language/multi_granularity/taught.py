"""How an arm teaches one student: whose text it learns from, and what it minimises there.

Every arm of a seed begins with the same student, sees the same prompts in the same order for the same number of steps,
and has the same cross-entropy on the data. The last step counts.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from limbeck import testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, fit
from limbeck.experiment import Experiment, Outcome
from limbeck.language import (
    DataText,
    FunctionWordSpans,
    OnPolicy,
    RandomSpans,
    SequenceDistiller,
    StoredText,
    Writer,
)
from limbeck.objectives import ClippedKL, DataCrossEntropy, Objective
from limbeck.objectives.language import Spans
from limbeck.sources import Source
from limbeck.testbeds.recipe import seeded

from .method import mgsr_objective, scrg


@dataclass(frozen=True)
class Way:
    """How an arm teaches.

    Attributes:
        text: ``data``, ``own`` (samples), ``revised``, ``random-place``, ``replay`` (revised, from a buffer too),
            ``teacher-greedy`` or ``teacher-samples``.
        token: makes the term that compares distributions on that text; None for the cross-entropy on the data alone.
        spans: ``phrases`` or ``random``; None for no span term.
        span_weight: of that term.
    """

    text: str = "revised"
    token: Callable[[], Objective] | None = ClippedKL
    spans: str | None = None
    span_weight: float = 1.0


class Taught(Experiment):
    """Arms whose settings are :class:`Way`, on a testbed of texts.

    Attributes:
        steps, batch_size: by size.
        optimizer: of all arms.
        log_every: steps between the points of curves.
        norms_of: arms that also log the gradient norm of every term, which costs a backward pass each.
    """

    steps: Mapping[str, int]
    batch_size: Mapping[str, int]
    optimizer = OptimizerSettings(lr=5e-4, weight_decay=0.01, warmup=0.05)
    log_every = 10
    norms_of: Collection[str] = ()

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    @abstractmethod
    def assess(self, student: nn.Module) -> dict[str, float]:
        """Metrics of a student."""

    def source(self, way: Way) -> Source | nn.Module:
        """Who says what the teacher says."""
        found: nn.Module = self.bed.teacher()
        return found

    def run(self, arm: str, seed: int) -> Outcome:
        """Distil, then write and judge."""
        way: Way = self.arms[arm].setting
        pool, objective = self.bed.pool(), seeded(lambda: self.objective(way), seed)
        distiller = SequenceDistiller(
            self.bed.student(), objective, self.source(way), writer=self.writer(way), seed=seed,
            optimizer=self.optimizer, log_gradient_norms=arm in self.norms_of,
        )  # fmt: skip
        steps, rows = self.steps[self.size], self.batch_size[self.size]
        loader = TensorLoader(pool, rows, seed=seed, drop_last=True)
        begun, processor = time.perf_counter(), time.process_time()
        history = fit(distiller, loader, steps=steps, seed=seed, accelerator="cpu", log_every=self.log_every)
        seconds, spent = time.perf_counter() - begun, time.process_time() - processor
        student = distiller.finish()
        metrics = self.assess(student)
        curves = {name.replace("/", "_"): history.curve(name)["y"] for name in history.names() if name != "loss"}
        if "kept_mass" in curves:
            metrics |= {name: curves[name][-1] for name in ("kept_mass", "kept_classes")}
        cost = {
            "training_seconds": seconds,
            "processor_seconds_per_step": spent / steps,
            "samples_per_second": steps * rows / seconds,
        }
        found, notes = self.look(way, student, seed)
        return Outcome(metrics | found, curves, cost, notes)

    def look(self, way: Way, student: nn.Module, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Further metrics, and notes, of what is special to a way of teaching."""
        return {}, {}

    def writer(self, way: Way) -> Writer:
        """Whose text an arm learns from."""
        decoding = self.bed.decoding()
        if way.text.startswith("teacher-"):
            texts = self.bed.teacher_answers(None if way.text == "teacher-greedy" else 0)
            return StoredText(texts, self.bed.pool().id)
        made: dict[str, Callable[[], Writer]] = {
            "data": DataText,
            "own": lambda: OnPolicy(decoding),
            "revised": lambda: scrg(decoding),
            "random-place": lambda: scrg(decoding, rule="random"),
            "replay": lambda: scrg(decoding, replay=10 * self.batch_size[self.size]),
        }
        return made[way.text]()

    def objective(self, way: Way) -> Objective:
        """What an arm minimises."""
        if way.token is None:
            return DataCrossEntropy()
        spans: dict[str, Callable[[], Spans]] = {
            "phrases": lambda: FunctionWordSpans(self.bed.pieces(), self.bed.special),
            "random": RandomSpans,
        }
        chosen = spans[way.spans]() if way.spans else None
        return mgsr_objective(chosen, token=way.token(), span_weight=way.span_weight)
